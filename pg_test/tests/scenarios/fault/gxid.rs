//! SIGKILL for the coordinator between two participants, and while 'gxid' is being prepared or
//! settled.

use std::time::Duration;

use pg_test::oracle::{
    assert_usable, expect_error, prepared_gids, settled_within, wait_for_attempts,
};
use pg_test::proxy::NewConnections;
use pg_test::{DEADLINE, Fault, Fleet, Point, lengthened_by_load, wait_until};

use crate::support::{
    Outcome, assert_recovered, begin_everywhere, commit_held_at, in_background, statuses,
};

/// Runs `statement` in a session that has written everywhere, kills the coordinator when shard 2 is
/// at `point` of its `remote` statement and `ready` says so, and starts it again.
fn killed_at(
    before: &str,
    statement: &str,
    (point, remote): (Point, &str),
    ready: impl Fn(&Fleet) -> anyhow::Result<bool>,
) -> anyhow::Result<Fleet> {
    let mut fleet = Fleet::start_proxied()?;
    let mut session = fleet.session()?;
    begin_everywhere(&mut session, 1)?;
    session.batch_execute(before)?;
    if !before.is_empty() {
        // The resolver looks at what it has been handed; it would deliver, too, in the middle of
        // that.
        session.batch_execute("SELECT * FROM pg_fdw_xacts_resolve()")?;
    }
    let hit = fleet.proxy(2).inject(Fault::hold(point, remote));
    let running = in_background(session, statement);
    hit.wait()?;
    wait_until("the other shard has gone on", DEADLINE, || ready(&fleet))?;
    fleet.coordinator.kill9()?;
    hit.release();
    assert!(running.join().1.is_err(), "the client got an answer from a dead server");
    fleet.coordinator.start()?;
    Ok(fleet)
}

fn shard_1_has_prepared(fleet: &Fleet) -> anyhow::Result<bool> {
    Ok(prepared_gids(fleet.shard(1))?.len() == 1)
}

fn shard_1_has_committed(fleet: &Fleet) -> anyhow::Result<bool> {
    Ok(fleet.ids_on_shard(1)? == [1])
}

fn shard_1_has_nothing(fleet: &Fleet) -> anyhow::Result<bool> {
    Ok(prepared_gids(fleet.shard(1))?.is_empty())
}

const PREPARING: (Point, &str) = (Point::Statement, "PREPARE TRANSACTION");

#[test]
fn between_two_prepares() -> Outcome {
    let fleet = killed_at("", "COMMIT", PREPARING, shard_1_has_prepared)?;
    assert_recovered(&fleet, 1, false)
}

#[test]
fn between_two_commit_prepareds() -> Outcome {
    let point = (Point::Statement, "COMMIT PREPARED");
    let fleet = killed_at("", "COMMIT", point, shard_1_has_committed)?;
    assert_recovered(&fleet, 1, true)
}

#[test]
fn before_gxid_is_prepared_its_participants_are_rolled_back() -> Outcome {
    for point in [Point::Statement, Point::Answer] {
        let point = (point, "PREPARE TRANSACTION");
        let fleet = killed_at("", "PREPARE TRANSACTION 'gxid'", point, shard_1_has_prepared)?;
        expect_error(fleet.session()?.batch_execute("COMMIT PREPARED 'gxid'"), "42704");
        assert_recovered(&fleet, 1, false)?;
    }
    Ok(())
}

#[test]
fn once_commit_prepared_gxid_is_decided_it_is_delivered() -> Outcome {
    let prepare = "PREPARE TRANSACTION 'gxid'";
    for point in [Point::Statement, Point::Answer] {
        let point = (point, "COMMIT PREPARED");
        let fleet = killed_at(prepare, "COMMIT PREPARED 'gxid'", point, shard_1_has_committed)?;
        assert_recovered(&fleet, 1, true)?;
    }
    Ok(())
}

