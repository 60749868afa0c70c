//! Money is moved between shards while others add it up.

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use pg_test::oracle::{assert_settled, one};
use pg_test::{Fleet, FleetOptions};
use postgres::Client;
use postgres::error::SqlState;

use crate::support::{Busy, Outcome, run_until};

const SHARDS: usize = 3;
const WRITERS: usize = 6;
const READERS: usize = 2;

/// How money is moved and added up.
#[derive(Clone, Debug)]
struct Run {
    setting: &'static str,
    begin: &'static str,
    commit_wait: &'static str,
    /// The numbers of the tables.
    tables: RangeInclusive<usize>,
}

/// What the readers saw.
#[derive(Debug, Default)]
struct Seen {
    reads: AtomicU64,
    torn: AtomicU64,
    refused: AtomicU64,
}

/// Accounts on all shards, and on the coordinator as `account0`.
fn open_accounts(fleet: &Fleet) -> Outcome {
    fleet.session()?.batch_execute(
        "CREATE TABLE account0 (id int PRIMARY KEY, money bigint);
         INSERT INTO account0 SELECT n, 10 FROM generate_series(1, 10) n",
    )?;
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
fn write(fleet: &Fleet, number: usize, run: Run, stop: &AtomicBool) -> Outcome {
    let mut session = fleet.session()?;
    session.batch_execute(&format!("SET pg_fdw_xacts.commit_wait = {}", run.commit_wait))?;
    move_money(&mut session, run.tables, number, stop)
}

/// The same in a session: from each table to the next.
pub fn move_money(
    session: &mut Client,
    tables: RangeInclusive<usize>,
    number: usize,
    stop: &AtomicBool,
) -> Outcome {
    let tables: Vec<usize> = tables.collect();
    let mut turn = number;
    while !stop.load(Ordering::Relaxed) {
        let (from, to) = (tables[turn % tables.len()], tables[(turn + 1) % tables.len()]);
        session.batch_execute(&format!(
            "BEGIN; UPDATE account{from} SET money = money - 1 WHERE id = {number};
             UPDATE account{to} SET money = money + 1 WHERE id = {number}; COMMIT"
        ))?;
        turn += 1;
    }
    Ok(())
}

fn read(fleet: &Fleet, run: Run, stop: &AtomicBool, seen: &Seen) -> Outcome {
    let mut session = fleet.session()?;
    session.batch_execute(&format!("SET pg_fdw_xacts.consistent_reads = {}", run.setting))?;
    let tables: Vec<String> =
        run.tables.clone().map(|number| format!("SELECT money FROM account{number}")).collect();
    let total = 100 * tables.len() as i64;
    let sum = format!("SELECT sum(money)::int8 FROM ({}) a", tables.join(" UNION ALL "));
    while !stop.load(Ordering::Relaxed) {
        session.batch_execute(run.begin)?;
        match session.query_one(&sum, &[]).map(|row| row.get::<_, i64>(0)) {
            Ok(shown) => {
                seen.reads.fetch_add(1, Ordering::Relaxed);
                seen.torn.fetch_add(u64::from(shown != total), Ordering::Relaxed);
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
fn run(fleet: &Fleet, run: &Run, is_enough: impl Fn(&Seen) -> bool) -> anyhow::Result<Seen> {
    let reset: String =
        (0..=SHARDS).map(|number| format!("UPDATE account{number} SET money = 10;")).collect();
    fleet.session()?.batch_execute(&format!("BEGIN; {reset} COMMIT"))?;
    let seen = Seen::default();
    let writers = (1..=WRITERS)
        .map(|number| -> Busy { Box::new(move |stop| write(fleet, number, run.clone(), stop)) });
    let readers =
        (0..READERS).map(|_| -> Busy { Box::new(|stop| read(fleet, run.clone(), stop, &seen)) });
    run_until(|| is_enough(&seen), writers.chain(readers).collect())?;
    Ok(seen)
}

fn is_torn(seen: &Seen) -> bool {
    seen.torn.load(Ordering::Relaxed) > 0
}

fn has_read_enough(seen: &Seen) -> bool {
    is_torn(seen) || seen.reads.load(Ordering::Relaxed) >= 150
}

#[test]
fn the_sum_over_all_shards_is_always_right() -> Outcome {
    let fleet = Fleet::start_with(&FleetOptions { shards: SHARDS, ..FleetOptions::default() })?;
    open_accounts(&fleet)?;
    for commit_wait in ["on", "off"] {
        // The workload can tell: without consistent reads it is wrong soon.
        let plain = Run { setting: "off", begin: "BEGIN", commit_wait, tables: 1..=SHARDS };
        let seen = run(&fleet, &plain, is_torn)?;
        assert!(is_torn(&seen), "{seen:?}");
        for begin in ["BEGIN", "BEGIN ISOLATION LEVEL REPEATABLE READ"] {
            let consistent = Run { setting: "on", begin, ..plain.clone() };
            let seen = run(&fleet, &consistent, has_read_enough)?;
            assert!(!is_torn(&seen), "{consistent:?} {seen:?}");
            assert!(seen.reads.into_inner() > 100, "{consistent:?}");
            assert_eq!(seen.refused.into_inner(), 0, "{consistent:?}");
        }
    }
    assert_settled(&fleet);
    let mut session = fleet.session()?;
    assert_eq!(one::<i64>(&mut session, "SELECT count(*) FROM pg_fdw_xacts")?, 0);
    Ok(())
}

/// Under REPEATABLE READ. What is committed between the local snapshot and the others is refused.
#[test]
fn the_coordinators_own_accounts_belong_to_it() -> Outcome {
    const REPEATABLE: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ";
    let fleet = Fleet::start_with(&FleetOptions { shards: SHARDS, ..FleetOptions::default() })?;
    open_accounts(&fleet)?;
    // All of them, and one shard alone with the coordinator.
    for tables in [0..=SHARDS, 0..=1] {
        for commit_wait in ["on", "off"] {
            let tables = tables.clone();
            let plain = Run { setting: "off", begin: REPEATABLE, commit_wait, tables };
            let seen = run(&fleet, &plain, is_torn)?;
            assert!(is_torn(&seen), "{plain:?} {seen:?}");
            let consistent = Run { setting: "auto", ..plain };
            let seen = run(&fleet, &consistent, has_read_enough)?;
            assert!(!is_torn(&seen), "{consistent:?} {seen:?}");
            assert!(seen.reads.into_inner() > 100, "{consistent:?}");
        }
    }
    assert_settled(&fleet);
    Ok(())
}
