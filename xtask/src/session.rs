//! The session that the demo plays: each statement on the coordinator, and beside it the statements
//! that the shards received.
//!
//! Every step is checked; a demo that does not show what it claims ends with an error.

mod concurrent;
pub mod recording;
mod texts;

use std::cell::RefCell;
use std::io::IsTerminal;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use pg_test::fleet::ids;
use pg_test::log::Mark;
use pg_test::oracle::{one, prepared_gids};
use pg_test::{Cluster, Fault, Point, Proxy, StopMode, wait_until};
use postgres::{Client, NoTls};

use texts::{is_housekeeping, report, shortened};

/// Widths of the three columns: the coordinator's statements, and those of each shard.
const WIDTHS: [usize; 3] = [43, 28, 28];

/// How long a step may wait for what happens by itself.
const PATIENCE: Duration = Duration::from_secs(90);

/// The servers and the session on the coordinator.
pub struct Stage {
    coordinator: Cluster,
    shards: Vec<Cluster>,
    session: Client,
    /// Warnings from the coordinator.
    notices: Arc<Mutex<Vec<String>>>,
    /// The end of each shard's log when it was last read.
    marks: Vec<Mark>,
    /// The statements that each shard has received in this step.
    asked: Vec<Vec<String>>,
    steps: usize,
    colours: bool,
    /// What was printed, without colours.
    recording: RefCell<String>,
}

/// Plays all steps.
pub fn play(stage: &mut Stage) -> Result<()> {
    one_shard(stage)?;
    two_shards(stage)?;
    explicit(stage, "COMMIT PREPARED", 3)?;
    explicit(stage, "ROLLBACK PREPARED", 4)?;
    shard_stopped(stage)?;
    shard_killed_at_the_decision(stage)?;
    concurrent::torn_read(stage)?;
    concurrent::deadlock(stage)
}

fn one_shard(stage: &mut Stage) -> Result<()> {
    stage.step(
        "One shard: COMMIT needs one phase only",
        "No other server has to agree, so nothing is prepared and COMMIT costs no more than before.",
    );
    stage.run("BEGIN")?;
    stage.run("INSERT INTO ft1 VALUES (1, 'one')")?;
    stage.run("COMMIT")?;
    let prepared = stage.asked[0].iter().any(|line| line.starts_with("PREPARE"));
    stage.claim("no PREPARE on shard 1", !prepared)
}

fn two_shards(stage: &mut Stage) -> Result<()> {
    stage.step(
        "Two shards: both prepare, the coordinator decides, both commit",
        "With PREPARE TRANSACTION each shard promises that it can commit, whatever happens next.",
    );
    stage.run("BEGIN")?;
    stage.run("INSERT INTO ft1 VALUES (2, 'two')")?;
    stage.run("INSERT INTO ft2 VALUES (2, 'two')")?;
    stage.run("COMMIT")?;
    let phases = |log: &Vec<String>| {
        let at = |word: &str| log.iter().position(|line| line.starts_with(word));
        matches!((at("PREPARE TRANSACTION"), at("COMMIT PREPARED")), (Some(a), Some(b)) if a < b)
    };
    stage.claim(
        "PREPARE TRANSACTION, then COMMIT PREPARED on each",
        stage.asked.iter().all(phases),
    )?;
    stage.claim_row(2, [false, true, true])
}

fn explicit(stage: &mut Stage, outcome: &str, id: i32) -> Result<()> {
    stage.step(
        &format!("PREPARE TRANSACTION by the application, then {outcome}"),
        "To a transaction manager the coordinator is one resource, with its shards behind it.",
    );
    stage.run("BEGIN")?;
    stage.run(&format!("INSERT INTO ft1 VALUES ({id}, 'explicit')"))?;
    stage.run(&format!("INSERT INTO ft2 VALUES ({id}, 'explicit')"))?;
    stage.run("PREPARE TRANSACTION 'gxid'")?;
    let rows = stage.show_view()?;
    stage.claim("two participants are prepared", rows == 2)?;
    stage.run(&format!("{outcome} 'gxid'"))?;
    let rows = stage.show_view()?;
    stage.claim("the view is empty", rows == 0)?;
    let committed = outcome.starts_with("COMMIT");
    stage.claim_row(id, [false, committed, committed])
}

