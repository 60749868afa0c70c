//! Which scenarios have passed under a version at a commit, so that a run that was interrupted goes
//! on where it was.

use std::fs::File;
use std::io::ErrorKind;
use std::path::PathBuf;

use anyhow::Result;

use super::server::Server;
use crate::names;
use crate::suites::Suite;
use crate::workspace::Workspace;

/// A file with a name in each line.
pub struct Journal(PathBuf);

impl Journal {
    /// Of what is run in this way, at `commit`.
    pub fn of(server: &Server, way: &str, commit: &str) -> Self {
        Self(server.home.join(format!("{way}-at-{commit}")))
    }

    /// To add the names of those that pass.
    pub fn open(&self) -> Result<File> {
        Ok(File::options().create(true).append(true).open(&self.0)?)
    }

    /// The names in it.
    pub fn passed(&self) -> Result<Vec<String>> {
        match std::fs::read_to_string(&self.0) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            text => Ok(text?.lines().map(str::to_owned).collect()),
        }
    }

    /// The scenarios that are not in it: those with one of `chosen` in their names, or all, and the
    /// others.
    pub fn left(
        &self,
        workspace: &Workspace,
        chosen: &[String],
    ) -> Result<(Vec<String>, Vec<String>)> {
        let passed = self.passed()?;
        let left: (Vec<_>, Vec<_>) = names::all(&workspace.root)?
            .into_iter()
            .filter(|test| test.suite == Suite::Scenarios && !passed.contains(&test.name))
            .map(|test| test.name)
            .partition(|name| chosen.is_empty() || chosen.iter().any(|part| name.contains(part)));
        println!("{} have passed, {} are run", passed.len(), left.0.len());
        Ok(left)
    }

    /// All have passed, and the next run is of all.
    pub fn remove(self) -> Result<()> {
        Ok(std::fs::remove_file(self.0)?)
    }
}
