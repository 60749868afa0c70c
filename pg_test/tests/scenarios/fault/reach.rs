//! What the resolver needs to reach a participant is committed and stays as it is before that
//! participant prepares: its server, its user mapping, the wrapper's handler, the role that uses
//! it.

use pg_test::oracle::{assert_settled, expect_error, prepared_gids};
use pg_test::{DEADLINE, Fleet, wait_until};
use postgres::Client;

use crate::support::{Outcome, assert_commits, in_background, start};

/// How a transaction that must not prepare ends, after each of which nothing may be left on a
/// shard.
const ENDINGS: [&str; 2] = ["PREPARE TRANSACTION 'r'", "COMMIT"];

/// Runs a transaction that writes on both shards and changes what the resolver would need, once for
/// each ending: it is refused before anything is prepared, and the error names the way out.
#[track_caller]
fn assert_refused(fleet: &Fleet, statements: &str) -> Outcome {
    for ending in ENDINGS {
        let mut session = fleet.session()?;
        // The resolver may be looking at a shard just then.
        session.batch_execute("SELECT * FROM pg_fdw_xacts_resolve()")?;
        session.batch_execute("BEGIN")?;
        session.batch_execute(statements)?;
        let error = expect_error(session.batch_execute(ending), "55000");
        assert!(error.message().starts_with("cannot commit atomically on server"), "{error:#?}");
        assert!(
            error.hint().is_some_and(|hint| hint.contains("in a transaction of its own")),
            "{statements}: {error:#?}"
        );
        for shard in fleet.shards() {
            assert_eq!(prepared_gids(shard)?, Vec::<String>::new(), "{statements}");
        }
    }
    assert_settled(fleet);
    Ok(())
}

fn new_server(fleet: &Fleet) -> String {
    format!(
        "CREATE SERVER fresh FOREIGN DATA WRAPPER pg_fdw_xacts
             OPTIONS (host '127.0.0.1', port '{}', dbname 'postgres')",
        fleet.port_of_shard(1)
    )
}

const NEW_MAPPING: &str =
    "CREATE USER MAPPING FOR CURRENT_USER SERVER fresh OPTIONS (user 'postgres')";
const NEW_TABLE: &str =
    "CREATE FOREIGN TABLE fresh (id int, v text) SERVER fresh OPTIONS (table_name 't')";

/// Red on 0.2.0: `px_…` stayed on the shard for good after ROLLBACK PREPARED.
#[test]
fn a_server_or_mapping_made_in_the_transaction() -> Outcome {
    let (fleet, _session) = start()?;
    let server = new_server(&fleet);
    let write = "INSERT INTO fresh VALUES (1, 'x'); INSERT INTO ft2 VALUES (1, 'x')";
    assert_refused(&fleet, &format!("{server}; {NEW_MAPPING}; {NEW_TABLE}; {write}"))?;
    // A change in a subtransaction counts as well.
    assert_refused(
        &fleet,
        &format!("SAVEPOINT a; {server}; {NEW_MAPPING}; {NEW_TABLE}; RELEASE a; {write}"),
    )?;
    // The way out, as the hint says.
    let mut session = fleet.session()?;
    session.batch_execute(&server)?;
    assert_refused(&fleet, &format!("{NEW_MAPPING}; {NEW_TABLE}; {write}"))?;
    session.batch_execute(&format!("{NEW_MAPPING}; {NEW_TABLE}"))?;
    session.batch_execute("BEGIN; INSERT INTO fresh VALUES (1, 'x')")?;
    session.batch_execute("INSERT INTO ft2 VALUES (1, 'x'); COMMIT")?;
    assert_settled(&fleet);
    assert_eq!(fleet.ids_on_shard(1)?, [1]);
    assert_eq!(fleet.ids_on_shard(2)?, [1]);
    Ok(())
}

