//! Transfers in any order, without a `lock_timeout` anywhere.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use pg_test::oracle::one;

use super::{commit_all, start};
use crate::support::Outcome;

/// How long a transaction may take, on a machine that is busy with it.
const LIMIT: Duration = Duration::from_secs(20);

/// Twelve sessions move money between four accounts on two shards. Many deadlock; each of those
/// ends, nobody waits for long, and no money is lost.
#[test]
fn transfers_in_any_order() -> Outcome {
    let fleet = start()?;
    fleet.session()?.batch_execute(
        "UPDATE ft1 SET v = '100' WHERE id <= 2; UPDATE ft2 SET v = '100' WHERE id <= 2",
    )?;
    let end = Instant::now() + Duration::from_secs(15);
    let (committed, deadlocks) = (AtomicU32::new(0), AtomicU32::new(0));
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..12_u32)
            .map(|thread| {
                let (committed, deadlocks, fleet) = (&committed, &deadlocks, &fleet);
                scope.spawn(move || -> Outcome {
                    let mut session = fleet.session()?;
                    let mut random = 2_654_435_769_u32.wrapping_mul(thread + 1);
                    while Instant::now() < end {
                        let mut draw = |below: u32| {
                            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                            (random >> 16) % below
                        };
                        let (from, to) = (draw(4), draw(4));
                        let change = |account: u32, by: i32| {
                            format!(
                                "UPDATE ft{} SET v = (v::int + {by})::text WHERE id = {}",
                                account % 2 + 1,
                                account / 2 + 1
                            )
                        };
                        let begin = Instant::now();
                        let mut run = || {
                            session.batch_execute("BEGIN")?;
                            session.batch_execute(&change(from, -1))?;
                            session.batch_execute(&change(to, 1))?;
                            session.batch_execute("COMMIT")
                        };
                        let result = run();
                        assert!(begin.elapsed() < LIMIT, "it took {:?}", begin.elapsed());
                        match result {
                            Ok(()) => _ = committed.fetch_add(1, Ordering::Relaxed),
                            Err(error) => {
                                let code = error.code().map(|c| c.code().to_owned());
                                match code.as_deref() {
                                    Some("40001") => {}
                                    Some("40P01") => _ = deadlocks.fetch_add(1, Ordering::Relaxed),
                                    _ => panic!("{error:?}"),
                                }
                                session.batch_execute("ROLLBACK")?;
                            }
                        }
                    }
                    Ok(())
                })
            })
            .collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("no panic"))
    })?;
    let (committed, deadlocks) = (committed.into_inner(), deadlocks.into_inner());
    println!("{committed} committed, {deadlocks} deadlocks");
    assert!(committed > 20 && deadlocks > 0, "{committed} committed, {deadlocks} deadlocks");
    let mut session = fleet.session()?;
    let sum = "SELECT (SELECT sum(v::int) FROM ft1 WHERE id <= 2) + (SELECT sum(v::int) FROM ft2 WHERE id <= 2)";
    assert_eq!(one::<i64>(&mut session, sum)?, 400);
    commit_all(&fleet, vec![])
}
