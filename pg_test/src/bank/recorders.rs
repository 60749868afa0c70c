//! Who keeps a record: sessions that append to lists, write registers and read both, and note each
//! transaction with what it saw and when.
//!
//! Where reads are consistent, snapshot isolation is promised for them: each transaction is one
//! unit, and each that writes takes part in two-phase commit. (What commits in one phase has no
//! place in the order of decisions; the bank's readers look at that.)

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use postgres::{Client, Error};

use super::Shared;
use super::clients::{Outcome as Told, Owed, Payment, reason, told};
use super::places::{Place, SHARDS};
use super::plan::Plan;
use super::random::Random;
use super::records::key;
use crate::history::{Act, Key, Kind, Outcome, Transaction};
use crate::oracle::one;

/// What a transaction is to do next.
#[derive(Debug, Clone)]
enum Task {
    /// Reads these by one query.
    Read(Vec<Key>),
    Append(Key),
    Write(Key),
}

/// A transaction that is to be run.
#[derive(Debug, Clone)]
struct Script {
    setting: &'static str,
    isolation: &'static str,
    /// The arguments of `pg_fdw_xacts_snapshot()`, if it is called.
    fixes: Option<String>,
    tasks: Vec<Task>,
    /// By PREPARE TRANSACTION and COMMIT PREPARED.
    explicit: bool,
    /// Modifications lock row by row, and do not go to the shard as they are.
    by_row: bool,
    /// How long it pauses between two tasks, in milliseconds.
    dawdling: u64,
}

impl Script {
    fn draw(plan: &Plan, phase: u64, coordinator: usize, random: &mut Random) -> Self {
        let writes = random.chance(65);
        let mut places: Vec<usize> = (0..=SHARDS).collect();
        random.shuffle(&mut places);
        let draw_key = |random: &mut Random, place: usize| {
            let kind = random.choose(&[Kind::List, Kind::List, Kind::Register]);
            key(kind, place, phase, coordinator, random)
        };
        let mut tasks = Vec::new();
        let setting = match plan.consistent_reads {
            true => random.choose(&["on", "auto"]),
            false => "off",
        };
        let mut isolation = random.choose(&[
            "REPEATABLE READ",
            "REPEATABLE READ",
            "REPEATABLE READ",
            "SERIALIZABLE",
        ]);
        if writes {
            let count = 2 + random.below(2) as usize;
            for place in places.iter().take(count) {
                let key = draw_key(random, *place);
                tasks.push(match key.kind {
                    Kind::List => Task::Append(key),
                    Kind::Register => Task::Write(key),
                });
            }
            for _ in 0..random.below(3) {
                let place = random.below(SHARDS as u64 + 1) as usize;
                tasks.push(Task::Read(vec![draw_key(random, place)]));
            }
            random.shuffle(&mut tasks);
        } else {
            let by_one_query = random.chance(50);
            // Only shards are promised to a query under READ COMMITTED.
            if by_one_query && setting != "auto" && random.chance(50) {
                isolation = "READ COMMITTED";
                places.retain(|place| *place != 0);
            }
            places.truncate(2 + random.below(3) as usize);
            let mut keys: Vec<Key> = Vec::new();
            for place in places.iter().chain(&places) {
                let key = draw_key(random, *place);
                if !keys.contains(&key) {
                    keys.push(key);
                }
            }
            match by_one_query {
                true => tasks.push(Task::Read(keys)),
                false => tasks.extend(keys.into_iter().map(|key| Task::Read(vec![key]))),
            }
        }
        let mut script = Self {
            setting,
            isolation,
            fixes: None,
            tasks,
            explicit: writes && random.chance(plan.explicit),
            by_row: random.chance(30),
            dawdling: random.choose(&[0, 0, 0, 5, 50]),
        };
        if plan.consistent_reads && isolation != "READ COMMITTED" && random.chance(75) {
            script.fixes = Some(script.servers().unwrap_or_default().join(", "));
        }
        script
    }

    fn keys(&self) -> impl Iterator<Item = Key> {
        self.tasks.iter().flat_map(|task| match task {
            Task::Read(keys) => keys.clone(),
            Task::Append(key) | Task::Write(key) => vec![*key],
        })
    }

    /// The shards that it uses, if there are several: one alone is read as it is.
    fn servers(&self) -> Option<Vec<String>> {
        let mut shards: Vec<usize> =
            self.keys().map(|key| key.place).filter(|place| *place != 0).collect();
        shards.sort_unstable();
        shards.dedup();
        (shards.len() > 1).then(|| shards.iter().map(|shard| format!("'shard{shard}'")).collect())
    }

