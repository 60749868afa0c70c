//! The session that the demo plays: each step on the coordinator, and what the shards were asked to do in it.
//!
//! Every step is checked; a demo that does not show what it claims ends with an error.

use std::io::IsTerminal;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use pg_test::fleet::ids;
use pg_test::log::Mark;
use pg_test::oracle::{one, prepared_gids};
use pg_test::{Cluster, Fault, Point, Proxy, StopMode, wait_until};
use postgres::error::DbError;
use postgres::{Client, NoTls};

/// How long a step may take for what happens by itself.
const PATIENCE: Duration = Duration::from_secs(90);

/// The servers and the session on the coordinator.
pub struct Stage {
    coordinator: Cluster,
    shards: Vec<Cluster>,
    session: Client,
    /// Warnings that the coordinator sent to the session.
    notices: Arc<Mutex<Vec<String>>>,
    /// Where each shard's log stood at the last look.
    marks: Vec<Mark>,
    steps: usize,
    colours: bool,
}

/// Plays all steps.
pub fn play(stage: &mut Stage) -> Result<()> {
    one_shard(stage)?;
    two_shards(stage)?;
    explicit(stage, "COMMIT PREPARED", 3)?;
    explicit(stage, "ROLLBACK PREPARED", 4)?;
    shard_stopped(stage)?;
    shard_killed_at_the_decision(stage)
}

fn one_shard(stage: &mut Stage) -> Result<()> {
    stage.step("One shard: COMMIT needs one phase only");
    stage.run("BEGIN")?;
    stage.run("INSERT INTO ft1 VALUES (1, 'one')")?;
    stage.run("COMMIT")?;
    let logs = stage.show_logs()?;
    stage.claim("no PREPARE on shard 1", !logs[0].iter().any(|line| line.starts_with("PREPARE")))
}

fn two_shards(stage: &mut Stage) -> Result<()> {
    stage.step("Two shards: both prepare, the coordinator decides, both commit");
    stage.run("BEGIN")?;
    stage.run("INSERT INTO ft1 VALUES (2, 'two')")?;
    stage.run("INSERT INTO ft2 VALUES (2, 'two')")?;
    stage.run("COMMIT")?;
    let logs = stage.show_logs()?;
    let phases = |log: &Vec<String>| {
        let at = |word: &str| log.iter().position(|line| line.starts_with(word));
        matches!((at("PREPARE TRANSACTION"), at("COMMIT PREPARED")), (Some(a), Some(b)) if a < b)
    };
    stage.claim("PREPARE TRANSACTION, then COMMIT PREPARED on each", logs.iter().all(phases))?;
    stage.claim_row(2, [false, true, true])
}

fn explicit(stage: &mut Stage, outcome: &str, id: i32) -> Result<()> {
    stage.step(&format!("PREPARE TRANSACTION by the application, then {outcome}"));
    stage.run("BEGIN")?;
    stage.run(&format!("INSERT INTO ft1 VALUES ({id}, 'explicit')"))?;
    stage.run(&format!("INSERT INTO ft2 VALUES ({id}, 'explicit')"))?;
    stage.run("PREPARE TRANSACTION 'gxid'")?;
    let rows = stage.show_view()?;
    stage.claim("two participants are prepared", rows == 2)?;
    stage.show_logs()?;
    stage.run(&format!("{outcome} 'gxid'"))?;
    stage.show_logs()?;
    let rows = stage.show_view()?;
    stage.claim("the view is empty", rows == 0)?;
    let committed = outcome.starts_with("COMMIT");
    stage.claim_row(id, [false, committed, committed])
}

fn shard_stopped(stage: &mut Stage) -> Result<()> {
    stage.step("A shard is down at COMMIT: nothing is committed anywhere");
    stage.insert_everywhere(5)?;
    stage.say("        (shard 1 is stopped)");
    stage.shards[0].stop(StopMode::Fast)?;
    let failed = stage.run("COMMIT").is_err();
    stage.claim("COMMIT is an error", failed)?;
    stage.say("        (shard 1 is started again)");
    stage.shards[0].start()?;
    stage.wait_until_settled()?;
    stage.show_logs()?;
    stage.claim_row(5, [false, false, false])
}

