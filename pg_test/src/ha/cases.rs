//! What is done to the servers, and what is measured meanwhile.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::Report;
use super::audit;
use super::customers::Shared;
use super::world::{PAUSE, Side, World};
use crate::oracle::one;
use crate::process::Frozen;
use crate::wait::lengthened_by_load;
use crate::{DEADLINE, wait_until};

/// How long it may take until everything is settled.
const LIVELY: Duration = Duration::from_secs(30);

/// How long two nodes are left that both take themselves for the leader.
const SPLIT: Duration = Duration::from_secs(20);

/// What happens to a leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// Patroni is asked to make the other node the leader.
    Switchover,
    /// Patroni and PostgreSQL are killed, and started again when the other node is the leader.
    Kill,
    /// Patroni is halted, PostgreSQL goes on.
    HaltPatroni,
    /// All processes of the node are halted.
    Halt,
}

/// One thing that is tried.
#[derive(Debug)]
pub struct Case {
    /// By this it is chosen.
    pub name: &'static str,
    /// What is done, for the report.
    pub text: &'static str,
    /// Whether replication is synchronous.
    pub is_synchronous: bool,
    side: Side,
    fault: Fault,
}

/// All of them, in the order in which they are run.
pub const CASES: &[Case] = &[
    case(
        "coordinator-switchover",
        "the coordinator is switched over",
        Side::Coordinator,
        Fault::Switchover,
    ),
    case(
        "coordinator-killed",
        "the coordinator's leader is killed, with its Patroni",
        Side::Coordinator,
        Fault::Kill,
    ),
    case(
        "coordinator-without-patroni",
        "Patroni of the coordinator's leader is halted, PostgreSQL goes on",
        Side::Coordinator,
        Fault::HaltPatroni,
    ),
    case(
        "coordinator-halted",
        "the coordinator's leader is halted, with its Patroni",
        Side::Coordinator,
        Fault::Halt,
    ),
    case("shard-switchover", "the shard is switched over", Side::Shard, Fault::Switchover),
    case(
        "shard-killed",
        "the shard's leader is killed, with its Patroni",
        Side::Shard,
        Fault::Kill,
    ),
    case(
        "shard-without-patroni",
        "Patroni of the shard's leader is halted, PostgreSQL goes on",
        Side::Shard,
        Fault::HaltPatroni,
    ),
    case(
        "shard-halted",
        "the shard's leader is halted, with its Patroni",
        Side::Shard,
        Fault::Halt,
    ),
    lossy(case(
        "asynchronous-coordinator-switchover",
        "the coordinator is switched over",
        Side::Coordinator,
        Fault::Switchover,
    )),
    lossy(case(
        "asynchronous-coordinator-killed",
        "the coordinator's leader is killed while its standby is behind",
        Side::Coordinator,
        Fault::Kill,
    )),
    lossy(case(
        "asynchronous-coordinator-without-patroni",
        "Patroni of the coordinator's leader is halted, PostgreSQL goes on",
        Side::Coordinator,
        Fault::HaltPatroni,
    )),
    lossy(case(
        "asynchronous-shard-killed",
        "the shard's leader is killed while its standby is behind",
        Side::Shard,
        Fault::Kill,
    )),
];

const fn case(name: &'static str, text: &'static str, side: Side, fault: Fault) -> Case {
    Case { name, text, is_synchronous: true, side, fault }
}

const fn lossy(case: Case) -> Case {
    Case { is_synchronous: false, ..case }
}

impl Case {
    /// Whether the fault is on this side.
    pub(super) fn is_of(&self, side: Side) -> bool {
        self.side == side
    }

    /// Whether the lost decisions are on the disk of the coordinator that was killed.
    pub(super) fn has_decisions_left(&self) -> bool {
        self.side == Side::Coordinator && self.fault == Fault::Kill
    }

    /// Whether the old leader goes on, or goes on later.
    pub(super) fn halts(&self) -> bool {
        matches!(self.fault, Fault::HaltPatroni | Fault::Halt)
    }
}