fn shard_stopped(stage: &mut Stage) -> Result<()> {
    stage.step(
        "A shard is down at COMMIT: nothing is committed anywhere",
        "lt is a local table, which is part of the transaction too.",
    );
    stage.insert_everywhere(5)?;
    stage.say("     (shard 1 is stopped)");
    stage.shards[0].stop(StopMode::Fast)?;
    let failed = stage.run("COMMIT").is_err();
    stage.claim("COMMIT is an error", failed)?;
    stage.say("     (shard 1 is started again)");
    stage.shards[0].start()?;
    stage.wait_until_settled()?;
    stage.claim_row(5, [false, false, false])
}

fn shard_killed_at_the_decision(stage: &mut Stage) -> Result<()> {
    stage.step(
        "A shard is killed between the decision and its COMMIT PREPARED: it commits when it is back",
        "COMMIT succeeds with a warning; a background worker, the resolver, delivers it.",
    );
    // A proxy holds back the COMMIT PREPARED, so that the shard is killed at this very moment.
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
    stage.beside("COMMIT")?;
    stage.say("     (shard 1 is killed while COMMIT PREPARED is on its way to it)");
    stage.show_notices();
    match outcome {
        Ok(result) => result.context("COMMIT failed after the decision")?,
        Err(_) => bail!("the thread of COMMIT panicked"),
    }
    stage.say("     (shard 1 is started again)");
    stage.shards[0].start()?;
    stage.move_shard1(port)?;
    stage.wait_until_settled()?;
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
        let asked = vec![Vec::new(); shards.len()];
        // See no-color.org.
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let colours = std::io::stdout().is_terminal() && !unwanted;
        let recording = RefCell::default();
        Ok(Self {
            coordinator,
            shards,
            session,
            notices,
            marks,
            asked,
            steps: 0,
            colours,
            recording,
        })
    }

    /// The version of the coordinator's PostgreSQL, as in "15.4".
    pub fn server_version(&mut self) -> Result<String> {
        let version: String = one(&mut self.session, "SHOW server_version")?;
        Ok(version.split(' ').next().unwrap_or_default().to_owned())
    }

    /// What has been printed, without colours.
    pub fn recording(&self) -> String {
        self.recording.borrow().clone()
    }

    fn print(&self, line: &str) {
        println!("{line}");
        let mut recording = self.recording.borrow_mut();
        recording.push_str(&recording::without_colours(line));
        recording.push('\n');
    }

    /// Begins a step: a title, and a line that explains it.
    fn step(&mut self, title: &str, why: &str) {
        self.steps += 1;
        self.asked.iter_mut().for_each(Vec::clear);
        self.print(&format!("\n{}", self.paint("1", &format!("{}. {title}", self.steps))));
        self.print(&format!("   {}\n", self.paint("2", why)));
        self.row(&["coordinator", "shard 1", "shard 2"], ["2;4"; 3]);
    }

    /// Prints a line of the three columns, each cut to its width and coloured.
    fn row(&self, cells: &[&str; 3], colours: [&str; 3]) {
        let mut line = String::from("   ");
        for ((cell, width), colour) in cells.iter().zip(WIDTHS).zip(colours) {
            let text = shortened(cell, width);
            let space = " ".repeat(width + 2 - text.chars().count());
            line += &if text.is_empty() { text } else { self.paint(colour, &text) };
            line += &space;
        }
        self.print(line.trim_end());
    }

    fn say(&self, text: &str) {
        self.print(&self.paint("2", text));
    }

    /// Shows a statement, and beside it what the shards have received since the last one.
    fn beside(&mut self, sql: &str) -> Result<()> {
        let mut news = Vec::new();
        for ((shard, mark), asked) in self.shards.iter().zip(&mut self.marks).zip(&mut self.asked) {
            let statements = shard.log().statements_since(*mark)?;
            *mark = shard.log().mark()?;
            let new: Vec<String> =
                statements.into_iter().filter(|line| !is_housekeeping(line)).collect();
            asked.extend(new.iter().cloned());
            news.push(new);
        }
        let at = |shard: usize, line: usize| -> &str {
            news.get(shard).and_then(|list| list.get(line)).map_or("", String::as_str)
        };
        let lines = news.iter().map(Vec::len).max().unwrap_or(0);
        for line in 0..lines.max(usize::from(!sql.is_empty())) {
            let statement = if line == 0 { sql } else { "" };
            self.row(&[statement, at(0, line), at(1, line)], ["36", "32", "32"]);
        }
        Ok(())
    }

    /// Runs a statement in the session and shows it with its warnings and its error, if any.
    fn run(&mut self, sql: &str) -> Result<()> {
        let result = self.session.batch_execute(sql);
        self.beside(sql)?;
        self.show_notices();
        if let Err(error) = &result {
            self.show("31", &error.as_db_error().map_or_else(|| error.to_string(), report));
        }
        result.with_context(|| sql.to_owned())
    }

    /// Asks for a number, and shows it.
    fn count(&mut self, sql: &str) -> Result<i64> {
        let count = one(&mut self.session, sql)?;
        self.beside(sql)?;
        self.show("0", &format!("{count}"));
        Ok(count)
    }

    /// Waits until a session of the coordinator waits for a server.
    fn wait_until_one_waits(&mut self, who: &str) -> Result<()> {
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active'
            AND backend_type = 'client backend' AND wait_event_type = 'Extension'
            AND pid <> pg_backend_pid() AND query NOT LIKE '%COMMIT'";
        let mut observer = self.coordinator.client()?;
        wait_until(&format!("{who} waits"), PATIENCE, || Ok(one::<i64>(&mut observer, waits)? == 1))
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

    /// Shows the view and returns the number of its rows.
    fn show_view(&mut self) -> Result<usize> {
        let query = "SELECT status, identifier FROM pg_fdw_xacts ORDER BY serverid";
        let rows = self.session.query(query, &[])?;
        self.row(&["SELECT status, identifier FROM pg_fdw_xacts", "", ""], ["36"; 3]);
        for row in &rows {
            self.print(&format!("     {}  {}", row.get::<_, &str>(0), row.get::<_, &str>(1)));
        }
        self.print(&format!("     ({} rows)", rows.len()));
        Ok(rows.len())
    }

    /// Shows a claim of the demo.
    ///
    /// # Errors
    /// The claim is not true.
    fn claim(&self, text: &str, holds: bool) -> Result<()> {
        if !holds {
            bail!("step {}: not so: {text}", self.steps);
        }
        self.print(&format!("   {} {text}", self.paint("32", "ok")));
        Ok(())
    }

    /// Claims that the row `id` is in those of lt, ft1 and ft2 that `expected` says.
    fn claim_row(&mut self, id: i32, expected: [bool; 3]) -> Result<()> {
        let mut found = [ids(&mut self.session, "lt")?.contains(&id), false, false];
        for (place, shard) in found[1..].iter_mut().zip(&self.shards) {
            *place = ids(&mut shard.client()?, "t")?.contains(&id);
        }
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

    /// Waits until nothing is prepared anywhere, without doing anything about it.
    fn wait_until_settled(&mut self) -> Result<()> {
        let Self { coordinator, shards, session, .. } = self;
        wait_until("nothing is in doubt", PATIENCE, || {
            let mut left: i64 = one(session, "SELECT count(*) FROM pg_fdw_xacts")?;
            for server in std::iter::once(&*coordinator).chain(&*shards) {
                left += i64::try_from(prepared_gids(server)?.len())?;
            }
            Ok(left == 0)
        })?;
        self.beside("")?;
        self.claim("nothing is in doubt any more, by itself", true)
    }

    fn move_shard1(&mut self, port: u16) -> Result<()> {
        self.session.batch_execute(&format!("ALTER SERVER shard1 OPTIONS (SET port '{port}')"))?;
        // The warning that a server moves is about the staging, not about the session.
        if let Ok(mut notices) = self.notices.lock() {
            notices.clear();
        }
        Ok(())
    }

    /// Shows what the coordinator answered.
    fn show(&self, colour: &str, text: &str) {
        for line in text.lines() {
            self.print(&format!("     {}", self.paint(colour, line.trim_end())));
        }
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}
