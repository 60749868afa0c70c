//! Who reads: sessions that add up balances and compare ledgers while money is moved.
//!
//! They may be refused. What they are shown is [judged](super::sights): whole transfers, in one
//! order, and all that was acknowledged before they began. Of each reader only the transfers of its
//! own coordinator are judged, and nothing behind a shard; no more is promised. The coordinator's
//! own tables are promised under REPEATABLE READ.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use anyhow::{Result, ensure};
use postgres::{Client, Error, Row};
use serde::Serialize;

use super::Shared;
use super::bystanders::work;
use super::clients::{customer_of, first_of_phase, reason};
use super::places::SHARDS;
use super::plan::Plan;
use super::random::Random;
use super::sights::{Acknowledged, Places, Sight, Sights, Sums};

/// What became of reads.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct Reads {
    /// Those that were answered, at several places.
    pub several: u64,
    /// Of these, with the coordinator's own tables.
    pub with_own: u64,
    /// Those that were answered, on one shard.
    pub alone: u64,
    /// Those that showed half a transfer.
    pub torn: u64,
    /// Those that lacked what was acknowledged before.
    pub stale: u64,
    /// Pairs that showed two transfers in opposite orders.
    pub out_of_order: u64,
    /// Those that were refused with 40001, without the coordinator's own tables.
    pub refused: u64,
    /// Those that were refused with 40001, with them.
    pub refused_with_own: u64,
    /// Those that were refused with 55000.
    pub in_doubt: u64,
    /// Those that failed otherwise.
    pub failed: u64,
    /// Why reads were refused or have failed, and how often.
    pub reasons: BTreeMap<String, u64>,
}

/// What readers share.
#[derive(Default)]
pub(super) struct Reading {
    /// How many rests there have been.
    phase: AtomicU64,
    /// How often coordinators have been stopped and started: odd while one is being stopped.
    pub(super) stops: AtomicU64,
    /// In this phase.
    acknowledged: Mutex<Vec<Acknowledged>>,
    /// The sums of balances when the phase began, by coordinators.
    before: Mutex<Vec<Sums>>,
    /// By coordinators, in this phase.
    sights: Mutex<[Sights; 2]>,
    reads: Mutex<Reads>,
    /// What must not be.
    wrong: Mutex<Vec<String>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nobody panics with it")
}

impl Reading {
    pub(super) fn phase(&self) -> u64 {
        self.phase.load(Ordering::SeqCst)
    }

    /// A customer was told that a transfer is committed.
    pub(super) fn acknowledge(&self, transfer: Acknowledged) {
        locked(&self.acknowledged).push(transfer);
    }

    /// Nothing is under way, and the sums of balances are these, by coordinators.
    pub(super) fn begin_phase(&self, before: Vec<Sums>) {
        self.phase.fetch_add(1, Ordering::SeqCst);
        locked(&self.acknowledged).clear();
        *locked(&self.before) = before;
        *locked(&self.sights) = Default::default();
    }

    /// Judges the phase, when all readers rest; returns the counts since the beginning.
    ///
    /// # Errors
    /// A read was wrong, where reads are consistent.
    pub(super) fn judge(&self, plan: &Plan) -> Result<Reads> {
        for sights in &*locked(&self.sights) {
            let (count, example) = sights.out_of_order();
            locked(&self.reads).out_of_order += count;
            locked(&self.wrong).extend(example.map(|example| format!("out of order: {example}")));
        }
        let wrong = locked(&self.wrong);
        let reads = locked(&self.reads).clone();
        ensure!(
            wrong.is_empty() || !plan.consistent_reads,
            "wrong reads: {:#?}\n{reads:?}",
            &wrong[..wrong.len().min(10)]
        );
        Ok(reads)
    }

    fn note(&self, sight: &Sight, coordinator: usize, earlier: usize, what: &Question) {
        let stops = self.stops.load(Ordering::SeqCst);
        let torn = sight.torn(&locked(&self.before)[coordinator]);
        let stale = sight.stale(coordinator, &locked(&self.acknowledged)[..earlier], stops);
        let mut reads = locked(&self.reads);
        match sight.read_at.count_ones() {
            1 => reads.alone += 1,
            _ => reads.several += 1,
        }
        reads.with_own += u64::from(sight.read_at & 1 != 0);
        reads.torn += u64::from(torn.is_some());
        reads.stale += u64::from(stale.is_some());
        drop(reads);
        let mut wrong = locked(&self.wrong);
        wrong.extend(torn.map(|torn| format!("torn: {torn}; {what:?}")));
        wrong.extend(stale.map(|stale| format!("stale: {stale}; {what:?}")));
        drop(wrong);
        locked(&self.sights)[coordinator].keep(sight);
    }

