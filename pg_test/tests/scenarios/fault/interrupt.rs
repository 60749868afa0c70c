//! Cancel, statement_timeout and termination at every wait of a COMMIT: before the decision they
//! abort everywhere, after it the transaction is committed everywhere and the client has its answer
//! at once. Afterwards the backend still reacts to both.

use std::time::{Duration, Instant};

use pg_test::oracle::{assert_settled, assert_usable, expect_error, expect_terminated, one};
use pg_test::{DEADLINE, Fault, Fleet, Point, lengthened_by_load};
use postgres::{Client, Error};

use crate::support::{
    Outcome, assert_commits, assert_interruptible, assert_recovered, assert_warned,
    begin_everywhere, commit_held_at, in_background, session_with_notices, signal,
};

/// What ends sooner has not waited for a shard: sessions would do that for ten minutes.
const AT_ONCE: Duration = DEADLINE;

/// Neither phase of a COMMIT ends by itself while a test runs.
fn patient(session: &mut Client) -> Result<(), Error> {
    session.batch_execute("SET pg_fdw_xacts.commit_timeout = '10min'")
}

fn pid(session: &mut Client) -> anyhow::Result<i32> {
    one(session, "SELECT pg_backend_pid()")
}

#[test]
fn a_cancel_while_a_shard_prepares_aborts_everywhere() -> Outcome {
    for point in [Point::Statement, Point::Answer] {
        let fleet = Fleet::start_proxied()?;
        let mut session = fleet.session()?;
        // The abort waits so long for what is held.
        session.batch_execute(
            "SET pg_fdw_xacts.prepare_timeout = '10min'; SET pg_fdw_xacts.commit_timeout = '3s'",
        )?;
        let pid = pid(&mut session)?;
        begin_everywhere(&mut session, 1)?;
        let (commit, hit) = commit_held_at(&fleet, session, 1, point, "PREPARE TRANSACTION")?;
        signal(&fleet, "pg_cancel_backend", pid)?;
        let start = Instant::now();
        let (mut session, result) = commit.join();
        expect_error(result, "57014");
        assert!(start.elapsed() < AT_ONCE, "{:?}", start.elapsed());
        assert_usable(&mut session);
        hit.release();
        assert_recovered(&fleet, 1, false)?;
        assert_commits(&fleet, &mut session, 2)?;
        assert_interruptible(&fleet, session)?;
    }
    Ok(())
}

#[test]
fn statement_timeout_limits_phase_one() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let mut session = fleet.session()?;
    // It registers in its first phase one, which may take long on a busy machine.
    assert_commits(&fleet, &mut session, 9)?;
    session.batch_execute("SET pg_fdw_xacts.commit_timeout = '4s'")?;
    begin_everywhere(&mut session, 1)?;
    // For COMMIT only, and long enough for it to get there.
    let limit = lengthened_by_load(Duration::from_secs(1)).as_millis();
    session.batch_execute(&format!("SET LOCAL statement_timeout = {limit}"))?;
    let (commit, hit) = commit_held_at(&fleet, session, 1, Point::Answer, "PREPARE TRANSACTION")?;
    let start = Instant::now();
    let (mut session, result) = commit.join();
    expect_error(result, "57014");
    assert!(start.elapsed() < AT_ONCE, "{:?}", start.elapsed());
    assert_usable(&mut session);
    hit.release();
    assert_recovered(&fleet, 1, false)?;
    assert_interruptible(&fleet, session)
}

#[test]
fn a_termination_while_a_shard_prepares_aborts_everywhere() -> Outcome {
    for point in [Point::Statement, Point::Answer] {
        let fleet = Fleet::start_proxied()?;
        let mut session = fleet.session()?;
        patient(&mut session)?;
        let pid = pid(&mut session)?;
        begin_everywhere(&mut session, 1)?;
        let (commit, hit) = commit_held_at(&fleet, session, 1, point, "PREPARE TRANSACTION")?;
        signal(&fleet, "pg_terminate_backend", pid)?;
        let start = Instant::now();
        expect_terminated(commit.join().1);
        assert!(start.elapsed() < AT_ONCE, "{:?}", start.elapsed());
        hit.release();
        assert_recovered(&fleet, 1, false)?;
    }
    Ok(())
}

#[test]
fn a_cancel_after_the_decision_ends_the_wait_and_nothing_else() -> Outcome {
    for point in [Point::Statement, Point::Answer] {
        let fleet = Fleet::start_proxied()?;
        let (mut session, notices) = session_with_notices(&fleet)?;
        patient(&mut session)?;
        let pid = pid(&mut session)?;
        begin_everywhere(&mut session, 1)?;
        // Neither the rest of the cancel nor anything else hits the next statement, not even of one
        // message.
        let hit = fleet.proxy(1).inject(Fault::hold(point, "COMMIT PREPARED"));
        let commit = in_background(session, "COMMIT; SELECT pg_sleep(0.01)");
        hit.wait()?;
        signal(&fleet, "pg_cancel_backend", pid)?;
        let start = Instant::now();
        let (mut session, result) = commit.join();
        result?;
        assert!(start.elapsed() < AT_ONCE, "{:?}", start.elapsed());
        assert_warned(&notices, "shard1");
        assert_usable(&mut session);
        hit.release();
        assert_recovered(&fleet, 1, true)?;
        assert_commits(&fleet, &mut session, 2)?;
        assert_interruptible(&fleet, session)?;
    }
    Ok(())
}

