//! `docs/src/versions.md` and the data it is rendered from, `docs/src/versions.json`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::Suite;
use super::server::Server;

/// What is known of the version that is not supported yet.
const NEWER: &str = include_str!("newer.md");

/// The results by major version.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Page(BTreeMap<u32, Version>);

/// What is known of one major version.
#[derive(Debug, Serialize, Deserialize)]
struct Version {
    /// The minor version.
    version: String,
    /// Where the server comes from.
    origin: String,
    /// Whether it was built with assertions.
    assertions: bool,
    /// The last result of each suite.
    suites: BTreeMap<Suite, Outcome>,
}

/// The result of one suite.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Outcome {
    date: String,
    commit: String,
    passed: u64,
    /// How many have not been run.
    #[serde(skip_serializing_if = "is_zero")]
    pub left: usize,
    /// The tests that failed.
    pub failed: Vec<String>,
    /// The tests that passed only when they were run alone.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub alone: Vec<String>,
    /// Why nothing was run.
    #[serde(skip_serializing_if = "Option::is_none")]
    not_run: Option<String>,
    /// How postgres_fdw's own tests differ with this extension.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub differences: Vec<Difference>,
}

/// How one of postgres_fdw's own tests differs.
#[derive(Debug, Serialize, Deserialize)]
pub struct Difference {
    /// The test.
    pub test: String,
    /// How many lines are expected.
    pub lines: usize,
    /// How many differ.
    pub differing: usize,
    /// For which reasons, and how many for each.
    pub reasons: BTreeMap<String, usize>,
}

impl Outcome {
    /// Of tests.
    pub fn of_tests(passed: u64, failed: Vec<String>) -> Self {
        Self { passed, failed, ..Self::default() }
    }

    /// Of none.
    pub fn not_run(reason: &str) -> Self {
        Self { not_run: Some(reason.to_owned()), ..Self::default() }
    }

    /// The same with day and commit.
    pub fn at(mut self, date: &str, commit: &str) -> Self {
        date.clone_into(&mut self.date);
        commit.clone_into(&mut self.commit);
        self
    }

    /// Whether a test failed.
    pub fn has_failed(&self) -> bool {
        !self.failed.is_empty()
    }

    fn in_short(&self) -> String {
        if let Some(reason) = &self.not_run {
            return format!("not run: {reason}");
        }
        let mut text = format!("{} passed", self.passed);
        if !self.failed.is_empty() {
            let _ = write!(text, ", **{} failed**", self.failed.len());
        }
        if self.left > 0 {
            let _ = write!(text, ", {} not run", self.left);
        }
        text
    }
}

impl Page {
    /// The results in the book of the clone at `root`.
    pub fn read(root: &Path) -> Result<Self> {
        match std::fs::read_to_string(data(root)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            text => serde_json::from_str(&text?).context("docs/src/versions.json"),
        }
    }

    /// The result of a suite at that commit under that version.
    pub fn at(&self, major: u32, suite: Suite, commit: &str) -> Option<&Outcome> {
        let outcome = self.0.get(&major)?.suites.get(&suite)?;
        (outcome.commit == commit).then_some(outcome)
    }

    /// Whether all of a suite has passed, at that commit, under that version.
    pub fn has_passed(&self, major: u32, suite: Suite, commit: &str) -> bool {
        let outcome = self.at(major, suite, commit);
        outcome.is_some_and(|outcome| !outcome.has_failed() && outcome.left == 0)
    }

    /// Replaces the result of one suite.
    pub fn record(&mut self, server: &Server, version: &str, suite: Suite, outcome: Outcome) {
        let entry = self.0.entry(server.major).or_insert_with(|| Version {
            version: String::new(),
            origin: String::new(),
            assertions: false,
            suites: BTreeMap::new(),
        });
        version.trim_start_matches("PostgreSQL ").clone_into(&mut entry.version);
        server.origin.clone_into(&mut entry.origin);
        entry.assertions = server.assertions;
        entry.suites.insert(suite, outcome);
    }

    /// Writes data and page.
    pub fn write(&self, root: &Path) -> Result<()> {
        std::fs::write(data(root), serde_json::to_string_pretty(self)? + "\n")?;
        Ok(std::fs::write(root.join("docs/src/versions.md"), self.render())?)
    }

