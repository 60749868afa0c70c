//! Several coordinators on the same shards: two databases of one server, a database copied from
//! another, a physical copy of the whole server. Nobody touches another's transactions.

use pg_test::oracle::{assert_settled, one, prepared_gids};
use pg_test::{Cluster, DEADLINE, Fault, Fleet, Point, wait_until};
use postgres::Client;

use crate::support::{
    Outcome, assert_commits, assert_everywhere, assert_recovered, begin_everywhere, commit_held_at,
};

/// Waits until the resolver of the database behind `session` has come `count` times to shard
/// `number`.
fn wait_for_attempts(session: &mut Client, number: usize, count: i64) -> Outcome {
    wait_until("the resolver of the copy comes", DEADLINE, || {
        Ok(attempts(session, number)? >= count)
    })
}

fn attempts(session: &mut Client, number: usize) -> anyhow::Result<i64> {
    let sql = format!(
        "SELECT coalesce((SELECT attempts FROM pg_stat_fdw_xacts WHERE server = 'shard{number}'), 0)"
    );
    one(session, &sql)
}

fn identity(session: &mut Client) -> anyhow::Result<i64> {
    one(session, "SELECT identity FROM fdw_xacts.identity")
}

/// Has the resolver behind `session` sweep both shards: their COMMIT PREPARED does not arrive.
fn leave_something(fleet: &Fleet, session: &mut Client, id: i32) -> Outcome {
    let cuts = [1, 2]
        .map(|number| fleet.proxy(number).inject(Fault::cut(Point::Statement, "COMMIT PREPARED")));
    begin_everywhere(session, id)?;
    session.batch_execute("COMMIT")?;
    for cut in cuts {
        cut.wait()?;
    }
    Ok(())
}

/// In `other`, a transaction over both shards that the resolver there has to finish; in the first
/// database, 'gxid' is pending and must stay so.
fn beside_gxid(fleet: &Fleet, other: &mut Client) -> Outcome {
    let mut session = fleet.session()?;
    begin_everywhere(&mut session, 1)?;
    session.batch_execute("PREPARE TRANSACTION 'gxid'")?;
    leave_something(fleet, other, 2)?;
    for number in [1, 2] {
        wait_for_attempts(other, number, 1)?;
        wait_until("the other database's transaction is delivered", DEADLINE, || {
            Ok(fleet.ids_on_shard(number)? == [2])
        })?;
        assert_eq!(prepared_gids(fleet.shard(number))?.len(), 1);
    }
    session.batch_execute("COMMIT PREPARED 'gxid'")?;
    assert_settled(fleet);
    assert_everywhere(fleet, 1, true)
}

#[test]
fn two_databases_of_one_coordinator_leave_each_other_s_transactions_alone() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let mut other = fleet.connect_database("other")?;
    beside_gxid(&fleet, &mut other)?;
    assert_ne!(identity(&mut other)?, identity(&mut fleet.session()?)?);
    Ok(())
}

/// The copy has the original's identity, servers and user mappings, with the same OIDs.
#[test]
fn a_copied_database_draws_an_identity_of_its_own() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    assert_commits(&fleet, &mut fleet.session()?, 9)?;
    // A resolver in the original is asked to make way.
    fleet
        .coordinator
        .client_for("template1", "postgres")?
        .batch_execute("CREATE DATABASE copy TEMPLATE postgres")?;
    for number in [1, 2] {
        fleet.shard(number).client()?.batch_execute("DELETE FROM t")?;
    }
    let mut copy = fleet.coordinator.client_for("copy", "postgres")?;
    assert_eq!(one::<i64>(&mut copy, "SELECT count(*) FROM fdw_xacts.participant")?, 2);
    beside_gxid(&fleet, &mut copy)?;
    assert_ne!(identity(&mut copy)?, identity(&mut fleet.session()?)?);
    Ok(())
}

