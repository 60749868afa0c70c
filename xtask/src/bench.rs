//! `cargo xtask bench`: builds the extension as users do, then runs the benchmark.

use std::path::Path;

use anyhow::Result;
use pg_test::install::{DIRECTORY_VARIABLE, PG_CONFIG_VARIABLE};
use pg_test::pooler::PGBOUNCER_VARIABLE;

use crate::setup::Setup;
use crate::suites::{check, heading};
use crate::{clients, packages};

/// What is to be measured.
pub struct Choice {
    /// Short slices.
    pub quick: bool,
    /// What grows with what, instead of the measures against others.
    pub growth: bool,
    /// These parts, of either; empty: all of one.
    pub only: Vec<String>,
    /// Not what is kept of this commit.
    pub resume: bool,
    /// Nothing: the reports are written from what is kept.
    pub render: bool,
}

impl Choice {
    fn takes(&self, part: &str, is_of_growth: bool) -> bool {
        match self.only.as_slice() {
            [] => self.growth == is_of_growth,
            names => names.iter().any(|name| name == part),
        }
    }
}

/// Measures, and writes reports and results into `output`, or into `bench/`. What was measured in
/// haste goes into `target/bench`: it is not to replace anything.
pub fn run(setup: &Setup, choice: &Choice, output: Option<&Path>) -> Result<()> {
    let root = &setup.workspace.root;
    let usual = if choice.quick { root.join("target/bench") } else { root.join("bench") };
    let mut command = setup.workspace.cargo();
    command
        .env(PG_CONFIG_VARIABLE, setup.installation.pg_config())
        .env(DIRECTORY_VARIABLE, setup.server_files.join("pg_test"))
        .args(["run", "--release", "-p", "bench", "--", "--output"])
        .arg(output.unwrap_or(&usual));
    for (option, is_set) in [
        ("--quick", choice.quick),
        ("--growth", choice.growth),
        ("--resume", choice.resume),
        ("--render", choice.render),
    ] {
        command.args(is_set.then_some(option));
    }
    if !choice.only.is_empty() {
        command.arg("--only").args(&choice.only);
    }
    if !choice.render {
        let programs =
            [("instructions", false, "valgrind"), ("idle", true, "pgbouncer")].into_iter();
        let needed = programs.filter(|(part, growth, _)| choice.takes(part, *growth));
        let needed: Vec<String> = needed.map(|(.., program)| program.to_owned()).collect();
        if packages::debian_postgresql().is_some() {
            packages::install(&needed)?;
        }
        if let Some(program) = clients::pgbouncer() {
            command.env(PGBOUNCER_VARIABLE, program);
        }
        heading("installing the extension, optimised");
        setup.install_released_extension()?;
    }
    heading("the benchmark");
    check(&mut command)
}