/// Red on 0.2.0, before the write and after it.
#[test]
fn a_server_or_mapping_changed_in_the_transaction() -> Outcome {
    let (fleet, mut session) = start()?;
    session.batch_execute(
        "CREATE USER MAPPING FOR PUBLIC SERVER shard1 OPTIONS (user 'postgres');
         CREATE FOREIGN DATA WRAPPER other HANDLER postgres_fdw_handler VALIDATOR postgres_fdw_validator",
    )?;
    let moved = format!("ALTER SERVER shard1 OPTIONS (SET port '{}')", fleet.port_of_shard(2));
    let write = "INSERT INTO ft1 VALUES (1, 'x'); INSERT INTO ft2 VALUES (2, 'x')";
    let changes = [
        moved.as_str(),
        "ALTER SERVER shard1 OPTIONS (SET host 'localhost')",
        "ALTER SERVER shard1 OPTIONS (SET dbname 'template1', ADD connect_timeout '9')",
        "ALTER USER MAPPING FOR CURRENT_USER SERVER shard1 OPTIONS (ADD password 'x')",
        "DROP USER MAPPING FOR CURRENT_USER SERVER shard1",
        "DROP USER MAPPING FOR CURRENT_USER SERVER shard1;
         CREATE USER MAPPING FOR CURRENT_USER SERVER shard1 OPTIONS (user 'postgres')",
        "ALTER FOREIGN DATA WRAPPER pg_fdw_xacts HANDLER postgres_fdw_handler",
    ];
    for change in changes {
        assert_refused(&fleet, &format!("{write}; {change}"))?;
    }
    for change in &changes[..5] {
        if !change.contains("template1") {
            assert_refused(&fleet, &format!("{change}; {write}"))?;
        }
    }
    // What the resolver does not need may change, also in a transaction that writes there.
    session.batch_execute(&format!(
        "BEGIN; ALTER SERVER shard1 OPTIONS (ADD fetch_size '77'); {write};
         ALTER SERVER shard2 OPTIONS (ADD use_remote_estimate 'true');
         COMMENT ON SERVER shard1 IS 'x'; COMMIT"
    ))?;
    assert_settled(&fleet);
    // A mapping that would be used from now on.
    session.batch_execute("DROP USER MAPPING FOR CURRENT_USER SERVER shard1")?;
    let create = "CREATE USER MAPPING FOR CURRENT_USER SERVER shard1 OPTIONS (user 'postgres')";
    let write = "INSERT INTO ft1 VALUES (3, 'x'); INSERT INTO ft2 VALUES (4, 'x')";
    assert_refused(&fleet, &format!("{create}; {write}"))?;
    assert_refused(&fleet, &format!("{write}; {create}"))
}

/// The statement that changes the server is the last one of its message: nothing has made it
/// visible yet. Red on 0.2.0: committed all the same.
#[test]
fn a_change_right_before_the_end_of_an_implicit_transaction() -> Outcome {
    let (fleet, mut session) = start()?;
    let error = expect_error(
        session.batch_execute(
            "INSERT INTO ft1 VALUES (1, 'x'); INSERT INTO ft2 VALUES (1, 'x');
             ALTER SERVER shard1 OPTIONS (SET host 'localhost')",
        ),
        "55000",
    );
    assert!(error.message().contains("shard1"), "{error:#?}");
    assert_settled(&fleet);
    assert_commits(&fleet, &mut session, 1)
}

/// Without a password of the mapping the resolver may only connect for a superuser, and this one
/// goes with the transaction. Red on 0.2.0: in doubt for ever with `password is required`.
#[test]
fn a_role_made_in_the_transaction() -> Outcome {
    let (fleet, mut session) = start()?;
    session.batch_execute(
        "CREATE USER MAPPING FOR PUBLIC SERVER shard1 OPTIONS (user 'postgres');
         CREATE USER MAPPING FOR PUBLIC SERVER shard2 OPTIONS (user 'postgres');
         CREATE ROLE plain",
    )?;
    let write = "INSERT INTO ft1 VALUES (1, 'x'); INSERT INTO ft2 VALUES (1, 'x'); RESET ROLE";
    assert_refused(&fleet, &format!("CREATE ROLE boss SUPERUSER; SET ROLE boss; {write}"))?;
    assert_refused(&fleet, &format!("ALTER ROLE plain SUPERUSER; SET ROLE plain; {write}"))?;
    // Where the mapping says that no password is needed, the role does not matter.
    session.batch_execute(
        "ALTER USER MAPPING FOR PUBLIC SERVER shard1 OPTIONS (ADD password_required 'false');
         ALTER USER MAPPING FOR PUBLIC SERVER shard2 OPTIONS (ADD password_required 'false')",
    )?;
    session.batch_execute(&format!(
        "BEGIN; CREATE ROLE boss SUPERUSER; SET ROLE boss; {write}; PREPARE TRANSACTION 'r'"
    ))?;
    session.batch_execute("ROLLBACK PREPARED 'r'")?;
    assert_settled(&fleet);
    Ok(())
}

