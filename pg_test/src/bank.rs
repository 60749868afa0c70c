//! A bank: concurrent transfers between accounts on three shards and the coordinator, under random faults.
//!
//! Each transfer changes two or three balances and notes itself in the ledger beside each of them, in one
//! transaction. Afterwards:
//! * nothing is in doubt;
//! * each transfer is in the ledgers of all its places or of none;
//! * each transfer whose COMMIT was acknowledged is there, each that was definitely refused is not;
//! * each balance is what the ledger says, so the total is what it was.
//!
//! The faults are drawn from a seed, one sequence per seed; what they hit depends on timing.

mod clients;
mod faults;
mod random;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use postgres::{Client, Config};
use serde::Serialize;

use crate::oracle::{assert_no_locks, one, prepared_gids, settled_within};
use crate::{DEADLINE, Fleet, FleetOptions, wait_until};
use clients::{Customer, Outcome, Transfer};

/// Shards; place 0 is the coordinator itself.
const SHARDS: usize = 3;
/// Accounts at each place.
const ACCOUNTS: u64 = 20;
/// What is on each account at first.
const DEPOSIT: i64 = 1000;

/// How the bank is run.
#[derive(Debug, Clone)]
pub struct Options {
    /// For how long faults are injected.
    pub duration: Duration,
    /// Concurrent sessions.
    pub sessions: u64,
    /// The beginning of all randomness.
    pub seed: u64,
}

/// What happened; `cargo xtask torture` prints it as JSON.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Transfers that were acknowledged.
    pub committed: u64,
    /// Transfers that were definitely refused.
    pub refused: u64,
    /// Transfers whose client was left without an answer; of these, `found` are there.
    pub unknown: u64,
    /// See `unknown`.
    pub found: u64,
    /// Faults that were injected.
    pub faults: u64,
    /// Why transfers were refused or are unknown, and how often.
    pub reasons: BTreeMap<String, u64>,
}

/// What the threads share.
struct Shared {
    config: Config,
    stop: AtomicBool,
    /// Transfers that have come to an end, in any way.
    ended: AtomicU64,
}

/// Runs the bank and checks what must be true afterwards; `say` is told what is going on.
///
/// # Errors
/// One of the promises above is broken, or the harness has trouble.
pub fn run(options: &Options, mut say: impl FnMut(&str)) -> Result<Report> {
    let mut fleet = open()?;
    let shared = Shared {
        config: fleet.coordinator.config(),
        stop: AtomicBool::new(false),
        ended: AtomicU64::new(0),
    };
    let (transfers, faults) = std::thread::scope(|scope| -> Result<_> {
        let customers: Vec<_> = (0..options.sessions)
            .map(|number| {
                let customer = Customer::new(&shared, options.seed, number);
                scope.spawn(move || customer.run())
            })
            .collect();
        let injected =
            faults::inject(&mut fleet, &shared, options.seed, options.duration, &mut say);
        shared.stop.store(true, Ordering::Relaxed);
        let mut transfers = Vec::new();
        for customer in customers {
            transfers.extend(customer.join().expect("a customer panicked")?);
        }
        Ok((transfers, injected?))
    })?;
    settle_gxids(&fleet, &transfers)?;
    settled_within(&fleet, DEADLINE)?;
    assert_no_locks(&fleet)?;
    let mut report = audit(&fleet, &transfers)?;
    report.faults = faults;
    ensure!(report.committed > 0, "not a single transfer was committed: {report:?}");
    Ok(report)
}

/// Starts the servers and puts the money on the accounts.
fn open() -> Result<Fleet> {
    let fleet = Fleet::start_with(&FleetOptions {
        shards: SHARDS,
        proxied: true,
        coordinator: vec![
            ("pg_fdw_xacts.commit_timeout", "2s"),
            ("lock_timeout", "3s"),
            ("deadlock_timeout", "100ms"),
        ],
        // Waits for each other across servers are nobody's to detect.
        shard: vec![("lock_timeout", "3s"), ("max_prepared_transactions", "200")],
    })?;
    let tables = "CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL);
         CREATE TABLE ledger (transfer bigint PRIMARY KEY, account int, amount bigint NOT NULL)";
    let deposits = format!(
        "INSERT INTO account SELECT i, {DEPOSIT} FROM generate_series(0, {ACCOUNTS} - 1) i"
    );
    let mut session = fleet.session()?;
    for cluster in std::iter::once(&fleet.coordinator).chain(fleet.shards()) {
        let mut session = cluster.client()?;
        session.batch_execute(tables)?;
        session.batch_execute(&deposits)?;
    }
    for number in 1..=SHARDS {
        session.batch_execute(&format!(
            "CREATE FOREIGN TABLE account{number} (id int, balance bigint) SERVER shard{number}
                 OPTIONS (table_name 'account');
             CREATE FOREIGN TABLE ledger{number} (transfer bigint, account int, amount bigint)
                 SERVER shard{number} OPTIONS (table_name 'ledger')"
        ))?;
    }
    Ok(fleet)
}

