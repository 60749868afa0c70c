//! A shard that takes long to prepare or to commit, because a deferred trigger works there: cancels
//! and limits reach it.

use std::time::{Duration, Instant};

use pg_test::oracle::{assert_settled, assert_usable, expect_error, one, settled_within};
use pg_test::{DEADLINE, Fleet, lengthened_by_load, wait_until};
use postgres::{Client, Error};

use crate::support::{Outcome, assert_commits, assert_everywhere, in_background};

/// Far less than the trigger takes, and than the limits of sessions that are patient.
const AT_ONCE: Duration = DEADLINE;

/// Neither phase of a COMMIT ends by itself while a test runs.
const PATIENT: &str = "SET pg_fdw_xacts.commit_timeout = '10min'";

/// A fleet where what inserts on shard 1 takes ten minutes at its end.
fn start() -> anyhow::Result<Fleet> {
    let fleet = Fleet::start()?;
    fleet.shard(1).client()?.batch_execute(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
             'BEGIN PERFORM pg_catalog.pg_sleep(600); RETURN NULL; END';
         CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED
             FOR EACH ROW EXECUTE FUNCTION slow()",
    )?;
    Ok(fleet)
}

fn sleepers(fleet: &Fleet) -> anyhow::Result<i64> {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    one(&mut fleet.shard(1).client()?, sql)
}