    fn note_error(&self, Failed { error, is_begun }: &Failed, question: &Question) {
        let mut reads = locked(&self.reads);
        let code = error.code().map(|code| code.code().to_owned()).unwrap_or_default();
        match code.as_str() {
            "40001" if question.has_own() => reads.refused_with_own += 1,
            "40001" => reads.refused += 1,
            "55000" => reads.in_doubt += 1,
            _ => reads.failed += 1,
        }
        *reads.reasons.entry(reason(error)).or_default() += 1;
        // A snapshot that was fixed at the beginning has nothing to be joined, but for the
        // coordinator's own, which is older.
        let is_fixed = *is_begun || question.isolation == "READ COMMITTED";
        let is_too_late = code == "40001"
            && question.fixes != Fixes::Nothing
            && is_fixed
            && reason(error).contains("no common snapshot");
        if is_too_late || code.starts_with("XX") {
            locked(&self.wrong).push(format!("{error:?}; {question:?}"));
        }
    }
}

/// A transaction of a reader that has failed, and whether that was behind its beginning.
struct Failed {
    error: Error,
    is_begun: bool,
}

/// How the shards of a read are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// All by one query.
    Together,
    /// The same in the order of the amounts, which the shards are to sort by.
    Merged,
    /// The same by a cursor, bit by bit.
    Cursor,
    /// One after the other.
    Each,
}

/// What `pg_fdw_xacts_snapshot()` is called for at the beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fixes {
    Nothing,
    /// The shards that will be read.
    These,
    All,
}

/// A transaction of a reader.
#[derive(Debug, Clone)]
struct Question {
    setting: &'static str,
    isolation: &'static str,
    fixes: Fixes,
    manner: Manner,
    /// In this order; 0 are the coordinator's own tables.
    shards: Vec<usize>,
    /// How long it waits between two queries, in milliseconds.
    dawdling: u64,
}

