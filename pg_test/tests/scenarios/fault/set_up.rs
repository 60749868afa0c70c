//! A shard refuses what each session begins with: nothing is taken from that session, and the error
//! says why.

use pg_test::Fleet;
use pg_test::oracle::{assert_usable, expect_error};

use crate::support::{NONE, Outcome};

/// Each session asks which server it is on. Red before: `cannot be used due to abort cleanup
/// failure`, or that a prepared statement does not exist.
#[test]
fn a_role_that_may_not_do_what_a_session_begins_with_is_told_so() -> Outcome {
    let fleet = Fleet::start()?;
    let mut shard = fleet.shard(1).client()?;
    shard.batch_execute(
        "CREATE ROLE app LOGIN; GRANT ALL ON t TO app;
         REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC",
    )?;
    let mut session = fleet.session()?;
    session.batch_execute(
        "ALTER USER MAPPING FOR CURRENT_USER SERVER shard1 OPTIONS (SET user 'app')",
    )?;
    for statement in ["SELECT * FROM ft1", "INSERT INTO ft1 VALUES (1, 'x')"] {
        let refused = expect_error(session.batch_execute(statement), "42501");
        assert_eq!(refused.message(), "could not set up a session on server \"shard1\"");
        assert!(refused.detail().unwrap_or_default().contains("pg_control_system"), "{refused:#?}");
        assert_usable(&mut session);
    }
    shard.batch_execute("GRANT EXECUTE ON FUNCTION pg_control_system() TO app")?;
    session.batch_execute("INSERT INTO ft1 VALUES (1, 'x')")?;
    Ok(())
}

/// What follows a set-up that has failed half-way may still run there, with other settings than
/// values are read by. The proxy has the session prepare a statement under a name that is taken.
#[test]
fn nothing_is_taken_from_a_session_that_is_not_set_up() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    fleet.proxy(1).reword("px_fetch", "px_begin");
    let mut session = fleet.session()?;
    for statement in [
        "INSERT INTO ft1 VALUES (1, 'x')",
        "BEGIN; INSERT INTO ft1 VALUES (1, 'x'); COMMIT",
        "SELECT pg_fdw_xacts_exec('shard1', 'INSERT INTO t VALUES (1)')",
    ] {
        let refused = expect_error(session.batch_execute(statement), "0A000");
        assert!(refused.message().contains("does not reset sessions"), "{refused:#?}");
        session.batch_execute("ROLLBACK")?;
    }
    assert_eq!(fleet.ids_on_shard(1)?, NONE);
    Ok(())
}
