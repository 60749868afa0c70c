//! The customers: each a session that makes transfers and notes what it was told of each.

use std::sync::atomic::Ordering;

use anyhow::Result;
use postgres::{Client, Error};

use super::random::Random;
use super::{ACCOUNTS, SHARDS, Shared};

/// What a customer was told of a transfer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
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
    /// Place, account and amount, in the order in which they are changed.
    entries: Vec<(usize, u64, i64)>,
    /// By PREPARE TRANSACTION and COMMIT PREPARED.
    pub(super) explicit: bool,
    /// What the customer was told.
    pub(super) outcome: Outcome,
}

impl Transfer {
    /// Where it must be noted.
    pub(super) fn places(&self) -> Vec<usize> {
        self.entries.iter().map(|(place, ..)| *place).collect()
    }

    /// Its name as a transaction prepared by the application.
    pub(super) fn gxid(&self) -> String {
        format!("transfer {}", self.id)
    }

    fn draw(random: &mut Random, id: i64) -> Self {
        let mut places = vec![random.below(SHARDS as u64 + 1) as usize];
        // A single shard is written in one phase; the money then goes nowhere.
        while random.below(10) < 8 && places.len() < 3 {
            places.push(random.below(SHARDS as u64 + 1) as usize);
        }
        places.sort_unstable();
        places.dedup();
        let amount = 1 + random.below(20) as i64;
        let mut entries: Vec<_> =
            places.iter().map(|place| (*place, random.below(ACCOUNTS), amount)).collect();
        // All but the first pay to the first.
        let paid = amount * (entries.len() as i64 - 1);
        for entry in &mut entries[1..] {
            entry.2 = -amount;
        }
        entries[0].2 = paid;
        let explicit = random.below(8) == 0;
        Self { id, entries, explicit, outcome: Outcome::Unknown(String::new()) }
    }

    fn statements(&self) -> Vec<String> {
        let id = self.id;
        self.entries
            .iter()
            .flat_map(|(place, account, amount)| {
                let suffix = if *place == 0 { String::new() } else { place.to_string() };
                [
                    format!(
                        "UPDATE account{suffix} SET balance = balance + {amount} WHERE id = {account}"
                    ),
                    format!("INSERT INTO ledger{suffix} VALUES ({id}, {account}, {amount})"),
                ]
            })
            .collect()
    }

    /// Runs it; the outcome is noted.
    fn run(&mut self, session: &mut Client) {
        self.outcome = match self.work(session) {
            Err(error) => {
                // Nothing was asked to commit.
                let _ = session.batch_execute("ROLLBACK");
                Outcome::Refused(reason(&error))
            }
            Ok(()) if self.explicit => self.prepare_and_commit(session),
            Ok(()) => told(session.batch_execute("COMMIT")),
        };
    }

    fn work(&self, session: &mut Client) -> Result<(), Error> {
        session.batch_execute("BEGIN")?;
        self.statements().iter().try_for_each(|statement| session.batch_execute(statement))
    }

    /// As a transaction manager: once PREPARE is acknowledged, it is decided to commit.
    fn prepare_and_commit(&self, session: &mut Client) -> Outcome {
        let gxid = self.gxid();
        let prepared = told(session.batch_execute(&format!("PREPARE TRANSACTION '{gxid}'")));
        match prepared {
            Outcome::Committed => {
                // Whatever comes of it, it will be repeated until it is done.
                let _ = session.batch_execute(&format!("COMMIT PREPARED '{gxid}'"));
                Outcome::Committed
            }
            // What may be prepared will be rolled back.
            Outcome::Unknown(reason) | Outcome::Refused(reason) => Outcome::Refused(reason),
        }
    }
}

/// What the answer to COMMIT or PREPARE TRANSACTION says.
fn told(answer: Result<(), Error>) -> Outcome {
    let Err(error) = answer else { return Outcome::Committed };
    match error.as_db_error() {
        // 57P0x: the session was ended, at whatever point; 08007: the extension says that nobody knows.
        Some(report) if !matches!(report.code().code(), "57P01" | "57P02" | "57P03" | "08007") => {
            Outcome::Refused(reason(&error))
        }
        _ => Outcome::Unknown(reason(&error)),
    }
}

/// The same text for errors of one kind, whatever gid or process they name.
fn reason(error: &Error) -> String {
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
    number: u64,
    random: Random,
}

impl<'a> Customer<'a> {
    pub(super) fn new(shared: &'a Shared, seed: u64, number: u64) -> Self {
        Self { shared, number, random: Random::new(seed, number + 1) }
    }

    /// Makes transfers until the bank closes.
    pub(super) fn run(mut self) -> Result<Vec<Transfer>> {
        let mut transfers = Vec::new();
        let mut session: Option<Client> = None;
        while !self.shared.stop.load(Ordering::Relaxed) {
            let usable = session.take().filter(|session| !session.is_closed());
            let mut current = match usable {
                Some(session) => session,
                None => match self.shared.session()? {
                    Some(mut session) => {
                        // Every other customer does not wait for what is decided.
                        if self.number % 2 == 1 {
                            let _ = session.batch_execute("SET pg_fdw_xacts.commit_wait = off");
                        }
                        session
                    }
                    None => break,
                },
            };
            let id = (self.number * 1_000_000_000) as i64 + transfers.len() as i64 + 1;
            let mut transfer = Transfer::draw(&mut self.random, id);
            transfer.run(&mut current);
            transfers.push(transfer);
            self.shared.ended.fetch_add(1, Ordering::Relaxed);
            session = Some(current);
        }
        Ok(transfers)
    }
}
