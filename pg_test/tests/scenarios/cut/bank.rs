//! Money is moved between shards while others add it up.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pg_test::oracle::{assert_settled, one};
use pg_test::{Fleet, FleetOptions};
use postgres::error::SqlState;

use crate::support::Outcome;

const SHARDS: usize = 3;
const WRITERS: usize = 6;
const READERS: usize = 2;
const TOTAL: i64 = 300;

/// What the readers saw.
#[derive(Debug, Default)]
struct Seen {
    reads: AtomicU64,
    torn: AtomicU64,
    refused: AtomicU64,
}

fn open_accounts(fleet: &Fleet) -> Outcome {
    for number in 1..=SHARDS {
        fleet.shard(number).client()?.batch_execute(
            "CREATE TABLE account (id int PRIMARY KEY, money bigint);
             INSERT INTO account SELECT n, 10 FROM generate_series(1, 10) n",
        )?;
        fleet.session()?.batch_execute(&format!(
            "CREATE FOREIGN TABLE account{number} (id int, money bigint) SERVER shard{number}
                 OPTIONS (table_name 'account')"
        ))?;
    }
    Ok(())
}

/// Moves money between two shards until told to stop. Each has accounts of its own, so that nobody
/// waits for anybody.
fn write(fleet: &Fleet, number: usize, commit_wait: &str, stop: &AtomicBool) -> Outcome {
    let mut session = fleet.session()?;
    session.batch_execute(&format!("SET pg_fdw_xacts.commit_wait = {commit_wait}"))?;
    let mut turn = number;
    while !stop.load(Ordering::Relaxed) {
        let (from, to) = (turn % SHARDS + 1, (turn + 1) % SHARDS + 1);
        session.batch_execute(&format!(
            "BEGIN; UPDATE account{from} SET money = money - 1 WHERE id = {number};
             UPDATE account{to} SET money = money + 1 WHERE id = {number}; COMMIT"
        ))?;
        turn += 1;
    }
    Ok(())
}

fn read(fleet: &Fleet, setting: &str, begin: &str, stop: &AtomicBool, seen: &Seen) -> Outcome {
    let mut session = fleet.session()?;
    session.batch_execute(&format!("SET pg_fdw_xacts.consistent_reads = {setting}"))?;
    let tables: Vec<String> =
        (1..=SHARDS).map(|number| format!("SELECT money FROM account{number}")).collect();
    let sum = format!("SELECT sum(money)::int8 FROM ({}) a", tables.join(" UNION ALL "));
    while !stop.load(Ordering::Relaxed) {
        session.batch_execute(begin)?;
        let total = session.query_one(&sum, &[]).map(|row| row.get::<_, i64>(0));
        match total {
            Ok(total) => {
                seen.reads.fetch_add(1, Ordering::Relaxed);
                seen.torn.fetch_add(u64::from(total != TOTAL), Ordering::Relaxed);
                session.batch_execute("COMMIT")?;
            }
            Err(error) if error.code() == Some(&SqlState::T_R_SERIALIZATION_FAILURE) => {
                seen.refused.fetch_add(1, Ordering::Relaxed);
                session.batch_execute("ROLLBACK")?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Runs the bank until `is_enough`.
fn run(
    fleet: &Fleet,
    (setting, begin, commit_wait): (&str, &str, &str),
    is_enough: impl Fn(&Seen) -> bool,
) -> anyhow::Result<Seen> {
    let (stop, seen) = (AtomicBool::new(false), Seen::default());
    let deadline = Instant::now() + Duration::from_secs(60);
    std::thread::scope(|scope| {
        let (stop, seen) = (&stop, &seen);
        let mut threads: Vec<_> = (1..=WRITERS)
            .map(|number| scope.spawn(move || write(fleet, number, commit_wait, stop)))
            .collect();
        threads.extend(
            (0..READERS).map(|_| scope.spawn(move || read(fleet, setting, begin, stop, seen))),
        );
        while !is_enough(seen)
            && Instant::now() < deadline
            && !threads.iter().any(|t| t.is_finished())
        {
            std::thread::sleep(Duration::from_millis(10));
        }
        stop.store(true, Ordering::Relaxed);
        threads.into_iter().try_for_each(|thread| thread.join().expect("a client panicked"))
    })?;
    Ok(seen)
}

#[test]
fn the_sum_over_all_shards_is_always_right() -> Outcome {
    let fleet = Fleet::start_with(&FleetOptions { shards: SHARDS, ..FleetOptions::default() })?;
    open_accounts(&fleet)?;
    for commit_wait in ["on", "off"] {
        // The workload can tell: without consistent reads it is wrong soon.
        let is_torn = |seen: &Seen| seen.torn.load(Ordering::Relaxed) > 0;
        let plain = run(&fleet, ("off", "BEGIN", commit_wait), is_torn)?;
        assert!(is_torn(&plain), "{plain:?}");
        for begin in ["BEGIN", "BEGIN ISOLATION LEVEL REPEATABLE READ"] {
            let reads = |seen: &Seen| is_torn(seen) || seen.reads.load(Ordering::Relaxed) >= 300;
            let seen = run(&fleet, ("on", begin, commit_wait), reads)?;
            assert!(!is_torn(&seen), "{begin} {commit_wait} {seen:?}");
            assert!(seen.reads.into_inner() > 100, "{begin} {commit_wait}");
            assert_eq!(seen.refused.into_inner(), 0, "{begin} {commit_wait}");
        }
    }
    assert_settled(&fleet);
    let mut session = fleet.session()?;
    assert_eq!(one::<i64>(&mut session, "SELECT count(*) FROM pg_fdw_xacts")?, 0);
    Ok(())
}
