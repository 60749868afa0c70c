//! The package of the version before this one, built from the repository's history: what users
//! upgrade from.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use pg_test::install::finish;

use super::Deb;
use crate::workspace::{EXTENSION, Workspace};

/// Builds it for PostgreSQL `major`, with the headers that `pg_config` names. `None` if the
/// repository does not have that version, as in a clone without its history.
pub fn build(directory: &Path, pg_config: &Path, major: u32) -> Result<Option<Deb>> {
    let root = Workspace::find()?.root;
    let version = version(&root)?;
    let Some(commit) = last_commit(&root, &version)? else {
        println!("this clone has no sources of {version}: the upgrade from it is not tried");
        return Ok(None);
    };
    let sources = sources(&root, &directory.join(format!("sources-{version}")), &commit)?;
    let workspace = Workspace::at(&sources)?;
    super::build(workspace, directory, pg_config, major, &version).map(Some)
}

/// The version whose objects are in `sql/previous`.
fn version(root: &Path) -> Result<String> {
    let directory = root.join("sql/previous");
    let prefix = format!("{EXTENSION}--");
    std::fs::read_dir(&directory)?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .find_map(|name| Some(name.strip_prefix(&prefix)?.strip_suffix(".sql")?.to_owned()))
        .with_context(|| format!("no version in {}", directory.display()))
}

/// The commit that was released as `version`: its tag, or the last one with that version in
/// Cargo.toml.
fn last_commit(root: &Path, version: &str) -> Result<Option<String>> {
    let git = |arguments: &[&str]| -> Result<String> {
        let mut git = Command::new("git");
        Ok(finish(git.current_dir(root).args(arguments))?.trim().to_owned())
    };
    let commit =
        |name: &str| git(&["rev-parse", "--verify", "--quiet", &format!("{name}^{{commit}}")]);
    if let Ok(tagged) = commit(&format!("v{version}")) {
        return Ok(Some(tagged));
    }
    // The newest change of the number of such lines is where the next version began.
    let line = format!("-Sversion = \"{version}\"");
    let next = git(&["log", "-1", "--format=%H", &line, "--", "Cargo.toml"])?;
    Ok(if next.is_empty() { None } else { commit(&format!("{next}^")).ok() })
}

/// The sources of `commit`, in `directory`.
fn sources(root: &Path, directory: &Path, commit: &str) -> Result<PathBuf> {
    let complete = directory.join("complete");
    if std::fs::read_to_string(&complete).is_ok_and(|before| before == commit) {
        return Ok(directory.to_owned());
    }
    if directory.exists() {
        std::fs::remove_dir_all(directory)?;
    }
    std::fs::create_dir_all(directory)?;
    let archive = directory.join("sources.tar");
    let mut git = Command::new("git");
    git.current_dir(root).args(["archive", "--format=tar", "-o"]).arg(&archive).arg(commit);
    finish(&mut git)?;
    finish(Command::new("tar").arg("-C").arg(directory).arg("-xf").arg(&archive))?;
    std::fs::remove_file(archive)?;
    std::fs::write(&complete, commit)?;
    Ok(directory.to_owned())
}