    fn render(&self) -> String {
        let mut text = String::from(
            "# Versions of PostgreSQL\n\n\
             Written by `cargo xtask matrix`, which makes a server of each version, installs the extension there\n\
             and runs every suite. A server built from Debian's source package has PostgreSQL's assertions, which\n\
             stop it wherever its own rules are broken. Whatever the suite, a server whose log shows a failed\n\
             assertion, a crash or a leak fails the test.\n\n",
        );
        let suites = [Suite::Extension, Suite::Inject, Suite::Scenarios, Suite::Upstream];
        text += "| PostgreSQL | assertions | extension | injected faults | scenarios | `postgres_fdw`'s own tests |\n|---|---|---|---|---|---|\n";
        for version in self.0.values() {
            let assertions = if version.assertions { "yes" } else { "no" };
            let _ = write!(text, "| {}, {} | {assertions} |", version.version, version.origin);
            for suite in suites {
                let short = version.suites.get(&suite).map_or("–".to_owned(), Outcome::in_short);
                let _ = write!(text, " {short} |");
            }
            text += "\n";
        }
        self.render_failures(&mut text);
        self.render_differences(&mut text);
        text += "\n## When\n\n| PostgreSQL | suite | day | commit |\n|---|---|---|---|\n";
        for (version, suite, outcome) in self.outcomes() {
            let (date, commit) = (&outcome.date, &outcome.commit);
            let _ = writeln!(text, "| {version} | {suite:?} | {date} | `{commit}` |");
        }
        text += "\nA plus sign stands for changes on top of the commit.\n";
        text + NEWER
    }

    fn outcomes(&self) -> impl Iterator<Item = (&str, Suite, &Outcome)> {
        self.0.values().flat_map(|version| {
            version.suites.iter().map(|(suite, outcome)| (&*version.version, *suite, outcome))
        })
    }

    fn render_failures(&self, text: &mut String) {
        *text += "\n## What failed\n\n";
        let before = text.len();
        for (version, suite, outcome) in self.outcomes() {
            for name in &outcome.failed {
                let _ = writeln!(text, "* {version}, {suite:?}: `{name}`");
            }
            for name in &outcome.alone {
                let _ = writeln!(text, "* {version}, {suite:?}: `{name}`, but not when run alone");
            }
        }
        if text.len() == before {
            *text += "Nothing.\n";
        }
    }

    fn render_differences(&self, text: &mut String) {
        *text += "\n## `postgres_fdw`'s own tests\n\nLines of their output that differ after the switch to this extension.\n\n\
                  | PostgreSQL | test | lines | differ | reasons |\n|---|---|---|---|---|\n";
        for (version, _, outcome) in self.outcomes() {
            for difference in &outcome.differences {
                let Difference { test, lines, differing, reasons } = difference;
                let mut reasons: Vec<String> =
                    reasons.iter().map(|(reason, lines)| format!("{lines}: {reason}")).collect();
                let known: usize = difference.reasons.values().sum();
                if *differing > known {
                    reasons.push(format!("**{}: not known**", differing - known));
                }
                let reasons = reasons.join("; ");
                let _ =
                    writeln!(text, "| {version} | `{test}` | {lines} | {differing} | {reasons} |");
            }
        }
    }
}

fn is_zero(number: &usize) -> bool {
    *number == 0
}

fn data(root: &Path) -> PathBuf {
    root.join("docs/src/versions.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page() -> Page {
        let server = Server {
            major: 18,
            home: PathBuf::new(),
            pg_config: PathBuf::new(),
            origin: "a package",
            assertions: true,
            source: None,
        };
        let mut page = Page::default();
        let mut outcome = Outcome::of_tests(7, vec!["a::b".to_owned()]).at("2026-01-02", "abc");
        outcome.alone.push("a::c".to_owned());
        outcome.left = 4;
        page.record(&server, "PostgreSQL 18.6", Suite::Scenarios, outcome);
        let mut outcome = Outcome::of_tests(2, Vec::new()).at("2026-01-02", "abc");
        let reasons = [("it is prepared".to_owned(), 1)].into();
        outcome.differences =
            vec![Difference { test: "fdw".to_owned(), lines: 9, differing: 3, reasons }];
        page.record(&server, "PostgreSQL 18.6", Suite::Upstream, outcome);
        page
    }

    #[test]
    fn a_page_that_was_written_is_read_again() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("docs/src")).unwrap();
        assert!(!Page::read(root.path()).unwrap().has_passed(18, Suite::Upstream, "abc"));
        page().write(root.path()).unwrap();
        let read = Page::read(root.path()).unwrap();
        assert!(read.has_passed(18, Suite::Upstream, "abc"));
        assert!(!read.has_passed(18, Suite::Upstream, "def"));
        assert!(!read.has_passed(18, Suite::Scenarios, "abc"), "one failed");
        assert_eq!(read.render(), page().render());
    }

    #[test]
    fn failures_and_differences_are_named() {
        let text = page().render();
        for line in [
            "| 18.6, a package | yes | – | – | 7 passed, **1 failed**, 4 not run | 2 passed |",
            "* 18.6, Scenarios: `a::b`",
            "* 18.6, Scenarios: `a::c`, but not when run alone",
            "| 18.6 | `fdw` | 9 | 3 | 1: it is prepared; **2: not known** |",
            "| 18.6 | Upstream | 2026-01-02 | `abc` |",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
    }
}
