//! What is told after a restart of what was decided before it, when nobody has asked the
//! participants yet.

use std::time::{Duration, Instant};

use anyhow::ensure;
use pg_test::oracle::{assert_settled, expect_error, one, prepared_gids, wait_for_attempts};
use pg_test::proxy::NewConnections;
use pg_test::{DEADLINE, Fleet, Point, StopMode, wait_until};
use postgres::Client;
use postgres::error::SqlState;

use crate::doubt::{log_lines, resolve, told};
use crate::support::{
    Outcome, assert_commits, assert_everywhere, begin_everywhere, commit_held_at,
};

/// Red on 0.2.0: the view was empty, in_doubt 0, oldest_in_doubt NULL, resolve() had no row,
/// and outcome() said `committed`.
#[test]
fn what_was_decided_and_is_not_delivered_is_shown_after_a_restart() -> Outcome {
    for crash in [true, false] {
        let mut fleet = Fleet::start_proxied()?;
        let mut session = fleet.session()?;
        begin_everywhere(&mut session, 1)?;
        session.batch_execute("SELECT pg_fdw_xacts_track('x')")?;
        fleet.commit_undelivered(session, 1)?;
        let gid = prepared_gids(fleet.shard(1))?.remove(0);
        let outcome = "SELECT pg_fdw_xacts_outcome('x')";
        assert_eq!(one::<String>(&mut fleet.session()?, outcome)?, "committing");

        if crash {
            fleet.coordinator.kill9()?
        } else {
            fleet.coordinator.stop(StopMode::Fast)?
        }
        // The resolver of before may have told of it too, until it ended.
        let mark = fleet.coordinator.log().mark()?;
        fleet.coordinator.start()?;
        // At once, whether a resolver has come up or not.
        assert_eq!(one::<String>(&mut fleet.session()?, outcome)?, "committing");
        assert_eq!(told(&fleet, 1)?.in_doubt, (1, true));
        let rows = resolve(&mut fleet.session()?)?;
        let shown = told(&fleet, 1)?;
        let [(identifier, status, why)] = shown.view.as_slice() else { panic!("{shown:#?}") };
        assert_eq!((identifier.as_str(), status.as_str()), (gid.as_str(), "committing"));
        assert!(why.contains("shard1"), "{why}");
        assert_eq!(shown.in_doubt, (1, true));
        assert!(shown.failures > 0 && shown.last_error.contains("shard1"), "{shown:#?}");
        let of_shard1: Vec<_> = rows.iter().filter(|row| row.0 == gid).collect();
        assert_eq!(of_shard1.len(), 1, "{rows:#?}");
        // What libpq says of a server that refuses depends on how soon it looks.
        let up_to_server = |why: &str| why.split("shard1").next().map(str::to_owned);
        assert!(of_shard1[0].2.contains("shard1"), "{rows:#?}");
        assert_eq!(
            (of_shard1[0].1.as_str(), up_to_server(&of_shard1[0].2)),
            ("in doubt", up_to_server(why))
        );
        wait_for_attempts(&fleet, 1, 3)?;
        assert_eq!(log_lines(&fleet, mark, &["LOG:", &gid, "in doubt on server \"shard1\""])?, 1);
        // The other one has been asked, and has it.
        assert_eq!(told(&fleet, 2)?.in_doubt, (0, false));
        assert_eq!(one::<String>(&mut fleet.session()?, outcome)?, "committing");

        fleet.proxy(1).set_new_connections(NewConnections::Served);
        assert_settled(&fleet);
        assert_eq!(one::<String>(&mut fleet.session()?, outcome)?, "committed");
        assert_eq!(told(&fleet, 1)?.in_doubt, (0, false));
        assert_everywhere(&fleet, 1, true)?;
    }
    Ok(())
}

