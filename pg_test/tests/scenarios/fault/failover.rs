//! Fail-over: a standby of the coordinator or of a shard is promoted in the middle of it.

use pg_test::oracle::{prepared_gids, statistic, wait_for_attempts};
use pg_test::{Cluster, DEADLINE, Fleet, FleetOptions, Point, wait_until};

use crate::support::{
    Outcome, assert_recovered, begin_everywhere, commit_held_at, session_with_notices, statuses,
};

/// A running standby of the coordinator.
fn standby(fleet: &Fleet) -> anyhow::Result<Cluster> {
    let mut standby = Cluster::standby_of(&fleet.coordinator, "coordinator-standby")?;
    standby.start()?;
    Ok(standby)
}

/// Kills the coordinator when `standby` knows everything that it knows, and promotes that in its
/// place.
fn fail_over(fleet: &mut Fleet, standby: Cluster) -> Outcome {
    fleet.coordinator.wait_for_standby(&standby)?;
    fleet.coordinator.kill9()?;
    standby.promote()?;
    fleet.coordinator = standby;
    Ok(())
}

#[test]
fn gxid_is_settled_by_the_promoted_coordinator() -> Outcome {
    for (command, committed) in [("COMMIT PREPARED", true), ("ROLLBACK PREPARED", false)] {
        let mut fleet = Fleet::start()?;
        let mut session = fleet.session()?;
        begin_everywhere(&mut session, 1)?;
        session.batch_execute("PREPARE TRANSACTION 'gxid'")?;
        let standby = standby(&fleet)?;
        fail_over(&mut fleet, standby)?;
        wait_for_attempts(&fleet, 1, 1)?;
        assert_eq!(statuses(&fleet, 1)?, ["prepared"]);
        assert_eq!(prepared_gids(fleet.shard(1))?.len(), 1);
        fleet.session()?.batch_execute(&format!("{command} 'gxid'"))?;
        assert_recovered(&fleet, 1, committed)?;
    }
    Ok(())
}

#[test]
fn the_promoted_coordinator_settles_what_is_in_doubt() -> Outcome {
    for (point, statement, committed) in [
        (Point::Statement, "COMMIT PREPARED", true),
        (Point::Answer, "COMMIT PREPARED", true),
        (Point::Answer, "PREPARE TRANSACTION", false),
    ] {
        let mut fleet = Fleet::start_proxied()?;
        let standby = standby(&fleet)?;
        let mut session = fleet.session()?;
        begin_everywhere(&mut session, 1)?;
        let (commit, hit) = commit_held_at(&fleet, session, 1, point, statement)?;
        fail_over(&mut fleet, standby)?;
        hit.release();
        assert!(commit.join().1.is_err(), "the client got an answer from a dead server");
        assert_recovered(&fleet, 1, committed)?;
    }
    Ok(())
}

/// Starts a standby of shard 1, and names both as the server's hosts, with further `options`.
fn standby_beside(fleet: &Fleet, options: &str) -> anyhow::Result<Cluster> {
    let mut standby = Cluster::standby_of(fleet.shard(1), "shard1-standby")?;
    standby.start()?;
    fleet.session()?.batch_execute(&format!(
        "ALTER SERVER shard1 OPTIONS
             (SET host '127.0.0.1,127.0.0.1', SET port '{},{}'{options})",
        fleet.shard(1).port(),
        standby.port()
    ))?;
    Ok(standby)
}

/// The primary of shard 1 is lost with a prepared transaction. Its standby lists none before it is
/// promoted: that proves nothing, also where it is reached first. `forget_delay` is 0 so that
/// nothing else protects.
fn shard_fails_over(options: &str, command: &str, committed: bool) -> Outcome {
    let mut fleet = Fleet::start_with(&FleetOptions {
        coordinator: vec![("pg_fdw_xacts.forget_delay", "0")],
        ..FleetOptions::default()
    })?;
    let standby = standby_beside(&fleet, options)?;
    let (mut session, _notices) = session_with_notices(&fleet)?;
    begin_everywhere(&mut session, 1)?;
    session.batch_execute("PREPARE TRANSACTION 'gxid'")?;
    fleet.shard(1).wait_for_standby(&standby)?;
    fleet.shard_mut(1).kill9()?;
    session.batch_execute(&format!("{command} 'gxid'"))?;
    wait_until("the resolver has come to the standby in vain", DEADLINE, || {
        Ok(statistic(&fleet, 1, "failures")? >= 2)
    })?;
    assert_eq!(statuses(&fleet, 1)?.len(), 1, "the standby was believed");
    standby.promote()?;
    // Its port stays taken: the server options still have it.
    let _lost = fleet.replace_shard(1, standby);
    assert_recovered(&fleet, 1, committed)?;
    assert_eq!(statistic(&fleet, 1, "heuristic")?, 0, "a false alarm");
    Ok(())
}

#[test]
fn a_commit_is_delivered_to_the_promoted_standby_of_a_shard() -> Outcome {
    shard_fails_over("", "COMMIT PREPARED", true)
}

#[test]
fn a_commit_is_delivered_to_the_promoted_standby_found_by_target_session_attrs() -> Outcome {
    shard_fails_over(", ADD target_session_attrs 'read-write'", "COMMIT PREPARED", true)
}

#[test]
fn a_rollback_is_delivered_to_the_promoted_standby_of_a_shard() -> Outcome {
    shard_fails_over("", "ROLLBACK PREPARED", false)
}

/// Red before 0.3.0: the first host of a list, which accepts connections and says nothing more, was
/// waited for as long as `connect_timeout` allows for both, and the other was never tried; neither
/// by the resolver nor by a session.
#[test]
fn a_host_that_hangs_is_passed_over() -> Outcome {
    let mut fleet = Fleet::start_with(&FleetOptions {
        coordinator: vec![
            ("pg_fdw_xacts.commit_timeout", "300ms"),
            // That would be phase one's limit as well, in which sessions also register.
            ("pg_fdw_xacts.prepare_timeout", "60s"),
        ],
        ..FleetOptions::default()
    })?;
    let options = ", ADD target_session_attrs 'read-write', ADD connect_timeout '5'";
    let standby = standby_beside(&fleet, options)?;
    let mut session = fleet.session()?;
    begin_everywhere(&mut session, 1)?;
    session.batch_execute("PREPARE TRANSACTION 'gxid'")?;
    fleet.shard(1).wait_for_standby(&standby)?;
    let _halted = fleet.shard(1).freeze()?;
    standby.promote()?;
    session.batch_execute("COMMIT PREPARED 'gxid'")?;
    let mut second = fleet.session()?;
    begin_everywhere(&mut second, 2)?;
    second.batch_execute("COMMIT")?;
    wait_until("the resolver has settled it", DEADLINE, || Ok(statuses(&fleet, 1)?.is_empty()))?;
    fleet.shard_mut(1).kill9()?;
    let _lost = fleet.replace_shard(1, standby);
    assert_recovered(&fleet, 1, true)?;
    assert_eq!(fleet.ids_on_shard(1)?, [1, 2, 1001]);
    Ok(())
}