#[test]
fn once_rollback_prepared_gxid_is_decided_it_is_delivered() -> Outcome {
    let prepare = "PREPARE TRANSACTION 'gxid'";
    let point = (Point::Statement, "ROLLBACK PREPARED");
    let fleet = killed_at(prepare, "ROLLBACK PREPARED 'gxid'", point, shard_1_has_nothing)?;
    assert_recovered(&fleet, 1, false)
}

/// The decision row is in the state file of 'gxid' alone, not in the log that is replayed.
#[test]
fn rollback_of_gxid_after_a_checkpoint_and_a_crash() -> Outcome {
    let mut fleet = Fleet::start()?;
    let mut session = fleet.session()?;
    begin_everywhere(&mut session, 1)?;
    session.batch_execute("PREPARE TRANSACTION 'gxid'; CHECKPOINT")?;
    fleet.coordinator.kill9()?;
    fleet.coordinator.start()?;
    // The resolver has looked, and left it alone.
    wait_for_attempts(&fleet, 1, 1)?;
    assert_eq!(statuses(&fleet, 1)?, ["prepared"]);
    assert_eq!(prepared_gids(fleet.shard(1))?.len(), 1);
    fleet.session()?.batch_execute("ROLLBACK PREPARED 'gxid'")?;
    assert_recovered(&fleet, 1, false)
}

#[test]
fn a_clean_restart_with_a_shard_down_keeps_gxid_pending() -> Outcome {
    let mut fleet = Fleet::start()?;
    let mut session = fleet.session()?;
    begin_everywhere(&mut session, 1)?;
    session.batch_execute("PREPARE TRANSACTION 'gxid'")?;
    fleet.shard_mut(1).kill9()?;
    fleet.coordinator.restart()?;
    wait_until("'gxid' is shown again", DEADLINE, || Ok(statuses(&fleet, 1)? == ["prepared"]))?;
    let mut session = fleet.session()?;
    session.batch_execute("COMMIT PREPARED 'gxid'")?;
    assert_usable(&mut session);
    fleet.shard_mut(1).start()?;
    assert_recovered(&fleet, 1, true)
}

/// The launcher starts another one at once, not in its next round.
#[test]
fn a_terminated_resolver_comes_back() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let mut session = fleet.session()?;
    for id in 1..=3 {
        let hit = fleet.proxy(1).inject(Fault::cut(Point::Statement, "COMMIT PREPARED"));
        begin_everywhere(&mut session, id)?;
        fleet.proxy(1).set_new_connections(NewConnections::Refused);
        session.batch_execute("COMMIT")?;
        hit.wait()?;
        session.batch_execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE backend_type = 'pg_fdw_xacts resolver'",
        )?;
        fleet.proxy(1).set_new_connections(NewConnections::Served);
        settled_within(&fleet, lengthened_by_load(Duration::from_secs(10)))?;
    }
    assert_recovered(&fleet, 1, true)
}

/// The resolver's process dies while something is in doubt; the server restarts itself and finds it
/// again.
#[test]
fn a_killed_resolver_leaves_nothing_behind() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let mut session = fleet.session()?;
    begin_everywhere(&mut session, 1)?;
    let (commit, hit) = commit_held_at(&fleet, session, 1, Point::Statement, "COMMIT PREPARED")?;
    let mut witness = fleet.session()?;
    let pid: i32 = pg_test::oracle::one(
        &mut witness,
        "SELECT pid FROM pg_stat_activity WHERE backend_type = 'pg_fdw_xacts resolver'",
    )?;
    fleet.coordinator.kill9_backend(pid)?;
    // The COMMIT may or may not have been answered before the restart.
    hit.release();
    let _ = commit.join();
    wait_until("the coordinator has noticed", DEADLINE, || {
        Ok(witness.batch_execute("SELECT 1").is_err())
    })?;
    wait_until("the coordinator has restarted itself", DEADLINE, || Ok(fleet.session().is_ok()))?;
    assert_recovered(&fleet, 1, true)
}
