//! `cargo xtask matrix`: the suites under every version of PostgreSQL that is supported, and
//! postgres_fdw's own tests; the results go into a page of the book.

mod journal;
mod page;
pub mod server;
pub mod unpacked;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use pg_test::install::finish;
use serde::{Deserialize, Serialize};

use crate::packages;
use crate::setup::Setup;
use crate::suites::{self, heading};
use crate::upstream::source::{self, Part};
use crate::upstream::{self, Expected};
use crate::workspace::Workspace;
use journal::Journal;
use page::{Difference, Outcome, Page};
use server::Server;

/// The versions that the extension supports.
pub const MAJORS: [u32; 4] = [15, 16, 17, 18];

/// A version that is not released, and not supported yet. It is only run where it is asked for.
pub const NEXT: u32 = 19;

/// What decides the results: the last commit of it is the one tested.
const TESTED: [&str; 7] = ["src", "sql", "pg_test", "pg19", "build.rs", "Cargo.toml", "Cargo.lock"];

/// What is run under each version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Suite {
    /// Unit tests of the extension, and its #[pg_test]s in one server
    Extension,
    /// Faults inside the extension
    Inject,
    /// postgres_fdw's own tests
    Upstream,
    /// Scenarios on real clusters
    Scenarios,
}

/// What to run.
pub struct Choice {
    /// Only these versions, or all.
    pub majors: Vec<u32>,
    /// Only these suites, or all.
    pub suites: Vec<Suite>,
    /// Of the scenarios only those with one of these in their names, or all.
    pub names: Vec<String>,
    /// Also what has been run.
    pub again: bool,
    /// A source tree.
    pub source: Option<PathBuf>,
}

/// Runs what was chosen. Failures are an error when all has been run.
pub fn run(workspace: &Workspace, choice: &Choice) -> Result<()> {
    ensure!(
        choice.source.is_none() || choice.majors.len() == 1,
        "--source is the tree of one version: choose it with --major"
    );
    let commit = commit(workspace)?;
    let chosen = |major: &u32| match choice.majors.as_slice() {
        [] => *major != NEXT,
        majors => majors.contains(major),
    };
    let mut failed = Vec::new();
    for major in MAJORS.into_iter().chain([NEXT]).filter(chosen) {
        if let Err(error) = run_version(major, choice, &commit, &mut failed) {
            println!("PostgreSQL {major}: {error:#}");
            failed.push(format!("PostgreSQL {major}"));
        }
    }
    ensure!(failed.is_empty(), "not everything passed: {}", failed.join(", "));
    Ok(())
}

fn run_version(major: u32, choice: &Choice, commit: &str, failed: &mut Vec<String>) -> Result<()> {
    let wanted: Vec<Suite> = Suite::value_variants()
        .iter()
        .copied()
        .filter(|suite| choice.suites.is_empty() || choice.suites.contains(suite))
        .collect();
    let workspace = Workspace::find()?;
    let page = Page::read(&workspace.root)?;
    let to_run: Vec<Suite> = wanted
        .into_iter()
        .filter(|suite| choice.again || !page.has_passed(major, *suite, commit))
        .collect();
    if to_run.is_empty() {
        println!("PostgreSQL {major}: everything has passed at {commit}");
        return Ok(());
    }
    let server = Server::provide(&workspace, major)?;
    let setup = setup(workspace, &server)?;
    for suite in to_run {
        heading(&format!("PostgreSQL {major}: {suite:?}"));
        let outcome = match suite {
            Suite::Extension => whole(&setup, suites::Suite::Extension)?,
            Suite::Inject => whole(&setup, suites::Suite::Inject)?,
            Suite::Scenarios => scenarios(&setup, &server, commit, &choice.names)?,
            Suite::Upstream => match choice.source.as_ref().or(server.source.as_ref()) {
                Some(tree) => compare(&setup, tree, Expected::AsWritten)?,
                None if major == NEXT => {
                    compare(&setup, &source_before(&setup.workspace)?, Expected::AsWithout)?
                }
                None => Outcome::not_run("its source is not to be had"),
            },
        };
        if outcome.has_failed() {
            failed.push(format!("{suite:?} under PostgreSQL {major}"));
        }
        // Read again: another command may have written it meanwhile.
        let mut page = Page::read(&setup.workspace.root)?;
        page.record(&server, setup.installation.version(), suite, outcome.at(&today()?, commit));
        page.write(&setup.workspace.root)?;
    }
    Ok(())
}

/// Each server has a build of its own.
fn setup(workspace: Workspace, server: &Server) -> Result<Setup> {
    Setup::prepare(workspace.building_in(server.home.join("build")), Some(&server.pg_config))
}

/// What valgrind looks at: a scenario of each way in which a transaction ends and of each kind of
/// statement, errors among them.
const UNDER_VALGRIND: [&str; 15] = [
    "commit::phases::two_writers_prepare",
    "commit::phases::a_failing_deferred_constraint",
    "commit::phases::a_scan_that_writes",
    "commit::explicit::commit_prepared_after_a_crash_of_every_server",
    "commit::explicit::rollback_prepared_from_another_session",
    "cut::statements::each_kind_of_statement_sees_the_whole_after_writing",
    "exec::query::commands_that_no_cursor_runs",
    "fault::prepare::a_prepare_that_lands_after_the_abort",
    "fdw::ahead::both_shards_are_asked",
    "fdw::bulk::values_arrive_as_they_are",
    "fdw::cursors::an_error_in_an_asynchronous_cursor",
    "fdw::subtransactions::a_remote_error_in_a_savepoint",
    "fdw::subtransactions::exception_blocks_of_a_function",
    "fdw::values::domains_enums_arrays_and_composites",
    "fdw::values::large_values",
];

