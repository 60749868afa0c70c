//! Transfers in any order, without a `lock_timeout` anywhere.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use pg_test::oracle::one;
use pg_test::{Fleet, FleetOptions, lengthened_by_load};

use super::{commit_all, start_with};
use crate::support::Outcome;

/// How long a transaction may take, on a machine that is busy with it.
const LIMIT: Duration = Duration::from_secs(20);

/// How many commit, and how many are refused for each reason, before the transfers end. What a
/// round of `deadlock_timeout` lets through depends on luck.
const ENOUGH: u32 = 20;

/// Until when that has to have come about.
const DEADLINE: Duration = Duration::from_secs(60);

const SESSIONS: u32 = 12;

/// What became of the transfers.
#[derive(Debug, Default)]
struct Ends {
    committed: u32,
    /// 40001: a row was changed since the transaction had begun on its shard.
    too_late: u32,
    deadlocks: u32,
    longest: Duration,
}

impl Ends {
    /// Whether there have been enough of each kind that shards with this isolation have.
    fn are_enough(&self, isolation: &str) -> bool {
        self.committed >= ENOUGH
            && self.deadlocks >= ENOUGH
            && (self.too_late >= ENOUGH || isolation == "match")
    }
}

/// One session's transfers between four accounts on two shards.
fn transfer(fleet: &Fleet, number: u32, isolation: &str, ends: &Mutex<Ends>) -> Outcome {
    let mut session = fleet.session()?;
    session.batch_execute(&format!("SET pg_fdw_xacts.remote_isolation = '{isolation}'"))?;
    let mut random = 2_654_435_769_u32.wrapping_mul(number + 1);
    let mut draw = |below: u32| {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (random >> 16) % below
    };
    let change = |account: u32, by: i32| {
        let (table, id) = (account % 2 + 1, account / 2 + 1);
        format!("UPDATE ft{table} SET v = (v::int + {by})::text WHERE id = {id}")
    };
    let start = Instant::now();
    while !ends.lock().expect("nobody panics with it").are_enough(isolation) {
        assert!(start.elapsed() < lengthened_by_load(DEADLINE), "{isolation}: {ends:?}");
        let statements = [change(draw(4), -1), change(draw(4), 1)];
        let begin = Instant::now();
        let result = ["BEGIN", &statements[0], &statements[1], "COMMIT"]
            .iter()
            .try_for_each(|statement| session.batch_execute(statement));
        let took = begin.elapsed();
        assert!(took < lengthened_by_load(LIMIT), "it took {took:?}");
        let mut ends = ends.lock().expect("nobody panics with it");
        ends.longest = ends.longest.max(took);
        let Err(error) = result else {
            ends.committed += 1;
            continue;
        };
        match error.code().map(|code| code.code()) {
            Some("40001") => ends.too_late += 1,
            Some("40P01") => ends.deadlocks += 1,
            _ => panic!("{error:?}"),
        }
        drop(ends);
        session.batch_execute("ROLLBACK")?;
    }
    Ok(())
}

/// Many deadlock; each of those ends, nobody waits for long, and no money is lost. Where the shards
/// are READ COMMITTED, nothing else is refused.
#[test]
fn transfers_in_any_order() -> Outcome {
    let settings = vec![("deadlock_timeout", "200ms")];
    let fleet = start_with(&FleetOptions {
        coordinator: settings.clone(),
        shard: settings,
        ..Default::default()
    })?;
    fleet.session()?.batch_execute(
        "UPDATE ft1 SET v = '100' WHERE id <= 2; UPDATE ft2 SET v = '100' WHERE id <= 2",
    )?;
    for isolation in ["repeatable read", "match"] {
        let ends = Mutex::default();
        std::thread::scope(|scope| {
            let transfer = |number| {
                let (fleet, ends) = (&fleet, &ends);
                scope.spawn(move || transfer(fleet, number, isolation, ends))
            };
            let threads: Vec<_> = (0..SESSIONS).map(transfer).collect();
            threads.into_iter().try_for_each(|thread| thread.join().expect("no panic"))
        })?;
        let ends = ends.into_inner().expect("nobody panicked with it");
        println!("{isolation}: {ends:?}");
        assert_eq!(ends.too_late > 0, isolation != "match", "{isolation}: {ends:?}");
        let sum = "SELECT (SELECT sum(v::int) FROM ft1 WHERE id <= 2) + (SELECT sum(v::int) FROM ft2 WHERE id <= 2)";
        assert_eq!(one::<i64>(&mut fleet.session()?, sum)?, 400);
    }
    commit_all(&fleet, vec![])
}
