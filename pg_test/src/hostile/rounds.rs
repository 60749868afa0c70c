//! Rounds: each is one transaction or question while shard 2 is hostile, and then what must be true.
//!
//! * Every statement ends in time, with success or an error that has a SQLSTATE, and the session
//!   goes on.
//! * Once the shard is as it was, everything is settled: all or nothing, as the client was told.
//! * No server has tripped over itself, and the same session commits again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use postgres::{Client, Error};
use serde::Serialize;

use super::kinds::{KINDS, Kind};
use super::{Manner, Plan};
use crate::bank::random::Random;
use crate::fleet::ids;
use crate::oracle::{one, prepared_gids, settled_within, statistic};
use crate::proxy::NewConnections;
use crate::{DEADLINE, Fault, Fleet, FleetOptions, Point, lengthened_by_load, wait_until};

/// How long a statement may take: `statement_timeout`, what a COMMIT may wait for beyond it, and what
/// PostgreSQL's own wrapper allows for a clean-up (30 s).
const IN_TIME: Duration = Duration::from_secs(45);

/// What is settled at last is settled so soon.
const SETTLED: Duration = Duration::from_secs(30);

/// What is run.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// The first round's seed; the next has the next.
    pub seed: u64,
    /// What the shard may do.
    pub manner: Manner,
    /// The shard may fall silent.
    pub may_be_silent: bool,
    /// For how long rounds begin.
    pub duration: Duration,
    /// How many they are at most.
    pub rounds: u64,
}

/// What happened.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// How many rounds there were.
    pub rounds: u64,
    /// How many messages were spoiled.
    pub spoiled: u64,
    /// Transactions that were acknowledged.
    pub committed: u64,
    /// Those that were refused.
    pub refused: u64,
    /// Those of unknown outcome.
    pub unknown: u64,
    /// The SQLSTATEs of errors, and how often they came.
    pub codes: BTreeMap<String, u64>,
    /// The longest statement, in milliseconds.
    pub slowest: u64,
}

/// What a client knows of a transaction's outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Committed,
    Refused,
    Nothing,
}

/// Runs rounds; `say` is told of each.
///
/// # Errors
/// One of the promises is broken, with the seed of the round and all that was done in it.
pub fn run(options: Options, mut say: impl FnMut(&str)) -> Result<Report> {
    let fleet = open()?;
    let begin = Instant::now();
    let mut report = Report::default();
    let mut session = fleet.session()?;
    set_up(&mut session)?;
    while begin.elapsed() < options.duration && report.rounds < options.rounds {
        let seed = options.seed + report.rounds;
        report.rounds += 1;
        let mut random = Random::new(seed, 601);
        let kind = &KINDS[random.below(KINDS.len() as u64) as usize];
        if random.chance(40) {
            session = fleet.session()?;
            set_up(&mut session)?;
        }
        let mut round = Round {
            options,
            fleet: &fleet,
            session: &mut session,
            kind,
            id: 1000 + report.rounds as i32,
            told: Vec::new(),
            struck: Vec::new(),
            report: &mut report,
        };
        let result = round.run(seed, &mut random);
        round.stop_spoiling();
        let Round { told, struck, .. } = round;
        let told = told.join("\n  ");
        let story = format!("seed {seed}, {}: {struck:?}\n  {told}", kind.name);
        report.spoiled += struck.len() as u64;
        say(&story);
        result.with_context(|| format!("{story}\n{}", tail(&fleet)))?;
    }
    Ok(report)
}

/// The end of the coordinator's log, without what asks how things are.
fn tail(fleet: &Fleet) -> String {
    let log = fleet.coordinator.log().tail(2000).unwrap_or_default();
    let lines: Vec<&str> = log.lines().filter(|line| !line.contains("LOG:  execute ")).collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}

fn open() -> Result<Fleet> {
    let fleet = Fleet::start_with(&FleetOptions {
        proxied: true,
        coordinator: vec![("deadlock_timeout", "100ms"), ("pg_fdw_xacts.forget_delay", "0")],
        ..FleetOptions::default()
    })?;
    fleet.session()?.batch_execute(
        "INSERT INTO ft1 SELECT n, 'x' FROM generate_series(1, 40) n;
         INSERT INTO ft2 SELECT n, 'x' FROM generate_series(1, 40) n;
         ALTER SERVER shard2 OPTIONS (ADD fetch_size '10', ADD async_capable 'true');
         ALTER SERVER shard1 OPTIONS (ADD async_capable 'true');
         CREATE TABLE parted (id int, v text) PARTITION BY HASH (id);
         CREATE FOREIGN TABLE parted1 PARTITION OF parted FOR VALUES WITH (MODULUS 2, REMAINDER 0)
             SERVER shard1 OPTIONS (table_name 't');
         CREATE FOREIGN TABLE parted2 PARTITION OF parted FOR VALUES WITH (MODULUS 2, REMAINDER 1)
             SERVER shard2 OPTIONS (table_name 't')",
    )?;
    // The first one writes its participants down.
    fleet.session()?.batch_execute(
        "BEGIN; INSERT INTO ft1 VALUES (100, 'x'); INSERT INTO ft2 VALUES (100, 'x'); COMMIT",
    )?;
    Ok(fleet)
}

