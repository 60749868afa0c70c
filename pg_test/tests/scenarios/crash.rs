//! SIGKILL for the coordinator, postmaster and all, at each point of a COMMIT over two shards. Once it is up
//! again nothing is in doubt, and all servers agree: committed if the decision had been made, else not.

use pg_test::oracle::{assert_settled, assert_usable};
use pg_test::{Fault, Fleet, Point};
use postgres::Client;

use crate::support::{Outcome, assert_everywhere, begin_everywhere, in_background};

/// Kills the coordinator when shard `number` is at `point` of `statement`, then looks at what became of it.
fn kill_coordinator_at(
    number: usize,
    point: Point,
    statement: &str,
    committed: bool,
    prepare_session: impl Fn(&mut Client) -> Outcome,
) -> Outcome {
    let mut fleet = Fleet::start_proxied()?;
    let mut session = fleet.session()?;
    prepare_session(&mut session)?;
    begin_everywhere(&mut session, 1)?;
    let hit = fleet.proxy(number).inject(Fault::hold(point, statement));
    let commit = in_background(session, "COMMIT");
    hit.wait()?;
    fleet.coordinator.kill9()?;
    // What was on its way still arrives.
    hit.release();
    assert!(commit.join().1.is_err(), "the client got an answer from a dead server");
    fleet.coordinator.start()?;
    assert_settled(&fleet);
    assert_everywhere(&fleet, 1, committed)?;
    let mut session = fleet.session()?;
    assert_usable(&mut session);
    begin_everywhere(&mut session, 2)?;
    session.batch_execute("COMMIT")?;
    assert_everywhere(&fleet, 2, true)
}

fn plain(_: &mut Client) -> Outcome {
    Ok(())
}

#[test]
fn before_prepare_reaches_the_first_shard() -> Outcome {
    kill_coordinator_at(1, Point::Statement, "PREPARE TRANSACTION", false, plain)
}

#[test]
fn before_prepare_reaches_the_second_shard() -> Outcome {
    kill_coordinator_at(2, Point::Statement, "PREPARE TRANSACTION", false, plain)
}

#[test]
fn after_prepare_before_its_answer() -> Outcome {
    kill_coordinator_at(1, Point::Answer, "PREPARE TRANSACTION", false, plain)
}

#[test]
fn after_the_decision_before_commit_prepared_reaches_the_first_shard() -> Outcome {
    kill_coordinator_at(1, Point::Statement, "COMMIT PREPARED", true, plain)
}

#[test]
fn after_the_decision_before_commit_prepared_reaches_the_second_shard() -> Outcome {
    kill_coordinator_at(2, Point::Statement, "COMMIT PREPARED", true, plain)
}

#[test]
fn after_commit_prepared_before_its_answer() -> Outcome {
    kill_coordinator_at(1, Point::Answer, "COMMIT PREPARED", true, plain)
}

#[test]
fn after_the_decision_with_asynchronous_commit() -> Outcome {
    kill_coordinator_at(1, Point::Statement, "COMMIT PREPARED", true, |session| {
        Ok(session.batch_execute("SET synchronous_commit = off")?)
    })
}

#[test]
fn after_the_decision_of_a_transaction_that_wrote_nothing_locally() -> Outcome {
    let mut fleet = Fleet::start_proxied()?;
    let mut session = fleet.session()?;
    session.batch_execute("SET synchronous_commit = off")?;
    session.batch_execute("BEGIN")?;
    session.batch_execute("INSERT INTO ft1 VALUES (1, 'x')")?;
    session.batch_execute("INSERT INTO ft2 VALUES (1, 'x')")?;
    let hit = fleet.proxy(2).inject(Fault::hold(Point::Statement, "COMMIT PREPARED"));
    let commit = in_background(session, "COMMIT");
    hit.wait()?;
    fleet.coordinator.kill9()?;
    hit.release();
    assert!(commit.join().1.is_err(), "the client got an answer from a dead server");
    fleet.coordinator.start()?;
    assert_settled(&fleet);
    assert_eq!((fleet.ids_on_shard(1)?, fleet.ids_on_shard(2)?), (vec![1], vec![1]));
    Ok(())
}

#[test]
fn coordinator_and_shard_both_killed_after_the_decision() -> Outcome {
    let mut fleet = Fleet::start_proxied()?;
    let mut session = fleet.session()?;
    begin_everywhere(&mut session, 1)?;
    let hit = fleet.proxy(1).inject(Fault::hold(Point::Statement, "COMMIT PREPARED"));
    let commit = in_background(session, "COMMIT");
    hit.wait()?;
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
    let hit = fleet.proxy(1).inject(Fault::hold(Point::Statement, "COMMIT PREPARED"));
    let commit = in_background(session, "COMMIT");
    hit.wait()?;
    fleet.coordinator.kill9_backend(pid)?;
    assert!(commit.join().1.is_err(), "the client got an answer from a dead backend");
    hit.release();
    pg_test::wait_until("the coordinator has restarted itself", pg_test::DEADLINE, || {
        Ok(fleet.session().is_ok())
    })?;
    assert_settled(&fleet);
    assert_everywhere(&fleet, 1, true)
}
