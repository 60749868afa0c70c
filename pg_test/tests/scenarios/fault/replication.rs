//! Synchronous standbys of the coordinator: a decision that a fail-over may still lose is not
//! delivered. And the limits that hold before anything is prepared.

use std::time::{Duration, Instant};

use pg_test::oracle::{assert_settled, expect_error, one, prepared_gids, wait_for_attempts};
use pg_test::{Cluster, DEADLINE, Fleet, FleetOptions, wait_until};
use postgres::Client;

use crate::support::{
    Background, Outcome, assert_commits, assert_everywhere, assert_recovered, begin_everywhere,
    in_background,
};

/// A fleet whose coordinator waits for its standby, which is down.
fn without_its_standby() -> anyhow::Result<(Fleet, Cluster)> {
    let fleet = Fleet::start()?;
    let mut standby = Cluster::standby_of(&fleet.coordinator, "coordinator-standby")?;
    standby.start()?;
    fleet.coordinator.configure(&[("synchronous_standby_names", "*")])?;
    fleet.coordinator.reload()?;
    wait_until("the standby is synchronous", DEADLINE, || {
        let sql = "SELECT coalesce((SELECT sync_state = 'sync' FROM pg_stat_replication), false)";
        one::<bool>(&mut fleet.session()?, sql)
    })?;
    // Only a commit that has waited shows that the coordinator has heard since how far the standby
    // is. The participants are known there now, too.
    assert_commits(&fleet, &mut fleet.session()?, 9)?;
    standby.kill9()?;
    Ok((fleet, standby))
}

/// Waits until backend `pid` waits for the standby.
fn wait_for_sync_rep(fleet: &Fleet, pid: i32) -> Outcome {
    wait_until("COMMIT waits for the standby", DEADLINE, || {
        let sql = format!(
            "SELECT coalesce(wait_event = 'SyncRep', false) FROM pg_stat_activity WHERE pid = {pid}"
        );
        one::<bool>(&mut fleet.session()?, &sql)
    })
}

/// The resolver has looked through its decisions twice since now: its rounds are a second apart in
/// these fleets.
fn rounds(fleet: &Fleet) -> Outcome {
    let start = Instant::now();
    wait_until("the resolver had two rounds", DEADLINE, || {
        for number in [1, 2] {
            assert_eq!(prepared_gids(fleet.shard(number))?.len(), 1, "shard {number}: delivered");
        }
        Ok(start.elapsed() > Duration::from_secs(3))
    })
}

/// A COMMIT in the background that waits for the synchronous standby, and its backend.
fn commit_that_waits(fleet: &Fleet, mut session: Client) -> anyhow::Result<(Background, i32)> {
    let pid: i32 = one(&mut session, "SELECT pg_backend_pid()")?;
    begin_everywhere(&mut session, 1)?;
    let commit = in_background(session, "COMMIT");
    wait_for_sync_rep(fleet, pid)?;
    Ok((commit, pid))
}

#[test]
fn a_decision_is_delivered_only_when_the_synchronous_standby_has_it() -> Outcome {
    let (fleet, mut standby) = without_its_standby()?;
    let mut session = fleet.session()?;
    session.batch_execute("SET synchronous_commit = local")?;
    let (commit, pid) = commit_that_waits(&fleet, session)?;
    one::<bool>(&mut fleet.session()?, &format!("SELECT pg_cancel_backend({pid})"))?;
    commit.join().1?;
    rounds(&fleet)?;
    standby.start()?;
    assert_recovered(&fleet, 1, true)
}

#[test]
fn a_crash_in_the_wait_for_the_synchronous_standby_delivers_nothing_early() -> Outcome {
    let (mut fleet, mut standby) = without_its_standby()?;
    let (commit, _) = commit_that_waits(&fleet, fleet.session()?)?;
    fleet.coordinator.kill9()?;
    assert!(commit.join().1.is_err(), "the client got an answer from a dead server");
    fleet.coordinator.start()?;
    rounds(&fleet)?;
    standby.start()?;
    assert_recovered(&fleet, 1, true)
}

/// What `pg_fdw_xacts_outcome('label')` says.
fn said(server: &Cluster) -> anyhow::Result<String> {
    one(&mut server.client()?, "SELECT pg_fdw_xacts_outcome('label')")
}

