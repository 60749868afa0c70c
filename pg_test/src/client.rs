//! Another program as a client: one in `pg_test/clients`, in Python or Java, that does with its own
//! library what a test tells it, one line at a time.
//!
//! A command is a line of words. The program answers with one line: `ok`, followed by what it
//! found, or `error` and what its library raised. A program ends when its input does, at the latest
//! with the value that stands for it.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};

use anyhow::{Context, Result, anyhow, bail};

use crate::pooler::Pooler;
use crate::{Cluster, DEADLINE};

/// The environment variable that names the Python interpreter with
/// `pg_test/clients/requirements.txt` installed.
pub const PYTHON_VARIABLE: &str = "PG_TEST_PYTHON";

/// The environment variable that names the JAR of PostgreSQL's JDBC driver.
pub const JDBC_VARIABLE: &str = "PG_TEST_JDBC";

/// The environment variable that names Prometheus's promtool.
pub const PROMTOOL_VARIABLE: &str = "PG_TEST_PROMTOOL";

/// A running program.
#[derive(Debug)]
pub struct Program {
    name: String,
    child: Child,
    input: ChildStdin,
    answers: Receiver<String>,
}

impl Program {
    /// Starts `pg_test/clients/<file>`, a client of `server`; the ending tells the language.
    pub fn start(file: &str, server: &Cluster) -> Result<Self> {
        Self::start_at(file, server.port(), &[])
    }

    /// The same for a client that goes through `pooler`, in transaction mode: without statements
    /// that its library prepares, which the session of the next transaction may not have.
    pub fn start_behind(file: &str, pooler: &Pooler) -> Result<Self> {
        Self::start_at(file, pooler.port(), &["pooled"])
    }

    fn start_at(file: &str, port: u16, arguments: &[&str]) -> Result<Self> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients").join(file);
        let mut command = match path.extension().and_then(|ending| ending.to_str()) {
            Some("py") => python()?,
            Some("java") => {
                let mut java = Command::new("java");
                java.arg("-cp").arg(variable(JDBC_VARIABLE)?);
                // It lives for seconds, beside other tests: one core, little compilation.
                java.args(["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]);
                java
            }
            _ => bail!("{file}: neither Python nor Java"),
        };
        forget_caller(&mut command);
        let mut child = command
            .arg(path)
            .arg(port.to_string())
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {command:?}"))?;
        let input = child.stdin.take().context("stdin is piped")?;
        let output = child.stdout.take().context("stdout is piped")?;
        let (sender, answers) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(Self { name: file.to_owned(), child, input, answers })
    }

    /// Tells it `command` and waits for its answer.
    pub fn ask(&mut self, command: &str) -> Result<String> {
        writeln!(self.input, "{command}").with_context(|| format!("{} has ended", self.name))?;
        self.answers.recv_timeout(DEADLINE).map_err(|error| match error {
            RecvTimeoutError::Timeout => anyhow!("{}: no answer to '{command}'", self.name),
            RecvTimeoutError::Disconnected => anyhow!("{} has ended at '{command}'", self.name),
        })
    }

    /// Tells it `command`, which must succeed; returns what it found.
    #[track_caller]
    pub fn expect(&mut self, command: &str) -> String {
        let answer = self.ask(command).unwrap_or_else(|error| panic!("{error:#}"));
        match answer.strip_prefix("ok") {
            Some(found) => found.trim_start().to_owned(),
            None => panic!("{}: '{command}' was answered by: {answer}", self.name),
        }
    }

    /// Tells it `command`, which must fail; returns what its library raised.
    #[track_caller]
    pub fn expect_error(&mut self, command: &str) -> String {
        let answer = self.ask(command).unwrap_or_else(|error| panic!("{error:#}"));
        match answer.strip_prefix("error ") {
            Some(raised) => raised.to_owned(),
            None => panic!("{}: '{command}' did not fail: {answer}", self.name),
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The Python interpreter that has the clients' packages, without the caller's `PG…` variables or
/// locale.
pub fn python() -> Result<Command> {
    let mut python = Command::new(variable(PYTHON_VARIABLE)?);
    forget_caller(&mut python);
    // No compiled files in the source tree.
    python.arg("-B");
    Ok(python)
}

/// Prometheus's promtool.
pub fn promtool() -> Result<Command> {
    Ok(Command::new(variable(PROMTOOL_VARIABLE)?))
}

fn forget_caller(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PG") {
            command.env_remove(name);
        }
    }
    command.env("LC_ALL", "C.UTF-8");
}

fn variable(name: &str) -> Result<OsString> {
    std::env::var_os(name).ok_or_else(|| {
        anyhow!("{name} is not set: run the tests of clients with `cargo xtask test clients --only scenarios`")
    })
}
