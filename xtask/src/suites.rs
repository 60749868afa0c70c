//! `cargo xtask test`: the checks and test suites in order, up to the first that fails. And
//! `cargo xtask check`, the part of it that needs no server.

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::available_parallelism;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use nix::sys::statvfs::statvfs;
use nix::unistd::Uid;
use pg_test::install::{DIRECTORY_VARIABLE, HOMES_VARIABLE, PG_CONFIG_VARIABLE, ServerUser};
use pg_test::valgrind::SUPPRESSIONS_VARIABLE;

use crate::clients::{self, Clients};
use crate::matrix::unpacked;
use crate::names::{self, Test};
use crate::pgrx::{cargo_stand_in, sudo_stand_in};
use crate::setup::Setup;
use crate::workspace::{EXTENSION, Workspace};

mod failures;
mod tally;

pub use tally::Tally;
pub(crate) use tally::{check, heading};
use tally::{finish, test};

/// A part of the tests that can be run alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Suite {
    /// Formatting, clippy, rustdoc
    Checks,
    /// Unit tests of the tools, among them the arrows between rooms; the model
    Unit,
    /// Unit tests of the extension, and its #[pg_test]s in one server
    Extension,
    /// Faults inside the extension, built with its feature `inject`
    Inject,
    /// Scenarios on real clusters
    Scenarios,
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value();
        f.pad(value.as_ref().map_or("", |value| value.get_name()))
    }
}

/// What to run.
pub struct Selection {
    suites: Vec<Suite>,
    filter: Option<String>,
    /// The tests with the filter in their names.
    tests: Vec<Test>,
}

impl Selection {
    /// The suites in `only`, or all of them; with a `filter`, those that have a test of that name.
    ///
    /// The error says that there is none, or where it is.
    pub fn new(root: &Path, filter: Option<String>, only: &[Suite]) -> Result<Self> {
        let tests = match &filter {
            Some(filter) => names::matching(root, filter, only)?,
            None => Vec::new(),
        };
        let suites = Suite::value_variants()
            .iter()
            .copied()
            .filter(|suite| match (&filter, only) {
                (None, []) => true,
                (None, only) => only.contains(suite),
                (Some(_), _) => tests.iter().any(|test| test.suite == *suite),
            })
            .collect();
        Ok(Self { suites, filter, tests })
    }

    fn filter(&self) -> Option<&str> {
        self.filter.as_deref()
    }

    /// An error if tests were named and `cargo test` did not know any of them.
    fn has_run(&self, tally: &Tally) -> Result<()> {
        match self.tests.first() {
            Some(test) if tally.passed + tally.failed == 0 => bail!(
                "no test ran: the `mod` line for {} is missing, or the test is left out by #[ignore] or \
                 #[cfg]",
                test.file.display()
            ),
            _ => Ok(()),
        }
    }

    /// Whether any test to run has a property: of a named test, or of any in its suite.
    fn any(&self, has: impl Fn(&Test) -> bool) -> bool {
        self.filter.is_none() || self.tests.iter().any(has)
    }
}

/// Lists all tests, each with its suite.
pub fn list(root: &Path) -> Result<()> {
    for test in names::all(root)? {
        println!("{:<10} {}", test.suite, test.name);
    }
    Ok(())
}

/// Runs the suites selected. The last line says how many tests passed and failed.
pub fn run(setup: &Setup, selection: &Selection) -> Result<()> {
    if let Some(filter) = selection.filter() {
        let suites: Vec<String> = selection.suites.iter().map(Suite::to_string).collect();
        println!(
            "{} tests have \"{filter}\" in their names, in: {}",
            selection.tests.len(),
            suites.join(", ")
        );
    }
    let mut tally = Tally::default();
    let outcome = selection
        .suites
        .iter()
        .try_for_each(|suite| run_suite(setup, selection, *suite, &mut tally));
    finish(&tally, outcome.and_then(|()| selection.has_run(&tally)))
}

/// Runs the whole of one suite. An error says that no test could be run.
pub fn run_whole(setup: &Setup, suite: Suite) -> Result<Tally> {
    let selection = Selection { suites: vec![suite], filter: None, tests: Vec::new() };
    let mut tally = Tally::default();
    let outcome = run_suite(setup, &selection, suite, &mut tally);
    tally.of_tests(outcome)
}

/// Runs some tests of the scenarios: `arguments` are the test program's, before the names. The name
/// of each that passes is added to `journal` at once.
pub fn run_scenarios(
    setup: &Setup,
    arguments: &[&str],
    names: &[String],
    journal: File,
) -> Result<Tally> {
    let clients = Clients::provide(&setup.workspace)?;
    clients::provide_network();
    let names = names.iter().map(|name| &**name);
    let arguments: Vec<&str> = arguments.iter().copied().chain(["--exact"]).chain(names).collect();
    let mut tally = Tally { journal: Some(journal), ..Tally::default() };
    let outcome = clusters(setup, "scenarios", &[], &clients.variables(), &arguments, &mut tally);
    tally.of_tests(outcome)
}

