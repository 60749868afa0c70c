//! Faults after the decision: it is committed everywhere, the client has its COMMIT at once with a
//! warning, and the session goes on. And the single writer's COMMIT, whose answer is the decision.

use std::time::{Duration, Instant};

use pg_test::oracle::{
    assert_usable, expect_error, one, prepared_gids, statistic, wait_for_attempts,
};
use pg_test::proxy::NewConnections;
use pg_test::{DEADLINE, Fault, Fleet, Point, lengthened_by_load, wait_until};

use crate::support::{
    NONE, Outcome, assert_commits, assert_recovered, assert_warned, begin_everywhere,
    commit_held_at, session_with_notices,
};

#[test]
fn a_connection_cut_before_commit_prepared_is_committed_everywhere() -> Outcome {
    cut(Point::Statement)
}

#[test]
fn a_connection_cut_before_the_answer_to_commit_prepared_is_committed_everywhere() -> Outcome {
    cut(Point::Answer)
}

fn cut(point: Point) -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let (mut session, notices) = session_with_notices(&fleet)?;
    begin_everywhere(&mut session, 1)?;
    let hit = fleet.proxy(1).inject(Fault::cut(point, "COMMIT PREPARED"));
    session.batch_execute("COMMIT")?;
    hit.wait()?;
    assert_warned(&notices, "shard1");
    assert_recovered(&fleet, 1, true)?;
    assert_eq!(statistic(&fleet, 1, "heuristic")?, 0, "a false alarm");
    assert_commits(&fleet, &mut session, 2)
}

#[test]
fn settling_gxid_over_a_connection_that_is_cut() -> Outcome {
    for point in [Point::Statement, Point::Answer] {
        for (command, committed) in [("COMMIT PREPARED", true), ("ROLLBACK PREPARED", false)] {
            let fleet = Fleet::start_proxied()?;
            let (mut session, notices) = session_with_notices(&fleet)?;
            begin_everywhere(&mut session, 1)?;
            session.batch_execute("PREPARE TRANSACTION 'gxid'")?;
            let hit = fleet.proxy(1).inject(Fault::cut(point, command));
            session.batch_execute(&format!("{command} 'gxid'"))?;
            hit.wait()?;
            assert_warned(&notices, "shard1");
            assert_recovered(&fleet, 1, committed)?;
            assert_eq!(statistic(&fleet, 1, "heuristic")?, 0, "a false alarm");
        }
    }
    Ok(())
}

/// What is decided is delivered by the resolver when its owner waits no longer.
#[test]
fn commit_returns_at_its_timeout_and_statement_timeout_does_not_turn_it_into_an_error() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let (mut session, notices) = session_with_notices(&fleet)?;
    // It has connected and registered, so that neither takes up the limit.
    assert_commits(&fleet, &mut session, 9)?;
    // Phase one, which is not held, has to end within `limit`; phase two, which is, lasts longer.
    let limit = lengthened_by_load(Duration::from_secs(2)).as_millis();
    session.batch_execute(&format!(
        "SET pg_fdw_xacts.commit_timeout = {}; SET pg_fdw_xacts.prepare_timeout = '60s'",
        2 * limit
    ))?;
    begin_everywhere(&mut session, 1)?;
    session.batch_execute(&format!("SET LOCAL statement_timeout = {limit}"))?;
    let (commit, hit) = commit_held_at(&fleet, session, 1, Point::Statement, "COMMIT PREPARED")?;
    let (mut session, result) = commit.join();
    result?;
    assert_warned(&notices, "shard1");
    assert_usable(&mut session);
    hit.release();
    assert_recovered(&fleet, 1, true)?;
    assert_commits(&fleet, &mut session, 2)
}