/// A physical copy of the coordinator, not started: the same identity, the same OIDs.
fn copy(fleet: &mut Fleet) -> anyhow::Result<Cluster> {
    fleet.coordinator.stop(pg_test::StopMode::Fast)?;
    let copy = Cluster::copy_of(&mut fleet.coordinator, "copy")?;
    fleet.coordinator.start()?;
    Ok(copy)
}

/// The original is in the middle of a COMMIT and holds no fence; the copy has no row of it.
#[test]
fn a_physical_copy_leaves_a_running_commit_of_the_original_alone() -> Outcome {
    let mut fleet = Fleet::start_proxied()?;
    assert_commits(&fleet, &mut fleet.session()?, 9)?;
    let mut copy = copy(&mut fleet)?;
    let mut session = fleet.session()?;
    begin_everywhere(&mut session, 1)?;
    let (commit, hit) = commit_held_at(&fleet, session, 1, Point::Answer, "PREPARE TRANSACTION")?;
    copy.start()?;
    for number in [1, 2] {
        wait_for_attempts(&mut copy.client()?, number, 2)?;
        assert_eq!(prepared_gids(fleet.shard(number))?.len(), 1, "the copy settled shard {number}");
    }
    hit.release();
    commit.join().1?;
    assert_everywhere(&fleet, 1, true)?;
    copy.kill9()?;
    assert_recovered(&fleet, 1, true)
}

/// While 'gxid' is pending the original's resolver keeps the fence.
#[test]
fn a_physical_copy_leaves_a_pending_gxid_of_the_original_alone() -> Outcome {
    let mut fleet = Fleet::start_proxied()?;
    assert_commits(&fleet, &mut fleet.session()?, 9)?;
    let mut copy = copy(&mut fleet)?;
    let mut session = fleet.session()?;
    begin_everywhere(&mut session, 1)?;
    session.batch_execute("PREPARE TRANSACTION 'gxid'")?;
    // Its sessions are gone, only what is prepared is left.
    drop(session);
    wait_for_attempts(&mut fleet.session()?, 1, 1)?;
    wait_for_attempts(&mut fleet.session()?, 2, 1)?;
    copy.start()?;
    for number in [1, 2] {
        wait_until("the resolver of the copy comes in vain", DEADLINE, || {
            let left = prepared_gids(fleet.shard(number))?;
            assert_eq!(left.len(), 1, "the copy settled shard {number}");
            attempts(&mut copy.client()?, number).map(|attempts| attempts >= 3)
        })?;
    }
    copy.kill9()?;
    fleet.session()?.batch_execute("COMMIT PREPARED 'gxid'")?;
    assert_recovered(&fleet, 1, true)
}

/// The copy has 'gxid' too, and somebody settles it there, in another way than the original will.
#[test]
fn settling_a_copied_gxid_does_not_settle_the_originals_participants() -> Outcome {
    for (there, here, committed) in [
        ("ROLLBACK PREPARED", "COMMIT PREPARED", true),
        ("COMMIT PREPARED", "ROLLBACK PREPARED", false),
    ] {
        let mut fleet = Fleet::start()?;
        let mut session = fleet.session()?;
        begin_everywhere(&mut session, 1)?;
        session.batch_execute("PREPARE TRANSACTION 'gxid'")?;
        drop(session);
        let mut copy = copy(&mut fleet)?;
        for number in [1, 2] {
            wait_for_attempts(&mut fleet.session()?, number, 1)?;
        }
        copy.start()?;
        copy.client()?.batch_execute(&format!("{there} 'gxid'"))?;
        for number in [1, 2] {
            wait_for_attempts(&mut copy.client()?, number, 3)?;
            let left = prepared_gids(fleet.shard(number))?;
            assert_eq!(left.len(), 1, "the copy settled shard {number}");
        }
        copy.kill9()?;
        fleet.session()?.batch_execute(&format!("{here} 'gxid'"))?;
        assert_recovered(&fleet, 1, committed)?;
    }
    Ok(())
}
