//! What a recorded transaction does, drawn from the seed, and its statements.
//!
//! Where reads are consistent, snapshot isolation is promised for each: it is one unit, and if it
//! writes, it takes part in two-phase commit. (What commits in one phase has no place in the order
//! of decisions; the bank's readers look at that.)

use std::time::Duration;

use anyhow::Result;
use postgres::{Client, Error};

use super::places::{Place, SHARDS};
use super::plan::Plan;
use super::random::Random;
use super::records::key;
use crate::history::{Act, Key, Kind};

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
pub(super) struct Script {
    setting: &'static str,
    isolation: &'static str,
    /// The arguments of `pg_fdw_xacts_snapshot()`, if it is called.
    fixes: Option<String>,
    tasks: Vec<Task>,
    /// By PREPARE TRANSACTION and COMMIT PREPARED.
    pub(super) explicit: bool,
    /// Modifications lock row by row, and do not go to the shard as they are.
    by_row: bool,
    /// How long it pauses between two tasks, in milliseconds.
    dawdling: u64,
}

/// Whose keys a transaction uses.
#[derive(Clone, Copy)]
pub(super) struct Scope {
    pub(super) phase: u64,
    pub(super) coordinator: usize,
}

impl Scope {
    fn key(self, place: usize, random: &mut Random) -> Key {
        let kind = random.choose(&[Kind::List, Kind::List, Kind::Register]);
        key(kind, place, self.phase, self.coordinator, random)
    }

    /// Two or three writes at different places, among reads.
    fn writer(self, random: &mut Random) -> Vec<Task> {
        let mut places: Vec<usize> = (0..=SHARDS).collect();
        random.shuffle(&mut places);
        places.truncate(2 + random.below(2) as usize);
        let mut tasks = Vec::new();
        for place in places {
            let key = self.key(place, random);
            tasks.push(match key.kind {
                Kind::List => Task::Append(key),
                Kind::Register => Task::Write(key),
            });
        }
        for _ in 0..random.below(3) {
            let place = random.below(SHARDS as u64 + 1) as usize;
            tasks.push(Task::Read(vec![self.key(place, random)]));
        }
        random.shuffle(&mut tasks);
        tasks
    }

    /// Reads at two places or more, by one query or several.
    fn reader(self, random: &mut Random) -> Vec<Task> {
        let is_one_query = random.chance(50);
        let first = usize::from(is_one_query && random.chance(50));
        let mut places: Vec<usize> = (first..=SHARDS).collect();
        random.shuffle(&mut places);
        places.truncate(2 + random.below(3) as usize);
        let mut keys: Vec<Key> = Vec::new();
        for place in places.iter().chain(&places) {
            let key = self.key(*place, random);
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        match is_one_query {
            true => vec![Task::Read(keys)],
            false => keys.into_iter().map(|key| Task::Read(vec![key])).collect(),
        }
    }
}

impl Script {
    pub(super) fn draw(plan: &Plan, scope: Scope, random: &mut Random) -> Self {
        let is_writer = random.chance(65);
        let tasks = if is_writer { scope.writer(random) } else { scope.reader(random) };
        let setting = match plan.consistent_reads {
            true => random.choose(&["on", "auto"]),
            false => "off",
        };
        let isolation = match tasks.as_slice() {
            // Of the coordinator's own tables nothing is promised there.
            [Task::Read(keys)]
                if setting != "auto"
                    && keys.iter().all(|key| key.place != 0)
                    && random.chance(70) =>
            {
                "READ COMMITTED"
            }
            _ => random.choose(&[
                "REPEATABLE READ",
                "REPEATABLE READ",
                "REPEATABLE READ",
                "SERIALIZABLE",
            ]),
        };
        let mut script = Self {
            setting,
            isolation,
            fixes: None,
            tasks,
            explicit: is_writer && random.chance(plan.explicit),
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

    pub(super) fn note(&self) -> String {
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
    pub(super) fn work(
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
