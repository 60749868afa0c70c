//! `cargo xtask bench`: builds the extension as users do, then runs the benchmark.

use std::path::Path;

use anyhow::Result;
use pg_test::install::{DIRECTORY_VARIABLE, PG_CONFIG_VARIABLE};

use crate::packages;
use crate::setup::Setup;
use crate::suites::{check, heading};

/// Takes the measures in `only`, or all of them, and writes the report into `output`, or into
/// `bench/`.
pub fn run(setup: &Setup, quick: bool, only: &[String], output: Option<&Path>) -> Result<()> {
    if packages::debian_postgresql().is_some() {
        packages::install(&["valgrind".to_owned()])?;
    }
    heading("installing the extension, optimised");
    setup.install_released_extension()?;
    heading("the benchmark");
    let mut command = setup.workspace.cargo();
    command
        .env(PG_CONFIG_VARIABLE, setup.installation.pg_config())
        .env(DIRECTORY_VARIABLE, setup.server_files.join("pg_test"))
        .args(["run", "--release", "-p", "bench", "--", "--output"])
        .arg(output.unwrap_or(&setup.workspace.root.join("bench")))
        .args(quick.then_some("--quick"));
    if !only.is_empty() {
        command.arg("--only").args(only);
    }
    check(&mut command)
}
