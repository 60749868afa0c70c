//! Runs the checker.

use std::fmt::Write;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ahash::AHashSet;
use stateright::{Checker, HasDiscoveries, Model};

use crate::setting::Setting;
use crate::steps::Action;

/// A setting that is checked.
#[derive(Clone)]
pub struct Checked {
    /// What it is about.
    pub setting: Setting,
    /// The invariants are not checked: what breaks in the end is looked for.
    pub promises_only: bool,
    /// States that differ only in which participant is which count as one.
    pub symmetric: bool,
    /// States, by fingerprint, from which everything can be settled.
    pub(crate) settles: Arc<Mutex<AHashSet<u64>>>,
}

/// What a run has found.
#[derive(Debug)]
pub struct Report {
    /// How many states there are.
    pub states: usize,
    /// The steps to the most remote of them.
    pub depth: usize,
    /// How long it took.
    pub time: Duration,
    /// What does not hold, with the shortest way there.
    pub broken: Option<(&'static str, Vec<Action>)>,
}

/// Checks a setting in every state that can be reached, up to the first that breaks something.
/// `promises_only`: without the invariants of the protocol.
pub fn check(setting: Setting, promises_only: bool, threads: usize) -> Report {
    let begin = Instant::now();
    // What a copy does in its own right is no matter of the original's invariants.
    let promises_only = promises_only || setting.copy;
    let symmetric = !promises_only && !setting.neighbour && !setting.reads_last;
    let checked = Checked { setting, promises_only, symmetric, settles: Arc::default() };
    let checker = checked
        .checker()
        .threads(threads)
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_bfs()
        .join();
    let promises = checker.model().promises();
    let mut discoveries = checker.discoveries();
    let mut failures = promises.iter().filter(|p| p.expectation.discovery_is_failure());
    let broken = failures.find_map(|p| Some((p.name, discoveries.remove(p.name)?)));
    let never = promises
        .iter()
        .find(|p| !p.expectation.discovery_is_failure() && checker.discovery(p.name).is_none());
    let broken = match (broken, never) {
        (Some((name, path)), _) => Some((name, path.into_actions())),
        (None, Some(property)) => Some((property.name, Vec::new())),
        (None, None) => None,
    };
    Report {
        states: checker.unique_state_count(),
        depth: checker.max_depth(),
        time: begin.elapsed(),
        broken,
    }
}

impl Report {
    /// The way to what is broken, a line for each step.
    pub fn story(&self) -> String {
        let mut text = String::new();
        if let Some((name, path)) = &self.broken {
            _ = writeln!(text, "broken: {name}");
            for (n, action) in path.iter().enumerate() {
                _ = writeln!(text, "{:>4}. {action:?}", n + 1);
            }
        }
        text
    }
}