fn shard_killed_at_the_decision(stage: &mut Stage) -> Result<()> {
    stage.step("A shard is killed between the decision and its COMMIT PREPARED: it commits when it is back");
    // Only a proxy can stop a shard at that very moment: it holds back the COMMIT PREPARED meanwhile.
    let port = stage.shards[0].port();
    let proxy = Proxy::start(port)?;
    stage.move_shard1(proxy.port())?;
    let hit = proxy.inject(Fault::hold(Point::Statement, "COMMIT PREPARED"));
    stage.insert_everywhere(6)?;
    let Stage { session, shards, .. } = stage;
    let outcome = std::thread::scope(|scope| -> Result<_> {
        let commit = scope.spawn(|| session.batch_execute("COMMIT"));
        hit.wait()?;
        shards[0].kill9()?;
        hit.release();
        Ok(commit.join())
    })?;
    stage.echo("COMMIT");
    stage.say("        (shard 1 is killed when COMMIT PREPARED is on its way to it)");
    stage.show_notices();
    match outcome {
        Ok(result) => result.context("COMMIT failed after the decision")?,
        Err(_) => bail!("the thread of COMMIT panicked"),
    }
    stage.say("        (shard 1 is started again)");
    stage.shards[0].start()?;
    stage.move_shard1(port)?;
    stage.wait_until_settled()?;
    stage.show_logs()?;
    stage.claim_row(6, [true, true, true])
}

impl Stage {
    /// A session on running servers.
    pub fn new(coordinator: Cluster, shards: Vec<Cluster>) -> Result<Self> {
        let notices = Arc::new(Mutex::new(Vec::new()));
        let received = Arc::clone(&notices);
        let session = coordinator
            .config()
            .notice_callback(move |notice| {
                if let Ok(mut list) = received.lock() {
                    list.push(report(&notice));
                }
            })
            .connect(NoTls)?;
        let marks = shards.iter().map(|shard| shard.log().mark()).collect::<Result<_>>()?;
        let colours = std::io::stdout().is_terminal();
        Ok(Self { coordinator, shards, session, notices, marks, steps: 0, colours })
    }

    fn step(&mut self, title: &str) {
        self.steps += 1;
        println!("\n{}", self.paint("1", &format!("{}. {title}", self.steps)));
    }

    fn say(&self, text: &str) {
        println!("{}", self.paint("2", text));
    }

    fn echo(&self, sql: &str) {
        println!("  sql   {}", self.paint("36", sql));
    }

    /// Runs a statement in the session and shows it with its error, if it has one, and the warnings.
    fn run(&mut self, sql: &str) -> Result<()> {
        self.echo(sql);
        let result = self.session.batch_execute(sql);
        self.show_notices();
        if let Err(error) = &result {
            self.show("31", &error.as_db_error().map_or_else(|| error.to_string(), report));
        }
        result.with_context(|| sql.to_owned())
    }

    fn insert_everywhere(&mut self, id: i32) -> Result<()> {
        self.run("BEGIN")?;
        for table in ["lt", "ft1", "ft2"] {
            self.run(&format!("INSERT INTO {table} VALUES ({id}, 'all')"))?;
        }
        Ok(())
    }

    fn show_notices(&self) {
        let notices = self.notices.lock().map(|mut list| std::mem::take(&mut *list));
        for notice in notices.unwrap_or_default() {
            self.show("33", &notice);
        }
    }