fn run_suite(setup: &Setup, selection: &Selection, suite: Suite, tally: &mut Tally) -> Result<()> {
    let filter = selection.filter();
    match suite {
        Suite::Checks => checks(setup),
        Suite::Unit => unit(setup, filter, tally),
        Suite::Extension if selection.any(Test::is_in_server) => extension(setup, filter, tally),
        Suite::Extension => extension_units(setup, filter, tally),
        Suite::Inject => clusters(setup, "inject", &["inject"], &[], filter.as_slice(), tally),
        Suite::Scenarios => {
            let clients = if selection.any(Clients::are_used_by) {
                heading("the clients of the scenarios");
                Some(Clients::provide(&setup.workspace)?)
            } else {
                None
            };
            if selection.any(clients::has_hosts) {
                clients::provide_network();
            }
            let variables = clients.as_ref().map(Clients::variables);
            let variables = variables.as_ref().map_or(&[][..], |variables| variables);
            clusters(setup, "scenarios", &[], variables, filter.as_slice(), tally)
        }
    }
}

/// `cargo xtask check`: what can be told without a server.
pub fn run_check(setup: &Setup) -> Result<()> {
    let begin = Instant::now();
    let mut tally = Tally::default();
    let outcome = formatting(setup)
        .and_then(|()| clippy(setup))
        .and_then(|()| unit(setup, None, &mut tally))
        .and_then(|()| extension_units(setup, None, &mut tally));
    println!("\n{} s", begin.elapsed().as_secs());
    finish(&tally, outcome)
}

fn checks(setup: &Setup) -> Result<()> {
    formatting(setup)?;
    clippy(setup)?;
    heading("cargo doc");
    both_parts(setup, "doc").into_iter().try_for_each(|mut doc| {
        doc.args(["--no-deps", "--document-private-items"]);
        check(doc.env("RUSTDOCFLAGS", "-D warnings"))
    })
}

fn formatting(setup: &Setup) -> Result<()> {
    heading("cargo fmt --check");
    check(setup.workspace.cargo().args(["fmt", "--all", "--check"]))
}

fn clippy(setup: &Setup) -> Result<()> {
    heading("cargo clippy");
    both_parts(setup, "clippy")
        .into_iter()
        .try_for_each(|mut clippy| check(clippy.args(["--all-targets", "--", "-D", "warnings"])))
}

/// Selects all that belongs to the extension's tests but the extension. Cargo enables the features
/// of dependencies that any of the packages selected wants, and builds a dependency again for other
/// features; so tests are always built with the same selection.
const TOOLS: [&str; 10] =
    ["-p", "xtask", "-p", "pg_test", "-p", "bench", "-p", "render-docs", "-p", "dashboard"];

/// The same for what is checked without servers.
const MODELS: [&str; 4] = ["-p", "model", "-p", "fuzz"];

/// A command of cargo for the workspace in two parts: the extension, for the server's version, with
/// the features of its dependencies with which it is installed for tests; and all other packages.
fn both_parts(setup: &Setup, subcommand: &str) -> [Command; 2] {
    let mut others = setup.workspace.cargo();
    others.args([subcommand, "--workspace", "--exclude", EXTENSION]);
    let mut extension = setup.workspace.cargo_for_extension(subcommand);
    extension.args(["--features", &setup.test_features(&[])]);
    [others, extension]
}

fn unit(setup: &Setup, filter: Option<&str>, tally: &mut Tally) -> Result<()> {
    heading("unit tests of the tools");
    let mut command = setup.workspace.cargo();
    command.arg("test").args(TOOLS).args(["--lib", "--bins"]).args(filter);
    test(&mut command, tally)?;
    heading("the model");
    let mut command = setup.workspace.cargo();
    command.arg("test").args(MODELS).args(["--test", "model", "--"]).args(filter);
    test(&mut command, tally)?;
    heading("the corpora");
    let mut command = setup.workspace.cargo();
    command.arg("test").args(MODELS).args(["--test", "corpora", "--"]).args(filter);
    test(&mut command, tally)
}

/// Those of the extension's tests that need no server. They are built as `cargo pgrx test` builds
/// them, so that nothing is built twice.
fn extension_units(setup: &Setup, filter: Option<&str>, tally: &mut Tally) -> Result<()> {
    heading("unit tests of the extension");
    let features = setup.test_features(&["pg_test"]);
    let mut command = setup.workspace.cargo_for_extension("test");
    command.envs(unpacked::runner(setup.installation.pg_config())?);
    // pgrx begins the names of tests in a server so.
    command.args(["--lib", "--features", &features, "--", "--skip", "::pg_"]).args(filter);
    test(&mut command, tally)
}