/// A transaction over both shards in the background, at its PREPARE TRANSACTION, while another one
/// has dropped the mapping and not ended.
fn beside_a_drop(
    fleet: &Fleet,
    drop: &mut Client,
    ending: &str,
) -> anyhow::Result<Result<(), postgres::Error>> {
    let mut session = fleet.session()?;
    session
        .batch_execute("BEGIN; INSERT INTO ft1 VALUES (1, 'x'); INSERT INTO ft2 VALUES (1, 'x')")?;
    drop.batch_execute("BEGIN; DROP USER MAPPING FOR CURRENT_USER SERVER shard1")?;
    let prepare = in_background(session, "PREPARE TRANSACTION 'r'");
    let mut look = fleet.session()?;
    wait_until("PREPARE TRANSACTION waits or has ended", DEADLINE, || {
        let waits = look.query(
            "SELECT FROM pg_stat_activity WHERE query LIKE 'PREPARE TRANSACTION%' AND state = 'active'
             AND wait_event_type IN ('Extension', 'Lock')",
            &[],
        )?;
        Ok(!waits.is_empty() || prepare.is_finished())
    })?;
    drop.batch_execute(ending)?;
    Ok(prepare.join().1)
}

/// Another session's DROP that has not ended yet decides whether the mapping is there. Red on
/// 0.2.0: prepared, and then without a mapping.
#[test]
fn a_mapping_that_another_session_is_dropping() -> Outcome {
    let (fleet, _session) = start()?;
    let mut operator = fleet.session()?;
    beside_a_drop(&fleet, &mut operator, "ROLLBACK")??;
    operator.batch_execute("ROLLBACK PREPARED 'r'")?;
    assert_settled(&fleet);
    let result = beside_a_drop(&fleet, &mut operator, "COMMIT")?;
    expect_error(result, "40001");
    assert_settled(&fleet);
    // The other way round the DROP is refused, and does not wait for what is prepared here.
    operator.batch_execute(
        "CREATE USER MAPPING FOR CURRENT_USER SERVER shard1 OPTIONS (user 'postgres'); SET lock_timeout = '5s'",
    )?;
    let mut session = fleet.session()?;
    session
        .batch_execute("BEGIN; INSERT INTO ft1 VALUES (1, 'x'); INSERT INTO ft2 VALUES (1, 'x')")?;
    session.batch_execute("PREPARE TRANSACTION 'r'")?;
    expect_error(
        operator.batch_execute("DROP USER MAPPING FOR CURRENT_USER SERVER shard1"),
        "55006",
    );
    session.batch_execute("COMMIT PREPARED 'r'")?;
    assert_settled(&fleet);
    Ok(())
}

/// Another session moves the server while a transaction has a connection there: the resolver would
/// look elsewhere. The transaction can be tried again. Red on 0.2.0: committed all the same.
#[test]
fn a_server_that_another_session_has_moved() -> Outcome {
    let (fleet, mut session) = start()?;
    session
        .batch_execute("BEGIN; INSERT INTO ft1 VALUES (1, 'x'); INSERT INTO ft2 VALUES (1, 'x')")?;
    fleet.session()?.batch_execute("ALTER SERVER shard1 OPTIONS (SET host 'localhost')")?;
    let error = expect_error(session.batch_execute("COMMIT"), "40001");
    assert!(error.message().contains("shard1"), "{error:#?}");
    assert_settled(&fleet);
    // What the resolver does not use is no reason.
    session
        .batch_execute("BEGIN; INSERT INTO ft1 VALUES (2, 'x'); INSERT INTO ft2 VALUES (2, 'x')")?;
    fleet.session()?.batch_execute("ALTER SERVER shard1 OPTIONS (ADD fetch_size '50')")?;
    session.batch_execute("COMMIT")?;
    // One writer commits in one phase: nothing has to be settled later.
    session.batch_execute("BEGIN; INSERT INTO ft1 VALUES (3, 'x')")?;
    fleet.session()?.batch_execute("ALTER SERVER shard1 OPTIONS (SET host '127.0.0.1')")?;
    session.batch_execute("COMMIT")?;
    assert_settled(&fleet);
    assert_eq!(fleet.ids_on_shard(1)?, [2, 3]);
    Ok(())
}