/// Plays one case, beginning and ending with everything at rest.
pub(super) fn play(
    world: &mut World,
    shared: &Shared,
    case: &Case,
    say: &mut impl FnMut(&str),
) -> Result<Report> {
    world.wait_until_ready()?;
    say(&format!("{}: {}", case.name, case.text));
    let mut report = Report::default();
    let began = Instant::now();
    shared.go_on();
    shared.let_pass(40)?;
    let old = world.pair(case.side).wait_for_leader()?;
    let other = 1 - old;
    let fault = Instant::now();
    let mut halted = strike(world, shared, case, old)?;
    wait_until("the other node is the leader", DEADLINE * 2, || {
        std::thread::sleep(PAUSE);
        Ok(world.pair(case.side).nodes[other].is_leader())
    })?;
    let leader = Instant::now();
    report.leader_after = (leader - fault).as_millis() as u64;
    say(&format!("  {:?}: the other node is the leader", leader - fault));
    if !halted.is_empty() {
        let served = wait_until("transfers are acknowledged meanwhile", SPLIT, || {
            Ok(shared.acknowledged_since(leader) >= 20)
        });
        say(&format!("  {:?}: goes on; served meanwhile: {}", fault.elapsed(), served.is_ok()));
    }
    if case.fault == Fault::Kill {
        report.decisions_lost = audit::decisions_lost(world, case.side, old)?;
        world.node_mut(case.side, old).start()?;
    }
    halted.clear();
    let settled = settled_by(world, case, old)?;
    report.settled_after = settled.as_millis() as u64;
    say(&format!("  settled within {settled:?}"));
    world.wait_until_ready()?;
    shared.let_pass(40)?;
    let united = Instant::now();
    come_to_rest(world, shared)?;
    let old = world.pair(case.side).nodes[old].port();
    audit::audit(world, shared, case, (began, fault, united), old, &mut report)?;
    say(&format!("  {report:?}"));
    Ok(report)
}

/// Waits until nobody does anything, and nothing is left of any transaction.
fn come_to_rest(world: &World, shared: &Shared) -> Result<()> {
    shared.rest(lengthened_by_load(LIVELY))?;
    let mut left = String::new();
    wait_until("nothing is left of any transaction", lengthened_by_load(LIVELY), || {
        left = world.left()?;
        Ok(left.is_empty())
    })
    .with_context(|| format!("left behind:\n{left}"))
}

/// Does it; returns what is halted.
fn strike(world: &mut World, shared: &Shared, case: &Case, old: usize) -> Result<Vec<Frozen>> {
    let nodes = &world.pair(case.side).nodes;
    match case.fault {
        Fault::Switchover => {
            nodes[old].switch_over(&nodes[1 - old])?;
            Ok(Vec::new())
        }
        Fault::HaltPatroni => nodes[old].freeze_patroni(),
        Fault::Halt => nodes[old].freeze(),
        Fault::Kill => {
            // So that there is something to lose.
            let behind = match case.is_synchronous {
                true => None,
                false => Some(nodes[old].freeze_sender()?),
            };
            if behind.is_some() {
                shared.let_pass(20)?;
            }
            world.node_mut(case.side, old).kill9()?;
            Ok(Vec::new())
        }
    }
}

/// Waits until nothing is prepared any more that was prepared before the other node was alone;
/// returns how long it took.
fn settled_by(world: &World, case: &Case, old: usize) -> Result<Duration> {
    // Until then the old leader may prepare and decide.
    wait_until("the old leader is none any more", DEADLINE, || {
        Ok(!world.pair(case.side).nodes[old].is_leader()
            && !world.pair(case.side).nodes[old].can_be_written())
    })?;
    let begin = Instant::now();
    let now: String = one(&mut world.plain.client()?, "SELECT now()::text")?;
    let mut left = 0;
    let older =
        format!("SELECT count(*) FROM pg_prepared_xacts WHERE prepared < timestamptz '{now}'");
    wait_until("what was in doubt is settled", lengthened_by_load(LIVELY), || {
        let Ok(mut places) = world.places() else { return Ok(false) };
        left = 0;
        for session in &mut places {
            left += one::<i64>(session, &older)?;
        }
        Ok(left == 0)
    })
    .with_context(|| format!("{left} are left:\n{}", world.left().unwrap_or_default()))?;
    Ok(begin.elapsed())
}
