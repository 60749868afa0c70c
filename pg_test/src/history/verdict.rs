//! A history in the notation of Jepsen, which the checker reads, and what the checker has found.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use adya::{History, Opts, Valid, Workload};
use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::lists::{Step, Versions};
use super::{Outcome, Transaction};

/// How long the checker may look for one kind of cycle.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Promise {
    /// Each transaction reads from one snapshot, which has all that was acknowledged before it
    /// began; of two that write the same and do not see each other, one is refused.
    SnapshotIsolation,
    /// Nothing is seen that was not committed, no update is lost, and each server is consistent by
    /// itself; several servers may be seen at different times.
    Atomicity,
}

impl Promise {
    fn options(self) -> Opts {
        let (model, anomalies): (_, &[&str]) = match self {
            Self::SnapshotIsolation => ("strong-snapshot-isolation", &[]),
            Self::Atomicity => ("read-committed", &["internal", "lost-update"]),
        };
        Opts {
            models: vec![model.to_owned()],
            anomalies: anomalies.iter().map(ToString::to_string).collect(),
            timeout: PATIENCE,
            ..Opts::default()
        }
    }
}

/// What breaks a promise.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// How many there are of each kind.
    pub anomalies: BTreeMap<String, u64>,
    /// The one with the fewest transactions, explained.
    pub smallest: Option<String>,
}

/// An event of the history: when it happened, that it is an end and not a beginning, and whose.
type Event = (u64, bool, usize);

/// Beginnings and ends in order. A beginning comes first of what happened in the same instant, so
/// that no order is read into it.
fn events(transactions: &[Transaction]) -> Vec<Event> {
    let both =
        |(index, it): (usize, &Transaction)| [(it.began, false, index), (it.ended, true, index)];
    let mut events: Vec<Event> = transactions.iter().enumerate().flat_map(both).collect();
    events.sort_unstable();
    events
}

/// The history in Jepsen's notation, one event a line, registers as lists. Elle reads it, too.
pub fn jepsen(transactions: &[Transaction]) -> String {
    let versions = Versions::of(transactions);
    let mut lines = String::new();
    for (index, (time, is_end, number)) in events(transactions).into_iter().enumerate() {
        let transaction = &transactions[number];
        let word = match (is_end, transaction.outcome) {
            (false, _) => "invoke",
            (true, Outcome::Acknowledged) => "ok",
            (true, Outcome::Refused) => "fail",
            (true, Outcome::Committed | Outcome::Unknown) => "info",
        };
        let step = |step: &Step| match step {
            Step::Append(key, element) => json!(["append", key.to_string(), element]),
            Step::Read(key, elements) if is_end => json!(["r", key.to_string(), elements]),
            Step::Read(key, _) => json!(["r", key.to_string(), Value::Null]),
        };
        let steps: Vec<Value> = versions.steps(&transaction.acts).iter().map(step).collect();
        let event = json!({
            "index": index, "type": word, "f": "txn", "process": transaction.process,
            "time": time, "value": steps, "note": transaction.note,
        });
        let _ = writeln!(lines, "{event}");
    }
    lines
}

/// Whether the promise explains what was seen.
///
/// # Errors
/// The checker cannot read the history, which is a fault of ours.
pub fn check(transactions: &[Transaction], promise: Promise) -> Result<Verdict> {
    let history = History::from_json(&jepsen(transactions))?;
    let report = adya::check(&history, Workload::ListAppend, &promise.options());
    let nothing_to_say = "empty-transaction-graph";
    let found: Vec<_> =
        report.anomalies.iter().filter(|(kind, _)| *kind != nothing_to_say).collect();
    ensure!(
        report.valid != Valid::Unknown
            || found.iter().all(|(kind, _)| *kind == "cycle-search-timeout"),
        "the checker does not take the history: {found:?}"
    );
    let smallest = found
        .iter()
        .flat_map(|(_, anomalies)| anomalies.iter())
        .min_by_key(|anomaly| (anomaly.ops.is_empty(), anomaly.ops.len()));
    Ok(Verdict {
        anomalies: found.iter().map(|(kind, them)| ((*kind).clone(), them.len() as u64)).collect(),
        smallest: smallest.map(|it| explain(transactions, &it.kind, &it.ops, &it.explanation)),
    })
}

/// The checker's words, and when and how the transactions were run that it names.
fn explain(transactions: &[Transaction], kind: &str, ends: &[u64], words: &str) -> String {
    let events = events(transactions);
    let mut text = format!("{kind}: {words}\n");
    for end in ends {
        let Some((.., number)) = events.get(*end as usize) else { continue };
        let it = &transactions[*number];
        let seconds = |time: u64| time as f64 / 1e9;
        let _ = writeln!(
            text,
            "T{end}: process {}, {:.6} s to {:.6} s, {:?}, {}",
            it.process,
            seconds(it.began),
            seconds(it.ended),
            it.outcome,
            it.note
        );
    }
    text
}
