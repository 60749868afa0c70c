//! The records of the [recorders](super::recorders): what they share, and how a phase's history is
//! judged when everything is at rest.

use std::collections::BTreeMap;
use std::sync::Mutex;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use super::Shared;
use super::clients::Outcome as Told;
use super::places::{Bank, Place, SHARDS};
use super::plan::Plan;
use super::random::Random;
use crate::history::{self, Act, Key, Kind, Outcome, Promise, Transaction};

/// So many lists, and registers, there are for each coordinator at each place in a phase.
const KEYS: i64 = 2;

/// So many coordinators there may be.
const COORDINATORS: i64 = 2;

/// Somebody who reads everything in the end.
const LAST: &str = "the last state, on the servers themselves";

/// A key for transactions of that coordinator. Two coordinators know nothing of each other's order.
pub(super) fn key(
    kind: Kind,
    place: usize,
    phase: u64,
    coordinator: usize,
    random: &mut Random,
) -> Key {
    let which = random.below(KEYS as u64) as i64;
    Key { kind, place, number: first(phase, coordinator) + which }
}

fn first(phase: u64, coordinator: usize) -> i64 {
    (phase as i64 * COORDINATORS + coordinator as i64) * KEYS
}

/// What became of the recorded transactions.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct Recorded {
    /// Histories that were checked: one for each phase and coordinator.
    pub histories: u64,
    /// Transactions that were acknowledged.
    pub acknowledged: u64,
    /// Of these, those that have written.
    pub writers: u64,
    /// Transactions that are committed, and were not acknowledged in time.
    pub found: u64,
    /// Transactions that were refused, or are not there.
    pub refused: u64,
    /// Reads of acknowledged transactions.
    pub reads: u64,
    /// Without consistent reads: by kind, what is not snapshot isolation.
    pub anomalies: BTreeMap<String, u64>,
    /// Why transactions were refused or are unknown, and how often.
    pub reasons: BTreeMap<String, u64>,
}

/// What recorders share.
#[derive(Default)]
pub(super) struct Records {
    /// Of this phase, by coordinators.
    transactions: Mutex<[Vec<Transaction>; COORDINATORS as usize]>,
    recorded: Mutex<Recorded>,
}

impl Records {
    pub(super) fn note(&self, coordinator: usize, transaction: Transaction, told: &Told) {
        if let Told::Refused(reason) | Told::Unknown(reason) = told {
            let mut recorded = self.recorded.lock().expect("nobody panics with it");
            *recorded.reasons.entry(reason.clone()).or_default() += 1;
        }
        self.transactions.lock().expect("nobody panics with it")[coordinator].push(transaction);
    }

    /// Judges the phase, when all recorders rest; returns the counts since the beginning.
    ///
    /// # Errors
    /// A promise is broken. The history is kept in a file, which the error names.
    pub(super) fn judge(&self, bank: &Bank, shared: &Shared, plan: &Plan) -> Result<Recorded> {
        let phase = shared.reading.phase();
        let mut recorded = self.recorded.lock().expect("nobody panics with it").clone();
        let all = std::mem::take(&mut *self.transactions.lock().expect("nobody panics with it"));
        for (coordinator, mut transactions) in all.into_iter().enumerate() {
            if transactions.is_empty() {
                continue;
            }
            let last = last_state(bank, coordinator, phase)?;
            let mut wrong = history::settle(&mut transactions, &last);
            recorded.count(&transactions);
            let now = shared.time();
            transactions.push(Transaction {
                process: u64::MAX >> 1,
                began: now,
                ended: now + 1,
                outcome: Outcome::Acknowledged,
                acts: last,
                note: LAST.to_owned(),
            });
            wrong.extend(recorded.check(&transactions, plan)?);
            if !wrong.is_empty() {
                let file = plan.kept().join(format!("history-{phase}-{coordinator}.jsonl"));
                std::fs::create_dir_all(plan.kept())?;
                std::fs::write(&file, history::jepsen(&transactions)).context("no history")?;
                let count = wrong.len();
                wrong.truncate(5);
                bail!("{count} faults in the history {}:\n{}", file.display(), wrong.join("\n"));
            }
        }
        *self.recorded.lock().expect("nobody panics with it") = recorded.clone();
        Ok(recorded)
    }
}

impl Recorded {
    /// Checks a whole history for what is promised, and counts what is not. Returns an explanation
    /// if the promise is broken.
    fn check(&mut self, history: &[Transaction], plan: &Plan) -> Result<Option<String>> {
        let snapshots = history::check(history, Promise::SnapshotIsolation)?;
        if plan.consistent_reads {
            return Ok(snapshots.smallest);
        }
        for (kind, count) in snapshots.anomalies {
            *self.anomalies.entry(kind).or_default() += count;
        }
        Ok(history::check(history, Promise::Atomicity)?.smallest)
    }

    fn count(&mut self, transactions: &[Transaction]) {
        self.histories += 1;
        for transaction in transactions {
            match transaction.outcome {
                Outcome::Acknowledged => {
                    self.acknowledged += 1;
                    self.writers += u64::from(transaction.has_written());
                    let is_read = |act: &&Act| matches!(act, Act::Elements(..) | Act::Value(..));
                    self.reads += transaction.acts.iter().filter(is_read).count() as u64;
                }
                Outcome::Committed => self.found += 1,
                Outcome::Refused | Outcome::Unknown => self.refused += 1,
            }
        }
    }
}

/// The places that a coordinator's transactions reach, but not behind a shard.
fn places(coordinator: usize) -> impl Iterator<Item = (usize, Place)> {
    std::iter::once((0, Place::Local(coordinator)))
        .chain((1..=SHARDS).map(|shard| (shard, Place::Shard(shard))))
}

/// Makes the lists and registers of a phase.
pub(super) fn open_phase(bank: &Bank, plan: &Plan, phase: u64) -> Result<()> {
    let last = first(phase + 1, 0) - 1;
    for coordinator in 0..plan.coordinators() {
        for (_, place) in places(coordinator) {
            let first = first(phase, 0);
            bank.server_of(place).client()?.batch_execute(&format!(
                "INSERT INTO list SELECT i, '{{}}' FROM generate_series({first}, {last}) i ON CONFLICT DO NOTHING;
                 INSERT INTO register SELECT i FROM generate_series({first}, {last}) i ON CONFLICT DO NOTHING"
            ))?;
        }
    }
    Ok(())
}

/// What the servers themselves say of the lists and registers of a phase.
fn last_state(bank: &Bank, coordinator: usize, phase: u64) -> Result<Vec<Act>> {
    let first = first(phase, coordinator);
    let numbers = format!("id BETWEEN {first} AND {}", first + KEYS - 1);
    let mut acts = Vec::new();
    for (place, server) in places(coordinator) {
        let mut session = bank.server_of(server).client()?;
        for row in session.query(&format!("SELECT id, items FROM list WHERE {numbers}"), &[])? {
            let key = Key { kind: Kind::List, place, number: row.get::<_, i32>(0).into() };
            acts.push(Act::Elements(key, row.get(1)));
        }
        let registers = format!("SELECT id, value FROM register WHERE {numbers}");
        for row in session.query(&registers, &[])? {
            let key = Key { kind: Kind::Register, place, number: row.get::<_, i32>(0).into() };
            acts.push(Act::Value(key, row.get(1)));
        }
    }
    Ok(acts)
}
