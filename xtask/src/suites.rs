//! `cargo xtask test`: the checks and test suites in order, up to the first that fails.

use std::io::{BufRead, BufReader};
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use pg_test::install::{DIRECTORY_VARIABLE, PG_CONFIG_VARIABLE, ServerUser};

use crate::clients::Clients;
use crate::pgrx::sudo_stand_in;
use crate::setup::Setup;

/// A part of the tests that can be run alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Suite {
    /// Formatting, clippy, rustdoc
    Checks,
    /// Unit tests of the tools
    Unit,
    /// Unit tests of the extension and its #[pg_test]s, in one server
    Extension,
    /// Faults inside the extension, built with its feature `inject`
    Inject,
    /// Scenarios on real clusters
    Scenarios,
}

/// Numbers of tests so far.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: u64,
    failed: u64,
}

/// Runs the suites in `only`, or all of them; with a `filter` the checks are left out, unless asked for.
/// The last line says how many tests passed and failed.
pub fn run(setup: &Setup, filter: Option<&str>, only: &[Suite]) -> Result<()> {
    let mut tally = Tally::default();
    let outcome = Suite::value_variants()
        .iter()
        .filter(|suite| match only {
            [] => filter.is_none() || **suite != Suite::Checks,
            only => only.contains(suite),
        })
        .try_for_each(|suite| match suite {
            Suite::Checks => checks(setup),
            Suite::Unit => unit(setup, filter, &mut tally),
            Suite::Extension => extension(setup, filter, &mut tally),
            Suite::Inject => clusters(setup, "inject", &["inject"], None, filter, &mut tally),
            Suite::Scenarios => {
                heading("the clients of the scenarios");
                let clients = Clients::provide(&setup.workspace)?;
                clusters(setup, "scenarios", &[], Some(&clients), filter, &mut tally)
            }
        });
    if let Err(error) = &outcome {
        eprintln!("error: {error:#}");
    }
    println!("\n{} passed, {} failed", tally.passed, tally.failed);
    outcome.map_err(|_| anyhow::anyhow!("not everything passed"))
}

fn checks(setup: &Setup) -> Result<()> {
    heading("cargo fmt --check");
    check(setup.workspace.cargo().args(["fmt", "--all", "--check"]))?;
    let feature = format!("{}/{}", crate::workspace::EXTENSION, setup.feature());
    let selection = ["--workspace", "--no-default-features", "--features", &feature];
    heading("cargo clippy");
    let mut clippy = setup.workspace.cargo();
    clippy.arg("clippy").args(selection).args(["--all-targets", "--", "-D", "warnings"]);
    check(&mut clippy)?;
    heading("cargo doc");
    let mut doc = setup.workspace.cargo();
    doc.arg("doc").args(selection).args(["--no-deps", "--document-private-items"]);
    check(doc.env("RUSTDOCFLAGS", "-D warnings"))
}

fn unit(setup: &Setup, filter: Option<&str>, tally: &mut Tally) -> Result<()> {
    heading("unit tests of the tools");
    let mut command = setup.workspace.cargo();
    command
        .args(["test", "-p", "xtask", "-p", "pg_test", "-p", "bench", "-p", "render-docs"])
        .args(["--lib", "--bins"])
        .args(filter);
    test(&mut command, tally)
}

fn extension(setup: &Setup, filter: Option<&str>, tally: &mut Tally) -> Result<()> {
    heading("unit tests of the extension, and its tests in one server");
    let mut command = setup.pgrx.command(&setup.workspace);
    command.args(["test", &setup.feature(), "--no-default-features"]);
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

/// Runs the tests on real clusters in `pg_test/tests/<name>`, with the extension built with `features`, and with
/// other people's `clients` where there are tests of them.
fn clusters(
    setup: &Setup,
    name: &str,
    features: &[&str],
    clients: Option<&Clients>,
    filter: Option<&str>,
    tally: &mut Tally,
) -> Result<()> {
    heading(&format!("installing the extension for {name}"));
    setup.install_extension(features)?;
    heading(&format!("{name} on real clusters"));
    let mut command = setup.workspace.cargo();
    command
        .env(PG_CONFIG_VARIABLE, setup.installation.pg_config())
        .env(DIRECTORY_VARIABLE, setup.server_files.join("pg_test"))
        .envs(clients.into_iter().flat_map(Clients::variables))
        .args(["test", "-p", "pg_test", "--test", name, "--"])
        .args(filter);
    test(&mut command, tally)
}

/// Runs the bank for `seconds`.
pub fn torture(setup: &Setup, seconds: u64, seed: Option<u64>) -> Result<()> {
    heading("installing the extension");
    setup.install_extension(&[])?;
    heading("the bank");
    let mut command = setup.workspace.cargo();
    command
        .env(PG_CONFIG_VARIABLE, setup.installation.pg_config())
        .env(DIRECTORY_VARIABLE, setup.server_files.join("pg_test"))
        .args(["run", "-p", "pg_test", "--bin", "torture", "--", &seconds.to_string()])
        .args(seed.map(|seed| seed.to_string()));
    check(&mut command)
}

fn tempdir_under_tmp() -> Result<tempfile::TempDir> {
    tempfile::Builder::new().prefix("pgrx-").tempdir_in("/tmp").context("cannot write to /tmp")
}

pub(crate) fn heading(text: &str) {
    println!("\n==== {text}");
}

pub(crate) fn check(command: &mut Command) -> Result<()> {
    let status = command.stdin(Stdio::null()).status()?;
    succeeded(command, status)
}

/// Runs a cargo test, passes its output on and adds its results to `tally`.
fn test(command: &mut Command, tally: &mut Tally) -> Result<()> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let output = child.stdout.take().context("stdout is piped")?;
    for line in BufReader::new(output).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        tally.add(&line);
    }
    let status = child.wait()?;
    succeeded(command, status)
}

fn succeeded(command: &Command, status: ExitStatus) -> Result<()> {
    if !status.success() {
        let arguments: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
        bail!("cargo {}: {status}", arguments.join(" "));
    }
    Ok(())
}

impl Tally {
    /// Adds "test result: ok. 3 passed; 1 failed; …"; any other line counts nothing.
    fn add(&mut self, line: &str) {
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
        assert_eq!(tally, Tally { passed: 14, failed: 6 });
    }
}
