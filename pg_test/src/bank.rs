//! A bank: concurrent transfers between accounts on three shards and the coordinators, under random
//! faults.
//!
//! Each transfer changes one to three balances and notes itself in the ledger beside each of them,
//! in one transaction; some leave hundreds of slips there, too. Faults come in phases. After each,
//! within 30 s of all servers being reachable:
//! * every session has come to the end of what it does;
//! * nothing is prepared, shown as in doubt, or locked;
//! * each transfer is in the ledgers of all its places or of none, and so are its slips;
//! * each transfer whose COMMIT was acknowledged is there, each that was definitely refused is not;
//! * each balance is what the ledger says, so the total is what it was.
//!
//! Meanwhile others read several shards, consistently: they see each transfer wholly or not at all,
//! all in one order, and all that was acknowledged before they began. Others again keep a record of
//! what they do with lists and registers, and of what they see; each phase's record is checked for
//! snapshot isolation.
//!
//! What a run is like, and its faults, are drawn from a seed, one sequence per seed; what they hit
//! depends on timing.
//!
//! | module | subject |
//! |---|---|
//! | `plan` | what a run is like |
//! | `places` | its servers and tables |
//! | `clients` | the customers, who make transfers |
//! | `slips` | the many rows that some of these leave |
//! | `bystanders` | long statements, and changes of definitions |
//! | `readers` | those who add up and compare, and what they report |
//! | `sights` | whether what they have seen can be |
//! | `recorders` | those who use lists and registers and keep a record |
//! | `scripts` | what these do |
//! | `records` | these records, and how they are judged |
//! | `faults` | what is done to all of them |
//! | `audit` | what must be true afterwards |

mod audit;
mod bystanders;
pub(crate) mod clients;
mod faults;
mod places;
mod plan;
pub(crate) mod random;
mod readers;
mod recorders;
mod records;
mod scripts;
mod sights;
mod slips;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use postgres::error::DbError;
use postgres::{Client, Config};
use serde::Serialize;

use crate::history::Time;
use crate::oracle::one;
use crate::{Cluster, DEADLINE, lengthened_by_load, wait_until};
use audit::audit;
use bystanders::SLEEPER;
use clients::{Customer, Transfer};
use places::Bank;
pub use plan::{CommitWait, Plan};
use random::Random;
use readers::Reading;
pub use readers::Reads;
use recorders::Recorder;
pub use records::Recorded;
use records::Records;

/// How long it may take until everything is settled, once all servers can be reached.
const LIVELY: Duration = Duration::from_secs(30);

/// What happened; `cargo xtask torture` prints it as JSON.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Transfers that were acknowledged.
    pub committed: u64,
    /// Transfers of the last phase that are there with all their slips.
    pub with_slips: u64,
    /// Transfers that were definitely refused.
    pub refused: u64,
    /// Transfers whose client was left without an answer; of these, `found` are there.
    pub unknown: u64,
    /// See `unknown`.
    pub found: u64,
    /// Faults that were injected.
    pub faults: u64,
    /// How long it took at most until all was settled, in milliseconds.
    pub slowest_settling: u64,
    /// Why transfers were refused or are unknown, and how often.
    pub reasons: BTreeMap<String, u64>,
    /// What became of those who read meanwhile.
    pub reads: Reads,
    /// What became of the transactions that were recorded.
    pub recorded: Recorded,
}

/// What the threads share.
struct Shared {
    start: Instant,
    /// How to reach each coordinator.
    configs: Mutex<Vec<Config>>,
    stop: AtomicBool,
    /// All threads are to finish what they do, and wait.
    pause: AtomicBool,
    /// Threads that wait for the end of the pause.
    resting: AtomicU64,
    /// Transfers that have come to an end, in any way.
    ended: AtomicU64,
    /// What readers have to be shown, and what they were shown.
    reading: Reading,
    /// What was recorded of transactions.
    records: Records,
}

