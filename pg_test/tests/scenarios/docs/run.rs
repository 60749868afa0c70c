//! Runs a page of the book on real servers: statements in psql, command lines in a shell, settings
//! in `postgresql.conf`; and compares the output with what the page shows.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use pg_test::client::python;
use pg_test::install::{ServerUser, as_server_user, finish};
use pg_test::{Cluster, DEADLINE, Installation, StopMode, fleet, wait_until};

use crate::docs::page::{self, Block, Kind};

/// The coordinator's resolver looks often, so that a test need not wait as long as an operator
/// does.
const COORDINATOR_SETTINGS: &[(&str, &str)] = &[
    ("pg_fdw_xacts.resolver_interval", "1s"),
    ("pg_fdw_xacts.resolver_retry_min", "200ms"),
    ("pg_fdw_xacts.resolver_retry_max", "1s"),
];

/// Servers with nothing on them, and the sessions that a page opens there.
struct Stage {
    installation: Installation,
    servers: BTreeMap<String, Cluster>,
    sessions: BTreeMap<(String, String), Psql>,
    /// The shell's working directory.
    directory: tempfile::TempDir,
}

/// Runs all blocks of `page`, and before them those of the pages it builds upon.
pub fn run(page: &str) -> Result<()> {
    let mut pages = vec![page.to_owned()];
    let mut texts = vec![page::text(page)?];
    while let Some(before) = page::runs_after(texts.last().expect("not empty")) {
        let before = before.to_owned();
        texts.push(page::text(&before)?);
        pages.push(before);
    }
    let named = |kind| texts.iter().map(|text| highest_named(text, kind)).max().unwrap_or(0);
    let mut stage = Stage::with(named("coordinator"), named("shard"))?;
    for (page, text) in pages.iter().zip(&texts).rev() {
        for block in page::blocks(text)? {
            let start = Instant::now();
            stage
                .run(&block)
                .with_context(|| format!("{page}, line {}:\n{}", block.line, block.code))?;
            println!("{page}, line {}: {:?}", block.line, start.elapsed());
        }
    }
    Ok(())
}

/// The highest number of a server of this kind that a page names; the first coordinator has none.
fn highest_named(text: &str, kind: &str) -> usize {
    (1..=9)
        .rev()
        .find(|n| {
            text.contains(&format!("{kind}{n}.example")) || text.contains(&format!("on={kind}{n}"))
        })
        .unwrap_or(0)
}

impl Stage {
    fn with(coordinators: usize, shards: usize) -> Result<Self> {
        let installation = Installation::from_env()?;
        let mut list = vec![Cluster::create(&installation, "coordinator")?];
        for number in 2..=coordinators {
            list.push(Cluster::create(&installation, &format!("coordinator{number}"))?);
        }
        for coordinator in &list {
            coordinator.configure(COORDINATOR_SETTINGS)?;
        }
        for number in 1..=shards {
            list.push(Cluster::create(&installation, &format!("shard{number}"))?);
        }
        fleet::start_all(&mut list)?;
        let servers = list.into_iter().map(|server| (server.name().to_owned(), server)).collect();
        let directory = tempfile::tempdir()?;
        if let Some(user) = installation.user() {
            let owner = (Some(user.uid.as_raw()), Some(user.gid.as_raw()));
            std::os::unix::fs::chown(directory.path(), owner.0, owner.1)?;
        }
        Ok(Self { installation, servers, sessions: BTreeMap::new(), directory })
    }

    fn run(&mut self, block: &Block) -> Result<()> {
        if block.not_run {
            return Ok(());
        }
        let ports =
            self.servers.iter().map(|(name, server)| (name.clone(), server.port())).collect();
        let code = page::substitute(&block.code, &ports)?;
        block.on.iter().try_for_each(|name| self.run_on(name, block, &code))
    }

    fn run_on(&mut self, name: &str, block: &Block, code: &str) -> Result<()> {
        if !self.servers.contains_key(name) {
            bail!("there is no server {name}");
        }
        // What is under /srv on a server's own host is in a directory of the server's own here.
        let srv = format!("{}/{name}/", self.directory.path().display());
        let code = &code.replace("/srv/", &srv);
        match block.kind {
            Kind::Settings => {
                let settings: Vec<(&str, &str)> = code
                    .lines()
                    .filter_map(|line| line.split('#').next()?.split_once('='))
                    .map(|(name, value)| (name.trim(), value.trim().trim_matches('\'')))
                    .collect();
                self.servers[name].configure(&settings)
            }
            Kind::Shell if code.trim_start().starts_with("pg_ctl ") => {
                code.lines().try_for_each(|line| self.control(name, line))
            }
            Kind::Shell => {
                let output = self.shell(name, code)?;
                compare(block, &output)
            }
            Kind::Python => {
                let output = finish(python()?.args(["-c", code]).env("PGUSER", "postgres"))?;
                compare(block, &output)
            }
            Kind::Sql => {
                let mut last = String::new();
                let outcome = wait_until("the output that is shown", DEADLINE, || {
                    last = self.psql(name, &block.session, &block.database)?.run(code)?;
                    Ok(!block.wait || compare(block, &last).is_ok())
                });
                outcome.with_context(|| last.clone())?;
                compare(block, &last)
            }
        }
    }

