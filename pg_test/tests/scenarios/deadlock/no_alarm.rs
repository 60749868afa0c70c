//! Waits that are no deadlocks are left alone, and what cannot be seen ends by timeouts.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use pg_test::log::Mark;
use pg_test::oracle::{expect_error, one};
use pg_test::proxy::NewConnections;
use pg_test::{DEADLINE, Fault, Fleet, FleetOptions, Point, lengthened_by_load, wait_until};
use postgres::error::SqlState;
use postgres::{Client, Error};

use super::{
    commit_all, in_time, one_gives_way, session_that, start, start_with, waiting, waits_on,
};
use crate::support::{Outcome, in_background};

/// How many deadlocks the statistics have counted.
fn counted(fleet: &Fleet) -> anyhow::Result<i64> {
    let sql = "SELECT coalesce(sum(deadlocks), 0)::bigint FROM pg_stat_fdw_xacts";
    one(&mut fleet.session()?, sql)
}

/// Twelve sessions lock two rows each in the same order, again and again. Whatever else happens to
/// them where the shards are REPEATABLE READ, nobody is told of a deadlock, however often it is
/// looked for.
#[test]
fn hot_rows_without_a_cycle() -> Outcome {
    const ENOUGH: u32 = 50;
    let fleet = start_with(&FleetOptions {
        coordinator: vec![("deadlock_timeout", "10ms")],
        ..FleetOptions::default()
    })?;
    let mark = fleet.shard(1).log().mark()?;
    for (round, isolation) in [(1, "repeatable read"), (2, "match")] {
        let begin = Instant::now();
        let (committed, failed) = (AtomicU32::new(0), AtomicU32::new(0));
        let is_looked_for = AtomicBool::new(false);
        // On a busy machine it takes longer until something has happened.
        let goes_on = || {
            let is_enough =
                committed.load(Ordering::Relaxed) > ENOUGH && is_looked_for.load(Ordering::Relaxed);
            begin.elapsed() < if is_enough { Duration::from_secs(4) } else { DEADLINE }
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..12)
                .map(|_| {
                    scope.spawn(|| -> Outcome {
                        let mut session = fleet.session()?;
                        session.batch_execute(&format!(
                            "SET pg_fdw_xacts.remote_isolation = '{isolation}'"
                        ))?;
                        while goes_on() {
                            match change_both(&mut session) {
                                Ok(()) => _ = committed.fetch_add(1, Ordering::Relaxed),
                                Err(error) => {
                                    expect_error(Err::<(), _>(error), "40001");
                                    failed.fetch_add(1, Ordering::Relaxed);
                                    session.batch_execute("ROLLBACK")?;
                                }
                            }
                        }
                        Ok(())
                    })
                })
                .collect();
            wait_until("it is looked for", DEADLINE, || Ok(asked(&fleet, mark)? > 10 * round))?;
            is_looked_for.store(true, Ordering::Relaxed);
            threads.into_iter().try_for_each(|thread| thread.join().expect("no panic"))
        })?;
        assert!(committed.into_inner() > ENOUGH, "{isolation}");
        assert_eq!(failed.into_inner() > 0, isolation == "repeatable read", "{isolation}");
    }
    eprintln!("shard 1 was asked {} times", asked(&fleet, mark)?);
    assert_eq!(counted(&fleet)?, 0);
    commit_all(&fleet, vec![])
}

/// How often shard 1 was asked who waits for whom.
fn asked(fleet: &Fleet, mark: Mark) -> anyhow::Result<usize> {
    Ok(fleet.shard(1).log().since(mark)?.matches("pg_blocking_pids").count())
}

fn change_both(session: &mut Client) -> Result<(), Error> {
    session.batch_execute("BEGIN; SELECT FROM lt WHERE id = 1 FOR SHARE")?;
    session.batch_execute("UPDATE ft1 SET v = 'a' WHERE id = 1")?;
    session.batch_execute("UPDATE ft2 SET v = 'a' WHERE id = 1")?;
    session.batch_execute("COMMIT")
}

/// A wait that lasts several times `deadlock_timeout` ends when the lock is free.
#[test]
fn a_long_wait() -> Outcome {
    let fleet = start()?;
    let mut holder = session_that(&fleet, "UPDATE ft1 SET v = 'a' WHERE id = 1")?;
    let waiter = session_that(&fleet, "UPDATE ft2 SET v = 'b' WHERE id = 1")?;
    let mark = fleet.shard(1).log().mark()?;
    let waiter = waits_on(&fleet, 1, waiter, "UPDATE ft1 SET v = 'b' WHERE id = 1")?;
    wait_until("it was looked at four times", DEADLINE, || Ok(asked(&fleet, mark)? >= 4))?;
    holder.batch_execute("ROLLBACK")?;
    let (waiter, result) = waiter.join();
    result?;
    commit_all(&fleet, vec![waiter])
}

