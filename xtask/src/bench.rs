//! `cargo xtask bench`: builds the extension as users do, then runs the benchmark.

use std::path::Path;

use anyhow::Result;
use pg_test::install::{DIRECTORY_VARIABLE, PG_CONFIG_VARIABLE};
use pg_test::pooler::PGBOUNCER_VARIABLE;

use crate::setup::Setup;
use crate::suites::{check, heading};
use crate::{clients, packages};

/// What is to be measured.
pub struct Choice<'a> {
    /// Short slices.
    pub quick: bool,
    /// What grows with what, instead of the measures against others.
    pub growth: bool,
    /// These measures; empty: all of them.
    pub only: &'a [String],
}

/// Measures, and writes the report into `output`, or into `bench/`.
pub fn run(setup: &Setup, choice: &Choice, output: Option<&Path>) -> Result<()> {
    let Choice { quick, growth, only } = *choice;
    if packages::debian_postgresql().is_some() {
        let program = if growth { "pgbouncer" } else { "valgrind" };
        packages::install(&[program.to_owned()])?;
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
        .args(quick.then_some("--quick"))
        .args(growth.then_some("--growth"));
    if growth && let Some(program) = clients::pgbouncer() {
        command.env(PGBOUNCER_VARIABLE, program);
    }
    if !only.is_empty() {
        command.arg("--only").args(only);
    }
    check(&mut command)
}
