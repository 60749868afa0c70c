//! No connection outlives the permission that it was made under: who may not connect does not use
//! what somebody else's permission has opened, and the resolver's sessions follow their mappings.
//!
//! Everywhere the PUBLIC mapping leads to a role that the shard trusts, which is for superusers
//! alone: others are told that a password is required.

use pg_test::Fleet;
use pg_test::oracle::{assert_settled, expect_error, one, prepared_gids, wait_for_attempts};
use postgres::Client;

use crate::support::{
    Outcome, assert_recovered, hold_commits, in_background, release_commits, transaction,
    wait_for_held_commit,
};

/// A role `app` that may use everything on the coordinator, and whom the mapping gives no password.
fn start() -> anyhow::Result<Fleet> {
    let fleet = Fleet::start()?;
    fleet.session()?.batch_execute(
        "DROP USER MAPPING FOR CURRENT_USER SERVER shard1;
         CREATE USER MAPPING FOR PUBLIC SERVER shard1 OPTIONS (user 'postgres');
         CREATE ROLE app LOGIN; GRANT USAGE ON FOREIGN SERVER shard1 TO app;
         GRANT ALL ON ft1, lt TO app; GRANT CREATE ON SCHEMA public TO app;
         GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO app",
    )?;
    Ok(fleet)
}

/// A role without a password cannot use the shard in any way.
#[track_caller]
fn assert_shut_out(session: &mut Client) {
    for statement in [
        "SELECT * FROM ft1",
        "INSERT INTO ft1 VALUES (100, 'stolen')",
        "SELECT pg_fdw_xacts_exec('shard1', 'DELETE FROM t')",
        "ANALYZE ft1",
    ] {
        expect_error(session.batch_execute(statement), "2F003");
    }
}

fn connections(session: &mut Client) -> anyhow::Result<i64> {
    one(session, "SELECT count(*) FROM pg_fdw_xacts_get_connections()")
}

/// Red on 0.2.0: after the refusal SELECT and INSERT worked, as the shard's superuser.
#[test]
fn who_may_not_settle_gxid_gets_no_connection() -> Outcome {
    let fleet = start()?;
    let mut owner = fleet.session()?;
    transaction(
        &mut owner,
        &["INSERT INTO ft1 VALUES (1, 'x')", "INSERT INTO lt VALUES (1, 'x')"],
    )?;
    for (id, settle) in [(2, "COMMIT PREPARED"), (3, "ROLLBACK PREPARED")] {
        owner.batch_execute(&format!(
            "BEGIN; INSERT INTO ft1 VALUES ({id}, 'x'); INSERT INTO lt VALUES ({id}, 'x');
             PREPARE TRANSACTION 'theirs'"
        ))?;
        let mut app = fleet.coordinator.client_for("postgres", "app")?;
        assert_shut_out_but_owner(&mut app);
        let refused = expect_error(app.batch_execute(&format!("{settle} 'theirs'")), "42501");
        assert!(refused.message().contains("prepared transaction"), "{refused:#?}");
        assert_eq!(connections(&mut app)?, 0);
        assert_shut_out_but_owner(&mut app);
        owner.batch_execute(&format!("{settle} 'theirs'"))?;
        assert_settled(&fleet);
    }
    assert_eq!(fleet.ids_on_shard(1)?, [1, 2]);
    Ok(())
}

/// The same for a role that does not own the foreign table, which ANALYZE checks first.
#[track_caller]
fn assert_shut_out_but_owner(session: &mut Client) {
    for statement in ["SELECT * FROM ft1", "INSERT INTO ft1 VALUES (100, 'stolen')"] {
        expect_error(session.batch_execute(statement), "2F003");
    }
}

/// Who settles what wrote with another's mapping (here that of a view's owner) gets no further with
/// it than before. Red on 0.2.0: SELECT and INSERT worked after COMMIT PREPARED.
#[test]
fn who_settles_what_another_mapping_wrote_does_not_get_that() -> Outcome {
    let fleet = start()?;
    fleet
        .session()?
        .batch_execute("CREATE VIEW theirs AS SELECT * FROM ft1; GRANT ALL ON theirs TO app")?;
    let mut app = fleet.coordinator.client_for("postgres", "app")?;
    app.batch_execute(
        "BEGIN; INSERT INTO theirs VALUES (1, 'x'); INSERT INTO lt VALUES (1, 'x');
         PREPARE TRANSACTION 'own'",
    )?;
    let mut app = fleet.coordinator.client_for("postgres", "app")?;
    app.batch_execute("COMMIT PREPARED 'own'")?;
    assert_shut_out_but_owner(&mut app);
    app.batch_execute("INSERT INTO theirs VALUES (2, 'x')")?;
    assert_shut_out_but_owner(&mut app);
    assert_settled(&fleet);
    assert_eq!(fleet.ids_on_shard(1)?, [1, 2]);
    Ok(())
}