/// A member of a cycle that stops waiting before it was found: the other goes on.
#[test]
fn a_member_that_stops_waiting() -> Outcome {
    // On a busy machine it may stop so late that it is a deadlock, and rightly found.
    for _ in 0..3 {
        if stops_waiting_in_time()? {
            return Ok(());
        }
    }
    panic!("always found, although one of them stops waiting")
}

fn stops_waiting_in_time() -> anyhow::Result<bool> {
    let fleet = start()?;
    let first = session_that(&fleet, "UPDATE ft1 SET v = 'a' WHERE id = 1")?;
    let mut second = session_that(&fleet, "UPDATE ft2 SET v = 'b' WHERE id = 1")?;
    // Seen once, but not twice.
    second.batch_execute("SET LOCAL statement_timeout = '1100ms'")?;
    let first = waits_on(&fleet, 2, first, "UPDATE ft2 SET v = 'a' WHERE id = 1")?;
    let second = waits_on(&fleet, 1, second, "UPDATE ft1 SET v = 'b' WHERE id = 1")?;
    let (mut second, stopped) = second.join();
    let (first, went_on) = first.join();
    let is_found = |result: &Result<(), Error>| {
        result.as_ref().is_err_and(|error| error.code() == Some(&SqlState::T_R_DEADLOCK_DETECTED))
    };
    if is_found(&stopped) || is_found(&went_on) {
        return Ok(false);
    }
    expect_error(stopped, "57014");
    went_on?;
    second.batch_execute("ROLLBACK")?;
    assert_eq!(counted(&fleet)?, 0);
    commit_all(&fleet, vec![first, second])?;
    Ok(true)
}

/// The same sessions meet again at once: a verdict holds for one wait.
#[test]
fn one_deadlock_after_the_other() -> Outcome {
    let fleet = start()?;
    let mut sessions = vec![fleet.session()?, fleet.session()?];
    for round in 1..=3 {
        let (mut second, mut first) =
            (sessions.pop().expect("two of them"), sessions.pop().expect("two of them"));
        first.batch_execute("BEGIN; UPDATE ft1 SET v = 'a' WHERE id = 1")?;
        second.batch_execute("BEGIN; UPDATE ft2 SET v = 'b' WHERE id = 1")?;
        let first = waits_on(&fleet, 2, first, "UPDATE ft2 SET v = 'a' WHERE id = 1")?;
        let begin = Instant::now();
        let second = waits_on(&fleet, 1, second, "UPDATE ft1 SET v = 'b' WHERE id = 1")?;
        sessions = one_gives_way(begin, vec![first, second])?.2;
        assert_eq!(counted(&fleet)?, round);
        sessions.iter_mut().try_for_each(|session| session.batch_execute("COMMIT"))?;
    }
    commit_all(&fleet, sessions)
}

/// A server that hangs, where a third session waits, does not hide a deadlock of the others.
#[test]
fn a_server_that_hangs_beside_a_deadlock() -> Outcome {
    let fleet = start_with(&FleetOptions { shards: 3, proxied: true, ..FleetOptions::default() })?;
    let mut third = session_that(&fleet, "SELECT FROM ft3")?;
    third.batch_execute("SET LOCAL statement_timeout = '20s'")?;
    let hit = fleet.proxy(3).inject(Fault::hold(Point::Statement, "INSERT INTO"));
    let third = in_background(third, "INSERT INTO ft3 VALUES (1, 'x')");
    hit.wait()?;
    fleet.proxy(3).set_new_connections(NewConnections::Hanging);
    let first = session_that(&fleet, "UPDATE ft1 SET v = 'a' WHERE id = 1")?;
    let second = session_that(&fleet, "UPDATE ft2 SET v = 'b' WHERE id = 1")?;
    let first = waits_on(&fleet, 2, first, "UPDATE ft2 SET v = 'a' WHERE id = 1")?;
    let begin = Instant::now();
    let second = waits_on(&fleet, 1, second, "UPDATE ft1 SET v = 'b' WHERE id = 1")?;
    let (_, _, mut sessions) = one_gives_way(begin, vec![first, second])?;
    fleet.proxy(3).set_new_connections(NewConnections::Served);
    hit.release();
    let (third, result) = third.join();
    result?;
    sessions.push(third);
    commit_all(&fleet, sessions)
}

/// Without the setting, nobody looks.
#[test]
fn it_can_be_switched_off() -> Outcome {
    let fleet = start_with(&FleetOptions {
        coordinator: vec![("pg_fdw_xacts.detect_deadlocks", "off")],
        ..FleetOptions::default()
    })?;
    let first = session_that(&fleet, "UPDATE ft1 SET v = 'a' WHERE id = 1")?;
    let mut second = session_that(&fleet, "UPDATE ft2 SET v = 'b' WHERE id = 1")?;
    // Only one of them: the other goes on then, however late this one has begun to wait.
    let limit = lengthened_by_load(Duration::from_secs(4)).as_millis();
    second.batch_execute(&format!("SET LOCAL statement_timeout = '{limit}ms'"))?;
    let first = waits_on(&fleet, 2, first, "UPDATE ft2 SET v = 'a' WHERE id = 1")?;
    let second = waits_on(&fleet, 1, second, "UPDATE ft1 SET v = 'b' WHERE id = 1")?;
    let (mut second, result) = second.join();
    expect_error(result, "57014");
    second.batch_execute("ROLLBACK")?;
    let (first, result) = first.join();
    result?;
    commit_all(&fleet, vec![first, second])
}

