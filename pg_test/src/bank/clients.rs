//! The customers: each a session that makes transfers and notes what it was told of each.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Result;
use postgres::{Client, Error};

use super::Shared;
use super::places::{Place, SHARDS};
use super::plan::Plan;
use super::random::Random;
use super::sights::{Acknowledged, Places};
use super::slips;
use crate::oracle::one;

/// So many transfers a customer may make.
const CUSTOMER: u64 = 1_000_000_000;

/// So many customers there may be.
const CUSTOMERS: u64 = 1000;

/// Where the numbers of the transfers begin that are made in a phase.
pub(super) fn first_of_phase(phase: u64) -> i64 {
    (phase * CUSTOMERS * CUSTOMER) as i64
}

/// The number of the customer whose transfer that is.
pub(super) fn customer_of(transfer: i64) -> u64 {
    transfer as u64 / CUSTOMER % CUSTOMERS
}

/// What a customer was told of a transfer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It is committed; or prepared, and to be committed.
    Committed,
    /// It is not, for this reason.
    Refused(String),
    /// Nothing reliable.
    Unknown(String),
}

/// A transfer.
#[derive(Debug, Clone)]
pub(super) struct Transfer {
    /// In the ledgers.
    pub(super) id: i64,
    /// Who runs it.
    pub(super) coordinator: usize,
    /// Place, account and amount, in the order in which they are changed.
    entries: Vec<(Place, u64, i64)>,
    /// By PREPARE TRANSACTION and COMMIT PREPARED.
    pub(super) explicit: bool,
    /// It leaves slips.
    pub(super) has_slips: bool,
    /// What the customer was told.
    pub(super) outcome: Outcome,
}

/// What is still to be said of a transaction that a session may have left prepared.
pub(super) struct Owed {
    /// Its 'gxid'.
    pub(super) name: String,
    pub(super) commit: bool,
    /// The backend that may be about to prepare it.
    pub(super) pid: i32,
}

/// What came of saying it.
pub(super) enum Payment {
    /// It has to be said again.
    Due,
    /// It was heard.
    Made,
    /// There is no such transaction.
    NotDue,
}

impl Owed {
    /// Says it, in the session of the backend `pid`.
    pub(super) fn pay(&self, session: &mut Client, pid: i32) -> Payment {
        const NO_SUCH: &str = "42704";
        let is_alive = format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {}", self.pid);
        if self.pid != pid && one::<i64>(session, &is_alive).ok() != Some(0) {
            return Payment::Due;
        }
        let command = if self.commit { "COMMIT" } else { "ROLLBACK" };
        match session.batch_execute(&format!("{command} PREPARED '{}'", self.name)) {
            Ok(()) => Payment::Made,
            Err(error) if error.code().is_some_and(|code| code.code() == NO_SUCH) => {
                Payment::NotDue
            }
            Err(_) => Payment::Due,
        }
    }
}

impl Transfer {
    /// Its label, and its 'gxid'.
    pub(super) fn name(&self) -> String {
        format!("transfer {}", self.id)
    }

    /// Where it must be noted.
    pub(super) fn places(&self) -> impl Iterator<Item = Place> {
        self.entries.iter().map(|(place, ..)| *place)
    }

    /// The places as a set, which is noted beside each of its entries.
    fn set_of_places(&self) -> Places {
        self.places().map(Place::bit).sum()
    }

    fn draw(plan: &Plan, coordinator: usize, random: &mut Random, id: i64) -> Self {
        let mut reachable = vec![Place::Local(coordinator)];
        reachable.extend((1..=SHARDS).map(Place::Shard));
        reachable.extend(plan.nested.then_some(Place::Deep));
        let mut places = vec![random.choose(&reachable)];
        // A single shard is written in one phase; the money then goes nowhere.
        while random.chance(80) && places.len() < 3 {
            places.push(random.choose(&reachable));
        }
        places.sort_unstable();
        places.dedup();
        let amount = 1 + random.below(plan.amount) as i64;
        let mut entries: Vec<_> =
            places.iter().map(|place| (*place, random.below(plan.accounts), amount)).collect();
        // All but the first pay to the first.
        let paid = amount * (entries.len() as i64 - 1);
        for entry in &mut entries[1..] {
            entry.2 = -amount;
        }
        entries[0].2 = paid;
        if plan.disorder {
            random.shuffle(&mut entries);
        }
        let explicit = random.chance(plan.explicit);
        // Of a sequence of its own.
        let has_slips = Random::new(plan.seed, 1000 + id as u64).chance(plan.slips);
        let outcome = Outcome::Unknown(String::new());
        Self { id, coordinator, entries, explicit, has_slips, outcome }
    }

