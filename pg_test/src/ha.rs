//! The bank on servers that fail over: Patroni and etcd around the coordinator and around one shard,
//! as the page *High availability* of the book says, and with its settings.
//!
//! While transfers are made, a leader is switched over, killed, or halted. Then:
//! * what was in doubt at the failover is settled within 30 s;
//! * with synchronous replication each transfer is in the ledgers of all its places or of none, as
//!   its customer was told, and the total is what it was; no outcome is heuristic;
//! * with asynchronous replication, what is lost is counted, and found in the way that the page
//!   describes.
//!
//! | module | subject |
//! |---|---|
//! | `node` | PostgreSQL and its Patroni |
//! | `world` | all servers of a run |
//! | `customers` | those who make transfers, and those who add up |
//! | `cases` | what is done to the servers |
//! | `audit` | what must be true afterwards, and what is lost |

mod audit;
mod cases;
mod customers;
mod node;
mod world;

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

pub use cases::{CASES, Case};
use customers::Shared;
use world::World;
pub use world::{ETCD_VARIABLE, PATRONI_VARIABLE};

/// The environment variable that names the file in which `cargo xtask ha` looks for what came of
/// each case.
pub const REPORT_VARIABLE: &str = "PG_TEST_HA_REPORT";

/// What came of a case.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Milliseconds from the fault until the other node was the leader.
    pub leader_after: u64,
    /// The longest time without an acknowledged transfer in which the failing server takes part, in
    /// milliseconds.
    pub silence: u64,
    /// Milliseconds until everything was settled that was in doubt at the failover: counted from
    /// when there was one leader, and no other node that thought it was.
    pub settled_after: u64,
    /// Transfers that were acknowledged.
    pub committed: u64,
    /// Transfers that were definitely refused.
    pub refused: u64,
    /// Transfers whose client was left without an answer.
    pub unknown: u64,
    /// Acknowledged transfers that are nowhere, or not everywhere.
    pub lost: u64,
    /// Transfers, acknowledged or not, that are at one place and not at another.
    pub halved: u64,
    /// Decisions that the old coordinator had and the new one has not.
    pub decisions_lost: u64,
    /// Consistent reads of the total.
    pub reads: u64,
    /// Of these, wrong ones, while two nodes took themselves for the leader.
    pub stale: u64,
}

/// Runs those of the [`CASES`] that have `filter` in their names; `done` is told of each.
///
/// # Errors
/// One of the promises above is broken, or the harness has trouble.
pub fn run(
    filter: &str,
    mut say: impl FnMut(&str),
    mut done: impl FnMut(&Case, &Report) -> Result<()>,
) -> Result<()> {
    let chosen: Vec<&Case> = CASES.iter().filter(|case| case.name.contains(filter)).collect();
    ensure!(!chosen.is_empty(), "no case has \"{filter}\" in its name");
    for is_synchronous in [true, false] {
        let mut cases =
            chosen.iter().filter(|case| case.is_synchronous == is_synchronous).peekable();
        if cases.peek().is_none() {
            continue;
        }
        say(&format!("starting the servers; synchronous: {is_synchronous}"));
        let mut world = World::start(is_synchronous)?;
        let shared = Arc::new(Shared::new(world.coordinator.ports()));
        let threads = shared.open();
        let outcome = cases.try_for_each(|case| {
            let report = cases::play(&mut world, &shared, case, &mut say)
                .with_context(|| format!("{}\nlogs: {:?}", case.name, world.logs()))?;
            done(case, &report)
        });
        shared.close();
        outcome?;
        for thread in threads {
            thread.join().expect("a session's thread panicked");
        }
    }
    Ok(())
}
