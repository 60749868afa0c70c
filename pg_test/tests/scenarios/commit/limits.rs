//! No limit is silent: on databases, servers, requests, entries.

use std::time::{Duration, Instant};

use pg_test::oracle::{assert_settled, expect_error, expect_terminated, one, prepared_gids};
use pg_test::proxy::NewConnections;
use pg_test::{
    DEADLINE, Fault, Fleet, FleetOptions, Point, StopMode, lengthened_by_load, wait_until,
};
use postgres::Client;

use crate::support::{
    Outcome, assert_commits, assert_everywhere, begin_everywhere, in_background, statuses,
};

/// Red on 0.2.0: the 64 places went to the first 64 databases, with the extension or without,
/// and what was in doubt in those behind was never settled; a WARNING for each that found no
/// worker.
#[test]
fn the_last_of_seventy_databases_is_settled_after_a_restart() -> Outcome {
    let mut fleet = Fleet::start_proxied()?;
    let mut session = fleet.session()?;
    for number in 1..=68 {
        session.batch_execute(&format!("CREATE DATABASE d{number} STRATEGY file_copy"))?;
    }
    session.batch_execute("CREATE DATABASE last STRATEGY file_copy")?;
    let mut last = fleet.coordinator.client_for("last", "postgres")?;
    last.batch_execute("CREATE EXTENSION pg_fdw_xacts CASCADE")?;
    for number in [1, 2] {
        last.batch_execute(&format!(
            "CREATE SERVER s{number} FOREIGN DATA WRAPPER pg_fdw_xacts
                 OPTIONS (host '127.0.0.1', port '{}', dbname 'postgres');
             CREATE USER MAPPING FOR CURRENT_USER SERVER s{number} OPTIONS (user 'postgres');
             CREATE FOREIGN TABLE ft{number} (id int, v text) SERVER s{number}
                 OPTIONS (table_name 't')",
            fleet.port_of_shard(number)
        ))?;
    }
    last.batch_execute("BEGIN; INSERT INTO ft1 VALUES (1, 'x'); INSERT INTO ft2 VALUES (1, 'x')")?;
    let hit = fleet.proxy(1).inject(Fault::hold(Point::Statement, "COMMIT PREPARED"));
    let commit = in_background(last, "COMMIT");
    hit.wait()?;
    drop(session);
    fleet.coordinator.kill9()?;
    fleet.proxy(1).cut_all();
    drop(hit);
    assert!(commit.join().1.is_err(), "the client got an answer from a dead server");
    assert_eq!(prepared_gids(fleet.shard(1))?.len(), 1);
    let mark = fleet.coordinator.log().mark()?;
    fleet.coordinator.start()?;
    wait_until("what was in doubt is settled", DEADLINE, || {
        Ok(prepared_gids(fleet.shard(1))?.is_empty() && prepared_gids(fleet.shard(2))?.is_empty())
    })?;
    assert_eq!((fleet.ids_on_shard(1)?, fleet.ids_on_shard(2)?), (vec![1], vec![1]));
    // Whoever asks for a resolver where there is none yet gets one.
    let mut other = fleet.coordinator.client_for("d1", "postgres")?;
    other.batch_execute("CREATE EXTENSION pg_fdw_xacts CASCADE")?;
    assert_eq!(one::<String>(&mut other, "SELECT pg_fdw_xacts_outcome('never')")?, "aborted");
    let log = fleet.coordinator.log().since(mark)?;
    assert!(!log.contains("WARNING"), "{log}");
    Ok(())
}

/// Red on 0.2.0: the WARNING came for each database, whether it had the extension or not.
#[test]
fn too_few_workers_are_told_with_the_setting() -> Outcome {
    let mut fleet = Fleet::start_with(&FleetOptions {
        // The launcher of logical replication and ours.
        coordinator: vec![("max_worker_processes", "3")],
        ..FleetOptions::default()
    })?;
    let mut session = fleet.session()?;
    session.batch_execute("CREATE DATABASE other")?;
    session.batch_execute("CREATE DATABASE without")?;
    fleet
        .coordinator
        .client_for("other", "postgres")?
        .batch_execute("CREATE EXTENSION pg_fdw_xacts CASCADE")?;
    assert_commits(&fleet, &mut session, 1)?;
    drop(session);
    let mark = fleet.coordinator.log().mark()?;
    fleet.coordinator.restart()?;
    let warning = "could not start a resolver in database";
    wait_until("the log says so", DEADLINE, || {
        Ok(fleet.coordinator.log().since(mark)?.contains(warning))
    })?;
    let log = fleet.coordinator.log().since(mark)?;
    assert!(log.contains("max_worker_processes"), "{log}");
    let unlucky = ["postgres", "other"]
        .into_iter()
        .filter(|database| {
            fleet
                .coordinator
                .client_for(database, "postgres")
                .and_then(|mut s| one::<String>(&mut s, "SELECT pg_fdw_xacts_outcome('x')"))
                .is_err()
        })
        .count();
    assert!(unlucky <= 1, "no database has a resolver");
    // With more workers everything is settled.
    fleet.coordinator.configure(&[("max_worker_processes", "8")])?;
    // While it stops, a resolver that has ended may be missed once more.
    fleet.coordinator.stop(StopMode::Fast)?;
    let mark = fleet.coordinator.log().mark()?;
    fleet.coordinator.start()?;
    for database in ["postgres", "other"] {
        let mut session = fleet.coordinator.client_for(database, "postgres")?;
        assert_eq!(one::<String>(&mut session, "SELECT pg_fdw_xacts_outcome('y')")?, "aborted");
    }
    let log = fleet.coordinator.log().since(mark)?;
    assert!(!log.contains("WARNING"), "{log}");
    Ok(())
}