    /// Shows what each shard was asked since the last look; the statements.
    fn show_logs(&mut self) -> Result<Vec<Vec<String>>> {
        let mut logs = Vec::new();
        for (shard, mark) in self.shards.iter().zip(&mut self.marks) {
            let statements = shard.log().statements_since(*mark)?;
            *mark = shard.log().mark()?;
            logs.push(statements.into_iter().filter(|line| !is_housekeeping(line)).collect());
        }
        for (shard, log) in self.shards.iter().zip(&logs) {
            let log: &Vec<String> = log;
            for line in log {
                let line = line.split_whitespace().collect::<Vec<_>>().join(" ");
                println!("    {}  {}", self.paint("2", shard.name()), self.paint("32", &line));
            }
        }
        Ok(logs)
    }

    /// Shows the view; the number of its rows.
    fn show_view(&mut self) -> Result<usize> {
        let query = "SELECT * FROM pg_fdw_xacts";
        self.echo(query);
        let rows = self.session.query(
            "SELECT format('dbid %s  transaction %s  serverid %s  userid %s  %s  %s',
                           dbid, transaction, serverid, userid, status, identifier) FROM pg_fdw_xacts ORDER BY serverid",
            &[],
        )?;
        for row in &rows {
            println!("        {}", row.get::<_, String>(0));
        }
        println!("        ({} rows)", rows.len());
        Ok(rows.len())
    }

    /// Shows a claim that the demo makes; an error if it is not true.
    fn claim(&self, text: &str, holds: bool) -> Result<()> {
        if !holds {
            bail!("step {}: not so: {text}", self.steps);
        }
        println!("  {}    {text}", self.paint("32", "ok"));
        Ok(())
    }

    /// Claims in which of lt, ft1 and ft2 the row `id` is.
    fn claim_row(&mut self, id: i32, expected: [bool; 3]) -> Result<()> {
        let mut found = [false; 3];
        for (place, table) in found.iter_mut().zip(["lt", "ft1", "ft2"]) {
            *place = ids(&mut self.session, table)?.contains(&id);
        }
        // The question is not part of what the shards are shown to do.
        self.marks = self.shards.iter().map(|shard| shard.log().mark()).collect::<Result<_>>()?;
        let tables: Vec<&str> = ["lt", "ft1", "ft2"]
            .into_iter()
            .zip(expected)
            .filter_map(|(table, there)| there.then_some(table))
            .collect();
        let place = if tables.is_empty() {
            "nowhere".to_owned()
        } else {
            format!("in {}", tables.join(", "))
        };
        self.claim(&format!("row {id} is {place}"), found == expected)
    }

    /// Waits until nothing is prepared anywhere, without doing anything for it.
    fn wait_until_settled(&mut self) -> Result<()> {
        let Self { coordinator, shards, session, .. } = self;
        wait_until("nothing is in doubt", PATIENCE, || {
            let mut left: i64 = one(session, "SELECT count(*) FROM pg_fdw_xacts")?;
            for server in std::iter::once(&*coordinator).chain(&*shards) {
                left += i64::try_from(prepared_gids(server)?.len())?;
            }
            Ok(left == 0)
        })?;
        self.claim("nothing is in doubt any more, by itself", true)
    }

    fn move_shard1(&mut self, port: u16) -> Result<()> {
        Ok(self
            .session
            .batch_execute(&format!("ALTER SERVER shard1 OPTIONS (SET port '{port}')"))?)
    }

    /// Shows what the coordinator answered.
    fn show(&self, colour: &str, text: &str) {
        for line in text.lines() {
            println!("        {}", self.paint(colour, line));
        }
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// An error or warning as psql shows it.
fn report(report: &DbError) -> String {
    let mut text = format!("{}:  {}", report.severity(), report.message());
    for (label, part) in [("DETAIL", report.detail()), ("HINT", report.hint())] {
        if let Some(part) = part {
            text += &format!("\n{label}:  {part}");
        }
    }
    text
}

/// Whether a statement only sets up a session or asks after its state: true of each, and tells nothing.
fn is_housekeeping(statement: &str) -> bool {
    let start = statement.trim_start().to_uppercase();
    start.starts_with("SET ") || start.starts_with("SELECT")
}
