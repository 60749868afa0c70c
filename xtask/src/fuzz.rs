//! `cargo xtask fuzz`: the targets of the crate `fuzz`, and rounds with a hostile shard.

use anyhow::{Result, bail};
use pg_test::install::{DIRECTORY_VARIABLE, PG_CONFIG_VARIABLE};

use crate::setup::Setup;
use crate::suites::{check, heading};
use crate::workspace::Workspace;

/// Runs one target, or all of them, for so long.
pub fn run(_workspace: &Workspace, target: Option<&str>, _seconds: u64) -> Result<()> {
    bail!("no target {target:?}")
}

/// Runs rounds with a hostile shard.
pub fn shard(setup: &Setup, seconds: u64, seed: u64, one: bool, lying: bool) -> Result<()> {
    heading("installing the extension");
    setup.install_extension(&[])?;
    heading("a hostile shard");
    let mut command = setup.workspace.cargo();
    command
        .env(PG_CONFIG_VARIABLE, setup.installation.pg_config())
        .env(DIRECTORY_VARIABLE, setup.server_files.join("pg_test"))
        .args(["run", "-p", "pg_test", "--bin", "hostile", "--"])
        .args([seconds.to_string(), seed.to_string()])
        .args(one.then_some("one"))
        .args(lying.then_some("lying"));
    check(&mut command)
}