const SERVERS: usize = 300;

/// Servers `m1` to `m300` with foreign tables `mt1` to `mt300`, all of them shard 1, and each has
/// prepared once.
fn many_servers(fleet: &Fleet, session: &mut Client) -> Outcome {
    let port = fleet.port_of_shard(1);
    for number in 1..=SERVERS {
        session.batch_execute(&format!(
            "CREATE SERVER m{number} FOREIGN DATA WRAPPER pg_fdw_xacts
                 OPTIONS (host '127.0.0.1', port '{port}', dbname 'postgres');
             CREATE USER MAPPING FOR CURRENT_USER SERVER m{number} OPTIONS (user 'postgres');
             CREATE FOREIGN TABLE mt{number} (id int, v text) SERVER m{number}
                 OPTIONS (table_name 't')"
        ))?;
    }
    for first in (1..=SERVERS).step_by(30) {
        let inserts: String = (first..first + 30)
            .map(|number| format!("INSERT INTO mt{number} VALUES ({number}, 'x');"))
            .collect();
        session.batch_execute(&format!("BEGIN; {inserts} COMMIT"))?;
        session.batch_execute("SELECT pg_fdw_xacts_disconnect_all()")?;
    }
    Ok(())
}

/// Red on 0.2.0: there were 256 places for statistics, and what was in doubt on the rest was
/// not seen and not protected.
#[test]
fn every_server_has_statistics_as_long_as_it_exists() -> Outcome {
    let mut fleet = Fleet::start_proxied()?;
    let mut session = fleet.session()?;
    many_servers(&fleet, &mut session)?;
    let prepared = "SELECT count(*) FROM pg_stat_fdw_xacts WHERE server LIKE 'm%' AND prepared = 1";
    assert_eq!(one::<i64>(&mut session, prepared)?, SERVERS as i64);
    in_doubt_on_the_last_server(&mut fleet, session)?;
    // Their places are free when they are dropped.
    let mut session = fleet.session()?;
    session.batch_execute(
        "DO $$ BEGIN
             FOR i IN 1..300 LOOP EXECUTE format('DROP SERVER m%s CASCADE', i); END LOOP;
         END $$",
    )?;
    wait_until("only shard1 and shard2 are left", DEADLINE, || {
        Ok(one::<i64>(&mut session, "SELECT count(*) FROM pg_stat_fdw_xacts")? <= 2)
    })
}

/// The same where they are more than there are places for: it is told, and nothing depends on it.
/// Red on 0.2.0, which showed nothing in doubt.
#[test]
fn a_server_without_statistics_is_told_shown_and_protected() -> Outcome {
    let mut fleet = Fleet::start_with(&FleetOptions {
        proxied: true,
        coordinator: vec![("pg_fdw_xacts.max_servers", "5")],
        ..FleetOptions::default()
    })?;
    let mut session = fleet.session()?;
    many_servers(&fleet, &mut session)?;
    in_doubt_on_the_last_server(&mut fleet, session)?;
    wait_until("the log says so", DEADLINE, || {
        let log = fleet.coordinator.log().tail(100_000)?;
        Ok(log.contains("Raise \"pg_fdw_xacts.max_servers\""))
    })
}

