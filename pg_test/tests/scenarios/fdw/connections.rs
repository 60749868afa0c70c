//! Connections of a session, side by side with postgres_fdw: their names, what closes them, and
//! what is told when they are lost.

use pg_test::Fleet;
use pg_test::oracle::{assert_settled, expect_error, one};

use crate::fdw::side_by_side::{TERMINATE, both, same_answers};
use crate::support::{NONE, Outcome};

#[test]
fn application_names_are_made_as_postgres_fdw_makes_them() -> Outcome {
    let fleet = both()?;
    fleet.session()?.batch_execute("ALTER SYSTEM SET cluster_name = 'somewhere'")?;
    let pid_of_session = "SELECT name = 'px ' || pg_backend_pid() || '%' FROM {me}";
    let name = "SELECT name FROM {me}";
    let option = "ALTER SERVER {server} OPTIONS (SET application_name ";
    let given = same_answers(
        &fleet,
        &[
            name,
            "ALTER SERVER {server} OPTIONS (ADD application_name 'px %p%%')",
            pid_of_session,
            &format!("{option}'%a-%d-%u-%C%q%')"),
            name,
            "SET application_name = 'another'; SELECT {functions}_disconnect('{server}')",
            name,
            // One that is empty in the end does not count.
            &format!("{option}'%q%')"),
            name,
            &format!("{option}'option')"),
            "SET postgres_fdw.application_name = 'setting %a'; SELECT name FROM {me}",
            name,
            "SET postgres_fdw.application_name = 'later'; SELECT name FROM {me}",
            "SET postgres_fdw.application_name = '%q'; SELECT {functions}_disconnect_all()",
            name,
            "SET postgres_fdw.application_name = '%c'; SELECT {functions}_disconnect_all()",
            "SELECT name ~ ('\\.' || to_hex(pg_backend_pid()) || '$') FROM {me}",
        ],
    )?;
    assert_eq!(given[0], "postgres_fdw");
    assert_eq!(given[2], "t");
    assert_eq!(given[4], "pg_test-postgres-postgres-");
    assert_eq!(given[6], "another-postgres-postgres-");
    assert_eq!(given[8], "postgres_fdw");
    assert_eq!(given[10], "setting another");
    assert_eq!(given[12], "setting another", "a session is not renamed");
    assert_eq!(given[14], "option");
    assert_eq!(given[16], "t");
    Ok(())
}

#[test]
fn the_resolver_has_a_name_of_its_own() -> Outcome {
    let mut fleet = Fleet::start()?;
    let mut session = fleet.session()?;
    session.batch_execute("ALTER SERVER shard1 OPTIONS (application_name 'a client')")?;
    session
        .batch_execute("BEGIN; INSERT INTO ft1 VALUES (1, 'x'); INSERT INTO ft2 VALUES (1, 'x')")?;
    session.batch_execute("PREPARE TRANSACTION 'g'")?;
    let mark = fleet.shard(1).log().mark()?;
    drop(session);
    fleet.shard_mut(1).restart()?;
    fleet.coordinator.kill9()?;
    fleet.coordinator.start()?;
    fleet.session()?.batch_execute("SELECT pg_fdw_xacts_resolve()")?;
    let log = fleet.shard(1).log().since(mark)?;
    assert!(log.contains("] pg_fdw_xacts resolver: LOG:"), "{log}");
    assert!(!log.contains("] a client: LOG:"), "{log}");
    fleet.session()?.batch_execute("ROLLBACK PREPARED 'g'")?;
    assert_settled(&fleet);
    Ok(())
}

