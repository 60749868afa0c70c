//! SIGKILL for the coordinator, postmaster and all, at each point of a COMMIT over two shards. Once
//! it is up again nothing is in doubt, and all servers agree: committed if the decision had been
//! made, else not.

use pg_test::oracle::assert_settled;
use pg_test::{Fleet, FleetOptions, Point};
use postgres::Client;

use crate::support::{
    Outcome, assert_commits, assert_everywhere, begin_everywhere, commit_held_at,
};

/// Where a COMMIT is when the coordinator is killed: the shard's number, the point, the statement.
type Moment = (usize, Point, &'static str);

/// Kills the coordinator when the COMMIT of `session` is at `moment`, and starts it again.
fn kill_coordinator(fleet: &mut Fleet, session: Client, moment: Moment) -> Outcome {
    let (number, point, statement) = moment;
    let (commit, hit) = commit_held_at(fleet, session, number, point, statement)?;
    fleet.coordinator.kill9()?;
    // What was on its way still arrives.
    hit.release();
    assert!(commit.join().1.is_err(), "the client got an answer from a dead server");
    fleet.coordinator.start()
}

/// A fleet whose coordinator writes nothing to its log that nobody waits for.
fn slow_to_write() -> anyhow::Result<Fleet> {
    Fleet::start_with(&FleetOptions {
        proxied: true,
        coordinator: vec![("wal_writer_delay", "10s")],
        ..FleetOptions::default()
    })
}

/// Kills the coordinator at `moment` of a transaction that writes everywhere; `committed` is its
/// outcome.
fn killed_at(
    moment: Moment,
    committed: bool,
    prepare_session: impl Fn(&mut Client) -> Outcome,
) -> Outcome {
    let mut fleet = slow_to_write()?;
    let mut session = fleet.session()?;
    prepare_session(&mut session)?;
    begin_everywhere(&mut session, 1)?;
    kill_coordinator(&mut fleet, session, moment)?;
    assert_settled(&fleet);
    assert_everywhere(&fleet, 1, committed)?;
    assert_commits(&fleet, &mut fleet.session()?, 2)
}

fn plain(_: &mut Client) -> Outcome {
    Ok(())
}

#[test]
fn before_prepare_reaches_the_first_shard() -> Outcome {
    killed_at((1, Point::Statement, "PREPARE TRANSACTION"), false, plain)
}

#[test]
fn before_prepare_reaches_the_second_shard() -> Outcome {
    killed_at((2, Point::Statement, "PREPARE TRANSACTION"), false, plain)
}

#[test]
fn after_prepare_before_its_answer() -> Outcome {
    killed_at((1, Point::Answer, "PREPARE TRANSACTION"), false, plain)
}

#[test]
fn after_the_decision_before_commit_prepared_reaches_the_first_shard() -> Outcome {
    killed_at((1, Point::Statement, "COMMIT PREPARED"), true, plain)
}

#[test]
fn after_the_decision_before_commit_prepared_reaches_the_second_shard() -> Outcome {
    killed_at((2, Point::Statement, "COMMIT PREPARED"), true, plain)
}

#[test]
fn after_commit_prepared_before_its_answer() -> Outcome {
    killed_at((1, Point::Answer, "COMMIT PREPARED"), true, plain)
}

#[test]
fn after_the_decision_with_asynchronous_commit() -> Outcome {
    killed_at((1, Point::Statement, "COMMIT PREPARED"), true, |session| {
        Ok(session.batch_execute("SET synchronous_commit = off")?)
    })
}

#[test]
fn after_the_decision_of_a_transaction_that_wrote_nothing_locally() -> Outcome {
    let mut fleet = slow_to_write()?;
    let mut session = fleet.session()?;
    session.batch_execute("SET synchronous_commit = off")?;
    session.batch_execute("BEGIN; INSERT INTO ft1 VALUES (1); INSERT INTO ft2 VALUES (1)")?;
    kill_coordinator(&mut fleet, session, (2, Point::Statement, "COMMIT PREPARED"))?;
    assert_settled(&fleet);
    assert_eq!((fleet.ids_on_shard(1)?, fleet.ids_on_shard(2)?), (vec![1], vec![1]));
    Ok(())
}

#[test]
fn coordinator_and_shard_both_killed_after_the_decision() -> Outcome {
    let mut fleet = Fleet::start_proxied()?;
    let mut session = fleet.session()?;
    begin_everywhere(&mut session, 1)?;
    let (commit, hit) = commit_held_at(&fleet, session, 1, Point::Statement, "COMMIT PREPARED")?;
    fleet.coordinator.kill9()?;
    fleet.shard_mut(1).kill9()?;
    hit.release();
    assert!(commit.join().1.is_err(), "the client got an answer from a dead server");
    // The coordinator first: it has to find out by itself when the shard is there.
    fleet.coordinator.start()?;
    assert_everywhere_but_shard_1(&fleet)?;
    fleet.shard_mut(1).start()?;
    assert_settled(&fleet);
    assert_everywhere(&fleet, 1, true)
}

fn assert_everywhere_but_shard_1(fleet: &Fleet) -> Outcome {
    assert_eq!(fleet.ids_in_lt()?, [1]);
    pg_test::wait_until("shard 2 has its row", pg_test::DEADLINE, || {
        Ok(fleet.ids_on_shard(2)? == [1])
    })
}

#[test]
fn a_backend_killed_after_the_decision_leaves_nothing_behind() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let mut session = fleet.session()?;
    let pid: i32 = pg_test::oracle::one(&mut session, "SELECT pg_backend_pid()")?;
    begin_everywhere(&mut session, 1)?;
    let mut witness = fleet.session()?;
    let (commit, hit) = commit_held_at(&fleet, session, 1, Point::Statement, "COMMIT PREPARED")?;
    fleet.coordinator.kill9_backend(pid)?;
    assert!(commit.join().1.is_err(), "the client got an answer from a dead backend");
    hit.release();
    // The server ends all its sessions before it restarts itself.
    pg_test::wait_until("the coordinator has noticed", pg_test::DEADLINE, || {
        Ok(witness.batch_execute("SELECT 1").is_err())
    })?;
    pg_test::wait_until("the coordinator has restarted itself", pg_test::DEADLINE, || {
        Ok(fleet.session().is_ok())
    })?;
    assert_settled(&fleet);
    assert_everywhere(&fleet, 1, true)
}