/// Runs the bank as `plan` says, with faults for `duration`, and checks what must be true; `say` is
/// told what is going on.
///
/// # Errors
/// One of the promises above is broken, or the harness has trouble. What the servers were doing is
/// part of the error.
pub fn run(plan: &Plan, duration: Duration, mut say: impl FnMut(&str)) -> Result<Report> {
    say(&format!("{plan:?}"));
    let mut bank = Bank::open(plan).context("the bank does not open")?;
    let shared = Shared {
        start: Instant::now(),
        configs: Mutex::new(bank.coordinators().map(Cluster::config).collect()),
        stop: AtomicBool::new(false),
        pause: AtomicBool::new(false),
        resting: AtomicU64::new(0),
        ended: AtomicU64::new(0),
        reading: Reading::default(),
        records: Records::default(),
    };
    shared.begin_phase(&bank, plan)?;
    let outcome = std::thread::scope(|scope| {
        let mut transfers = Vec::new();
        let mut threads = Vec::new();
        for number in 0..plan.customers {
            let customer = Customer::new(&shared, plan, number);
            transfers.push(customer.transfers());
            threads.push(scope.spawn(move || customer.run()));
        }
        let shared = &shared;
        for number in 0..plan.sleepers {
            threads.push(scope.spawn(move || bystanders::sleep(shared, plan, number)));
        }
        for number in 0..u64::from(plan.changes) * 2 {
            threads.push(scope.spawn(move || bystanders::change(shared, plan, number)));
        }
        for number in 0..plan.readers {
            threads.push(scope.spawn(move || readers::read(shared, plan, number)));
        }
        for number in 0..plan.recorders {
            let recorder = Recorder::new(shared, plan, number);
            threads.push(scope.spawn(move || recorder.run()));
        }
        let run = Run { plan, shared, threads: threads.len() as u64, transfers };
        let outcome = run.phases(&mut bank, duration, &mut say).map_err(|error| {
            let logs = plan.kept();
            let kept = bank.keep_logs(&logs).map(|()| logs);
            error.context(format!("{plan:?}\n{}\nlogs: {kept:?}", bank.describe()))
        });
        shared.stop.store(true, Ordering::Relaxed);
        if outcome.is_err() {
            // Statements that wait are cancelled.
            for number in 0..plan.coordinators() {
                let _ = bank.coordinator_mut(number).kill9();
            }
        }
        for thread in threads {
            let ended = thread.join().expect("a session's thread panicked");
            if outcome.is_ok() {
                ended?;
            }
        }
        outcome
    });
    let report = outcome?;
    ensure!(report.committed > 0, "{plan:?}\nnot a single transfer was committed: {report:?}");
    Ok(report)
}

/// What the phases need.
struct Run<'a> {
    plan: &'a Plan,
    shared: &'a Shared,
    threads: u64,
    transfers: Vec<Arc<Mutex<Vec<Transfer>>>>,
}

impl Run<'_> {
    /// Faults and rests, in turns.
    fn phases(
        &self,
        bank: &mut Bank,
        duration: Duration,
        say: &mut impl FnMut(&str),
    ) -> Result<Report> {
        let mut random = Random::new(self.plan.seed, 500);
        let mut faults = 0;
        let mut slowest = 0;
        let mut left = duration;
        loop {
            let phase = left.min(self.plan.phase());
            faults += faults::inject(bank, self.shared, self.plan, &mut random, phase, say)?;
            let (report, settling) = self.rest(bank)?;
            let elapsed = self.shared.start.elapsed().as_secs_f32();
            say(&format!("{elapsed:7.2} s  settled within {settling:?}"));
            slowest = slowest.max(settling.as_millis() as u64);
            left = left.saturating_sub(phase);
            if left.is_zero() {
                return Ok(Report { faults, slowest_settling: slowest, ..report });
            }
            self.go_on(bank)?;
        }
    }

    /// Lets all threads and servers come to rest, and checks that everything is settled.
    fn rest(&self, bank: &Bank) -> Result<(Report, Duration)> {
        let resting = &self.shared.resting;
        self.shared.pause.store(true, Ordering::Relaxed);
        bank.wait_for_servers()?;
        let start = Instant::now();
        let lively = lengthened_by_load(LIVELY);
        wait_until("all sessions have come to the end of what they do", lively, || {
            for coordinator in bank.coordinators() {
                let _ = coordinator.client()?.batch_execute(&format!(
                    "SELECT pg_cancel_backend(pid) FROM pg_stat_activity
                     WHERE application_name = '{SLEEPER}' AND state = 'active'"
                ));
            }
            Ok(resting.load(Ordering::Relaxed) == self.threads)
        })?;
        bank.settled_until(start + lively)?;
        let settling = start.elapsed();
        let transfers: Vec<Transfer> = self
            .transfers
            .iter()
            .flat_map(|list| list.lock().expect("nobody panics with it").clone())
            .collect();
        let report = audit(bank, self.plan, self.shared.reading.phase(), &transfers)?;
        let reads = self.shared.reading.judge(self.plan)?;
        let recorded = self.shared.records.judge(bank, self.shared, self.plan)?;
        Ok((Report { reads, recorded, ..report }, settling))
    }

    /// Ends the rest.
    fn go_on(&self, bank: &Bank) -> Result<()> {
        self.shared.begin_phase(bank, self.plan)?;
        self.shared.pause.store(false, Ordering::Relaxed);
        wait_until("all sessions go on", DEADLINE, || {
            Ok(self.shared.resting.load(Ordering::Relaxed) == 0)
        })
    }
}

