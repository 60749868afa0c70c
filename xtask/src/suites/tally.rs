//! Running the programs that the suites consist of, and adding up what their tests say.

use std::fs::File;
use std::io::{BufRead, BufReader, Write as _};
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context, Result, bail};

use super::failures::Failures;

/// Results of tests so far.
#[derive(Debug, Default)]
pub struct Tally {
    /// How many passed.
    pub passed: u64,
    /// How many failed.
    pub failed: u64,
    /// The names of those that failed.
    pub failures: Vec<String>,
    /// What they said.
    pub(super) said: Failures,
    /// Where the names of those that pass are written.
    pub(super) journal: Option<File>,
}

/// Says how many tests passed and failed, and again what those that failed have said.
pub(super) fn finish(tally: &Tally, outcome: Result<()>) -> Result<()> {
    if let Err(error) = &outcome {
        eprintln!("error: {error:#}");
    }
    if !tally.said.lines().is_empty() {
        println!("\nWhat failed, in short:\n\n{}", tally.said.lines().join("\n"));
    }
    println!("\n{} passed, {} failed", tally.passed, tally.failed);
    outcome.map_err(|_| anyhow::anyhow!("not everything passed"))
}

pub(crate) fn heading(text: &str) {
    println!("\n==== {text}");
}

pub(crate) fn check(command: &mut Command) -> Result<()> {
    let status = command.stdin(Stdio::null()).status()?;
    succeeded(command, status)
}

/// Runs a cargo test, passes its output on and adds its results to `tally`.
pub(super) fn test(command: &mut Command, tally: &mut Tally) -> Result<()> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let output = child.stdout.take().context("stdout is piped")?;
    for line in BufReader::new(output).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        tally.add(&line);
        tally.said.read(&line);
    }
    let status = child.wait()?;
    succeeded(command, status)
}

fn succeeded(command: &Command, status: ExitStatus) -> Result<()> {
    if !status.success() {
        let arguments: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
        let program = std::path::Path::new(command.get_program()).file_name().unwrap_or_default();
        bail!("{} {}: {status}", program.to_string_lossy(), arguments.join(" "));
    }
    Ok(())
}

impl Tally {
    /// The results of tests that ended with `outcome`: an error is not what tests that failed are.
    pub(super) fn of_tests(self, outcome: Result<()>) -> Result<Self> {
        if self.failed == 0 { outcome.map(|()| self) } else { Ok(self) }
    }

    /// Adds "test result: ok. 3 passed; 1 failed; …", and the name in "test a::b ... FAILED"; any
    /// other line counts nothing.
    fn add(&mut self, line: &str) {
        let result = line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... "));
        match (result, &mut self.journal) {
            (Some((name, "FAILED")), _) => self.failures.push(name.to_owned()),
            (Some((name, "ok")), Some(journal)) => {
                // Without its line it is run again.
                let _ = writeln!(journal, "{name}");
            }
            _ => {}
        }
        let Some((_, counts)) = line.split_once("test result: ") else {
            return;
        };
        let count = |word: &str| -> u64 {
            let before = counts.split(word).next().unwrap_or_default();
            before.split_whitespace().last().and_then(|number| number.parse().ok()).unwrap_or(0)
        };
        self.passed += count(" passed");
        self.failed += count(" failed");
    }
}

#[cfg(test)]
mod tests {
    use super::Tally;

    #[test]
    fn results_of_cargo_test_are_added_up() {
        let mut tally = Tally::default();
        tally.add("test result: ok. 9 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out");
        tally.add("test result: FAILED. 5 passed; 6 failed; 0 ignored; 0 measured");
        tally.add("test harness::x ... ok");
        tally.add("test harness::y ... FAILED");
        assert_eq!((tally.passed, tally.failed), (14, 6));
        assert_eq!(tally.failures, ["harness::y"]);
    }
}
