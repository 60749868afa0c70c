//! Reading a server's log: what it was asked to do since a moment.
//!
//! A server writes its log line before it answers, so a client that has its answer finds the line
//! there.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The `log_line_prefix` of every test server; [`Log`] relies on it.
pub(crate) const LINE_PREFIX: &str = "%m [%p] %a: ";

/// The log file of one server.
#[derive(Debug, Clone)]
pub struct Log {
    path: PathBuf,
}

/// A place in a log: what comes after it was written later.
#[derive(Debug, Clone, Copy)]
pub struct Mark(usize);

impl Log {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The present end of the log.
    pub fn mark(&self) -> Result<Mark> {
        Ok(Mark(self.read()?.len()))
    }

    /// Everything written since `mark`.
    pub fn since(&self, mark: Mark) -> Result<String> {
        let bytes = self.read()?;
        Ok(String::from_utf8_lossy(bytes.get(mark.0..).unwrap_or_default()).into_owned())
    }

    /// The statements that the server was asked to run since `mark`, in order.
    pub fn statements_since(&self, mark: Mark) -> Result<Vec<String>> {
        Ok(statements(&self.since(mark)?))
    }

    /// The last `count` lines, for reports of a failure.
    pub fn tail(&self, count: usize) -> Result<String> {
        let bytes = self.read()?;
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().collect();
        Ok(lines[lines.len().saturating_sub(count)..].join("\n"))
    }

    /// What no test provokes: failed assertions, processes that aborted or read memory that is not
    /// theirs, resources that PostgreSQL found left behind, failures of the extension where nothing
    /// may fail, unless the test has injected them, and all that valgrind finds.
    pub(crate) fn faults(&self) -> Result<Vec<String>> {
        Ok(faults(&String::from_utf8_lossy(&self.read()?)))
    }

    fn read(&self) -> Result<Vec<u8>> {
        match std::fs::read(&self.path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            read => read.with_context(|| format!("cannot read {}", self.path.display())),
        }
    }
}

/// The statements among the lines of a log: `LOG:  statement: …` of the simple protocol and
/// `LOG:  execute <name>: …` of the extended one. Lines that continue a statement start with a tab.
fn statements(log: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let mut inside = false;
    for line in log.lines() {
        if let Some(continued) = line.strip_prefix('\t') {
            if inside && let Some(last) = found.last_mut() {
                last.push('\n');
                last.push_str(continued);
            }
            continue;
        }
        let statement = line.split_once("LOG:  ").and_then(|(_, message)| {
            message.strip_prefix("statement: ").or_else(|| {
                message.strip_prefix("execute ")?.split_once(": ").map(|(_, statement)| statement)
            })
        });
        inside = statement.is_some();
        found.extend(statement.map(str::to_owned));
    }
    found
}

fn faults(log: &str) -> Vec<String> {
    const SIGNS: &[&str] = &[
        "TRAP: ",
        "terminated by signal 6:",
        "terminated by signal 11:",
        "PANIC:  ",
        "WARNING:  resource was not closed",
        " leak: ",
    ];
    // `shielded` in the extension warns so.
    const SHIELDED: &[&str] = &[
        "WARNING:  after the commit decision: ",
        "WARNING:  after PREPARE TRANSACTION: ",
        "WARNING:  after settling a prepared transaction: ",
        "WARNING:  after a replayed transaction: ",
        "WARNING:  in abort: ",
    ];
    let shielded = if log.contains("SET pg_fdw_xacts.inject") { &[] } else { SHIELDED };
    log.lines()
        .filter(|line| {
            // What valgrind finds begins with the process id between these.
            line.starts_with("==") || SIGNS.iter().chain(shielded).any(|sign| line.contains(sign))
        })
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{faults, statements};

    #[test]
    fn statements_of_both_protocols_are_found_and_other_lines_are_not() {
        let log = "2026-01-01 UTC [7] app: LOG:  statement: SELECT 1,\n\
                   \t2\n\
                   2026-01-01 UTC [7] app: LOG:  duration: 1 ms\n\
                   \tnot part of it\n\
                   2026-01-01 UTC [7] app: LOG:  execute <unnamed>: PREPARE TRANSACTION 'px_1: 2'\n\
                   2026-01-01 UTC [7] app: DETAIL:  parameters: $1 = 'x'\n\
                   2026-01-01 UTC [7] app: LOG:  execute s1/c2: FETCH 100 FROM c2\n\
                   2026-01-01 UTC [7] app: ERROR:  statement: no\n";
        assert_eq!(
            statements(log),
            ["SELECT 1,\n2", "PREPARE TRANSACTION 'px_1: 2'", "FETCH 100 FROM c2"]
        );
    }

    #[test]
    fn a_failed_assertion_and_a_leak_are_faults_and_a_kill_is_not() {
        let log = "TRAP: failed Assert(\"x\"), File: \"heapam.c\", Line: 265, PID: 7\n\
                   UTC [1] : LOG:  server process (PID 7) was terminated by signal 6: Aborted\n\
                   UTC [1] : LOG:  server process (PID 8) was terminated by signal 9: Killed\n\
                   UTC [9] app: WARNING:  Snapshot reference leak: Snapshot 0x1 still referenced\n";
        assert_eq!(faults(log).len(), 3);
    }

    #[test]
    fn what_valgrind_finds_is_a_fault() {
        assert_eq!(faults("==7== Invalid read of size 8\nUTC [7] app: LOG:  1 == 1\n").len(), 1);
    }

    #[test]
    fn a_failure_where_nothing_may_fail_is_a_fault_unless_it_was_injected() {
        let log = "UTC [9] app: WARNING:  in abort: no\n";
        assert_eq!(faults(log).len(), 1);
        let injected = "UTC [9] app: LOG:  statement: SET pg_fdw_xacts.inject = 'abort/error'\n";
        assert_eq!(faults(&format!("{injected}{log}")).len(), 0);
    }
}
