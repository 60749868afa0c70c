//! `cargo xtask ha`: the bank on servers that fail over, under Patroni and etcd; what came of it
//! goes into a page of the book.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use pg_test::ha::{CASES, Case, ETCD_VARIABLE, PATRONI_VARIABLE, REPORT_VARIABLE, Report};
use pg_test::install::{DIRECTORY_VARIABLE, PG_CONFIG_VARIABLE, finish};
use serde::{Deserialize, Serialize};

use crate::matrix::{commit, today};
use crate::setup::Setup;
use crate::suites::{check, heading};
use crate::{clients, packages};

/// Packages of Patroni's that have no wheel.
const FROM_SOURCE: [&str; 2] = ["python-etcd", "ydiff"];

/// Lists the cases.
pub fn list() {
    for case in CASES {
        println!("{:<40} {}", case.name, case.text);
    }
}

/// Runs the cases with `name` in their names, and writes down what came of each.
pub fn run(setup: &Setup, name: &str) -> Result<()> {
    if !CASES.iter().any(|case| case.name.contains(name)) {
        bail!("no case has \"{name}\" in its name: see `cargo xtask ha --list`");
    }
    let programs = Programs::provide(setup)?;
    heading("installing the extension");
    setup.install_extension(&[])?;
    heading("fail-overs");
    let results = tempfile::NamedTempFile::new()?;
    let mut command = setup.workspace.cargo();
    command
        .env(PG_CONFIG_VARIABLE, setup.installation.pg_config())
        .env(DIRECTORY_VARIABLE, setup.server_files.join("pg_test"))
        .env(ETCD_VARIABLE, &programs.etcd)
        .env(PATRONI_VARIABLE, &programs.patroni)
        .env(REPORT_VARIABLE, results.path())
        .args(["run", "--quiet", "-p", "pg_test", "--bin", "ha", "--", name]);
    let outcome = check(&mut command);
    // What has succeeded is worth noting, whatever failed later.
    let mut page = Page::read(&setup.workspace.root)?;
    for line in std::fs::read_to_string(results.path())?.lines() {
        let Line { case, report } = serde_json::from_str(line)?;
        let run = Run {
            date: today()?,
            commit: commit(&setup.workspace)?,
            versions: programs.versions(setup)?,
            report,
        };
        page.0.insert(case, run);
    }
    page.write(&setup.workspace.root)?;
    outcome
}

/// Other people's programs.
struct Programs {
    etcd: PathBuf,
    patroni: PathBuf,
}

impl Programs {
    /// Finds or installs them, where the servers' user can reach them.
    fn provide(setup: &Setup) -> Result<Self> {
        let directory = setup.server_files.join("clients");
        std::fs::create_dir_all(&directory)?;
        let etcd = match std::env::var_os(ETCD_VARIABLE) {
            Some(named) => named.into(),
            None if packages::debian_postgresql().is_some() => {
                packages::install(&["python3-venv".to_owned()])?;
                packages::extract("etcd-server", "usr/bin/etcd", &directory)?
            }
            None => bail!("no etcd: install it, and name it with {ETCD_VARIABLE}"),
        };
        let patroni = match std::env::var_os(PATRONI_VARIABLE) {
            Some(named) => named.into(),
            None => {
                let requirements = setup.workspace.root.join("pg_test/clients/patroni.txt");
                let environment = directory.join("patroni");
                clients::provide_python(&requirements, &environment, &FROM_SOURCE)?.join("patroni")
            }
        };
        Ok(Self { etcd, patroni })
    }

    /// The versions of everything, for the page.
    fn versions(&self, setup: &Setup) -> Result<String> {
        let patroni = finish(Command::new(&self.patroni).arg("--version"))?;
        let etcd = finish(Command::new(&self.etcd).arg("--version"))?;
        let etcd = etcd.lines().next().and_then(|line| line.split(' ').next_back());
        let postgresql = setup.installation.version().split(' ').nth(1).unwrap_or_default();
        Ok(format!(
            "PostgreSQL {postgresql}, Patroni {}, etcd {}",
            patroni.trim().trim_start_matches("patroni "),
            etcd.unwrap_or_default()
        ))
    }
}

/// A line of the results.
#[derive(Deserialize)]
struct Line {
    case: String,
    report: Report,
}

/// The last run of a case that has succeeded.
#[derive(Serialize, Deserialize)]
struct Run {
    date: String,
    commit: String,
    versions: String,
    report: Report,
}

/// By the names of cases.
#[derive(Default)]
struct Page(BTreeMap<String, Run>);