#[test]
fn connections_are_listed_and_closed_by_hand() -> Outcome {
    let fleet = both()?;
    let list = "SELECT server_name, valid FROM {functions}_get_connections()";
    let given = same_answers(
        &fleet,
        &[
            list,
            "SELECT {functions}_disconnect('{server}')",
            "SELECT {functions}_disconnect_all()",
            "SELECT pid FROM {me}",
            list,
            "BEGIN; SELECT count(*) FROM {table}",
            list,
            "SELECT {functions}_disconnect('{server}')",
            "SELECT {functions}_disconnect_all()",
            "COMMIT",
            "SELECT {functions}_disconnect('{server}')",
            list,
            "SELECT pid FROM {me}",
            "SELECT {functions}_disconnect_all()",
            "SELECT {functions}_disconnect('nowhere')",
            "SELECT {functions}_disconnect(NULL)",
        ],
    )?;
    assert_eq!(given[4], "{server} | t");
    assert_eq!(given[14], "42704\nserver \"nowhere\" does not exist");

    let given = same_answers(
        &fleet,
        &[
            "BEGIN; SELECT pid FROM {me}",
            "SELECT {functions}_disconnect('{server}')",
            "DROP SERVER {server} CASCADE",
            "SELECT {functions}_disconnect_all()",
        ],
    )?;
    assert!(
        given[1].contains("01000\ncannot close connection for server \"{server}\""),
        "{given:?}"
    );
    assert!(given[3].contains("01000\ncannot close dropped server connection"), "{given:?}");
    Ok(())
}

/// From 18 on the list says more.
#[test]
fn the_list_of_connections_has_the_columns_of_the_version() -> Outcome {
    let fleet = both()?;
    let version: String =
        one(&mut fleet.session()?, "SELECT current_setting('server_version_num')")?;
    let columns =
        "SELECT string_agg(parameter_name || ' ' || data_type, ', ' ORDER BY ordinal_position)
        FROM information_schema.parameters
        WHERE specific_name LIKE '{functions}\\_get\\_connections\\_%'";
    let all = "SELECT * FROM {functions}_get_connections() WHERE valid";
    let given = same_answers(&fleet, &[columns, all])?;
    assert!(given[0].contains("server_name text"), "{}", given[0]);
    if version.as_str() < "18" {
        return Ok(());
    }
    let checked = "SELECT server_name, user_name, valid, used_in_xact, closed
        FROM {functions}_get_connections(true)";
    let given = same_answers(
        &fleet,
        &[
            "SELECT pid FROM {me}",
            "SELECT pid = remote_backend_pid FROM {functions}_get_connections(), {me}",
            "SELECT closed FROM {functions}_get_connections()",
            checked,
            "BEGIN; SELECT pid FROM {me}",
            checked,
            "DROP USER MAPPING FOR CURRENT_USER SERVER {server}",
            checked,
            "ROLLBACK",
            "SELECT pid FROM {me}",
            TERMINATE,
            checked,
            "CREATE USER MAPPING FOR PUBLIC SERVER {server} OPTIONS (user 'postgres')",
            "DROP USER MAPPING FOR CURRENT_USER SERVER {server}",
            "SELECT pid FROM {me}",
            checked,
        ],
    )?;
    assert_eq!(given[3], "{server} | postgres | t | f | f");
    assert_eq!(given[7], "{server} | NULL | f | t | f");
    assert_eq!(given[10], "{server} | postgres | t | f | t");
    assert_eq!(given[14], "{server} | public | t | f | f");
    Ok(())
}