    /// What a line with pg_ctl asks for, done by the harness, which has started the server.
    fn control(&mut self, name: &str, line: &str) -> Result<()> {
        self.sessions.retain(|(server, _), _| server != name);
        let server = self.servers.get_mut(name).context("there is such a server")?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let mode = if words.contains(&"immediate") { StopMode::Immediate } else { StopMode::Fast };
        match words.get(1) {
            Some(&"start") => server.start(),
            Some(&"stop") => server.stop(mode),
            Some(&"restart") => server.restart(),
            Some(&"reload") => server.reload(),
            _ => Err(anyhow!("what is '{line}'?")),
        }
    }

    fn shell(&self, name: &str, code: &str) -> Result<String> {
        let mut command = as_server_user(self.installation.user(), "bash".as_ref());
        let path = std::env::var_os("PATH").unwrap_or_default();
        let directories = std::iter::once(self.installation.bindir().to_owned())
            .chain(std::env::split_paths(&path));
        command
            .args(["-euo", "pipefail", "-c", &format!("exec 2>&1\n{code}")])
            .current_dir(self.directory.path())
            .env("PATH", std::env::join_paths(directories)?)
            .env("PGHOST", "127.0.0.1")
            .env("PGPORT", self.servers[name].port().to_string())
            .env("PGDATA", self.servers[name].data())
            .env("PGUSER", ServerUser::NAME)
            .env("LC_ALL", "C")
            .stdin(Stdio::null());
        let output = command.output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            bail!("{}: {text}", output.status);
        }
        Ok(text)
    }

    /// The session, opened where it is used for the first time since its server has started.
    fn psql(&mut self, server: &str, session: &str, database: &str) -> Result<&mut Psql> {
        let key = (server.to_owned(), format!("{session}/{database}"));
        if !self.sessions.contains_key(&key) {
            let psql = Psql::start(&self.installation, self.servers[server].port(), database)?;
            self.sessions.insert(key.clone(), psql);
        }
        self.sessions.get_mut(&key).context("it was just opened")
    }
}

/// What has come out, against what the page shows; where it shows nothing, there must be no error.
fn compare(block: &Block, real: &str) -> Result<()> {
    match &block.output {
        Some(shown) if page::matches(shown, real) => Ok(()),
        Some(shown) => bail!("the page shows\n{shown}\nbut it is\n{real}"),
        None => match real.lines().find(|line| {
            ["ERROR:", "FATAL:", "PANIC:", "invalid command"].iter().any(|word| line.contains(word))
        }) {
            Some(_) => bail!("an error that the page does not show:\n{real}"),
            None => Ok(()),
        },
    }
}

/// psql with its output in one stream, as a terminal shows it.
struct Psql {
    child: Child,
    input: Option<ChildStdin>,
    output: Receiver<String>,
}

/// Ends each block's output.
const END: &str = "-- end of the block --";

impl Psql {
    fn start(installation: &Installation, port: u16, database: &str) -> Result<Self> {
        let (reader, writer) = std::io::pipe()?;
        let psql: PathBuf = installation.bindir().join("psql");
        let mut command: Command = as_server_user(installation.user(), "stdbuf".as_ref());
        command
            .arg("-oL")
            .arg(psql)
            .args(["-X", "-h", "127.0.0.1", "-p", &port.to_string(), "-U", ServerUser::NAME])
            .args(["-d", database])
            .env("LC_ALL", "C")
            .env("PGCLIENTENCODING", "UTF8")
            .stdin(Stdio::piped())
            .stdout(writer.try_clone()?)
            .stderr(writer);
        let mut child = command.spawn().context("psql does not start")?;
        // It holds the writing end that would keep the reader from seeing the end.
        drop(command);
        let input = child.stdin.take();
        let (sender, output) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(reader).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, input, output })
    }

    /// Runs statements, and returns all that is printed.
    fn run(&mut self, code: &str) -> Result<String> {
        let last = code.lines().rev().map(|line| line.split("--").next().unwrap_or(line).trim());
        match last.into_iter().find(|line| !line.is_empty()) {
            Some(line) if line.ends_with(';') || line.starts_with('\\') => {}
            _ => bail!("the last statement has no end"),
        }
        let input = self.input.as_mut().context("it is open until this is dropped")?;
        input.write_all(format!("{code}\n\\echo '{END}'\n").as_bytes())?;
        input.flush()?;
        let mut text = String::new();
        loop {
            let line = self.output.recv_timeout(DEADLINE).map_err(|_| {
                anyhow!("psql has not come to the end of the block; so far:\n{text}")
            })?;
            if line == END {
                return Ok(text);
            }
            text.push_str(&line);
            text.push('\n');
        }
    }
}

impl Drop for Psql {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.child.wait();
    }
}
