//! COMMIT while a host vanishes.

use std::time::Duration;

use pg_test::network::Loss;
use pg_test::oracle::{assert_usable, expect_error, prepared_gids};
use pg_test::{DEADLINE, Fleet, Point, lengthened_by_load, wait_until};
use postgres::Client;

use super::{ended, hosts};
use crate::support::{
    Outcome, assert_commits, assert_everywhere, assert_recovered, begin_everywhere, commit_held_at,
    in_background,
};

/// A session that does not wait long for phase two. That would be phase one's limit as well, in
/// which it also registers.
fn hasty(fleet: &Fleet) -> anyhow::Result<Client> {
    let mut session = fleet.session()?;
    session.batch_execute(
        "SET pg_fdw_xacts.commit_timeout = '1s'; SET pg_fdw_xacts.prepare_timeout = '60s'",
    )?;
    Ok(session)
}

/// Shard 1 and the coordinator go on while shard 2 is away: they commit in two phases.
fn others_commit(fleet: &Fleet, id: i32) -> Outcome {
    fleet.session()?.batch_execute(&format!(
        "BEGIN; INSERT INTO lt VALUES (-{id}, 'x'); INSERT INTO ft1 VALUES (-{id}, 'x'); COMMIT"
    ))?;
    Ok(())
}

#[test]
fn a_host_that_dies_before_it_has_prepared_aborts_everywhere() -> Outcome {
    host_dies(Point::Statement)
}

#[test]
fn a_host_that_dies_when_it_has_prepared_aborts_everywhere() -> Outcome {
    host_dies(Point::Answer)
}

/// All processes of the host end without a word, and it is back later, at the same address.
fn host_dies(point: Point) -> Outcome {
    let Some(mut fleet) = hosts(true)? else { return Ok(()) };
    let mut session = fleet.session()?;
    // It registers in its first phase one, and the next has to get as far as PREPARE.
    assert_commits(&fleet, &mut session, 9)?;
    let limit = lengthened_by_load(Duration::from_secs(2)).as_millis();
    session.batch_execute(&format!("SET pg_fdw_xacts.commit_timeout = {limit}"))?;
    begin_everywhere(&mut session, 1)?;
    let (commit, hit) = commit_held_at(&fleet, session, 2, point, "PREPARE TRANSACTION")?;
    fleet.cable(2).lose(Loss::Both)?;
    fleet.shard_mut(2).kill9()?;
    hit.release();
    let (mut session, result) = ended(commit)?;
    expect_error(result, "57014");
    assert_usable(&mut session);
    others_commit(&fleet, 1)?;
    fleet.shard_mut(2).start()?;
    fleet.cable(2).mend()?;
    assert_recovered(&fleet, 1, false)?;
    session.batch_execute("RESET pg_fdw_xacts.commit_timeout")?;
    assert_commits(&fleet, &mut session, 2)
}

/// Decided, and the shard vanishes before it has heard of it, or before it can say so, in one
/// direction or in both.
#[test]
fn packets_that_vanish_during_commit_prepared_delay_it_and_lose_nothing() -> Outcome {
    let Some(fleet) = hosts(true)? else { return Ok(()) };
    let losses = [Loss::ToShard, Loss::ToCoordinator, Loss::Both];
    let points = [Point::Statement, Point::Answer];
    for (id, (point, loss)) in (1..).zip(points.into_iter().zip(losses)) {
        let mut session = hasty(&fleet)?;
        begin_everywhere(&mut session, id)?;
        let (commit, hit) = commit_held_at(&fleet, session, 2, point, "COMMIT PREPARED")?;
        fleet.cable(2).lose(loss)?;
        hit.release();
        let (session, result) = ended(commit)?;
        result?;
        others_commit(&fleet, id)?;
        // Ends without waiting for what it has sent.
        drop(session);
        fleet.cable(2).mend()?;
        assert_recovered(&fleet, id, true)?;
    }
    Ok(())
}

/// While shard 2 does not hear of a COMMIT, shard 1 is settled, and who asks the resolver gets an
/// answer.
#[test]
fn the_resolver_settles_others_while_a_host_is_away() -> Outcome {
    let Some(fleet) = hosts(true)? else { return Ok(()) };
    let mut session = hasty(&fleet)?;
    begin_everywhere(&mut session, 1)?;
    let (commit, hit) = commit_held_at(&fleet, session, 2, Point::Statement, "COMMIT PREPARED")?;
    fleet.cable(2).lose(Loss::Both)?;
    ended(commit)?.1?;
    let mut session = fleet.session()?;
    session.batch_execute(
        "BEGIN; INSERT INTO lt VALUES (-1, 'x'); INSERT INTO ft1 VALUES (-1, 'x')",
    )?;
    fleet.commit_undelivered(session, 1)?;
    fleet.reconnect(1);
    wait_until("shard 1 is settled", DEADLINE, || Ok(prepared_gids(fleet.shard(1))?.is_empty()))?;
    drop(hit);
    let asked = in_background(fleet.session()?, "SELECT * FROM pg_fdw_xacts_resolve()");
    ended(asked)?.1?;
    fleet.cable(2).mend()?;
    assert_recovered(&fleet, 1, true)
}

/// The coordinator's host dies, and its data are started on another one with its address. What its
/// sessions hold on the shards they hold until the shards' own probes are not answered any more.
#[test]
fn a_coordinator_whose_host_has_died_is_let_go_by_its_shards() -> Outcome {
    let Some(mut fleet) = hosts(false)? else { return Ok(()) };
    let mut pending = fleet.session()?;
    begin_everywhere(&mut pending, 1)?;
    pending.batch_execute("PREPARE TRANSACTION 'pending'")?;
    let mut open = fleet.session()?;
    begin_everywhere(&mut open, 2)?;
    fleet.coordinator_host_dies()?;
    fleet.coordinator.start()?;
    let mut session = fleet.session()?;
    session.batch_execute("COMMIT PREPARED 'pending'")?;
    // Waits for the row of the open transaction.
    begin_everywhere(&mut session, 2)?;
    session.batch_execute("COMMIT")?;
    assert_everywhere(&fleet, 2, true)?;
    assert_recovered(&fleet, 1, true)
}