/// What no coordinator sees, because the cycle goes through another one, ends by `lock_timeout`:
/// the server's, by its option, or the session's own, which holds on the shards, too.
#[test]
fn a_cycle_through_another_coordinator() -> Outcome {
    let fleet = start()?;
    let another = fleet.another_coordinator("another", &[])?;
    for by_option in [true, false] {
        let mut own = fleet.session()?;
        if by_option {
            own.batch_execute("ALTER SERVER shard2 OPTIONS (ADD options '-c lock_timeout=2s')")?;
        } else {
            own.batch_execute(
                "ALTER SERVER shard2 OPTIONS (DROP options); SET lock_timeout = '2s'",
            )?;
        }
        own.batch_execute("BEGIN; UPDATE ft1 SET v = 'a' WHERE id = 1")?;
        let mut other = another.client()?;
        other.batch_execute("BEGIN; UPDATE ft2 SET v = 'b' WHERE id = 1")?;
        let begin = Instant::now();
        let own = waits_on(&fleet, 2, own, "UPDATE ft2 SET v = 'a' WHERE id = 1")?;
        let other = waits_on(&fleet, 1, other, "UPDATE ft1 SET v = 'b' WHERE id = 1")?;
        let (mut own, result) = own.join();
        expect_error(result, "55P03");
        in_time(begin);
        let (mut other, result) = other.join();
        result?;
        own.batch_execute("ROLLBACK")?;
        other.batch_execute("ROLLBACK")?;
    }
    Ok(())
}

/// Two hundred sessions wait for one row, and one of them is in a deadlock with who has it: it is
/// found as fast as another, and nobody else is hit.
#[test]
fn two_hundred_wait_for_one_row() -> Outcome {
    const WAITERS: usize = 200;
    let room = vec![("max_connections", "450"), ("shared_buffers", "64MB")];
    let fleet = start_with(&FleetOptions {
        coordinator: [room.clone(), vec![("log_min_messages", "debug1")]].concat(),
        shard: room,
        ..FleetOptions::default()
    })?;
    let holder = session_that(&fleet, "UPDATE ft1 SET v = 'a' WHERE id = 1")?;
    let victim = session_that(&fleet, "UPDATE ft2 SET v = 'b' WHERE id = 1")?;
    let sql = "UPDATE ft1 SET v = 'w' WHERE id = 1; ROLLBACK";
    let waiters: Vec<_> = (0..WAITERS)
        .map(|_| {
            let mut session = fleet.session()?;
            session.batch_execute("BEGIN")?;
            Ok(in_background(session, sql))
        })
        .collect::<anyhow::Result<_>>()?;
    let mut shard = fleet.shard(1).client()?;
    wait_until("all wait", DEADLINE, || Ok(waiting(&mut shard)? == WAITERS as i64))?;
    let victim = waits_on(&fleet, 1, victim, sql)?;
    let mark = fleet.coordinator.log().mark()?;
    let begin = Instant::now();
    let holder = waits_on(&fleet, 2, holder, "UPDATE ft2 SET v = 'a' WHERE id = 1")?;
    let (mut victim, result) = victim.join();
    // Four hundred processes keep the machine busy meanwhile.
    let limit = lengthened_by_load(Duration::from_secs(10));
    assert!(begin.elapsed() < limit, "it took {:?}", begin.elapsed());
    expect_error(result, "40P01");
    victim.batch_execute("ROLLBACK")?;
    let (mut holder, result) = holder.join();
    result?;
    // Rolled back, so that the others find the row as it was.
    holder.batch_execute("ROLLBACK")?;
    for waiter in waiters {
        waiter.join().1?;
    }
    let log = fleet.coordinator.log().since(mark)?;
    let looks: Vec<u64> = log
        .lines()
        .filter_map(|line| {
            line.split_once("looked for deadlocks for ")?.1.split(' ').next()?.parse().ok()
        })
        .collect();
    let longest = looks.iter().max().copied().unwrap_or(u64::MAX);
    println!("looks took {looks:?} ms");
    // A tenth of that on an idle machine, with an optimized library.
    let limit = lengthened_by_load(Duration::from_secs(2)).as_millis();
    assert!(u128::from(longest) < limit, "{looks:?}");
    assert_eq!(counted(&fleet)?, 1);
    commit_all(&fleet, vec![])
}