impl Question {
    fn draw(plan: &Plan, random: &mut Random) -> Self {
        let isolation = random.choose(&["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]);
        let manner =
            random.choose(&[Manner::Together, Manner::Merged, Manner::Each, Manner::Cursor]);
        let fixes = random.choose(&[Fixes::Nothing, Fixes::Nothing, Fixes::These, Fixes::All]);
        let mut shards: Vec<usize> = (1..=SHARDS).collect();
        random.shuffle(&mut shards);
        shards.truncate(random.choose(&[3, 3, 3, 2, 2, 1]));
        if isolation != "READ COMMITTED" && random.chance(40) {
            shards.insert(random.below(shards.len() as u64 + 1) as usize, 0);
        }
        let dawdling = random.choose(&[0, 0, 5, 50]);
        let own = random.choose(&["on", "auto", "off"]);
        let (setting, fixes) = match (plan.consistent_reads, fixes) {
            (false, _) => ("off", Fixes::Nothing),
            (true, Fixes::Nothing) if isolation == "READ COMMITTED" || own == "off" => {
                ("on", fixes)
            }
            (true, _) => (own, fixes),
        };
        Self { setting, isolation, fixes, manner, shards, dawdling }
    }

    /// Whether it reads the coordinator's own tables, too.
    fn has_own(&self) -> bool {
        self.shards.contains(&0)
    }

    /// Whether each query is a unit of its own.
    fn is_by_query(&self) -> bool {
        self.isolation == "READ COMMITTED" && self.fixes == Fixes::Nothing
    }

    fn begin(&self) -> String {
        let fix = match self.fixes {
            Fixes::Nothing => String::new(),
            Fixes::All => "SELECT pg_fdw_xacts_snapshot();".to_owned(),
            Fixes::These => {
                let shards = self.shards.iter().filter(|shard| **shard != 0);
                let names: Vec<String> = shards.map(|shard| format!("'shard{shard}'")).collect();
                format!("SELECT pg_fdw_xacts_snapshot({});", names.join(", "))
            }
        };
        format!("BEGIN ISOLATION LEVEL {}; {fix}", self.isolation)
    }

    /// The queries, each with the shards that it reads.
    fn queries(&self, phase: u64) -> Vec<(Places, String)> {
        let first = first_of_phase(phase);
        let of = |shard: &usize| {
            let place = if *shard == 0 { String::new() } else { shard.to_string() };
            format!(
                "SELECT {shard}, transfer, places, amount FROM ledger{place} WHERE transfer >= {first}
                 UNION ALL SELECT {shard}, 0, 0, balance FROM account{place}"
            )
        };
        let bit = |shard: &usize| 1 << shard;
        if self.manner == Manner::Each {
            return self.shards.iter().map(|shard| (bit(shard), of(shard))).collect();
        }
        let all: Vec<String> = self.shards.iter().map(of).collect();
        let shards = self.shards.iter().map(bit).sum();
        vec![(shards, all.join(" UNION ALL "))]
    }

    fn ask(&self, session: &mut Client, query: &str) -> Result<Vec<Row>, Error> {
        if self.manner == Manner::Merged {
            session.batch_execute("SET LOCAL enable_sort = off")?;
            return session.query(&format!("{query} ORDER BY 4"), &[]);
        }
        if self.manner != Manner::Cursor {
            return session.query(query, &[]);
        }
        session.batch_execute(&format!("DECLARE c CURSOR FOR {query}"))?;
        let mut rows = session.query("FETCH 7 FROM c", &[])?;
        std::thread::sleep(Duration::from_millis(self.dawdling));
        rows.extend(session.query("FETCH ALL FROM c", &[])?);
        Ok(rows)
    }
}

/// Reads until the bank closes.
pub(super) fn read(shared: &Shared, plan: &Plan, number: u64) -> Result<()> {
    let mut random = Random::new(plan.seed, 3000 + number);
    let coordinator = number as usize % plan.coordinators();
    work(shared, coordinator, |session| {
        let question = Question::draw(plan, &mut random);
        let mut is_begun = false;
        let answer = answer(shared, plan, coordinator, session, (&question, &mut is_begun));
        if let Err(error) = answer {
            shared.reading.note_error(&Failed { error, is_begun }, &question);
            let _ = session.batch_execute("ROLLBACK");
        }
        std::thread::sleep(Duration::from_millis(random.below(30)));
    })
}

fn answer(
    shared: &Shared,
    plan: &Plan,
    coordinator: usize,
    session: &mut Client,
    (question, is_begun): (&Question, &mut bool),
) -> Result<(), Error> {
    let reading = &shared.reading;
    // Whoever changes tables and waits for customers may wait for a reader, too, and the reader for
    // another of them.
    session.batch_execute(&format!(
        "SET pg_fdw_xacts.consistent_reads = {}; SET statement_timeout = '3s'",
        question.setting
    ))?;
    let earlier = locked(&reading.acknowledged).len();
    session.batch_execute(&question.begin())?;
    *is_begun = true;
    let mut sight = Sight::default();
    let mut outcome = Ok(());
    for (shards, query) in question.queries(reading.phase()) {
        let rows = match question.ask(session, &query) {
            Ok(rows) => rows,
            Err(error) => {
                outcome = Err(error);
                break;
            }
        };
        if question.is_by_query() {
            sight = Sight::default();
        }
        sight.read_at |= shards;
        for row in rows {
            let (shard, id) = (row.get::<_, i32>(0) as usize, row.get::<_, i64>(1));
            let (places, amount) = (row.get::<_, i32>(2) as Places, row.get::<_, i64>(3));
            let owner = customer_of(id) as usize % plan.coordinators();
            match id {
                0 => sight.add(shard, amount),
                id => sight.note(shard, id, places, amount, owner == coordinator),
            }
        }
        if question.is_by_query() {
            reading.note(&sight, coordinator, earlier, question);
        }
        std::thread::sleep(Duration::from_millis(question.dawdling));
    }
    if !question.is_by_query() && sight.read_at != 0 {
        reading.note(&sight, coordinator, earlier, question);
    }
    outcome?;
    session.batch_execute("COMMIT")
}