/// A transaction on the last server is decided and not delivered: that is seen, and the server is
/// not dropped, before a restart and after it.
fn in_doubt_on_the_last_server(fleet: &mut Fleet, mut session: Client) -> Outcome {
    let seen =
        "SELECT coalesce(sum(in_doubt), 0)::int8 FROM pg_stat_fdw_xacts WHERE server = 'm300'";
    session
        .batch_execute("BEGIN; INSERT INTO lt VALUES (1000); INSERT INTO mt300 VALUES (1000)")?;
    let hit = fleet.proxy(1).inject(Fault::cut(Point::Statement, "COMMIT PREPARED"));
    fleet.proxy(1).set_new_connections(NewConnections::Refused);
    // The resolver may still have a session there, by which it would deliver.
    fleet.shard(1).client()?.batch_execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
         WHERE application_name LIKE '%resolver%'",
    )?;
    session.batch_execute("COMMIT")?;
    hit.wait()?;
    assert_eq!(one::<i64>(&mut session, seen)?, 1);
    expect_error(session.batch_execute("DROP SERVER m300 CASCADE"), "55006");
    drop(session);
    fleet.coordinator.kill9()?;
    fleet.coordinator.start()?;
    let mut session = fleet.session()?;
    // Its resolver is up when it answers.
    assert_eq!(one::<String>(&mut session, "SELECT pg_fdw_xacts_outcome('x')")?, "aborted");
    expect_error(session.batch_execute("DROP SERVER m300 CASCADE"), "55006");
    fleet.proxy(1).set_new_connections(NewConnections::Served);
    assert_settled(fleet);
    assert_eq!(
        one::<i64>(&mut fleet.shard(1).client()?, "SELECT count(*) FROM t WHERE id = 1000")?,
        1
    );
    wait_until("the resolver has looked everywhere", DEADLINE, || {
        let sql = "SELECT count(*) FROM pg_stat_activity
                   WHERE backend_type = 'pg_fdw_xacts resolver' AND query LIKE 'waiting; 0 of %'";
        Ok(one::<i64>(&mut session, sql)? == 1)
    })
}

/// Red on 0.2.0: the places of 32 sessions that were terminated while they waited for the
/// resolver were free only at its next round, and nobody else could ask it anything until then.
#[test]
fn sessions_that_were_terminated_do_not_block_the_requests_of_others() -> Outcome {
    let fleet = Fleet::start_with(&FleetOptions {
        proxied: true,
        coordinator: vec![("pg_fdw_xacts.resolver_interval", "1h")],
        ..FleetOptions::default()
    })?;
    let mut session = fleet.session()?;
    assert_commits(&fleet, &mut session, 1)?;
    // The resolver cannot say that all have been tried.
    fleet.proxy(1).set_new_connections(NewConnections::Hanging);
    let waiting: Vec<_> = (0..40)
        .map(|_| Ok(in_background(fleet.session()?, "SELECT pg_fdw_xacts_resolve()")))
        .collect::<anyhow::Result<_>>()?;
    let theirs = "FROM pg_stat_activity WHERE query = 'SELECT pg_fdw_xacts_resolve()'";
    wait_until("all have asked", DEADLINE, || {
        Ok(one::<i64>(&mut session, &format!("SELECT count(*) {theirs} AND state = 'active'"))?
            == 40)
    })?;
    session.batch_execute(&format!("SELECT pg_terminate_backend(pid) {theirs}"))?;
    for asked in waiting {
        expect_terminated(asked.join().1);
    }
    // A new session has to ask for the numbers of its participants.
    let start = Instant::now();
    let mut new = fleet.session()?;
    new.batch_execute("BEGIN; INSERT INTO lt VALUES (2); INSERT INTO ft2 VALUES (2); COMMIT")?;
    assert!(start.elapsed() < lengthened_by_load(Duration::from_secs(5)), "{:?}", start.elapsed());
    fleet.proxy(1).set_new_connections(NewConnections::Served);
    assert_settled(&fleet);
    Ok(())
}

/// Red on 0.2.0: `too many prepared transactions on foreign servers` for everybody else, as
/// long as idle sessions did not read the answers to what they had delivered.
#[test]
fn idle_sessions_keep_no_entries_from_others() -> Outcome {
    let fleet = Fleet::start_with(&FleetOptions {
        coordinator: vec![
            ("pg_fdw_xacts.max_foreign_xacts", "6"),
            ("pg_fdw_xacts.resolver_interval", "1h"),
        ],
        ..FleetOptions::default()
    })?;
    let mut idle = Vec::new();
    for id in 1..=3 {
        let mut session = fleet.session()?;
        session.batch_execute("SET pg_fdw_xacts.commit_wait = off")?;
        begin_everywhere(&mut session, id)?;
        session.batch_execute("COMMIT")?;
        idle.push(session);
    }
    let start = Instant::now();
    for id in 4..=6 {
        let mut session = fleet.session()?;
        session.batch_execute("SET pg_fdw_xacts.commit_wait = off")?;
        begin_everywhere(&mut session, id)?;
        session.batch_execute("COMMIT")?;
        idle.push(session);
    }
    assert!(start.elapsed() < lengthened_by_load(Duration::from_secs(5)), "{:?}", start.elapsed());
    // They go on as before.
    for (id, session) in (11..).zip(&mut idle) {
        begin_everywhere(session, id)?;
        session.batch_execute("COMMIT; SELECT * FROM ft1; SELECT * FROM ft2; SELECT 1")?;
    }
    drop(idle);
    assert_settled(&fleet);
    for id in (1..=6).chain(11..=16) {
        assert_everywhere(&fleet, id, true)?;
    }
    assert!(statuses(&fleet, 1)?.is_empty());
    Ok(())
}