    fn statements(&self) -> Vec<String> {
        let (id, places) = (self.id, self.set_of_places());
        self.entries
            .iter()
            .flat_map(|(place, account, amount)| {
                let (accounts, ledger) = (place.table("account"), place.table("ledger"));
                let slips = self.has_slips.then(|| slips::statement(&place.table("slip"), id));
                let entry = [
                    format!(
                        "UPDATE {accounts} SET balance = balance + {amount} WHERE id = {account}"
                    ),
                    format!("INSERT INTO {ledger} VALUES ({id}, {account}, {amount}, {places})"),
                ];
                entry.into_iter().chain(slips)
            })
            .collect()
    }

    /// Changes the accounts, without an end.
    fn work(&self, session: &mut Client, plan: &Plan, dawdling: Duration) -> Result<(), Error> {
        session.batch_execute(&format!("BEGIN ISOLATION LEVEL {}", plan.isolation))?;
        if plan.labels {
            session.batch_execute(&format!("SELECT pg_fdw_xacts_track('{}')", self.name()))?;
        }
        self.statements().iter().try_for_each(|statement| session.batch_execute(statement))?;
        std::thread::sleep(dawdling);
        Ok(())
    }
}

/// What the answer to COMMIT or PREPARE TRANSACTION says.
pub(crate) fn told(answer: Result<(), Error>) -> Outcome {
    let Err(error) = answer else { return Outcome::Committed };
    match error.as_db_error() {
        // 57P0x: the session was ended, at whatever point; 08007: the extension says that nobody
        // knows.
        Some(report) if !matches!(report.code().code(), "57P01" | "57P02" | "57P03" | "08007") => {
            Outcome::Refused(reason(&error))
        }
        _ => Outcome::Unknown(reason(&error)),
    }
}

/// The same text for errors of one kind, whatever gid or process they name.
pub(crate) fn reason(error: &Error) -> String {
    let Some(report) = error.as_db_error() else { return error.to_string() };
    let digits = |c: char| if c.is_ascii_digit() { '0' } else { c };
    let mut message: String = report.message().chars().map(digits).collect();
    while message.contains("00") {
        message = message.replace("00", "0");
    }
    format!("{} {message}", report.code().code())
}

/// One of the concurrent sessions.
pub(super) struct Customer<'a> {
    shared: &'a Shared,
    plan: &'a Plan,
    number: u64,
    coordinator: usize,
    random: Random,
    session: Option<(Client, i32)>,
    /// Whether there was a warning since it was last looked at.
    is_warned: Arc<AtomicBool>,
    owed: Vec<(Transfer, Owed)>,
    /// All transfers that have come to an end.
    transfers: Arc<Mutex<Vec<Transfer>>>,
}

impl<'a> Customer<'a> {
    pub(super) fn new(shared: &'a Shared, plan: &'a Plan, number: u64) -> Self {
        Self {
            shared,
            plan,
            number,
            coordinator: number as usize % plan.coordinators(),
            random: Random::new(plan.seed, number + 1),
            session: None,
            is_warned: Arc::default(),
            owed: Vec::new(),
            transfers: Arc::default(),
        }
    }

    /// Where its transfers are noted.
    pub(super) fn transfers(&self) -> Arc<Mutex<Vec<Transfer>>> {
        Arc::clone(&self.transfers)
    }

    /// Makes transfers until the bank closes.
    pub(super) fn run(mut self) -> Result<()> {
        while !self.shared.stop.load(Ordering::Relaxed) {
            self.session = self.session.take().filter(|(session, _)| !session.is_closed());
            if self.session.is_none() {
                self.session = self.connect()?;
            }
            let Some((mut session, pid)) = self.session.take() else { break };
            self.pay(&mut session, pid);
            let wake = || {
                if !self.plan.silent {
                    let _ = session.batch_execute("SELECT 1");
                }
            };
            if self.owed.is_empty() && !self.shared.rest(wake) {
                self.transfer(&mut session, pid);
            }
            self.session = Some((session, pid));
        }
        Ok(())
    }