impl Shared {
    /// Nothing is under way; what is read and recorded from now on belongs to the next phase.
    fn begin_phase(&self, bank: &Bank, plan: &Plan) -> Result<()> {
        slips::clear(bank)?;
        self.reading.begin_phase(bank.balances()?);
        if plan.recorders > 0 {
            records::open_phase(bank, plan, self.reading.phase())?;
        }
        Ok(())
    }

    /// The time since the beginning.
    fn time(&self) -> Time {
        self.start.elapsed().as_nanos() as Time
    }

    /// Waits until `count` more transfers have ended, half a second at most: how long a fault lasts
    /// is measured in what happens meanwhile.
    fn let_pass(&self, count: u64) {
        let until = self.ended.load(Ordering::Relaxed) + count;
        let _ = wait_until("transfers pass", Duration::from_millis(500), || {
            Ok(self.ended.load(Ordering::Relaxed) >= until)
        });
    }

    /// Waits while there is a pause, and does something now and then; whether there was one.
    fn rest(&self, mut meanwhile: impl FnMut()) -> bool {
        if !self.pause.load(Ordering::Relaxed) {
            return false;
        }
        self.resting.fetch_add(1, Ordering::Relaxed);
        while self.pause.load(Ordering::Relaxed) && !self.stop.load(Ordering::Relaxed) {
            meanwhile();
            std::thread::sleep(Duration::from_millis(20));
        }
        self.resting.fetch_sub(1, Ordering::Relaxed);
        true
    }

    /// A session of a coordinator, as soon as it gives one; `None` when the bank closes meanwhile.
    fn session(&self, coordinator: usize) -> Result<Option<Client>> {
        self.session_that_tells(coordinator, |_| ())
    }

    /// A session with these settings, and its process; what warns is noted. `None` once the bank
    /// closes.
    fn session_with(
        &self,
        coordinator: usize,
        is_warned: &Arc<AtomicBool>,
        settings: &str,
    ) -> Result<Option<(Client, i32)>> {
        let is_warned = Arc::clone(is_warned);
        let told = move |_| is_warned.store(true, Ordering::Relaxed);
        let session = self.session_that_tells(coordinator, told)?;
        let Some(mut session) = session else { return Ok(None) };
        let _ = session.batch_execute(settings);
        // One that has ended already is found out by its next use.
        let pid = one(&mut session, "SELECT pg_backend_pid()").unwrap_or_default();
        Ok(Some((session, pid)))
    }

    /// The same with somebody who is told of notices and warnings.
    fn session_that_tells(
        &self,
        coordinator: usize,
        told: impl Fn(DbError) + Send + Sync + Clone + 'static,
    ) -> Result<Option<Client>> {
        let mut session = None;
        let start = Instant::now();
        wait_until("the coordinator accepts a session", DEADLINE * 2, || {
            let mut config =
                self.configs.lock().expect("nobody panics with it")[coordinator].clone();
            session = config.notice_callback(told.clone()).connect(postgres::NoTls).ok();
            Ok(session.is_some()
                || self.stop.load(Ordering::Relaxed) && start.elapsed() > Duration::from_secs(1))
        })?;
        Ok(session)
    }
}