/// How a COMMIT that takes long is ended.
#[derive(Clone, Copy)]
enum By {
    Cancel,
    Setting(&'static str),
}

/// Runs `statements` and COMMIT, which `by` ends; the session, what came of it, and how long that
/// took from there on until the session went on.
fn commit_ended_by(
    fleet: &Fleet,
    by: By,
    statements: &str,
) -> anyhow::Result<(Client, Result<(), Error>, Duration)> {
    let mut session = fleet.session()?;
    let pid: i32 = one(&mut session, "SELECT pg_backend_pid()")?;
    session.batch_execute(PATIENT)?;
    // It registers in its first phase one. What ended that would be no PREPARE that is slow.
    session.batch_execute("BEGIN; DELETE FROM ft1; DELETE FROM ft2; COMMIT")?;
    session.batch_execute(&format!("BEGIN; {statements}"))?;
    if let By::Setting(setting) = by {
        // For COMMIT only: on a busy machine other statements take as long. It has to get as far as
        // the trigger.
        let limit = lengthened_by_load(Duration::from_secs(2)).as_millis();
        session.batch_execute(&format!("SET LOCAL {setting} = {limit}"))?;
    }
    let mut begin = Instant::now();
    let commit = in_background(session, "COMMIT");
    if matches!(by, By::Cancel) {
        wait_until("the trigger works", DEADLINE, || Ok(sleepers(fleet)? == 1))?;
        begin = Instant::now();
        fleet.session()?.batch_execute(&format!("SELECT pg_cancel_backend({pid})"))?;
    }
    let (mut session, result) = commit.join();
    // The error is told before the abort, which the next command waits for.
    assert_usable(&mut session);
    Ok((session, result, begin.elapsed()))
}

const BY: [By; 3] =
    [By::Cancel, By::Setting("statement_timeout"), By::Setting("pg_fdw_xacts.prepare_timeout")];

/// Red on 0.2.0: it took as long as the shard did, or `commit_timeout`.
#[test]
fn a_slow_prepare_is_cancelled_at_once() -> Outcome {
    for by in BY {
        let fleet = start()?;
        let (mut session, result, took) = commit_ended_by(
            &fleet,
            by,
            "INSERT INTO ft1 VALUES (1, 'x'); INSERT INTO ft2 VALUES (1, 'x'); INSERT INTO lt VALUES (1, 'x')",
        )?;
        expect_error(result, "57014");
        assert!(took < AT_ONCE, "{took:?}");
        // It does not work on, and the answer was definite: nobody else had to settle anything.
        assert_eq!(sleepers(&fleet)?, 0);
        settled_within(&fleet, AT_ONCE)?;
        assert_everywhere(&fleet, 1, false)?;
        fleet.shard(1).client()?.batch_execute("DROP TRIGGER slow ON t")?;
        session.batch_execute("RESET ALL")?;
        assert_commits(&fleet, &mut session, 2)?;
    }
    Ok(())
}

/// Red on 0.2.0: the only writer's COMMIT could not be ended, and after `commit_timeout` its
/// outcome was unknown.
#[test]
fn a_slow_commit_in_one_phase_is_cancelled_at_once_and_its_outcome_known() -> Outcome {
    for by in BY {
        let fleet = start()?;
        let (mut session, result, took) =
            commit_ended_by(&fleet, by, "INSERT INTO ft1 VALUES (1, 'x')")?;
        expect_error(result, "57014");
        assert!(took < AT_ONCE, "{took:?}");
        assert_eq!(sleepers(&fleet)?, 0);
        assert_eq!(fleet.ids_on_shard(1)?, [0; 0]);
        assert_usable(&mut session);
        fleet.shard(1).client()?.batch_execute("DROP TRIGGER slow ON t")?;
        session.batch_execute("RESET ALL; INSERT INTO ft1 VALUES (2, 'x')")?;
        assert_settled(&fleet);
        assert_eq!(fleet.ids_on_shard(1)?, [2]);
    }
    Ok(())
}

/// A shard that does not take a cancel is not waited for longer than that: the resolver settles
/// what it prepares. Red on 0.2.0: the cancel took effect after 10 s.
#[test]
fn a_frozen_shard_does_not_hold_up_the_abort() -> Outcome {
    let fleet = start()?;
    let mut session = fleet.session()?;
    let pid: i32 = one(&mut session, "SELECT pg_backend_pid()")?;
    session.batch_execute(PATIENT)?;
    session
        .batch_execute("BEGIN; INSERT INTO ft1 VALUES (1, 'x'); INSERT INTO lt VALUES (1, 'x')")?;
    let commit = in_background(session, "COMMIT");
    wait_until("the trigger works", DEADLINE, || Ok(sleepers(&fleet)? == 1))?;
    let frozen = fleet.shard(1).freeze()?;
    let begin = Instant::now();
    fleet.session()?.batch_execute(&format!("SELECT pg_cancel_backend({pid})"))?;
    let (mut session, result) = commit.join();
    expect_error(result, "57014");
    assert_usable(&mut session);
    assert!(begin.elapsed() < AT_ONCE, "{:?}", begin.elapsed());
    drop(frozen);
    let sql = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    fleet.shard(1).client()?.batch_execute(sql)?;
    assert_settled(&fleet);
    assert_everywhere(&fleet, 1, false)
}

/// What waits for a shard outside of a COMMIT. Green on 0.2.0 as well.
#[test]
fn analyze_and_import_are_cancelled_at_once() -> Outcome {
    let fleet = start()?;
    fleet.shard(1).client()?.batch_execute(
        "CREATE VIEW slow_view AS SELECT t.id FROM t, pg_sleep(600); INSERT INTO t SELECT 1 WHERE false",
    )?;
    let mut session = fleet.session()?;
    session.batch_execute(
        "CREATE FOREIGN TABLE slow_view (id int) SERVER shard1; CREATE SCHEMA imported;
         SELECT * FROM ft1; SET statement_timeout = '500ms'",
    )?;
    let mut other = fleet.shard(1).client()?;
    other.batch_execute("BEGIN; LOCK TABLE pg_catalog.pg_attrdef")?;
    for statement in
        ["ANALYZE slow_view", "IMPORT FOREIGN SCHEMA public FROM SERVER shard1 INTO imported"]
    {
        let begin = Instant::now();
        expect_error(session.batch_execute(statement), "57014");
        assert!(begin.elapsed() < AT_ONCE, "{statement}: {:?}", begin.elapsed());
        // The shard may take a moment to notice what has been sent to it.
        wait_until("it has stopped there", AT_ONCE, || Ok(sleepers(&fleet)? == 0))?;
    }
    Ok(())
}