/// Does what a transaction manager does after a crash: what it has heard to be prepared it commits, the rest it
/// rolls back.
fn settle_gxids(fleet: &Fleet, transfers: &[Transfer]) -> Result<()> {
    let decided: BTreeMap<String, bool> = transfers
        .iter()
        .filter(|transfer| transfer.explicit)
        .map(|transfer| (transfer.gxid(), transfer.outcome == Outcome::Committed))
        .collect();
    // Backends that were cut off may still be about to prepare.
    let mut session = fleet.session()?;
    wait_until("all other sessions have ended", DEADLINE, || {
        let others: i64 = one(
            &mut session,
            "SELECT count(*) FROM pg_stat_activity
             WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()",
        )?;
        Ok(others == 0)
    })?;
    for gxid in prepared_gids(&fleet.coordinator)? {
        let commit = *decided.get(&gxid).with_context(|| format!("whose is '{gxid}'?"))?;
        let command = if commit { "COMMIT" } else { "ROLLBACK" };
        session.batch_execute(&format!("{command} PREPARED '{gxid}'"))?;
    }
    Ok(())
}

/// Compares what the places say with what the customers were told.
fn audit(fleet: &Fleet, transfers: &[Transfer]) -> Result<Report> {
    let mut places: Vec<Client> = vec![fleet.session()?];
    for shard in fleet.shards() {
        places.push(shard.client()?);
    }
    let mut ledgers = Vec::new();
    let mut total = 0;
    for (place, session) in places.iter_mut().enumerate() {
        let wrong: i64 = one(
            session,
            &format!(
                "SELECT count(*) FROM account a WHERE balance <> {DEPOSIT} +
                     (SELECT coalesce(sum(amount), 0) FROM ledger l WHERE l.account = a.id)"
            ),
        )?;
        ensure!(wrong == 0, "{wrong} balances at place {place} are not what the ledger says");
        total += one::<i64>(session, "SELECT sum(balance)::bigint FROM account")?;
        let rows = session.query("SELECT transfer FROM ledger", &[])?;
        ledgers.push(rows.iter().map(|row| row.get(0)).collect::<std::collections::HashSet<i64>>());
    }
    let expected = (SHARDS as u64 + 1) * ACCOUNTS * DEPOSIT as u64;
    ensure!(total == expected as i64, "the total is {total} and should be {expected}");
    let mut report = Report::default();
    let mut known = 0;
    for transfer in transfers {
        let found: Vec<bool> =
            transfer.places().iter().map(|p| ledgers[*p].contains(&transfer.id)).collect();
        let there = found[0];
        known += if there { found.len() } else { 0 };
        if found.iter().any(|f| *f != there) {
            bail!("half a transfer: {transfer:?} is there: {found:?}");
        }
        if let Outcome::Refused(reason) | Outcome::Unknown(reason) = &transfer.outcome {
            *report.reasons.entry(reason.clone()).or_default() += 1;
        }
        match (&transfer.outcome, there) {
            (Outcome::Committed, true) => report.committed += 1,
            (Outcome::Refused(_), false) => report.refused += 1,
            (Outcome::Unknown(_), _) => {
                report.unknown += 1;
                report.found += u64::from(there);
            }
            (Outcome::Committed, false) => bail!("acknowledged and not there: {transfer:?}"),
            (Outcome::Refused(_), true) => bail!("refused and there: {transfer:?}"),
        }
    }
    let noted: usize = ledgers.iter().map(|ledger| ledger.len()).sum();
    ensure!(noted == known, "{noted} ledger entries, {known} of known transfers");
    Ok(report)
}

impl Shared {
    /// Waits until `count` more transfers have ended, a second at most: how long a fault lasts is measured
    /// in what happens meanwhile.
    fn let_pass(&self, count: u64) {
        let until = self.ended.load(Ordering::Relaxed) + count;
        let _ = wait_until("transfers pass", Duration::from_secs(1), || {
            Ok(self.ended.load(Ordering::Relaxed) >= until)
        });
    }

    /// A session, as soon as the coordinator gives one; `None` when the bank closes meanwhile.
    fn session(&self) -> Result<Option<Client>> {
        let mut session = None;
        let start = Instant::now();
        wait_until("the coordinator accepts a session", DEADLINE * 2, || {
            session = self.config.connect(postgres::NoTls).ok();
            Ok(session.is_some()
                || self.stop.load(Ordering::Relaxed) && start.elapsed() > Duration::from_secs(1))
        })?;
        Ok(session)
    }
}
