//! The extension for a version of PostgreSQL that the pinned cargo-pgrx does not know: cargo builds
//! the library, and the SQL objects are those of this machine's own server. They are the same for
//! every version but for `pg_fdw_xacts_get_connections()`, which fails if that server is older than
//! 18.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use pg_test::Installation;
use pg_test::install::finish;

use crate::setup::Setup;
use crate::suites::check;
use crate::workspace::{EXTENSION, Workspace};

/// Builds the extension with some of its own features, and installs it into `installation`.
pub fn install(
    workspace: &Workspace,
    installation: &Installation,
    features: &[&str],
) -> Result<()> {
    let own = Setup::prepare(Workspace::find()?, None)?;
    own.install_extension(features)?;
    let objects = directory(&own.installation, "--sharedir")?.join("extension");
    let there = directory(installation, "--sharedir")?.join("extension");
    for entry in std::fs::read_dir(&objects).with_context(|| objects.display().to_string())? {
        let name = entry?.file_name();
        if name.to_string_lossy().starts_with(EXTENSION) {
            copy(&objects.join(&name), &there.join(&name))?;
        }
    }
    let version = format!("pg{}", installation.major());
    let mut build = workspace.cargo();
    build.args(["build", "--package", EXTENSION, "--lib", "--no-default-features"]);
    build.args(["--features", &[&[&*version], features].concat().join(",")]);
    // The pgrx that has bindings of it asks for a newer Rust than it uses.
    check(build.arg("--ignore-rust-version"))?;
    let library = workspace.output().join(format!("debug/lib{EXTENSION}.so"));
    copy(&library, &directory(installation, "--pkglibdir")?.join(format!("{EXTENSION}.so")))
}

/// What the installation's `pg_config` answers.
fn directory(installation: &Installation, option: &str) -> Result<PathBuf> {
    Ok(finish(Command::new(installation.pg_config()).arg(option))?.trim().into())
}

/// A new file, because a server may have mapped the one before.
fn copy(from: &Path, to: &Path) -> Result<()> {
    if to.exists() {
        std::fs::remove_file(to)?;
    }
    std::fs::copy(from, to).with_context(|| format!("{} to {}", from.display(), to.display()))?;
    Ok(())
}
