//! Who keeps a record: sessions that append to lists, write registers and read both, and note each
//! transaction with what it saw and when.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use postgres::Client;

use super::Shared;
use super::clients::{Outcome as Told, Owed, Payment, reason, told};
use super::plan::Plan;
use super::random::Random;
use super::scripts::{Scope, Script};
use crate::history::{Outcome, Transaction};

/// One of the concurrent sessions.
pub(super) struct Recorder<'a> {
    shared: &'a Shared,
    plan: &'a Plan,
    number: u64,
    coordinator: usize,
    random: Random,
    session: Option<(Client, i32)>,
    /// Whether there was a warning since it was last looked at.
    is_warned: Arc<AtomicBool>,
    /// As which process it appears in the history: one whose answer is lost appears no more.
    process: u64,
    /// How many elements it has written.
    count: i64,
    /// A transaction that its session may have left prepared.
    owed: Option<(Transaction, Owed)>,
}

impl<'a> Recorder<'a> {
    pub(super) fn new(shared: &'a Shared, plan: &'a Plan, number: u64) -> Self {
        Self {
            shared,
            plan,
            number,
            coordinator: number as usize % plan.coordinators(),
            random: Random::new(plan.seed, 4000 + number),
            session: None,
            is_warned: Arc::default(),
            process: number,
            count: 0,
            owed: None,
        }
    }

    /// Runs transactions until the bank closes.
    pub(super) fn run(mut self) -> Result<()> {
        while !self.shared.stop.load(Ordering::Relaxed) {
            self.session = self.session.take().filter(|(session, _)| !session.is_closed());
            if self.session.is_none() {
                self.session = self.connect()?;
            }
            let Some((mut session, pid)) = self.session.take() else { break };
            if self.owed.is_some() {
                self.pay(&mut session, pid);
            } else if !self.shared.rest(|| ()) {
                self.transact(&mut session, pid);
            }
            self.session = Some((session, pid));
        }
        Ok(())
    }

    fn connect(&self) -> Result<Option<(Client, i32)>> {
        let wait = if self.plan.is_patient(self.number) { "on" } else { "off" };
        let behind = if self.plan.writes_behind(self.number) { "on" } else { "off" };
        let settings = format!(
            "SET pg_fdw_xacts.commit_wait = {wait}; SET pg_fdw_xacts.write_behind = {behind};
             SET pg_fdw_xacts.remote_isolation = '{}';
             SET statement_timeout = '3s'",
            self.plan.remote_isolation
        );
        self.shared.session_with(self.coordinator, &self.is_warned, &settings)
    }

    fn transact(&mut self, session: &mut Client, pid: i32) {
        let scope = Scope { phase: self.shared.reading.phase(), coordinator: self.coordinator };
        let script = Script::draw(self.plan, scope, &mut self.random);
        let mut transaction = Transaction {
            process: self.process,
            began: self.shared.time(),
            ended: 0,
            outcome: Outcome::Unknown,
            acts: Vec::new(),
            note: script.note(),
        };
        let (number, count) = (self.number as i64, &mut self.count);
        let element = || {
            *count += 1;
            number * 1_000_000_000 + *count
        };
        if let Err(error) = script.work(session, &mut transaction.acts, element) {
            // Nothing was asked to commit.
            let _ = session.batch_execute("ROLLBACK");
            self.end(transaction, Told::Refused(reason(&error)));
            return;
        }
        self.is_warned.store(false, Ordering::Relaxed);
        if !script.explicit {
            let told = told(session.batch_execute("COMMIT"));
            self.end(transaction, told);
            return;
        }
        let name = format!("recorder {number} {}", transaction.began);
        let prepared = told(session.batch_execute(&format!("PREPARE TRANSACTION '{name}'")));
        let commit = prepared == Told::Committed;
        if !commit {
            let _ = session.batch_execute("ROLLBACK");
        }
        self.owed = Some((transaction, Owed { name, commit, pid }));
        self.pay(session, pid);
    }

    /// See [`Owed::pay`].
    fn pay(&mut self, session: &mut Client, pid: i32) {
        let Some((mut transaction, owed)) = self.owed.take() else { return };
        self.is_warned.store(false, Ordering::Relaxed);
        match owed.pay(session, pid) {
            Payment::Due => {
                self.owed = Some((transaction, owed));
                std::thread::sleep(Duration::from_millis(10));
            }
            _ if !owed.commit => {
                self.end(transaction, Told::Refused("ROLLBACK PREPARED".to_owned()));
            }
            Payment::Made => self.end(transaction, Told::Committed),
            Payment::NotDue => {
                // Somebody has told it to commit, and nobody was told when.
                transaction.outcome = Outcome::Committed;
                self.end(transaction, Told::Unknown("COMMIT PREPARED".to_owned()));
            }
        }
    }

    fn end(&mut self, mut transaction: Transaction, told: Told) {
        transaction.ended = self.shared.time();
        // A wait for the standby that was cut short ends with a warning; no shard is told before
        // the standby has the decision.
        let is_unheard = self.plan.standby && self.is_warned.load(Ordering::Relaxed);
        match &told {
            Told::Committed if is_unheard => transaction.outcome = Outcome::Committed,
            Told::Committed => transaction.outcome = Outcome::Acknowledged,
            Told::Refused(_) => transaction.outcome = Outcome::Refused,
            // Nobody will ever know more of one that has only read.
            Told::Unknown(_) if !transaction.has_written() => {
                transaction.outcome = Outcome::Refused;
            }
            Told::Unknown(_) => self.process += self.plan.recorders,
        }
        self.shared.records.note(self.coordinator, transaction, &told);
        self.shared.ended.fetch_add(1, Ordering::Relaxed);
    }
}