/// A hung server delays neither COMMIT beyond `commit_timeout` nor the other participant.
#[test]
fn a_shard_that_hangs_in_phase_two_delays_only_itself() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let (mut session, notices) = session_with_notices(&fleet)?;
    // Only of phase two: that would be phase one's limit as well.
    session.batch_execute(
        "SET pg_fdw_xacts.commit_timeout = '3s'; SET pg_fdw_xacts.prepare_timeout = '60s'",
    )?;
    begin_everywhere(&mut session, 1)?;
    let (commit, hit) = commit_held_at(&fleet, session, 1, Point::Statement, "COMMIT PREPARED")?;
    let frozen = fleet.shard(1).freeze()?;
    hit.release();
    let start = Instant::now();
    wait_until("shard 2 commits", DEADLINE, || Ok(fleet.ids_on_shard(2)? == [1]))?;
    let (mut session, result) = commit.join();
    result?;
    assert!(start.elapsed() < lengthened_by_load(Duration::from_secs(8)), "{:?}", start.elapsed());
    assert_warned(&notices, "shard1");
    assert_usable(&mut session);
    drop(frozen);
    assert_recovered(&fleet, 1, true)?;
    assert_commits(&fleet, &mut session, 2)
}

#[test]
fn a_shard_that_hangs_in_phase_one_aborts_everywhere() -> Outcome {
    let fleet = Fleet::start()?;
    let mut session = fleet.session()?;
    // It registers in its first phase one, which may take long on a busy machine.
    assert_commits(&fleet, &mut session, 9)?;
    session.batch_execute(
        "SET pg_fdw_xacts.prepare_timeout = '500ms'; SET pg_fdw_xacts.commit_timeout = '1s'",
    )?;
    begin_everywhere(&mut session, 1)?;
    let frozen = fleet.shard(1).freeze()?;
    let start = Instant::now();
    let error = expect_error(session.batch_execute("COMMIT"), "57014");
    assert!(start.elapsed() < lengthened_by_load(Duration::from_secs(8)), "{:?}", start.elapsed());
    assert!(error.message().contains("shard1"), "{error:#?}");
    assert_usable(&mut session);
    // By the session, or by the resolver if that has not waited long enough.
    wait_until("shard 2 rolls back", DEADLINE, || Ok(prepared_gids(fleet.shard(2))?.is_empty()))?;
    drop(frozen);
    assert_recovered(&fleet, 1, false)?;
    session
        .batch_execute("RESET pg_fdw_xacts.prepare_timeout; RESET pg_fdw_xacts.commit_timeout")?;
    assert_commits(&fleet, &mut session, 2)
}

/// Both shards are left to the resolver, one of them does not answer: the other is settled all the
/// same.
#[test]
fn the_resolver_settles_healthy_servers_beside_hung_and_unreachable_ones() -> Outcome {
    for hung in [true, false] {
        let fleet = Fleet::start_proxied()?;
        let mut session = fleet.session()?;
        begin_everywhere(&mut session, 1)?;
        let cuts = [1, 2].map(|number| {
            fleet.proxy(number).set_new_connections(NewConnections::Refused);
            fleet.proxy(number).inject(Fault::cut(Point::Statement, "COMMIT PREPARED"))
        });
        session.batch_execute("COMMIT")?;
        for cut in &cuts {
            cut.wait()?;
        }
        let _frozen = hung.then(|| fleet.shard(1).freeze()).transpose()?;
        if hung {
            fleet.proxy(1).set_new_connections(NewConnections::Hanging);
            wait_until("the resolver hangs at shard 1", DEADLINE, || {
                Ok(fleet.proxy(1).hanging() > 0)
            })?;
        } else {
            wait_for_attempts(&fleet, 1, 2)?;
        }
        fleet.proxy(2).set_new_connections(NewConnections::Served);
        // The wait before the next attempt is a second at most in these fleets.
        wait_until("shard 2 commits", lengthened_by_load(Duration::from_secs(5)), || {
            Ok(fleet.ids_on_shard(2)? == [1])
        })?;
        drop(_frozen);
        fleet.proxy(1).set_new_connections(NewConnections::Served);
        assert_recovered(&fleet, 1, true)?;
    }
    Ok(())
}