/// Most decisions on record have been delivered: they are told from the others as soon as their
/// participant is asked.
#[test]
fn delivered_decisions_are_not_in_doubt_once_their_participants_have_been_asked() -> Outcome {
    let mut fleet = Fleet::start()?;
    let mut session = fleet.session()?;
    for id in 1..=5 {
        assert_commits(&fleet, &mut session, id)?;
    }
    fleet.coordinator.kill9()?;
    fleet.coordinator.start()?;
    resolve(&mut fleet.session()?)?;
    for number in [1, 2] {
        assert_eq!(told(&fleet, number)?.in_doubt, (0, false));
    }
    // A new start of the resolver alone forgets none of it.
    let pid: i32 = one(
        &mut fleet.session()?,
        "SELECT pid FROM pg_stat_activity WHERE backend_type = 'pg_fdw_xacts resolver'",
    )?;
    fleet.shard_mut(1).stop(StopMode::Fast)?;
    one::<bool>(&mut fleet.session()?, &format!("SELECT pg_terminate_backend({pid})"))?;
    wait_for_attempts(&fleet, 1, 2)?;
    assert_eq!(told(&fleet, 1)?.in_doubt, (0, false));
    fleet.shard_mut(1).start()?;
    assert_settled(&fleet);
    Ok(())
}

/// Red on 0.2.0: the row had vanished after the next commit at the new address.
#[test]
fn an_undelivered_rollback_stays_in_view_when_its_server_is_moved() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let mut session = fleet.session()?;
    assert_commits(&fleet, &mut session, 9)?;
    // Shard 2 cannot prepare, and shard 1 does not hear of it.
    fleet.shard(2).client()?.batch_execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$;
         CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED
             FOR EACH ROW EXECUTE FUNCTION refuse()",
    )?;
    begin_everywhere(&mut session, 1)?;
    let (commit, hit) = commit_held_at(&fleet, session, 1, Point::Statement, "ROLLBACK PREPARED")?;
    fleet.proxy(1).set_new_connections(NewConnections::Refused);
    fleet.proxy(1).cut_all();
    hit.release();
    let (mut session, result) = commit.join();
    expect_error(result, "P0001");
    fleet.shard(2).client()?.batch_execute("DROP TRIGGER refuse ON t")?;
    let gid = prepared_gids(fleet.shard(1))?.remove(0);

    // Moved to the server of the other shard, where it is used before anybody comes back to the
    // first.
    let (here, there) = (fleet.port_of_shard(1), fleet.port_of_shard(2));
    session.batch_execute(&format!("ALTER SERVER shard1 OPTIONS (SET port '{there}')"))?;
    session
        .batch_execute("BEGIN; INSERT INTO lt VALUES (2); INSERT INTO ft1 VALUES (2); COMMIT")?;
    for _ in 0..3 {
        resolve(&mut session)?;
        let shown = told(&fleet, 1)?;
        assert_eq!(shown.in_doubt, (1, true), "{shown:#?}");
        assert_eq!(
            (shown.view[0].0.as_str(), shown.view[0].1.as_str()),
            (gid.as_str(), "aborting")
        );
        assert!(shown.view[0].2.contains("not the one"), "{shown:#?}");
    }
    assert_eq!(prepared_gids(fleet.shard(1))?, [gid]);
    session.batch_execute(&format!("ALTER SERVER shard1 OPTIONS (SET port '{here}')"))?;
    fleet.proxy(1).set_new_connections(NewConnections::Served);
    assert_settled(&fleet);
    Ok(())
}

/// Red on 0.2.0: the row stayed until the resolver's next periodic round, here 30 minutes
/// later.
#[test]
fn what_is_handed_over_while_a_sweep_is_under_way_causes_another() -> Outcome {
    for point in [Point::Statement, Point::Answer] {
        let fleet = Fleet::start_proxied()?;
        fleet.coordinator.configure(&[("pg_fdw_xacts.resolver_interval", "30min")])?;
        fleet.coordinator.reload()?;
        let mut session = fleet.session()?;
        assert_commits(&fleet, &mut session, 9)?;
        begin_everywhere(&mut session, 1)?;
        session.batch_execute("PREPARE TRANSACTION 'gxid'")?;
        // The one by which the resolver took the fence is over.
        session.batch_execute("SELECT pg_fdw_xacts_resolve()")?;
        // The sweep has begun, and does not know of what is handed over below.
        let question = "SELECT gid FROM pg_catalog.pg_prepared_xacts";
        let hit = fleet.proxy(1).inject(pg_test::Fault::hold(Point::Statement, question));
        let asked =
            crate::support::in_background(fleet.session()?, "SELECT pg_fdw_xacts_resolve()");
        hit.wait()?;
        let cut = fleet.proxy(1).inject(pg_test::Fault::cut(point, "COMMIT PREPARED"));
        session.batch_execute("COMMIT PREPARED 'gxid'")?;
        cut.wait()?;
        hit.release();
        asked.join().1?;
        wait_until("nothing is shown any more", DEADLINE, || {
            Ok(one::<i64>(&mut session, "SELECT count(*) FROM pg_fdw_xacts")? == 0)
        })?;
        assert_settled(&fleet);
        assert_everywhere(&fleet, 1, true)?;
    }
    Ok(())
}