    fn note(&self) -> String {
        let Self { setting, isolation, fixes, explicit, by_row, .. } = self;
        let fixes = match fixes.as_deref() {
            None => String::new(),
            Some(servers) => format!(", pg_fdw_xacts_snapshot({servers})"),
        };
        let end = if *explicit { ", COMMIT PREPARED" } else { "" };
        let how = if *by_row { ", row by row" } else { "" };
        format!("{isolation}, consistent_reads {setting}{fixes}{how}{end}")
    }

    /// Runs it, without an end, and notes what it did.
    fn work(
        &self,
        session: &mut Client,
        acts: &mut Vec<Act>,
        mut element: impl FnMut() -> i64,
    ) -> Result<(), Error> {
        session.batch_execute(&format!(
            "SET pg_fdw_xacts.consistent_reads = {}; BEGIN ISOLATION LEVEL {}",
            self.setting, self.isolation
        ))?;
        if let Some(servers) = &self.fixes {
            session.batch_execute(&format!("SELECT pg_fdw_xacts_snapshot({servers})"))?;
        }
        for task in &self.tasks {
            match task {
                Task::Read(keys) => acts.extend(read(session, keys)?),
                Task::Append(key) => {
                    let element = element();
                    acts.push(Act::Append(*key, element));
                    self.update(session, *key, &format!("items = items || {element}::bigint"))?;
                }
                Task::Write(key) => {
                    acts.extend(read(session, &[*key])?);
                    let value = element();
                    acts.push(Act::Write(*key, value));
                    self.update(session, *key, &format!("value = {value}"))?;
                }
            }
            std::thread::sleep(Duration::from_millis(self.dawdling));
        }
        Ok(())
    }

    fn update(&self, session: &mut Client, key: Key, change: &str) -> Result<(), Error> {
        // What is volatile is not sent to a shard.
        let by_row = if self.by_row { " AND random() >= 0" } else { "" };
        let (table, number) = (table(key), key.number);
        let rows = session
            .execute(&format!("UPDATE {table} SET {change} WHERE id = {number}{by_row}"), &[])?;
        assert_eq!(rows, 1, "{key} is not there");
        Ok(())
    }
}

fn table(key: Key) -> String {
    let place = match key.place {
        0 => Place::Local(0),
        shard => Place::Shard(shard),
    };
    place.table(match key.kind {
        Kind::List => "list",
        Kind::Register => "register",
    })
}

/// Reads all of them by one query.
fn read(session: &mut Client, keys: &[Key]) -> Result<Vec<Act>, Error> {
    let one = |(index, key): (usize, &Key)| {
        let columns = match key.kind {
            Kind::List => "items, NULL::bigint",
            Kind::Register => "NULL::bigint[], value",
        };
        format!("SELECT {index}, {columns} FROM {} WHERE id = {}", table(*key), key.number)
    };
    let queries: Vec<String> = keys.iter().enumerate().map(one).collect();
    let rows = session.query(&queries.join(" UNION ALL "), &[])?;
    assert_eq!(rows.len(), keys.len(), "not all of {keys:?} are there");
    let act = |row: &postgres::Row| {
        let key = keys[row.get::<_, i32>(0) as usize];
        match key.kind {
            Kind::List => Act::Elements(key, row.get(1)),
            Kind::Register => Act::Value(key, row.get(2)),
        }
    };
    Ok(rows.iter().map(act).collect())
}

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
        let is_warned = Arc::clone(&self.is_warned);
        let told = move |_| is_warned.store(true, Ordering::Relaxed);
        let session = self.shared.session_that_tells(self.coordinator, told)?;
        let Some(mut session) = session else { return Ok(None) };
        let wait = if self.plan.is_patient(self.number) { "on" } else { "off" };
        let _ = session.batch_execute(&format!(
            "SET pg_fdw_xacts.commit_wait = {wait}; SET statement_timeout = '3s'"
        ));
        // One that has ended already is found out by its next use.
        let pid = one(&mut session, "SELECT pg_backend_pid()").unwrap_or_default();
        Ok(Some((session, pid)))
    }

    fn transact(&mut self, session: &mut Client, pid: i32) {
        let phase = self.shared.reading.phase();
        let script = Script::draw(self.plan, phase, self.coordinator, &mut self.random);
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
