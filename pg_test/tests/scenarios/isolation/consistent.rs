//! Together with consistent reads: a transaction that has written sees, in each statement, what is
//! committed when it begins, and the same on all servers.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use pg_test::oracle::{assert_settled, expect_error, one};
use pg_test::{DEADLINE, Fault, Fleet, FleetOptions, Point, wait_until};
use postgres::Client;
use postgres::error::SqlState;

use crate::cut::bank::move_money;
use crate::cut::held::wait_until_query_waits;
use crate::support::{Busy, Outcome, begin_everywhere, in_background, run_until};

const SHARDS: usize = 3;
const WRITERS: usize = 6;

/// Accounts on all shards, with a partition on each, and a table of the readers' own on the first
/// two.
pub fn start() -> anyhow::Result<Fleet> {
    let fleet = Fleet::start_with(&FleetOptions { shards: SHARDS, ..FleetOptions::default() })?;
    let mut session = fleet.session()?;
    session.batch_execute(
        "CREATE TABLE account (part int, id int, money bigint) PARTITION BY LIST (part)",
    )?;
    for number in 1..=SHARDS {
        fleet.shard(number).client()?.batch_execute(&format!(
            "CREATE TABLE account (part int DEFAULT {number}, id int PRIMARY KEY, money bigint);
             INSERT INTO account (id, money) SELECT n, 10 FROM generate_series(1, 10) n;
             CREATE TABLE mine (id int PRIMARY KEY, n int);
             INSERT INTO mine SELECT n, 0 FROM generate_series(1, 10) n"
        ))?;
        session.batch_execute(&format!(
            "CREATE FOREIGN TABLE account{number} PARTITION OF account FOR VALUES IN ({number})
                 SERVER shard{number} OPTIONS (table_name 'account');
             CREATE FOREIGN TABLE mine{number} (id int, n int) SERVER shard{number}
                 OPTIONS (table_name 'mine')"
        ))?;
    }
    Ok(fleet)
}

/// A session with this setting of `consistent_reads`.
pub fn session(fleet: &Fleet, consistent: &str) -> anyhow::Result<Client> {
    let mut session = fleet.session()?;
    session.batch_execute(&format!(
        "SET pg_fdw_xacts.remote_isolation = 'match'; SET pg_fdw_xacts.consistent_reads = {consistent}"
    ))?;
    Ok(session)
}

/// Moves money between two shards until told to stop, on accounts of its own.
fn write(fleet: &Fleet, number: usize, stop: &AtomicBool) -> Outcome {
    let mut session = session(fleet, "off")?;
    move_money(&mut session, 1..=SHARDS, number, stop)
}

#[derive(Debug, Default)]
struct Seen {
    reads: AtomicU64,
    torn: AtomicU64,
    refused: AtomicU64,
}

/// Writes on two servers and then adds all up, twice.
fn read(
    fleet: &Fleet,
    reader: usize,
    shape: &Shape,
    consistent: &str,
    stop: &AtomicBool,
    seen: &Seen,
) -> Outcome {
    let mut session = session(fleet, consistent)?;
    session.batch_execute(shape.settings)?;
    while !stop.load(Ordering::Relaxed) {
        session.batch_execute(&format!(
            "BEGIN; UPDATE mine1 SET n = n + 1 WHERE id = {reader};
             UPDATE mine2 SET n = n + 1 WHERE id = {reader}"
        ))?;
        let both =
            [0, 1].map(|_| session.query_one(shape.sum, &[]).map(|row| row.get::<_, i64>(0)));
        for sum in both {
            match sum {
                Ok(sum) => {
                    seen.reads.fetch_add(1, Ordering::Relaxed);
                    seen.torn
                        .fetch_add(u64::from(sum != 10 * 10 * SHARDS as i64), Ordering::Relaxed);
                }
                Err(error) if error.code() == Some(&SqlState::T_R_SERIALIZATION_FAILURE) => {
                    seen.refused.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) if error.code() == Some(&SqlState::IN_FAILED_SQL_TRANSACTION) => {}
                Err(error) => return Err(error.into()),
            }
        }
        session.batch_execute("COMMIT")?;
    }
    Ok(())
}