/// Drops what nothing is in doubt of. It may be refused where the resolver has been waited for, for
/// two seconds, and is too slow on a machine that is so busy; then it is tried again.
fn drop_at_once(session: &mut Client, command: &str) -> Outcome {
    let begin = Instant::now();
    loop {
        let start = Instant::now();
        match session.batch_execute(command) {
            Err(error) if error.code() == Some(&SqlState::OBJECT_IN_USE) => {
                let has_waited = start.elapsed() >= Duration::from_secs(2);
                ensure!(has_waited && begin.elapsed() < DEADLINE, "{command}: {error:#?}");
            }
            done => return Ok(done?),
        }
    }
}

/// Red on 0.2.0: refused for 8 to 15 ms after the first commit.
#[test]
fn what_is_not_in_doubt_any_more_may_be_dropped_at_once() -> Outcome {
    let fleet = Fleet::start()?;
    let (mut session, notices) = crate::support::session_with_notices(&fleet)?;
    let port = fleet.port_of_shard(1);
    for round in 1..=5 {
        session.batch_execute(&format!(
            "CREATE SERVER extra FOREIGN DATA WRAPPER pg_fdw_xacts
                 OPTIONS (host '127.0.0.1', port '{port}', dbname 'postgres');
             CREATE USER MAPPING FOR CURRENT_USER SERVER extra OPTIONS (user 'postgres');
             CREATE FOREIGN TABLE extra (id int NOT NULL, v text) SERVER extra OPTIONS (table_name 't')"
        ))?;
        session.batch_execute(&format!(
            "BEGIN; INSERT INTO lt VALUES ({round}); INSERT INTO extra VALUES ({round}); COMMIT"
        ))?;
        notices.take();
        match round {
            1 => session.batch_execute("ALTER SERVER extra OPTIONS (SET host 'localhost')")?,
            2 => session.batch_execute(
                "DROP FOREIGN TABLE extra; DROP USER MAPPING FOR CURRENT_USER SERVER extra",
            )?,
            _ => {}
        }
        let warnings = notices.take();
        assert!(!warnings.iter().any(|n| n.starts_with("WARNING")), "{warnings:#?}");
        drop_at_once(&mut session, "DROP SERVER extra CASCADE")?;
    }
    assert_settled(&fleet);
    drop_at_once(&mut session, "DROP EXTENSION pg_fdw_xacts CASCADE")
}

/// Red on 0.2.0: refused until resolve() had run.
#[test]
fn what_was_given_up_keeps_nobody_from_dropping_the_extension() -> Outcome {
    for server in [true, false] {
        let fleet = Fleet::start_proxied()?;
        fleet.coordinator.configure(&[
            ("pg_fdw_xacts.resolver_interval", "30min"),
            ("pg_fdw_xacts.resolver_retry_min", "30min"),
            ("pg_fdw_xacts.resolver_retry_max", "30min"),
        ])?;
        fleet.coordinator.reload()?;
        let mut session = fleet.session()?;
        // A sweep has left nothing there, which does not count any more below.
        assert_commits(&fleet, &mut session, 9)?;
        resolve(&mut session)?;
        fleet.in_doubt(1)?;
        expect_error(session.batch_execute("DROP EXTENSION pg_fdw_xacts CASCADE"), "55006");
        if server {
            session.batch_execute("SELECT pg_fdw_xacts_forget('shard1')")?;
        } else {
            let gid = prepared_gids(fleet.shard(1))?.remove(0);
            session.batch_execute(&format!("SELECT pg_fdw_xacts_forget('{gid}')"))?;
            // Something else may be there, as far as anybody knows, until it has been asked again.
            expect_error(session.batch_execute("DROP EXTENSION pg_fdw_xacts CASCADE"), "55006");
            fleet.proxy(1).set_new_connections(NewConnections::Served);
        }
        session.batch_execute("DROP EXTENSION pg_fdw_xacts CASCADE")?;
        // What was given up is delivered all the same, where it is seen.
        assert_eq!(prepared_gids(fleet.shard(1))?.len(), usize::from(server));
    }
    Ok(())
}