impl Page {
    fn read(root: &Path) -> Result<Self> {
        match std::fs::read_to_string(data(root)) {
            Ok(text) => Ok(Self(serde_json::from_str(&text).context("failovers.json")?)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error.into()),
        }
    }

    fn write(&self, root: &Path) -> Result<()> {
        std::fs::write(data(root), serde_json::to_string_pretty(&self.0)? + "\n")?;
        Ok(std::fs::write(root.join("docs/src/failovers.md"), self.render())?)
    }

    fn runs(&self, is_synchronous: bool) -> impl Iterator<Item = (&'static Case, &Run)> {
        CASES.iter().filter_map(move |case| {
            let run = self.0.get(case.name)?;
            (case.is_synchronous == is_synchronous).then_some((case, run))
        })
    }

    fn render(&self) -> String {
        let mut text = String::from(
            "# Failovers that were tried\n\n\
             Written by `cargo xtask ha`. It starts a coordinator and a shard of two nodes each under Patroni and etcd, with\n\
             the settings of the page [High availability](high-availability.md), and another shard. Six sessions transfer\n\
             money between accounts on all three, in transactions that commit in two phases, and one adds up all accounts\n\
             with `consistent_reads`. All servers share one machine.\n\n\
             * **Leader**: seconds until the other node was the leader.\n\
             * **Silence**: the longest time without an acknowledged transfer in which the failing server takes part.\n\
             * **Settled**: seconds until nothing was in doubt any more that was so at the failover. It counts from when the\n\
             old leader has ended or follows the new one; 30 s are an error.\n\
             * **Transfers**: acknowledged, refused, and without an answer.\n\
             * **Stale sums**: sums that were wrong while two nodes took themselves for the leader, of all sums.\n\n\
             ## With synchronous replication\n\n\
             In the end each transfer was everywhere or nowhere, as its client was told; the total was what it was; no\n\
             outcome was heuristic. Anything else would have been an error.\n\n",
        );
        text += "| | leader | silence | settled | transfers | stale sums |\n|---|---|---|---|---|---|\n";
        for (case, Run { report, .. }) in self.runs(true) {
            let [leader, silence, settled] = seconds(report);
            let Report { committed, refused, unknown, stale, reads, .. } = report;
            let _ = writeln!(
                text,
                "| {} | {leader} | {silence} | {settled} | {committed}, {refused}, {unknown} | {stale} of {reads} |",
                case.text
            );
        }
        text += "\n## With asynchronous replication\n\n\
                 **Lost**: acknowledged, and not everywhere; **halved**: on one server and not on another; **decisions**: rows\n\
                 that the killed coordinator has on its disk and the new one has not.\n\n";
        text += "| | leader | silence | settled | transfers | lost | halved | decisions |\n|---|---|---|---|---|---|---|---|\n";
        for (case, Run { report, .. }) in self.runs(false) {
            let [leader, silence, settled] = seconds(report);
            let Report { committed, refused, unknown, lost, halved, decisions_lost, .. } = report;
            let _ = writeln!(
                text,
                "| {} | {leader} | {silence} | {settled} | {committed}, {refused}, {unknown} | {lost} | {halved} | {decisions_lost} |",
                case.text
            );
        }
        text += "\n## When\n\n| case | day | commit | |\n|---|---|---|---|\n";
        for (case, run) in self.runs(true).chain(self.runs(false)) {
            let Run { date, commit, versions, .. } = run;
            let _ = writeln!(text, "| `{}` | {date} | `{commit}` | {versions} |", case.name);
        }
        text + "\nA plus sign stands for changes on top of the commit.\n"
    }
}

/// Until the leader, of silence, until settled.
fn seconds(report: &Report) -> [String; 3] {
    let Report { leader_after, silence, settled_after, .. } = report;
    [leader_after, silence, settled_after].map(|time| format!("{:.1}", *time as f64 / 1000.0))
}

fn data(root: &Path) -> PathBuf {
    root.join("docs/src/failovers.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_was_written_is_read_again() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("docs/src")).unwrap();
        let mut page = Page::read(root.path()).unwrap();
        for case in CASES {
            let report = Report { leader_after: 19_282, lost: 7, stale: 2, ..Report::default() };
            let text = || "x".to_owned();
            let run = Run { date: text(), commit: text(), versions: text(), report };
            page.0.insert(case.name.to_owned(), run);
        }
        page.write(root.path()).unwrap();
        let text = Page::read(root.path()).unwrap().render();
        assert_eq!(text, page.render());
        for part in [
            " | 19.3 | 0.0 | 0.0 | 0, 0, 0 | 2 of 0 |",
            " | 19.3 | 0.0 | 0.0 | 0, 0, 0 | 7 | 0 | 0 |",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
    }
}