#[test]
fn a_termination_after_the_decision_leaves_it_committed_everywhere() -> Outcome {
    for point in [Point::Statement, Point::Answer] {
        let fleet = Fleet::start_proxied()?;
        let mut session = fleet.session()?;
        patient(&mut session)?;
        let pid = pid(&mut session)?;
        begin_everywhere(&mut session, 1)?;
        let (commit, hit) = commit_held_at(&fleet, session, 1, point, "COMMIT PREPARED")?;
        signal(&fleet, "pg_terminate_backend", pid)?;
        let start = Instant::now();
        // Whether it still gets its COMMIT or not, the session is over.
        let (mut session, _) = commit.join();
        assert!(start.elapsed() < AT_ONCE, "{:?}", start.elapsed());
        assert!(session.batch_execute("SELECT 1").is_err(), "the backend was not terminated");
        hit.release();
        assert_recovered(&fleet, 1, true)?;
    }
    Ok(())
}

#[test]
fn a_cancel_while_gxid_is_delivered_ends_the_wait_and_nothing_else() -> Outcome {
    for (command, committed) in [("COMMIT PREPARED", true), ("ROLLBACK PREPARED", false)] {
        let fleet = Fleet::start_proxied()?;
        let (mut session, notices) = session_with_notices(&fleet)?;
        patient(&mut session)?;
        let pid = pid(&mut session)?;
        begin_everywhere(&mut session, 1)?;
        session.batch_execute("PREPARE TRANSACTION 'gxid'")?;
        // The resolver looks at what it has been handed; it would deliver, too, in the middle of
        // that.
        session.batch_execute("SELECT * FROM pg_fdw_xacts_resolve()")?;
        let hit = fleet.proxy(1).inject(Fault::hold(Point::Statement, command));
        let settle = in_background(session, &format!("{command} 'gxid'"));
        hit.wait()?;
        signal(&fleet, "pg_cancel_backend", pid)?;
        let start = Instant::now();
        let (mut session, result) = settle.join();
        result?;
        assert!(start.elapsed() < AT_ONCE, "{:?}", start.elapsed());
        assert_warned(&notices, "shard1");
        assert_usable(&mut session);
        hit.release();
        assert_recovered(&fleet, 1, committed)?;
        assert_interruptible(&fleet, session)?;
    }
    Ok(())
}

/// Once the only writer has been sent COMMIT, its answer is the outcome: nothing else ends the
/// wait.
#[test]
fn a_cancel_during_a_one_phase_commit_does_not_lie() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let mut session = fleet.session()?;
    let pid = pid(&mut session)?;
    session.batch_execute("BEGIN; INSERT INTO ft1 VALUES (1)")?;
    let (commit, hit) = commit_held_at(&fleet, session, 1, Point::Answer, "COMMIT")?;
    signal(&fleet, "pg_cancel_backend", pid)?;
    hit.release();
    let (mut session, result) = commit.join();
    result?;
    assert_usable(&mut session);
    assert_eq!(fleet.ids_on_shard(1)?, [1]);
    assert_settled(&fleet);
    assert_interruptible(&fleet, session)
}

/// A shutdown of the coordinator does not wait for a shard that holds up phase two.
#[test]
fn a_fast_shutdown_in_phase_two_loses_nothing() -> Outcome {
    let mut fleet = Fleet::start_proxied()?;
    let mut session = fleet.session()?;
    patient(&mut session)?;
    begin_everywhere(&mut session, 1)?;
    let (commit, hit) = commit_held_at(&fleet, session, 1, Point::Statement, "COMMIT PREPARED")?;
    let start = Instant::now();
    fleet.coordinator.stop(pg_test::StopMode::Fast)?;
    assert!(start.elapsed() < AT_ONCE, "{:?}", start.elapsed());
    let _ = commit.join();
    hit.release();
    fleet.coordinator.start()?;
    assert_recovered(&fleet, 1, true)
}

/// A participant that has only read is not waited for: its COMMIT may still be on its way when the
/// next transaction is cancelled.
#[test]
fn a_shard_that_hangs_since_the_last_commit_does_not_hold_up_an_abort() -> Outcome {
    let fleet = Fleet::start()?;
    let mut session = fleet.session()?;
    patient(&mut session)?;
    session.batch_execute("BEGIN; SELECT * FROM ft1")?;
    let _frozen = fleet.shard(1).freeze()?;
    session.batch_execute("COMMIT; SET statement_timeout = '1s'")?;
    let start = Instant::now();
    expect_error(session.batch_execute("SELECT * FROM ft1"), "57014");
    // The error is told before the abort, which the next command waits for.
    session.batch_execute("SET statement_timeout = 0")?;
    assert!(start.elapsed() < AT_ONCE, "it took {:?}", start.elapsed());
    Ok(())
}