/// Who connected as a superuser, without a password, and is none any more when the transaction
/// ends: nobody could settle what is prepared under that name. Red on 0.2.0: prepared all the same.
#[test]
fn a_role_that_may_not_connect_any_more() -> Outcome {
    let (fleet, mut session) = start()?;
    session.batch_execute(
        "DROP USER MAPPING FOR CURRENT_USER SERVER shard1;
         DROP USER MAPPING FOR CURRENT_USER SERVER shard2;
         CREATE USER MAPPING FOR PUBLIC SERVER shard1 OPTIONS (user 'postgres');
         CREATE USER MAPPING FOR PUBLIC SERVER shard2 OPTIONS (user 'postgres');
         CREATE ROLE boss SUPERUSER; CREATE ROLE other SUPERUSER; CREATE ROLE brief SUPERUSER",
    )?;
    let write = |role: &str| {
        format!(
            "SET ROLE {role}; INSERT INTO ft1 VALUES (1, 'x'); INSERT INTO ft2 VALUES (1, 'x'); RESET ROLE"
        )
    };
    // By the transaction itself.
    assert_refused(&fleet, &format!("{}; DROP ROLE brief", write("brief")))?;
    assert_refused(&fleet, &format!("{}; ALTER ROLE brief NOSUPERUSER", write("brief")))?;
    // By somebody else.
    for (role, change, ending) in [
        ("boss", "ALTER ROLE boss NOSUPERUSER", "COMMIT"),
        ("other", "DROP ROLE other", "PREPARE TRANSACTION 'r'"),
    ] {
        session.batch_execute(&format!("BEGIN; {}", write(role)))?;
        fleet.session()?.batch_execute(change)?;
        expect_error(session.batch_execute(ending), "2F003");
        assert_settled(&fleet);
    }
    assert_eq!(fleet.ids_on_shard(1)?, [] as [i32; 0]);
    Ok(())
}

/// Another session takes the handler away: the resolver would not connect there. Red on 0.2.0:
/// committed all the same.
#[test]
fn a_handler_that_another_session_has_changed() -> Outcome {
    let (fleet, mut session) = start()?;
    session
        .batch_execute("BEGIN; INSERT INTO ft1 VALUES (1, 'x'); INSERT INTO ft2 VALUES (1, 'x')")?;
    let mut operator = fleet.session()?;
    operator
        .batch_execute("ALTER FOREIGN DATA WRAPPER pg_fdw_xacts HANDLER postgres_fdw_handler")?;
    expect_error(session.batch_execute("COMMIT"), "40001");
    operator
        .batch_execute("ALTER FOREIGN DATA WRAPPER pg_fdw_xacts HANDLER pg_fdw_xacts_handler")?;
    assert_settled(&fleet);
    assert_commits(&fleet, &mut session, 2)
}

/// A role that is dropped while what it has written waits for its outcome, where no other
/// participant is there to settle it. The way out of docs/src/limits.md.
#[test]
fn a_role_that_is_dropped_while_in_doubt() -> Outcome {
    let (fleet, mut session) = start()?;
    let mapping = |change: &str, options: &str| -> String {
        let of = |server: u8| {
            format!("{change} USER MAPPING FOR PUBLIC SERVER shard{server} OPTIONS ({options});")
        };
        of(1) + &of(2)
    };
    session.batch_execute(&format!(
        "DROP USER MAPPING FOR CURRENT_USER SERVER shard1;
         DROP USER MAPPING FOR CURRENT_USER SERVER shard2;
         {} CREATE ROLE boss SUPERUSER",
        mapping("CREATE", "user 'postgres'")
    ))?;
    session.batch_execute(
        "BEGIN; SET ROLE boss; INSERT INTO ft1 VALUES (1, 'x'); INSERT INTO ft2 VALUES (1, 'x'); RESET ROLE;
         PREPARE TRANSACTION 'r'",
    )?;
    session.batch_execute("DROP ROLE boss")?;
    session.batch_execute("COMMIT PREPARED 'r'")?;
    wait_until("the resolver tells why it cannot connect", DEADLINE, || {
        let told = session.query(
            "SELECT FROM pg_stat_fdw_xacts WHERE last_error LIKE '%password%required%'",
            &[],
        )?;
        Ok(told.len() == 2)
    })?;
    session.batch_execute(&mapping("ALTER", "ADD password_required 'false'"))?;
    assert_settled(&fleet);
    assert_eq!((fleet.ids_on_shard(1)?, fleet.ids_on_shard(2)?), (vec![1], vec![1]));
    Ok(())
}