fn extension(setup: &Setup, filter: Option<&str>, tally: &mut Tally) -> Result<()> {
    heading("unit tests of the extension, and its tests in one server");
    let mut command = setup.pgrx.command(&setup.workspace);
    command.args(["test", &setup.feature(), "--no-default-features"]);
    command.args(["--features", &setup.test_features(&[])]);
    command.envs(cargo_stand_in(&setup.workspace)?.map(|cargo| ("CARGO", cargo)));
    command.envs(unpacked::runner(setup.installation.pg_config())?);
    // The server's socket lies there, and the path of a socket has to be short.
    let data = tempdir_under_tmp()?;
    command.arg("--pgdata").arg(data.path());
    match ServerUser::when_root()? {
        Some(user) => {
            let owner = (Some(user.uid.as_raw()), Some(user.gid.as_raw()));
            std::os::unix::fs::chown(data.path(), owner.0, owner.1)?;
            command.args(["--runas", ServerUser::NAME]);
            if let Some(directory) = sudo_stand_in(&setup.workspace)? {
                let path = std::env::var_os("PATH").unwrap_or_default();
                let directories = std::iter::once(directory).chain(std::env::split_paths(&path));
                command.env("PATH", std::env::join_paths(directories)?);
            }
        }
        None => {
            // pgrx connects as $USER and stops where that is not set.
            let user = nix::unistd::User::from_uid(nix::unistd::Uid::effective())?;
            command.env("USER", user.context("this user has no name")?.name);
        }
    }
    test(command.args(filter), tally)
}

/// Runs the tests on real clusters in `pg_test/tests/<name>`, with the extension built with
/// `features`. `variables` and `arguments` are the test program's.
fn clusters(
    setup: &Setup,
    name: &str,
    features: &[&str],
    variables: &[(&str, &Path)],
    arguments: &[&str],
    tally: &mut Tally,
) -> Result<()> {
    heading(&format!("installing the extension for {name}"));
    setup.install_extension(features)?;
    heading(&format!("{name} on real clusters"));
    let mut command = setup.workspace.cargo();
    command
        .env(PG_CONFIG_VARIABLE, setup.installation.pg_config())
        .env(DIRECTORY_VARIABLE, setup.server_files.join("pg_test"))
        .envs(in_memory().map(|homes| (HOMES_VARIABLE, homes)))
        .envs(variables.iter().copied())
        // Much of the time a test only waits for its servers.
        .env("RUST_TEST_THREADS", (available_parallelism()?.get() + 1).to_string())
        .arg("test")
        .args(TOOLS)
        .args(["--test", name, "--"])
        .args(arguments);
    test(&mut command, tally)
}

/// A directory in memory, if there is room for the servers of some tests. A test makes thousands of
/// files and removes them again, which on a disk takes most of the processor time of all tests.
fn in_memory() -> Option<PathBuf> {
    const ROOM: u64 = 4 << 30;
    let memory = Path::new("/dev/shm");
    let room = statvfs(memory).ok()?;
    let enough = room.blocks_available() as u64 * room.fragment_size() as u64 >= ROOM;
    enough.then(|| memory.join(format!("pg_fdw_xacts-{}", Uid::effective())))
}

/// Runs the scenarios with these in their names, one after another, with the coordinator under
/// valgrind. It takes so long that what fails is shown at once, and the name of each that passes is
/// added to `journal`.
pub fn valgrind(setup: &Setup, suppressions: &Path, names: &[String], journal: File) -> Result<()> {
    let variables = [(SUPPRESSIONS_VARIABLE, suppressions)];
    let arguments: Vec<&str> = ["--test-threads=1", "--nocapture"]
        .into_iter()
        .chain(names.iter().map(|name| &**name))
        .collect();
    let mut tally = Tally { journal: Some(journal), ..Tally::default() };
    let outcome = clusters(setup, "scenarios", &[], &variables, &arguments, &mut tally);
    finish(&tally, outcome)
}

/// Runs the bank for `seconds`.
pub fn torture(
    setup: &Setup,
    seconds: u64,
    seed: Option<u64>,
    history: bool,
    inconsistent: bool,
) -> Result<()> {
    heading("installing the extension");
    setup.install_extension(&[])?;
    heading("the bank");
    let mut command = setup.workspace.cargo();
    command
        .env(PG_CONFIG_VARIABLE, setup.installation.pg_config())
        .env(DIRECTORY_VARIABLE, setup.server_files.join("pg_test"))
        .args(["run", "-p", "pg_test", "--bin", "torture", "--", &seconds.to_string()])
        .args(seed.map(|seed| seed.to_string()))
        .args(history.then_some("history"))
        .args(inconsistent.then_some("off"));
    check(&mut command)
}

/// Checks the model, with the arguments of its own program.
pub fn model(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    let mut command = workspace.cargo();
    check(command.args(["run", "--quiet", "-p", "model", "--"]).args(arguments))
}

fn tempdir_under_tmp() -> Result<tempfile::TempDir> {
    tempfile::Builder::new().prefix("pgrx-").tempdir_in("/tmp").context("cannot write to /tmp")
}
