//! The faults, drawn from the seed one after the other.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::Shared;
use super::places::{Bank, SHARDS};
use super::plan::Plan;
use super::random::Random;
use crate::proxy::{Hit, NewConnections};
use crate::{Cluster, Fault, Point, StopMode};

/// What is done, with all that was drawn for it. `u64`s are numbers of transfers that pass
/// meanwhile.
#[derive(Debug, Clone, Copy)]
enum Action {
    Cut(usize, Point, &'static str, u64),
    Hold(usize, Point, &'static str, u64),
    NewConnections(usize, NewConnections, u64),
    CutAll(usize),
    /// For so many milliseconds: some longer than anybody waits for it.
    Freeze(usize, u64),
    KillShard(usize),
    KillCoordinator(usize),
    RestartCoordinator(usize, StopMode),
    FreezeCoordinator(usize),
    /// Of a shard.
    KillBackend(usize, u64),
    /// Of a coordinator: it restarts itself.
    KillOwnBackend(usize, u64),
    /// `pg_cancel_backend` or `pg_terminate_backend` for one or all of a coordinator's backends.
    Signal(usize, &'static str, Option<u64>),
    TerminateResolver(usize),
    /// The coordinator comes back first.
    KillBoth(usize, usize),
    /// The synchronous standby goes; it comes back some faults later.
    LoseStandby,
    /// The synchronous standby is promoted in the place of its primary, which is killed.
    FailOver,
}

const STATEMENTS: &[&str] = &[
    "PREPARE TRANSACTION",
    "COMMIT PREPARED",
    "ROLLBACK PREPARED",
    "COMMIT",
    "INSERT",
    "UPDATE",
    "COPY",
];

fn draw(plan: &Plan, random: &mut Random) -> Action {
    let shard = 1 + random.below(SHARDS as u64) as usize;
    let coordinator = random.below(plan.coordinators() as u64) as usize;
    let point = random.choose(&[Point::Statement, Point::Answer]);
    let statement = random.choose(STATEMENTS);
    let passing = 1 + random.below(60);
    if plan.standby && random.chance(10) {
        return random.choose(&[Action::LoseStandby, Action::LoseStandby, Action::FailOver]);
    }
    match random.below(100) {
        0..25 => Action::Cut(shard, point, statement, passing),
        25..43 => Action::Hold(shard, point, statement, passing),
        43..50 => Action::NewConnections(shard, NewConnections::Refused, passing),
        50..55 => Action::NewConnections(shard, NewConnections::Hanging, passing),
        55..62 => Action::CutAll(shard),
        62..68 => Action::Freeze(shard, random.choose(&[100, 500, 3000, 6000])),
        68..72 => Action::KillShard(shard),
        72..77 => Action::KillCoordinator(coordinator),
        77 => Action::FreezeCoordinator(coordinator),
        78..80 => Action::RestartCoordinator(
            coordinator,
            random.choose(&[StopMode::Fast, StopMode::Immediate]),
        ),
        80..83 => Action::KillBackend(shard, random.below(100)),
        83..86 => Action::KillOwnBackend(coordinator, random.below(100)),
        86..91 => Action::Signal(coordinator, "pg_cancel_backend", Some(random.below(100))),
        91..93 => Action::Signal(coordinator, "pg_cancel_backend", None),
        93..96 => Action::Signal(coordinator, "pg_terminate_backend", Some(random.below(100))),
        96..98 => Action::TerminateResolver(coordinator),
        _ => Action::KillBoth(coordinator, shard),
    }
}

/// So many faults stay armed, and for so many the standby stays away.
const LASTING: usize = 4;

/// Injects faults for the time of a phase, then lets everything work again. Returns how many there
/// were.
pub(super) fn inject(
    bank: &mut Bank,
    shared: &Shared,
    plan: &Plan,
    random: &mut Random,
    duration: Duration,
    say: &mut impl FnMut(&str),
) -> Result<u64> {
    let start = Instant::now();
    let mut count = 0;
    // Armed faults stay until a few others have come.
    let mut armed: Vec<Hit> = Vec::new();
    let mut away = 0;
    while start.elapsed() < duration {
        let action = draw(plan, random);
        let pause = random.below(80);
        count += 1;
        say(&format!("{:7.2} s  {action:?}", shared.start.elapsed().as_secs_f32()));
        let stops = u64::from(action.stops_a_coordinator());
        shared.reading.stops.fetch_add(stops, Ordering::SeqCst);
        armed.extend(act(bank, shared, &action)?);
        shared.reading.stops.fetch_add(stops, Ordering::SeqCst);
        if armed.len() > LASTING {
            drop(armed.remove(0));
        }
        away = if matches!(action, Action::LoseStandby) { 0 } else { away + 1 };
        if away == LASTING {
            find_standby(bank)?;
        }
        shared.let_pass(pause);
    }
    drop(armed);
    for number in 1..=SHARDS {
        bank.fleet.proxy(number).set_new_connections(NewConnections::Served);
    }
    find_standby(bank)?;
    Ok(count)
}

/// Starts the synchronous standby if it is away.
fn find_standby(bank: &mut Bank) -> Result<()> {
    if let Some(standby) = &mut bank.standby
        && !standby.is_running()
    {
        standby.start()?;
    }
    Ok(())
}

impl Action {
    /// Whether a coordinator forgets what it had in memory.
    fn stops_a_coordinator(&self) -> bool {
        matches!(
            self,
            Self::KillCoordinator(_)
                | Self::RestartCoordinator(..)
                | Self::KillOwnBackend(..)
                | Self::KillBoth(..)
                | Self::FailOver
        )
    }
}

fn act(bank: &mut Bank, shared: &Shared, action: &Action) -> Result<Option<Hit>> {
    match *action {
        Action::Cut(shard, point, statement, passing) => {
            let hit = bank.fleet.proxy(shard).inject(Fault::cut(point, statement));
            shared.let_pass(passing);
            return Ok(Some(hit));
        }
        Action::Hold(shard, point, statement, passing) => {
            let hit = bank.fleet.proxy(shard).inject(Fault::hold(point, statement));
            shared.let_pass(passing);
            return Ok(Some(hit));
        }
        Action::NewConnections(shard, treatment, passing) => {
            bank.fleet.proxy(shard).set_new_connections(treatment);
            shared.let_pass(passing);
            bank.fleet.proxy(shard).set_new_connections(NewConnections::Served);
        }
        Action::CutAll(shard) => bank.fleet.proxy(shard).cut_all(),
        Action::Freeze(shard, milliseconds) => {
            let frozen = bank.fleet.shard(shard).freeze()?;
            std::thread::sleep(Duration::from_millis(milliseconds));
            drop(frozen);
        }
        Action::KillShard(shard) => {
            bank.fleet.shard_mut(shard).kill9()?;
            shared.let_pass(20);
            bank.fleet.shard_mut(shard).start()?;
        }
        Action::KillCoordinator(number) => {
            bank.coordinator_mut(number).kill9()?;
            bank.coordinator_mut(number).start()?;
        }
        Action::RestartCoordinator(number, mode) => {
            bank.coordinator_mut(number).stop(mode)?;
            bank.coordinator_mut(number).start()?;
        }
        Action::FreezeCoordinator(number) => {
            let frozen = bank.coordinator(number).freeze()?;
            shared.let_pass(20);
            drop(frozen);
        }
        Action::KillBackend(shard, which) => kill_backend(bank.fleet.shard(shard), which),
        Action::KillOwnBackend(number, which) => kill_backend(bank.coordinator(number), which),
        Action::Signal(number, function, which) => {
            let coordinator = bank.coordinator(number);
            let Ok(backends) = backends(coordinator) else { return Ok(None) };
            let chosen = match which {
                Some(which) => pick(&backends, which).into_iter().collect(),
                None => backends,
            };
            if let Ok(mut session) = coordinator.client() {
                for pid in chosen {
                    let _ = session.batch_execute(&format!("SELECT {function}({pid})"));
                }
            }
        }
        Action::TerminateResolver(number) => {
            if let Ok(mut session) = bank.coordinator(number).client() {
                let _ = session.batch_execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                     WHERE backend_type LIKE 'pg_fdw_xacts %'",
                );
            }
        }
        Action::KillBoth(number, shard) => {
            bank.fleet.shard_mut(shard).kill9()?;
            bank.coordinator_mut(number).kill9()?;
            bank.coordinator_mut(number).start()?;
            shared.let_pass(20);
            bank.fleet.shard_mut(shard).start()?;
        }
        Action::LoseStandby => {
            if let Some(standby) = &mut bank.standby
                && standby.is_running()
            {
                standby.kill9()?;
            }
        }
        Action::FailOver => {
            if bank.fail_over()? {
                shared.configs.lock().expect("nobody panics with it")[0] =
                    bank.coordinator(0).config();
            }
        }
    }
    Ok(None)
}

fn kill_backend(cluster: &Cluster, which: u64) {
    // Between a crash and the end of its recovery there is none to be found.
    if let Some(pid) = backends(cluster).ok().and_then(|backends| pick(&backends, which)) {
        // It may have ended by itself.
        let _ = cluster.kill9_backend(pid);
    }
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
