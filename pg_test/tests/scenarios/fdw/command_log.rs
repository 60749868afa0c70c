//! `pg_fdw_xacts.log_remote_commands`: what the coordinator sends to its shards is in its log, with
//! server and gid.

use pg_test::oracle::{assert_usable, expect_error, one};
use pg_test::{DEADLINE, Fault, Fleet, Point, wait_until};
use postgres::NoTls;

use crate::doubt::log_lines;
use crate::support::{
    Outcome, assert_commits, assert_recovered, begin_everywhere, gid_of, in_background, serverid,
};

/// The commands that the coordinator has logged for a shard, in order.
fn logged(log: &str, server: &str) -> Vec<String> {
    let marker = format!("LOG:  remote command on server \"{server}\"");
    log.lines()
        .filter_map(|line| line.split_once(&marker)?.1.split_once(": "))
        .map(|(_, command)| command.to_owned())
        .collect()
}

#[test]
fn a_shard_is_asked_for_exactly_what_is_logged() -> Outcome {
    let fleet = Fleet::start()?;
    let mut session = fleet.session()?;
    assert_commits(&fleet, &mut session, 1)?;
    let shard = fleet.shard(1).log().mark()?;
    session.batch_execute("SET pg_fdw_xacts.log_remote_commands = on")?;
    let mark = fleet.coordinator.log().mark()?;
    begin_everywhere(&mut session, 2)?;
    session.batch_execute("SAVEPOINT s; TABLE ft1; ROLLBACK TO s; COMMIT")?;
    session.batch_execute("SET pg_fdw_xacts.log_remote_commands = off")?;
    let log = fleet.coordinator.log().since(mark)?;

    // Prepared statements are logged by name here, and with their text there.
    let is_plain =
        |command: &str| !command.starts_with("EXECUTE") && !command.starts_with("PREPARE px");
    let sent: Vec<_> = logged(&log, "shard1").into_iter().filter(|c| is_plain(c)).collect();
    let statements: Vec<_> = fleet
        .shard(1)
        .log()
        .statements_since(shard)?
        .into_iter()
        .map(|statement| statement.lines().next().unwrap_or_default().to_owned())
        .filter(|statement| sent.contains(statement))
        .collect();
    assert_eq!(sent, statements);
    for start in ["START TRANSACTION", "INSERT", "SAVEPOINT s2", "DECLARE", "FETCH", "ROLLBACK TO"]
    {
        assert!(sent.iter().any(|command| command.starts_with(start)), "{start}: {sent:#?}");
    }
    let prepare = gid_of(&sent, "PREPARE TRANSACTION");
    assert_eq!(gid_of(&sent, "COMMIT PREPARED"), prepare);
    assert_eq!(prepare.serverid, serverid(&fleet, 1)?);
    for command in
        ["EXECUTE px_lock", "EXECUTE px_constraints", "PREPARE TRANSACTION", "COMMIT PREPARED"]
    {
        let with_gid = format!("\"shard1\", gid px_{}_", prepare.n);
        let lines = log.lines().filter(|line| line.contains(&with_gid) && line.contains(command));
        assert_eq!(lines.count(), 1, "{command}: {log}");
    }
    assert!(
        log.lines().all(|line| !line.contains("START TRANSACTION") || !line.contains(", gid "))
    );

    let mark = fleet.coordinator.log().mark()?;
    assert_commits(&fleet, &mut session, 3)?;
    assert_eq!(logged(&fleet.coordinator.log().since(mark)?, "shard1"), [""; 0]);
    Ok(())
}

#[test]
fn a_transaction_is_followed_from_its_session_to_the_resolver() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    fleet.coordinator.configure(&[("pg_fdw_xacts.log_remote_commands", "on")])?;
    fleet.coordinator.reload()?;
    let mark = fleet.coordinator.log().mark()?;
    let mut session = fleet.session()?;
    wait_until("the setting has been read", DEADLINE, || {
        Ok(one::<String>(&mut session, "SHOW pg_fdw_xacts.log_remote_commands")? == "on")
    })?;
    begin_everywhere(&mut session, 1)?;
    let hit = fleet.proxy(1).inject(Fault::cut(Point::Statement, "COMMIT PREPARED"));
    session.batch_execute("COMMIT")?;
    hit.wait()?;
    assert_recovered(&fleet, 1, true)?;
    let log = fleet.coordinator.log().since(mark)?;
    let sent = logged(&log, "shard1");
    let commit = sent.iter().find(|command| command.starts_with("COMMIT PREPARED"));
    let commit = commit.unwrap_or_else(|| panic!("the session has not sent it: {log}"));
    // A background process has no application_name.
    let by_resolver = ["] : LOG:  remote command on server \"shard1\"", commit];
    assert_eq!(log_lines(&fleet, mark, &by_resolver)?, 1, "{log}");
    assert_eq!(sent.iter().filter(|command| *command == commit).count(), 2, "{log}");
    assert!(log_lines(&fleet, mark, &["connected on server \"shard1\": process "])? >= 2);
    Ok(())
}

#[test]
fn a_cancel_request_is_logged() -> Outcome {
    let fleet = Fleet::start()?;
    let mut session = fleet.session()?;
    session.batch_execute(
        "SET pg_fdw_xacts.log_remote_commands = on;
         CREATE FOREIGN TABLE sleeps (id int) SERVER shard1 OPTIONS (table_name 'sleeps')",
    )?;
    fleet
        .shard(1)
        .client()?
        .batch_execute("CREATE VIEW sleeps AS SELECT 1 AS id FROM pg_sleep(600)")?;
    let mark = fleet.coordinator.log().mark()?;
    let cancel = session.cancel_token();
    let query = in_background(session, "SELECT FROM sleeps");
    wait_until("the query runs", DEADLINE, || {
        Ok(log_lines(&fleet, mark, &["remote command on server \"shard1\": FETCH"])? == 1)
    })?;
    cancel.cancel_query(NoTls)?;
    let (mut session, result) = query.join();
    expect_error(result, "57014");
    // The client has the error before the session cancels on the shard; it answers again after that.
    assert_usable(&mut session);
    assert_eq!(log_lines(&fleet, mark, &["cancel request on server \"shard1\""])?, 1);
    Ok(())
}

#[test]
fn only_those_who_may_set_what_is_logged_may_set_it() -> Outcome {
    let fleet = Fleet::start()?;
    let mut session = fleet.session()?;
    session.batch_execute("CREATE ROLE app; SET ROLE app")?;
    expect_error(session.batch_execute("SET pg_fdw_xacts.log_remote_commands = on"), "42501");
    Ok(())
}