#[test]
fn changed_options_close_a_connection_at_once_or_after_its_transaction() -> Outcome {
    let fleet = both()?;
    let list = "SELECT server_name, valid FROM {functions}_get_connections()";
    let given = same_answers(
        &fleet,
        &[
            "SELECT pid FROM {me}",
            "ALTER SERVER {server} OPTIONS (ADD fetch_size '7')",
            list,
            "SELECT pid FROM {me}",
            "ALTER USER MAPPING FOR CURRENT_USER SERVER {server} OPTIONS (ADD password 'x')",
            list,
            "SELECT pid FROM {me}",
            // In use: kept to the end.
            "BEGIN",
            "SELECT pid FROM {me}",
            "ALTER SERVER {server} OPTIONS (DROP fetch_size)",
            list,
            "SELECT pid FROM {me}",
            "COMMIT",
            list,
            "SELECT pid FROM {me}",
            "BEGIN",
            "SELECT pid FROM {me}",
            "DROP USER MAPPING FOR CURRENT_USER SERVER {server}",
            list,
            "SELECT pid FROM {me}",
            "ROLLBACK",
            list,
            "SELECT pid FROM {me}",
            "BEGIN",
            "SELECT pid FROM {me}",
            "DROP SERVER {server} CASCADE",
            list,
            "COMMIT",
            list,
        ],
    )?;
    assert_eq!(given[2], "", "it is closed at once");
    assert_eq!(given[3], "another session: true");
    assert_eq!(given[10], "{server} | f");
    assert_eq!(given[11], "another session: false");
    assert_eq!(given[14], "another session: true");
    assert_eq!(given[18], "{server} | f");
    assert_eq!(given[26], "NULL | f");
    assert_eq!(given[28], "");
    Ok(())
}

#[test]
fn a_session_elsewhere_that_changes_options_closes_the_connection_too() -> Outcome {
    let fleet = both()?;
    let mut session = fleet.session()?;
    let before: i32 = one(&mut session, "SELECT pid FROM me1")?;
    fleet
        .session()?
        .batch_execute("ALTER SERVER shard1 OPTIONS (ADD application_name 'changed')")?;
    assert_eq!(one::<String>(&mut session, "SELECT name FROM me1")?, "changed");
    assert_ne!(one::<i32>(&mut session, "SELECT pid FROM me1")?, before);
    Ok(())
}

#[test]
fn connections_that_are_not_kept_close_with_their_transaction() -> Outcome {
    let fleet = both()?;
    let list = "SELECT server_name, valid FROM {functions}_get_connections()";
    let given = same_answers(
        &fleet,
        &[
            "ALTER SERVER {server} OPTIONS (ADD keep_connections 'off')",
            "SELECT pid FROM {me}",
            list,
            "BEGIN",
            "SELECT pid FROM {me}",
            "SELECT pid FROM {me}",
            list,
            "ROLLBACK",
            list,
            "ALTER SERVER {server} OPTIONS (SET keep_connections 'on')",
            "SELECT pid FROM {me}",
            list,
        ],
    )?;
    assert_eq!((given[2].as_str(), given[8].as_str()), ("", ""));
    assert_eq!(given[11], "{server} | t");
    // It is closed after the second phase, not before it.
    let mut session = fleet.session()?;
    session.batch_execute(
        "ALTER SERVER shard1 OPTIONS (SET keep_connections 'off');
         BEGIN; INSERT INTO ft1 VALUES (1001, 'x'); INSERT INTO lt VALUES (1, 'x'); COMMIT",
    )?;
    assert_settled(&fleet);
    assert!(fleet.ids_on_shard(1)?.contains(&1001));
    Ok(())
}

/// What is in doubt on a server that has gone could never be settled.
#[test]
fn a_server_is_not_dropped_by_a_transaction_that_prepares_there() -> Outcome {
    let fleet = Fleet::start()?;
    let mut session = fleet.session()?;
    for drop in ["DROP SERVER shard1 CASCADE", "DROP USER MAPPING FOR CURRENT_USER SERVER shard1"] {
        session.batch_execute("BEGIN; INSERT INTO ft1 VALUES (1, 'x')")?;
        session.batch_execute(drop)?;
        let error = expect_error(session.batch_execute("COMMIT"), "55000");
        assert!(error.message().contains("shard1"), "{error:#?}");
    }
    session.batch_execute("BEGIN; SELECT * FROM ft1; DROP SERVER shard1 CASCADE; COMMIT")?;
    assert_settled(&fleet);
    assert_eq!(fleet.ids_on_shard(1)?, NONE);
    Ok(())
}