struct Shape {
    settings: &'static str,
    sum: &'static str,
    /// Cursors are opened while the query runs, and may come too late for its snapshots.
    may_be_refused: bool,
}

const SHAPES: [Shape; 3] = [
    Shape {
        settings: "SET enable_async_append = on",
        sum: "SELECT sum(money)::int8 FROM account",
        may_be_refused: false,
    },
    Shape {
        settings: "",
        sum: "SELECT ((SELECT sum(money) FROM account1) + (SELECT sum(money) FROM account2)
                + (SELECT sum(money) FROM account3))::int8",
        may_be_refused: false,
    },
    Shape {
        settings: "SET enable_hashjoin = off; SET enable_mergejoin = off",
        sum:
            "SELECT sum(a.money)::int8 FROM (VALUES (1), (2), (3)) n (part)
              CROSS JOIN LATERAL (SELECT money FROM account WHERE account.part = n.part OFFSET 0) a",
        may_be_refused: true,
    },
];

fn run(
    fleet: &Fleet,
    shape: &Shape,
    consistent: &str,
    is_enough: impl Fn(&Seen) -> bool,
) -> anyhow::Result<Seen> {
    let seen = Seen::default();
    let writers = (1..=WRITERS).map(|n| -> Busy { Box::new(move |stop| write(fleet, n, stop)) });
    let seen_by = &seen;
    let readers = (1..=2).map(|n| -> Busy {
        Box::new(move |stop| read(fleet, n, shape, consistent, stop, seen_by))
    });
    run_until(|| is_enough(&seen), writers.chain(readers).collect())?;
    Ok(seen)
}

fn is_torn(seen: &Seen) -> bool {
    seen.torn.load(Ordering::Relaxed) > 0
}

#[test]
fn what_a_writer_reads_is_never_torn() -> Outcome {
    let fleet = start()?;
    for shape in &SHAPES {
        let seen = run(&fleet, shape, "off", is_torn)?;
        assert!(is_torn(&seen), "{}: {seen:?}", shape.sum);
        let is_enough = |seen: &Seen| is_torn(seen) || seen.reads.load(Ordering::Relaxed) >= 200;
        let seen = run(&fleet, shape, "on", is_enough)?;
        assert!(!is_torn(&seen), "{}: {seen:?}", shape.sum);
        assert!(seen.reads.load(Ordering::Relaxed) >= 100, "{}: {seen:?}", shape.sum);
        if !shape.may_be_refused {
            assert_eq!(seen.refused.load(Ordering::Relaxed), 0, "{}: {seen:?}", shape.sum);
        }
    }
    assert_settled(&fleet);
    Ok(())
}

/// Each statement sees what was committed before it, on all servers.
#[test]
fn each_statement_has_a_cut_of_its_own() -> Outcome {
    let fleet = start()?;
    let sum = "SELECT sum(money)::int8 FROM account";
    for begin in ["BEGIN", "BEGIN; UPDATE mine1 SET n = 1; UPDATE mine2 SET n = 1"] {
        let mut reader = session(&fleet, "on")?;
        let mut writer = session(&fleet, "off")?;
        let before: i64 = one(&mut writer, sum)?;
        reader.batch_execute(begin)?;
        for n in 1..=3 {
            writer.batch_execute("UPDATE account SET money = money + 1 WHERE id = 1")?;
            let seen = one::<i64>(&mut reader, sum)?;
            assert_eq!(seen - before, 3 * n, "{begin}");
            writer.batch_execute("UPDATE account1 SET money = money + 1 WHERE id = 1")?;
            writer.batch_execute("UPDATE account1 SET money = money - 1 WHERE id = 1")?;
        }
        reader.batch_execute("COMMIT")?;
    }
    assert_settled(&fleet);
    Ok(())
}

