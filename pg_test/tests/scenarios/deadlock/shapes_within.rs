//! Cycles within one session, within its statements, and within what is waited for at once. All of
//! them wait for ever with `pg_fdw_xacts.detect_deadlocks = off`.

use std::time::Instant;

use pg_test::oracle::{expect_error, one};
use pg_test::{DEADLINE, Fleet, wait_until};
use postgres::Client;

use super::{commit_all, in_time, one_gives_way, session_that, start, waits_on};
use crate::support::{Outcome, in_background};

/// Two user mappings of one server are two sessions there, which may wait for each other.
#[test]
fn two_mappings_of_one_session() -> Outcome {
    let fleet = start()?;
    fleet.session()?.batch_execute(
        "CREATE ROLE other SUPERUSER;
         CREATE USER MAPPING FOR other SERVER shard1 OPTIONS (user 'postgres')",
    )?;
    let mut session = session_that(&fleet, "UPDATE ft1 SET v = 'a' WHERE id = 1; SET ROLE other")?;
    let pid: i32 = one(&mut session, "SELECT pg_backend_pid()")?;
    let begin = Instant::now();
    let waits = waits_on(&fleet, 1, session, "UPDATE ft1 SET v = 'b' WHERE id = 1")?;
    let (mut session, result) = waits.join();
    in_time(begin);
    let error = expect_error(result, "40P01");
    let told = error.detail().unwrap_or_default();
    assert_eq!(told.lines().count(), 1, "{told}");
    assert!(told.contains(&format!("blocked by process {pid}, process ")), "{told}");
    session.batch_execute("ROLLBACK")?;
    commit_all(&fleet, vec![])
}

const APPEND: &str = "SELECT count(v) FROM pt WHERE id > 0";

/// One of the two sleeps in an asynchronous Append, where nothing of ours runs until it wakes.
#[test]
fn an_asynchronous_append() -> Outcome {
    for sleeper_is_older in [true, false] {
        let fleet = start()?;
        fleet.session()?.batch_execute(
            "ALTER SERVER shard1 OPTIONS (ADD async_capable 'true');
             ALTER SERVER shard2 OPTIONS (ADD async_capable 'true');
             CREATE TABLE pt (id int, v text) PARTITION BY LIST (v);
             CREATE FOREIGN TABLE p1 PARTITION OF pt FOR VALUES IN ('x')
                 SERVER shard1 OPTIONS (table_name 't');
             CREATE FOREIGN TABLE p2 PARTITION OF pt FOR VALUES IN ('y')
                 SERVER shard2 OPTIONS (table_name 't')",
        )?;
        let mut plan = fleet.session()?;
        let plan: String =
            one(&mut plan, "SELECT string_agg(line, e'\n') FROM (SELECT 'x' AS line) x")?;
        assert_eq!(plan, "x");
        let sleeps = "UPDATE ft2 SET v = 'y' WHERE id = 2";
        let locks = "SELECT pg_fdw_xacts_exec('shard1', 'LOCK TABLE t')";
        let (sleeper, other);
        if sleeper_is_older {
            sleeper = session_that(&fleet, sleeps)?;
            other = session_that(&fleet, locks)?;
        } else {
            other = session_that(&fleet, locks)?;
            sleeper = session_that(&fleet, sleeps)?;
        }
        let sleeper = waits_on(&fleet, 1, sleeper, APPEND)?;
        let begin = Instant::now();
        let other = waits_on(&fleet, 2, other, "UPDATE ft2 SET v = 'x' WHERE id = 2")?;
        let (_, victim, sessions) = one_gives_way(begin, vec![sleeper, other])?;
        assert_eq!(victim, usize::from(sleeper_is_older));
        commit_all(&fleet, sessions)?;
    }
    Ok(())
}

/// A session whose wait ends by a savepoint or an exception block goes on with its transaction, as
/// after PostgreSQL's own deadlocks.
fn crossed(fleet: &Fleet, younger: &str) -> anyhow::Result<(Client, Client)> {
    let older = session_that(fleet, "UPDATE ft1 SET v = 'a' WHERE id = 1")?;
    let younger = session_that(fleet, younger)?;
    Ok((older, younger))
}

#[test]
fn a_savepoint_survives_it() -> Outcome {
    let fleet = start()?;
    let (older, younger) = crossed(
        &fleet,
        "UPDATE ft2 SET v = 'kept' WHERE id = 3; SAVEPOINT s; UPDATE ft2 SET v = 'b' WHERE id = 1",
    )?;
    let older = waits_on(&fleet, 2, older, "UPDATE ft2 SET v = 'a' WHERE id = 1")?;
    let begin = Instant::now();
    let younger = waits_on(&fleet, 1, younger, "UPDATE ft1 SET v = 'b' WHERE id = 1")?;
    let (mut younger, result) = younger.join();
    in_time(begin);
    expect_error(result, "40P01");
    younger.batch_execute("ROLLBACK TO s; UPDATE ft1 SET v = 'kept' WHERE id = 3; COMMIT")?;
    let (older, result) = older.join();
    result?;
    commit_all(&fleet, vec![older])?;
    for table in ["ft1", "ft2"] {
        let sql = format!("SELECT string_agg(v, ' ' ORDER BY id) FROM {table} WHERE id IN (1, 3)");
        assert_eq!(one::<String>(&mut fleet.session()?, &sql)?, "a kept");
    }
    Ok(())
}

#[test]
fn an_exception_block_survives_it() -> Outcome {
    let fleet = start()?;
    let (older, younger) = crossed(&fleet, "UPDATE ft2 SET v = 'kept' WHERE id = 3")?;
    let hold = in_background(
        younger,
        "DO $$ BEGIN
             BEGIN
                 UPDATE ft2 SET v = 'b' WHERE id = 1;
                 PERFORM pg_sleep(1);
                 UPDATE ft1 SET v = 'b' WHERE id = 1;
             EXCEPTION WHEN deadlock_detected THEN
                 UPDATE ft1 SET v = 'kept' WHERE id = 3;
             END;
         END $$",
    );
    let mut shard = fleet.shard(2).client()?;
    wait_until("the block holds its row", DEADLINE, || {
        Ok(shard.query_opt("SELECT FROM t WHERE id = 1 FOR UPDATE SKIP LOCKED", &[])?.is_none())
    })?;
    let older = waits_on(&fleet, 2, older, "UPDATE ft2 SET v = 'a' WHERE id = 1")?;
    let (younger, result) = hold.join();
    result?;
    let (older, result) = older.join();
    result?;
    commit_all(&fleet, vec![older, younger])?;
    for table in ["ft1", "ft2"] {
        let sql = format!("SELECT string_agg(v, ' ' ORDER BY id) FROM {table} WHERE id IN (1, 3)");
        assert_eq!(one::<String>(&mut fleet.session()?, &sql)?, "a kept");
    }
    Ok(())
}