    fn connect(&self) -> Result<Option<(Client, i32)>> {
        let mut settings = String::new();
        if self.plan.consistent_customers {
            settings += "SET pg_fdw_xacts.consistent_reads = on;";
        }
        if !self.plan.is_patient(self.number) {
            settings += "SET pg_fdw_xacts.commit_wait = off;";
        }
        if self.plan.writes_behind(self.number) {
            settings += "SET pg_fdw_xacts.write_behind = on;";
        }
        settings +=
            &format!("SET pg_fdw_xacts.remote_isolation = '{}';", self.plan.remote_isolation);
        if self.plan.has_blind_deadlocks() {
            settings += "SET statement_timeout = '3s';";
        }
        self.shared.session_with(self.coordinator, &self.is_warned, &settings)
    }

    /// From now on readers have to see this transfer.
    fn acknowledge(&self, transfer: &Transfer) {
        let is_warned = self.is_warned.load(Ordering::Relaxed);
        // A wait for the standby that was cut short ends with a warning; no shard is told before the
        // standby has the decision.
        if is_warned && self.plan.standby {
            return;
        }
        self.shared.reading.acknowledge(Acknowledged {
            id: transfer.id,
            coordinator: transfer.coordinator,
            places: transfer.set_of_places(),
            is_confirmed: self.plan.is_patient(self.number) && !is_warned,
            stops: self.shared.reading.stops.load(Ordering::SeqCst),
        });
    }

    fn transfer(&mut self, session: &mut Client, pid: i32) {
        let count = self.transfers.lock().expect("nobody panics with it").len() as i64;
        let id = first_of_phase(self.shared.reading.phase())
            + (self.number * CUSTOMER) as i64
            + count
            + 1;
        let mut transfer = Transfer::draw(self.plan, self.coordinator, &mut self.random, id);
        let dawdling = Duration::from_millis(self.random.below(self.plan.dawdling + 1));
        transfer.outcome = match transfer.work(session, self.plan, dawdling) {
            Err(error) => {
                // Nothing was asked to commit.
                let _ = session.batch_execute("ROLLBACK");
                Outcome::Refused(reason(&error))
            }
            Ok(()) if transfer.explicit => self.prepare_and_commit(session, pid, &transfer),
            Ok(()) => {
                self.is_warned.store(false, Ordering::Relaxed);
                let outcome = told(session.batch_execute("COMMIT"));
                if outcome == Outcome::Committed {
                    self.acknowledge(&transfer);
                }
                outcome
            }
        };
        self.transfers.lock().expect("nobody panics with it").push(transfer);
        self.shared.ended.fetch_add(1, Ordering::Relaxed);
    }

    /// As a transaction manager: once PREPARE is acknowledged, it is decided to commit.
    fn prepare_and_commit(
        &mut self,
        session: &mut Client,
        pid: i32,
        transfer: &Transfer,
    ) -> Outcome {
        let prepare = format!("PREPARE TRANSACTION '{}'", transfer.name());
        let prepared = told(session.batch_execute(&prepare));
        let commit = prepared == Outcome::Committed;
        if !commit {
            // Cancelled before PostgreSQL has begun to prepare, it leaves a transaction block that
            // has failed.
            let _ = session.batch_execute("ROLLBACK");
        }
        self.owed.push((transfer.clone(), Owed { name: transfer.name(), commit, pid }));
        self.pay(session, pid);
        match prepared {
            // Whatever comes of it, it will be repeated until it is done.
            Outcome::Committed => Outcome::Committed,
            // What may be prepared will be rolled back.
            Outcome::Unknown(reason) | Outcome::Refused(reason) => Outcome::Refused(reason),
        }
    }

    /// Does what a transaction manager does after a crash: what it has heard to be prepared it
    /// commits, the rest it rolls back. What does not succeed stays owed.
    fn pay(&mut self, session: &mut Client, pid: i32) {
        let mut owed = std::mem::take(&mut self.owed);
        owed.retain(|(transfer, owed)| {
            self.is_warned.store(false, Ordering::Relaxed);
            let payment = owed.pay(session, pid);
            if matches!(payment, Payment::Made) && owed.commit {
                self.acknowledge(transfer);
            }
            matches!(payment, Payment::Due)
        });
        self.owed = owed;
        if !self.owed.is_empty() {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