/// `pg_fdw_xacts_snapshot()` asks for one snapshot of the whole transaction, so it has one.
#[test]
fn a_fixed_snapshot_stays() -> Outcome {
    let fleet = start()?;
    let sum = "SELECT sum(money)::int8 FROM account";
    let (mut reader, mut writer) = (session(&fleet, "on")?, session(&fleet, "off")?);
    reader.batch_execute("BEGIN; SELECT pg_fdw_xacts_snapshot()")?;
    let before: i64 = one(&mut reader, sum)?;
    writer.batch_execute("UPDATE account SET money = money + 1 WHERE id = 1")?;
    assert_eq!(one::<i64>(&mut reader, sum)?, before);
    let refused = reader.batch_execute("UPDATE account1 SET money = money + 1 WHERE id = 1");
    assert_eq!(
        refused.expect_err("it was changed").code(),
        Some(&SqlState::T_R_SERIALIZATION_FAILURE)
    );
    reader.batch_execute("ROLLBACK; BEGIN; UPDATE account1 SET money = money WHERE id = 2")?;
    let late = reader.batch_execute("SELECT pg_fdw_xacts_snapshot()").expect_err("it is too late");
    assert_eq!(late.code(), Some(&SqlState::ACTIVE_SQL_TRANSACTION));
    reader.batch_execute("ROLLBACK")?;
    assert_settled(&fleet);
    Ok(())
}

/// With commit_wait = off, on a server where each statement has its own snapshot.
#[test]
fn what_was_acknowledged_is_seen_after_writing() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let mut reader = session(&fleet, "on")?;
    reader.batch_execute("BEGIN; INSERT INTO ft2 VALUES (100, 'own')")?;
    let mut writer = session(&fleet, "off")?;
    writer.batch_execute("SET pg_fdw_xacts.commit_wait = off")?;
    begin_everywhere(&mut writer, 1)?;
    let hit = fleet.proxy(2).inject(Fault::hold(Point::Statement, "COMMIT PREPARED"));
    writer.batch_execute("COMMIT")?;
    hit.wait()?;
    let count = "DO $$ BEGIN ASSERT (SELECT count(*) FROM ft2) = 2; END $$";
    let reader = in_background(reader, count);
    wait_until_query_waits(&mut fleet.session()?, "DO")?;
    hit.release();
    let (mut reader, seen) = reader.join();
    seen?;
    reader.batch_execute("COMMIT")?;
    // An idle session does not note that it was confirmed.
    drop(writer);
    assert_settled(&fleet);
    Ok(())
}

/// The cursors of a query that are opened between two snapshots wait for locks of tables. Red when
/// such a wait was not made known.
#[test]
fn a_cursor_that_waits_for_a_lock_may_be_part_of_a_deadlock() -> Outcome {
    let fleet = start()?;
    let (mut older, mut younger) = (session(&fleet, "on")?, session(&fleet, "off")?);
    for session in [&mut older, &mut younger] {
        session.batch_execute("SET statement_timeout = '30s'")?;
        // From then on the shards know whose sessions these are.
        session.batch_execute("BEGIN; UPDATE mine1 SET n = 2; UPDATE mine2 SET n = 2; COMMIT")?;
    }
    older.batch_execute("BEGIN; UPDATE mine1 SET n = 1; UPDATE mine2 SET n = 1")?;
    younger.batch_execute(
        "BEGIN; SELECT pg_fdw_xacts_exec('shard1', 'LOCK TABLE public.account IN ACCESS EXCLUSIVE MODE')",
    )?;
    let older = in_background(older, "SELECT sum(money) FROM account");
    let mut watcher = fleet.shard(1).client()?;
    wait_until("the cursor waits", DEADLINE, || {
        let waits = "SELECT count(*) FROM pg_locks WHERE NOT granted";
        Ok(one::<i64>(&mut watcher, waits)? > 0)
    })?;
    expect_error(younger.batch_execute("UPDATE mine2 SET n = 2"), "40P01");
    younger.batch_execute("ROLLBACK")?;
    let (mut older, seen) = older.join();
    seen?;
    older.batch_execute("COMMIT")?;
    assert_settled(&fleet);
    Ok(())
}