/// Red before 0.3.0 (found by the model): the outcome was `committed` as soon as the wait for the
/// standby was cut short, and `aborted` after the fail-over.
#[test]
fn an_outcome_is_told_only_when_the_synchronous_standby_has_it() -> Outcome {
    let (mut fleet, mut standby) = without_its_standby()?;
    let mut session = fleet.session()?;
    let pid: i32 = one(&mut session, "SELECT pg_backend_pid()")?;
    begin_everywhere(&mut session, 1)?;
    session.batch_execute("SELECT pg_fdw_xacts_track('label')")?;
    let commit = in_background(session, "COMMIT");
    wait_for_sync_rep(&fleet, pid)?;
    one::<bool>(&mut fleet.session()?, &format!("SELECT pg_cancel_backend({pid})"))?;
    commit.join().1?;
    assert_eq!(said(&fleet.coordinator)?, "in progress");
    fleet.coordinator.kill9()?;
    standby.configure(&[("synchronous_standby_names", "")])?;
    standby.start()?;
    standby.promote()?;
    fleet.coordinator = standby;
    wait_until("it is told", DEADLINE, || Ok(said(&fleet.coordinator)? == "aborted"))?;
    assert_recovered(&fleet, 1, false)
}

/// The same, but the primary is lost: the standby has never heard of the decision.
#[test]
fn a_decision_that_the_standby_never_got_is_an_abort_after_the_fail_over() -> Outcome {
    let (mut fleet, mut standby) = without_its_standby()?;
    let (commit, pid) = commit_that_waits(&fleet, fleet.session()?)?;
    one::<bool>(&mut fleet.session()?, &format!("SELECT pg_cancel_backend({pid})"))?;
    let _ = commit.join();
    rounds(&fleet)?;
    fleet.coordinator.kill9()?;
    standby.configure(&[("synchronous_standby_names", "")])?;
    standby.start()?;
    standby.promote()?;
    fleet.coordinator = standby;
    assert_recovered(&fleet, 1, false)
}

#[test]
fn without_room_for_all_participants_nothing_is_prepared() -> Outcome {
    let fleet = Fleet::start_with(&FleetOptions {
        coordinator: vec![("pg_fdw_xacts.max_foreign_xacts", "1")],
        ..FleetOptions::default()
    })?;
    let mut session = fleet.session()?;
    let marks = [fleet.shard(1).log().mark()?, fleet.shard(2).log().mark()?];
    begin_everywhere(&mut session, 1)?;
    let error = expect_error(session.batch_execute("COMMIT"), "53400");
    assert!(format!("{error:?}").contains("pg_fdw_xacts.max_foreign_xacts"), "{error:#?}");
    for (number, mark) in [1, 2].into_iter().zip(marks) {
        let statements = fleet.shard(number).log().statements_since(mark)?;
        assert!(!statements.iter().any(|s| s.starts_with("PREPARE")), "{statements:#?}");
    }
    assert_settled(&fleet);
    assert_everywhere(&fleet, 1, false)?;
    // What fits goes on.
    session.batch_execute("BEGIN; INSERT INTO lt VALUES (2); INSERT INTO ft1 VALUES (2)")?;
    session.batch_execute("COMMIT")?;
    assert_eq!((fleet.ids_in_lt()?, fleet.ids_on_shard(1)?), (vec![2], vec![2]));
    assert_settled(&fleet);
    Ok(())
}

/// After a crash nobody remembers which decisions have been confirmed, and shard 1 cannot say.
#[test]
fn old_decisions_take_no_room_from_new_transactions() -> Outcome {
    let mut fleet = Fleet::start_with(&FleetOptions {
        coordinator: vec![("pg_fdw_xacts.max_foreign_xacts", "6")],
        ..FleetOptions::default()
    })?;
    let mut session = fleet.session()?;
    for id in 1..=8 {
        assert_commits(&fleet, &mut session, id)?;
    }
    fleet.coordinator.kill9()?;
    fleet.shard_mut(1).stop(pg_test::StopMode::Fast)?;
    fleet.coordinator.start()?;
    // The attempts are a second apart at most, and so are the looks at the decisions.
    wait_for_attempts(&fleet, 1, 6)?;
    let mut session = fleet.session()?;
    session.batch_execute("BEGIN; INSERT INTO lt VALUES (9); INSERT INTO ft2 VALUES (9)")?;
    session.batch_execute("COMMIT")?;
    fleet.shard_mut(1).start()?;
    assert_recovered(&fleet, 10, false)
}