fn set_up(session: &mut Client) -> Result<()> {
    Ok(session.batch_execute(
        "SET statement_timeout = '2s'; SET pg_fdw_xacts.commit_timeout = '1s';
         SET pg_fdw_xacts.prepare_timeout = 0; SET client_min_messages = 'error'",
    )?)
}

/// What has to succeed may take long on a busy machine; until [`set_up`] again.
fn be_patient(session: &mut Client) -> Result<()> {
    Ok(session.batch_execute(
        "SET statement_timeout = '1min'; SET pg_fdw_xacts.prepare_timeout = '1min'",
    )?)
}

/// One of them.
struct Round<'a> {
    options: Options,
    fleet: &'a Fleet,
    session: &'a mut Client,
    kind: &'a Kind,
    id: i32,
    /// What was told to the client.
    told: Vec<String>,
    /// What was done to the shard's answers.
    struck: Vec<String>,
    report: &'a mut Report,
}

impl Round<'_> {
    fn run(&mut self, seed: u64, random: &mut Random) -> Result<()> {
        let plan = Plan::draw(seed, self.options.manner, self.options.may_be_silent);
        let resolver = self.kind.name.starts_with("resolver");
        // Mostly where it matters.
        let steps = self.kind.before.len() + self.kind.end.len();
        let armed = match random.chance(40) && !resolver {
            true => random.below(steps as u64) as usize,
            false => self.kind.before.len() + random.below(self.kind.end.len() as u64) as usize,
        };
        let mut plan = Some(plan);
        let mut arm = |step: usize, fleet: &Fleet| {
            if !resolver
                && step == armed
                && let Some(plan) = plan.take()
            {
                fleet.proxy(2).spoil(plan);
            }
        };
        let mut outcome = Told::Nothing;
        let mut failed = false;
        for (step, statement) in self.kind.before.iter().enumerate() {
            arm(step, self.fleet);
            if self.execute(statement)?.is_err() {
                failed = true;
                break;
            }
        }
        if failed {
            arm(armed, self.fleet);
            outcome = Told::Refused;
            if let Err(error) = self.execute("ROLLBACK")? {
                bail!("ROLLBACK has failed: {error:?}");
            }
        } else if resolver {
            outcome = self.leave_to_resolver()?;
            if let Some(plan) = plan.take() {
                self.fleet.proxy(2).spoil(plan);
            }
            self.let_resolver_try()?;
        } else {
            for (at, statement) in self.kind.end.iter().enumerate() {
                arm(self.kind.before.len() + at, self.fleet);
                outcome = self.end_with(statement)?;
                if outcome != Told::Committed {
                    break;
                }
            }
            if !self.kind.commits {
                outcome = Told::Refused;
            }
        }
        self.stop_spoiling();
        self.settles(outcome)
    }

    /// Runs a statement that has to end in time.
    fn execute(&mut self, statement: &str) -> Result<std::result::Result<(), Error>> {
        let statement = statement.replace("{id}", &self.id.to_string());
        let begin = Instant::now();
        let result = self.session.batch_execute(&statement);
        let took = begin.elapsed();
        self.report.slowest = self.report.slowest.max(took.as_millis() as u64);
        let told = match &result {
            Ok(()) => "done".to_owned(),
            Err(error) => {
                let Some(report) = error.as_db_error() else {
                    self.told.push(format!("{statement}: {error:?}"));
                    bail!("{statement}: the session has ended: {error:?}");
                };
                let code = report.code().code();
                *self.report.codes.entry(code.to_owned()).or_default() += 1;
                format!("{code} {}", report.message())
            }
        };
        self.told.push(format!("{statement}: {told} ({} ms)", took.as_millis()));
        ensure!(took < IN_TIME, "{statement} took {took:?}");
        Ok(result)
    }

    /// Runs what ends the transaction.
    fn end_with(&mut self, statement: &str) -> Result<Told> {
        let prepared =
            statement.starts_with("COMMIT PREPARED") || statement.starts_with("ROLLBACK PREPARED");
        Ok(match self.execute(statement)? {
            Ok(()) => Told::Committed,
            Err(error) if error.code().is_some_and(|code| code.code() == "08007") => Told::Nothing,
            // It can be tried again.
            Err(_) if prepared => {
                self.stop_spoiling();
                match self.execute(statement)? {
                    Ok(()) => Told::Committed,
                    Err(error) => bail!("{statement} fails twice: {error:?}"),
                }
            }
            Err(_) => Told::Refused,
        })
    }

    /// Ends the transaction so that shard 2 has prepared it and does not hear of its outcome.
    fn leave_to_resolver(&mut self) -> Result<Told> {
        let proxy = self.fleet.proxy(2);
        let hit = proxy.inject(match self.kind.commits {
            true => Fault::cut(Point::Statement, "COMMIT PREPARED"),
            false => Fault::cut(Point::Answer, "PREPARE TRANSACTION"),
        });
        proxy.set_new_connections(NewConnections::Refused);
        // It has to get as far as where it is cut.
        be_patient(self.session)?;
        let told = self.end_with("COMMIT")?;
        set_up(self.session)?;
        hit.wait()?;
        proxy.cut_all();
        Ok(told)
    }

    /// Lets the resolver come to the hostile shard, until it has tried twice or is done.
    fn let_resolver_try(&self) -> Result<()> {
        let before = statistic(self.fleet, 2, "attempts")?;
        self.fleet.reconnect(2);
        wait_until("the resolver tries again", DEADLINE, || {
            let left: i64 = one(&mut self.fleet.session()?, "SELECT count(*) FROM pg_fdw_xacts")?;
            Ok(left == 0 || statistic(self.fleet, 2, "attempts")? >= before + 2)
        })
    }

    fn stop_spoiling(&mut self) {
        self.struck.extend(self.fleet.proxy(2).stop_spoiling());
    }

    /// With the shard as it was, everything comes to its end.
    fn settles(&mut self, outcome: Told) -> Result<()> {
        match self.options.manner {
            Manner::Garbled => settled_within(self.fleet, lengthened_by_load(SETTLED))?,
            Manner::Lying => self.others_settle()?,
        }
        self.agrees(self.id, outcome)?;
        match outcome {
            Told::Committed => self.report.committed += 1,
            Told::Refused => self.report.refused += 1,
            Told::Nothing => self.report.unknown += 1,
        }
        let faults = self.fleet.coordinator.log().faults()?;
        ensure!(faults.is_empty(), "the coordinator has tripped over itself: {faults:#?}");
        // The session, with whatever connection it has kept. What is still to come there may only
        // be noticed when it is used again.
        let after = self.id + 1_000_000;
        let everywhere = format!(
            "BEGIN; INSERT INTO lt VALUES ({after}, 'x'); INSERT INTO ft1 VALUES ({after}, 'x');
             INSERT INTO ft2 VALUES ({after}, 'x'); COMMIT"
        );
        if self.execute(&everywhere)?.is_err() {
            self.session.batch_execute("ROLLBACK")?;
            settled_within(self.fleet, lengthened_by_load(SETTLED))?;
            self.agrees(after, Told::Refused)?;
            be_patient(self.session)?;
            self.session.batch_execute(&everywhere)?;
        }
        self.agrees(after, Told::Committed)?;
        be_patient(self.session)?;
        for table in ["lt", "ft1", "ft2"] {
            let clean = format!("DELETE FROM {table} WHERE id > 100 OR id < 0");
            self.session.batch_execute(&clean)?;
        }
        set_up(self.session)
    }

    /// Nothing is left on the shard that is not hostile. Whatever that one has made of it is removed
    /// by hand from the other.
    fn others_settle(&self) -> Result<()> {
        wait_until("nothing is prepared on shard 1", lengthened_by_load(SETTLED), || {
            Ok(prepared_gids(self.fleet.shard(1))?.is_empty())
        })?;
        let mut shard = self.fleet.shard(2).client()?;
        for gid in prepared_gids(self.fleet.shard(2))? {
            let _ = shard.batch_execute(&format!("ROLLBACK PREPARED '{gid}'"));
        }
        Ok(())
    }

    /// Row `id` is on all servers or on none, as was told.
    fn agrees(&mut self, id: i32, outcome: Told) -> Result<()> {
        let on_shard = |number: usize| -> Result<bool> {
            let mut shard = self.fleet.shard(number).client()?;
            one(&mut shard, &format!("SELECT EXISTS (SELECT FROM t WHERE id = {id})"))
        };
        let local = ids(&mut self.fleet.session()?, "lt")?.contains(&id);
        let found = [local, on_shard(1)?, on_shard(2)?];
        let of_one = self.kind.name == "one shard" && id == self.id;
        let found = if of_one { [found[2]; 3] } else { found };
        // A shard that lies may deceive about itself.
        let seen = match self.options.manner {
            Manner::Garbled => &found[..],
            Manner::Lying if of_one => return Ok(()),
            Manner::Lying => &found[..2],
        };
        ensure!(
            seen.iter().all(|there| *there == seen[0]),
            "row {id} is not on all servers or on none: {found:?}"
        );
        let right = match outcome {
            Told::Committed => seen[0],
            Told::Refused => !seen[0],
            Told::Nothing => true,
        };
        ensure!(right, "the client was told {outcome:?}, and row {id} is there: {found:?}");
        Ok(())
    }
}
