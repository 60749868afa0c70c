//! The faults, drawn from the seed one after the other.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::random::Random;
use super::{SHARDS, Shared};
use crate::proxy::{Hit, NewConnections};
use crate::{Cluster, DEADLINE, Fault, Fleet, Point, StopMode, wait_until};

/// What is done, with all that was drawn for it. `u64`s are numbers of transfers that pass meanwhile.
#[derive(Debug, Clone)]
enum Action {
    Cut(usize, Point, &'static str, u64),
    Hold(usize, Point, &'static str, u64),
    NewConnections(usize, NewConnections, u64),
    CutAll(usize),
    Freeze(usize, u64),
    KillShard(usize),
    KillCoordinator,
    RestartCoordinator(StopMode),
    /// Of the coordinator (0) or a shard.
    KillBackend(usize, u64),
    /// `pg_cancel_backend` or `pg_terminate_backend` for one or all of the customers' backends.
    Signal(&'static str, Option<u64>),
    TerminateResolver,
    /// The coordinator comes back first.
    KillBoth(usize),
}

const STATEMENTS: &[&str] =
    &["PREPARE TRANSACTION", "COMMIT PREPARED", "ROLLBACK PREPARED", "COMMIT", "INSERT", "UPDATE"];

fn draw(random: &mut Random) -> Action {
    let shard = 1 + random.below(SHARDS as u64) as usize;
    let point = random.choose(&[Point::Statement, Point::Answer]);
    let statement = random.choose(STATEMENTS);
    let passing = 1 + random.below(60);
    match random.below(100) {
        0..25 => Action::Cut(shard, point, statement, passing),
        25..45 => Action::Hold(shard, point, statement, passing),
        45..53 => Action::NewConnections(shard, NewConnections::Refused, passing),
        53..58 => Action::NewConnections(shard, NewConnections::Hanging, passing),
        58..65 => Action::CutAll(shard),
        65..71 => Action::Freeze(shard, passing),
        71..75 => Action::KillShard(shard),
        75..78 => Action::KillCoordinator,
        78..80 => Action::RestartCoordinator(random.choose(&[StopMode::Fast, StopMode::Immediate])),
        80..83 => Action::KillBackend(shard, random.below(100)),
        83..85 => Action::KillBackend(0, random.below(100)),
        85..91 => Action::Signal("pg_cancel_backend", Some(random.below(100))),
        91..93 => Action::Signal("pg_cancel_backend", None),
        93..96 => Action::Signal("pg_terminate_backend", Some(random.below(100))),
        96..98 => Action::TerminateResolver,
        _ => Action::KillBoth(shard),
    }
}

/// Injects faults for `duration`, then lets everything work again. Returns how many there were.
pub(super) fn inject(
    fleet: &mut Fleet,
    shared: &Shared,
    seed: u64,
    duration: Duration,
    say: &mut impl FnMut(&str),
) -> Result<u64> {
    let mut random = Random::new(seed, 0);
    let start = Instant::now();
    let mut count = 0;
    // Armed faults stay until a few others have come.
    let mut armed: Vec<Hit> = Vec::new();
    while start.elapsed() < duration {
        let action = draw(&mut random);
        let pause = random.below(80);
        count += 1;
        say(&format!("{:7.2} s  {action:?}", start.elapsed().as_secs_f32()));
        armed.extend(act(fleet, shared, &action)?);
        if armed.len() > 4 {
            drop(armed.remove(0));
        }
        shared.let_pass(pause);
    }
    drop(armed);
    for number in 1..=SHARDS {
        fleet.proxy(number).set_new_connections(NewConnections::Served);
    }
    wait_until("the coordinator works again", DEADLINE, || Ok(fleet.session().is_ok()))?;
    Ok(count)
}

fn act(fleet: &mut Fleet, shared: &Shared, action: &Action) -> Result<Option<Hit>> {
    match *action {
        Action::Cut(shard, point, statement, passing) => {
            let hit = fleet.proxy(shard).inject(Fault::cut(point, statement));
            shared.let_pass(passing);
            return Ok(Some(hit));
        }
        Action::Hold(shard, point, statement, passing) => {
            let hit = fleet.proxy(shard).inject(Fault::hold(point, statement));
            shared.let_pass(passing);
            return Ok(Some(hit));
        }
        Action::NewConnections(shard, treatment, passing) => {
            fleet.proxy(shard).set_new_connections(treatment);
            shared.let_pass(passing);
            fleet.proxy(shard).set_new_connections(NewConnections::Served);
        }
        Action::CutAll(shard) => fleet.proxy(shard).cut_all(),
        Action::Freeze(shard, passing) => {
            let frozen = fleet.shard(shard).freeze()?;
            shared.let_pass(passing);
            shared.let_pass(passing);
            drop(frozen);
        }
        Action::KillShard(shard) => {
            fleet.shard_mut(shard).kill9()?;
            shared.let_pass(20);
            fleet.shard_mut(shard).start()?;
        }
        Action::KillCoordinator => {
            fleet.coordinator.kill9()?;
            fleet.coordinator.start()?;
        }
        Action::RestartCoordinator(mode) => {
            fleet.coordinator.stop(mode)?;
            fleet.coordinator.start()?;
        }
        Action::KillBackend(server, which) => {
            let cluster = if server == 0 { &fleet.coordinator } else { fleet.shard(server) };
            // Between a crash and the end of its recovery there is none to be found.
            let Ok(backends) = backends(cluster) else { return Ok(None) };
            if let Some(pid) = pick(&backends, which) {
                // It may have ended by itself.
                let _ = cluster.kill9_backend(pid);
            }
        }
        Action::Signal(function, which) => {
            let Ok(backends) = backends(&fleet.coordinator) else { return Ok(None) };
            let chosen = match which {
                Some(which) => pick(&backends, which).into_iter().collect(),
                None => backends,
            };
            if let Ok(mut session) = fleet.session() {
                for pid in chosen {
                    let _ = session.batch_execute(&format!("SELECT {function}({pid})"));
                }
            }
        }
        Action::TerminateResolver => {
            if let Ok(mut session) = fleet.session() {
                let _ = session.batch_execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                     WHERE backend_type LIKE 'pg_fdw_xacts %'",
                );
            }
        }
        Action::KillBoth(shard) => {
            fleet.shard_mut(shard).kill9()?;
            fleet.coordinator.kill9()?;
            fleet.coordinator.start()?;
            shared.let_pass(20);
            fleet.shard_mut(shard).start()?;
        }
    }
    Ok(None)
}

/// The processes behind sessions of others.
fn backends(cluster: &Cluster) -> Result<Vec<i32>> {
    let rows = cluster.client()?.query(
        "SELECT pid FROM pg_stat_activity
         WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() ORDER BY pid",
        &[],
    )?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

fn pick(pids: &[i32], which: u64) -> Option<i32> {
    (!pids.is_empty()).then(|| pids[which as usize % pids.len()])
}