/// Runs scenarios with the coordinator under valgrind: those with these in their names, or those of
/// a short list that have not passed in an earlier run at this commit.
pub fn valgrind(workspace: Workspace, major: u32, names: &[String]) -> Result<()> {
    packages::install(&["valgrind".to_owned()])?;
    let commit = commit(&workspace)?;
    let server = Server::provide(&workspace, major)?;
    let Some(source) = &server.source else {
        bail!("valgrind does not understand a server that was not built for it; take 15 or 18");
    };
    let suppressions = source.join("src/tools/valgrind.supp");
    let setup = setup(workspace, &server)?;
    let journal = Journal::of(&server, "valgrind", &commit);
    let to_run = match names {
        [] => journal.left(&setup.workspace, &UNDER_VALGRIND.map(str::to_owned))?.0,
        names => names.to_vec(),
    };
    if to_run.is_empty() {
        return Ok(());
    }
    suites::valgrind(&setup, &suppressions, &to_run, journal.open()?)
}

fn whole(setup: &Setup, suite: suites::Suite) -> Result<Outcome> {
    let tally = suites::run_whole(setup, suite)?;
    Ok(Outcome::of_tests(tally.passed, tally.failures))
}

/// The scenarios with one of `chosen` in their names, or all, but those that have passed in an
/// earlier run at this commit.
///
/// A scenario that fails beside others is run once more alone, since a busy machine may have
/// exceeded its deadline; the page names it either way.
fn scenarios(setup: &Setup, server: &Server, commit: &str, chosen: &[String]) -> Result<Outcome> {
    let journal = Journal::of(server, "passed", commit);
    let (to_run, others) = journal.left(&setup.workspace, chosen)?;
    let mut failed = match to_run.as_slice() {
        [] => Vec::new(),
        names => suites::run_scenarios(setup, &[], names, journal.open()?)?.failures,
    };
    let mut alone = Vec::new();
    if !failed.is_empty() {
        let again = suites::run_scenarios(setup, &["--test-threads=1"], &failed, journal.open()?)?;
        (failed, alone) = failed.into_iter().partition(|name| again.failures.contains(name));
    }
    // Of the others, what another run at this commit has found stays.
    let page = Page::read(&setup.workspace.root)?;
    let earlier = page.at(server.major, Suite::Scenarios, commit);
    let kept = |names: &[String]| -> Vec<String> {
        names
            .iter()
            .filter(|name| !failed.contains(name) && !alone.contains(name))
            .cloned()
            .collect()
    };
    let (failed_before, alone_before) =
        earlier.map(|outcome| (kept(&outcome.failed), kept(&outcome.alone))).unwrap_or_default();
    let failed_before: Vec<String> =
        failed_before.into_iter().filter(|name| others.contains(name)).collect();
    let left = others.iter().filter(|name| !failed_before.contains(name)).count();
    let mut outcome =
        Outcome::of_tests(journal.passed()?.len() as u64, [failed, failed_before].concat());
    outcome.alone = [alone, alone_before].concat();
    outcome.left = left;
    if left == 0 {
        journal.remove()?;
    }
    Ok(outcome)
}

/// The source of the version before the next one, as the matrix has it.
fn source_before(workspace: &Workspace) -> Result<PathBuf> {
    let directory = workspace.server_files()?.join(format!("matrix/{}/source", NEXT - 1));
    source::fetch(&directory, NEXT - 1, packages::release_with(NEXT - 1), Part::All)
}

/// postgres_fdw's tests as results: one passes if no line differs without a known reason.
fn compare(setup: &Setup, source: &Path, expected: Expected) -> Result<Outcome> {
    let comparisons = upstream::compare(setup, source, expected)?;
    let name = |switched| if switched { "with pg_fdw_xacts" } else { "with postgres_fdw alone" };
    let (passed, failed): (Vec<_>, Vec<_>) =
        comparisons.iter().partition(|comparison| comparison.unexplained() == 0);
    let failures = failed
        .iter()
        .map(|test| format!("{} {}: {} lines", test.test, name(test.switched), test.unexplained()));
    let mut outcome = Outcome::of_tests(passed.len() as u64, failures.collect());
    outcome.differences = comparisons
        .iter()
        .filter(|comparison| comparison.switched)
        .map(|comparison| Difference {
            test: comparison.test.clone(),
            lines: comparison.lines,
            differing: comparison.differing,
            reasons: comparison
                .reasons
                .iter()
                .map(|(reason, lines)| ((*reason).to_owned(), *lines))
                .collect(),
        })
        .collect();
    Ok(outcome)
}

/// The last commit of what is tested, with a plus sign where it has been changed since.
pub fn commit(workspace: &Workspace) -> Result<String> {
    commit_of(workspace, &TESTED)
}

/// The last commit of what is at `paths`, with a plus sign where it has been changed since.
pub fn commit_of(workspace: &Workspace, paths: &[&str]) -> Result<String> {
    let git = |arguments: &[&str]| {
        let mut command = Command::new("git");
        finish(command.current_dir(&workspace.root).args(arguments).arg("--").args(paths))
    };
    let commit = git(&["log", "-1", "--format=%h"])?.trim().to_owned();
    if commit.is_empty() {
        bail!("{} is no clone with a history", workspace.root.display());
    }
    let changed = !git(&["status", "--porcelain"])?.is_empty();
    Ok(if changed { format!("{commit}+") } else { commit })
}

/// The day.
pub fn today() -> Result<String> {
    let date = finish(Command::new("date").args(["-u", "+%F"])).context("the date")?;
    Ok(date.trim().to_owned())
}