/// Where PostgreSQL fails to settle 'gxid', no connection stays that was made for it. Red on 0.2.0.
#[test]
fn what_was_opened_for_a_settlement_that_fails_is_closed() -> Outcome {
    let fleet = start()?;
    let mut session = fleet.session()?;
    session.batch_execute(
        "BEGIN; INSERT INTO ft1 VALUES (1, 'x'); INSERT INTO lt VALUES (1, 'x');
         PREPARE TRANSACTION 'busy'",
    )?;
    // While one session settles it, and waits for a standby that there is not, another may not.
    let held = hold_commits(&fleet.coordinator)?;
    let settling = in_background(session, "COMMIT PREPARED 'busy'");
    wait_for_held_commit(&fleet.coordinator, &held, "COMMIT PREPARED")?;
    let mut other = fleet.session()?;
    expect_error(other.batch_execute("COMMIT PREPARED 'busy'"), "55000");
    assert_eq!(connections(&mut other)?, 0);
    release_commits(&fleet.coordinator, held)?;
    settling.join().1?;
    assert_settled(&fleet);
    Ok(())
}

/// Red on 0.2.0 in each: the connection that a superuser, or one of their views
/// and functions, had opened served everybody in the session.
#[test]
fn a_superusers_connection_serves_no_other_role_of_the_session() -> Outcome {
    let fleet = start()?;
    let mut session = fleet.session()?;
    session.batch_execute(
        "CREATE VIEW theirs AS SELECT * FROM ft1; GRANT ALL ON theirs TO app;
         CREATE FUNCTION look() RETURNS bigint LANGUAGE sql SECURITY DEFINER AS 'SELECT count(*) FROM ft1';
         ALTER FOREIGN TABLE ft1 OWNER TO app",
    )?;
    // SET ROLE, between transactions and inside of one.
    session.batch_execute("SELECT * FROM ft1; SET ROLE app")?;
    assert_shut_out(&mut session);
    session
        .batch_execute("RESET ROLE; SELECT * FROM ft1; BEGIN; SELECT * FROM ft1; SET ROLE app")?;
    expect_error(session.batch_execute("SELECT * FROM ft1"), "2F003");
    session.batch_execute("ROLLBACK; RESET ROLE; SELECT * FROM ft1")?;
    // What runs with the owner's permission opens nothing for the caller.
    let mut app = fleet.coordinator.client_for("postgres", "app")?;
    for (opens, end) in [
        ("SELECT * FROM theirs", ""),
        ("SELECT look()", ""),
        ("BEGIN; SELECT * FROM theirs", "ROLLBACK"),
        ("BEGIN; SELECT look()", "ROLLBACK"),
    ] {
        app.batch_execute(opens)?;
        expect_error(app.batch_execute("SELECT * FROM ft1"), "2F003");
        app.batch_execute(end)?;
        assert_shut_out(&mut app);
    }
    Ok(())
}

/// Permission that is taken away while the connection is open. Red on 0.2.0.
#[test]
fn a_connection_does_not_outlive_what_permitted_it() -> Outcome {
    let fleet = start()?;
    let mut session = fleet.session()?;
    session.batch_execute(
        "CREATE ROLE boss LOGIN SUPERUSER; GRANT ALL ON ft1, lt TO boss;
         CREATE ROLE waived LOGIN; GRANT ALL ON ft1 TO waived;
         CREATE USER MAPPING FOR waived SERVER shard1 OPTIONS (user 'postgres', password_required 'false')",
    )?;
    let open = "SELECT * FROM ft1";
    let mut boss = fleet.coordinator.client_for("postgres", "boss")?;
    boss.batch_execute(open)?;
    boss.batch_execute(&format!("BEGIN; {open}"))?;
    session.batch_execute("ALTER ROLE boss NOSUPERUSER")?;
    expect_error(boss.batch_execute(open), "2F003");
    boss.batch_execute("ROLLBACK")?;
    expect_error(boss.batch_execute(open), "2F003");
    session.batch_execute("ALTER ROLE boss SUPERUSER")?;
    boss.batch_execute(open)?;

    let mut waived = fleet.coordinator.client_for("postgres", "waived")?;
    waived.batch_execute(&format!("{open}; BEGIN; {open}"))?;
    session.batch_execute(
        "ALTER USER MAPPING FOR waived SERVER shard1 OPTIONS (SET password_required 'true')",
    )?;
    expect_error(waived.batch_execute(open), "2F003");
    waived.batch_execute("ROLLBACK")?;
    expect_error(waived.batch_execute(open), "2F003");
    Ok(())
}

/// Red on 0.2.0: it stayed in doubt for ever on the session of the role that may not settle it.
#[test]
fn the_resolvers_session_follows_its_mapping() -> Outcome {
    let mended: [&str; 2] = [
        "ALTER USER MAPPING FOR CURRENT_USER SERVER shard1 OPTIONS (SET user 'postgres')",
        "ALTER SERVER shard1 OPTIONS (SET options '-c role=none')",
    ];
    for (number, mend) in mended.into_iter().enumerate() {
        let fleet = Fleet::start_proxied()?;
        fleet.shard(1).client()?.batch_execute("CREATE ROLE weak LOGIN")?;
        let mut session = fleet.in_doubt(1)?;
        session.batch_execute(if number == 0 {
            "ALTER USER MAPPING FOR CURRENT_USER SERVER shard1 OPTIONS (SET user 'weak')"
        } else {
            "ALTER SERVER shard1 OPTIONS (ADD options '-c role=weak')"
        })?;
        fleet.reconnect(1);
        wait_for_attempts(&fleet, 1, 3)?;
        assert_eq!(prepared_gids(fleet.shard(1))?.len(), 1, "the weak role settles");
        session.batch_execute(mend)?;
        assert_recovered(&fleet, 1, true)?;
    }
    Ok(())
}