/// A new session has to connect first, and the shard does not answer: that is bounded too, and no
/// error.
#[test]
fn settling_gxid_with_a_hung_shard_returns_at_the_timeout() -> Outcome {
    for (command, committed) in [("COMMIT PREPARED", true), ("ROLLBACK PREPARED", false)] {
        let fleet = Fleet::start_proxied()?;
        let mut session = fleet.session()?;
        begin_everywhere(&mut session, 1)?;
        session.batch_execute("PREPARE TRANSACTION 'gxid'")?;
        drop(session);
        fleet.proxy(1).set_new_connections(NewConnections::Hanging);
        let (mut session, notices) = session_with_notices(&fleet)?;
        session.batch_execute("SET pg_fdw_xacts.commit_timeout = '1s'")?;
        let start = Instant::now();
        session.batch_execute(&format!("{command} 'gxid'"))?;
        assert!(
            start.elapsed() < lengthened_by_load(Duration::from_secs(8)),
            "{:?}",
            start.elapsed()
        );
        assert_warned(&notices, "shard1");
        wait_until(
            "shard 2 has heard",
            DEADLINE,
            || Ok(prepared_gids(fleet.shard(2))?.is_empty()),
        )?;
        fleet.proxy(1).set_new_connections(NewConnections::Served);
        assert_recovered(&fleet, 1, committed)?;
    }
    Ok(())
}

/// SIGTERM ends the resolver wherever it waits.
#[test]
fn a_resolver_that_waits_for_a_hung_shard_does_not_hold_up_a_shutdown() -> Outcome {
    let mut fleet = Fleet::start_proxied()?;
    let mut session = fleet.session()?;
    begin_everywhere(&mut session, 1)?;
    let hit = fleet.proxy(1).inject(Fault::cut(Point::Statement, "COMMIT PREPARED"));
    fleet.proxy(1).set_new_connections(NewConnections::Hanging);
    session.batch_execute("COMMIT")?;
    hit.wait()?;
    wait_until("the resolver hangs at shard 1", DEADLINE, || Ok(fleet.proxy(1).hanging() > 0))?;
    let start = Instant::now();
    fleet.coordinator.stop(pg_test::StopMode::Fast)?;
    assert!(start.elapsed() < lengthened_by_load(Duration::from_secs(5)), "{:?}", start.elapsed());
    fleet.proxy(1).set_new_connections(NewConnections::Served);
    fleet.coordinator.start()?;
    assert_recovered(&fleet, 1, true)
}

/// One writer, nothing local: COMMIT goes there in one phase.
fn sole_writer(fleet: &Fleet) -> anyhow::Result<postgres::Client> {
    let mut session = fleet.session()?;
    session.batch_execute("BEGIN; INSERT INTO ft1 VALUES (1)")?;
    Ok(session)
}

#[test]
fn a_one_phase_commit_whose_answer_is_lost_is_asked_for() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let mut session = sole_writer(&fleet)?;
    let hit = fleet.proxy(1).inject(Fault::cut(Point::Answer, "COMMIT"));
    session.batch_execute("COMMIT")?;
    hit.wait()?;
    assert_eq!(fleet.ids_on_shard(1)?, [1]);
    assert_commits(&fleet, &mut session, 2)
}

#[test]
fn a_one_phase_commit_that_never_arrived_is_a_definite_abort() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let mut session = sole_writer(&fleet)?;
    let hit = fleet.proxy(1).inject(Fault::cut(Point::Statement, "COMMIT"));
    expect_error(session.batch_execute("COMMIT"), "40000");
    hit.wait()?;
    assert_eq!(fleet.ids_on_shard(1)?, NONE);
    assert_commits(&fleet, &mut session, 2)
}

#[test]
fn a_one_phase_commit_nobody_can_be_asked_about_is_unknown() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let mut session = sole_writer(&fleet)?;
    let hit = fleet.proxy(1).inject(Fault::cut(Point::Answer, "COMMIT"));
    fleet.proxy(1).set_new_connections(NewConnections::Refused);
    let error = expect_error(session.batch_execute("COMMIT"), "08007");
    hit.wait()?;
    // The hint is what the client can do: ask the shard.
    let hint = error.hint().expect("it says how to find out");
    let question = hint.split_once("SELECT").map(|(_, rest)| format!("SELECT{rest}"));
    let question = question.expect("a query").trim_end_matches('.').to_owned();
    let status: String = one(&mut fleet.shard(1).client()?, &question)?;
    assert_eq!(status, "committed");
    assert_eq!(fleet.ids_on_shard(1)?, [1]);
    fleet.proxy(1).set_new_connections(NewConnections::Served);
    assert_commits(&fleet, &mut session, 2)
}
