//! Everything that has to be there before the extension can be built and run. What is there already
//! is left alone, so a second run starts at once.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use pg_test::Installation;

use crate::matrix::NEXT;
use crate::pgrx::CargoPgrx;
use crate::workspace::Workspace;
use crate::{packages, server};

/// A machine on which the extension can be built and run.
pub struct Setup {
    /// The workspace.
    pub workspace: Workspace,
    /// The PostgreSQL to build for and to run.
    pub installation: Installation,
    /// cargo-pgrx.
    pub pgrx: CargoPgrx,
    /// The directory for files that server processes have to reach.
    pub server_files: PathBuf,
}

impl Setup {
    /// Installs what is missing. `pg_config` names the installation to use; without it, a copy of
    /// Debian's is used.
    pub fn prepare(workspace: Workspace, pg_config: Option<&Path>) -> Result<Self> {
        let debian = packages::debian_postgresql();
        let installation = match (pg_config, debian) {
            (Some(path), _) => {
                if debian.is_some() {
                    packages::install_missing(None)?;
                }
                let path = path.canonicalize().with_context(|| path.display().to_string())?;
                Some(Installation::from_pg_config(&path)?)
            }
            (None, Some(major)) => {
                packages::install_missing(Some(major))?;
                None
            }
            (None, None) => bail!(
                "only Debian 12 and 13 are set up automatically. Elsewhere install PostgreSQL 15 to 18 with its \
                 server headers, libpq's headers, libclang, OpenSSL's headers and pkg-config, then name the \
                 server: --pg-config PATH"
            ),
        };
        // After the packages, because they bring the user `postgres`, who has to reach the
        // directory.
        let server_files = workspace.server_files()?;
        let installation = match (installation, debian) {
            (Some(installation), _) => installation,
            (None, major) => server::private_copy(&server_files, major.unwrap_or_default())?,
        };
        let workspace = workspace.for_version(installation.major())?;
        let pgrx = CargoPgrx::provide(&workspace)?;
        pgrx.configure(&workspace, &installation)?;
        Ok(Self { workspace, installation, pgrx, server_files })
    }

    /// Builds the extension, with some of its own features, and installs it where the servers find
    /// it.
    pub fn install_extension(&self, features: &[&str]) -> Result<()> {
        let features = self.test_features(features);
        self.pgrx.install(&self.workspace, &self.installation, &features, false)
    }

    /// Builds the extension as users do, optimised, and installs it where the servers find it.
    pub fn install_released_extension(&self) -> Result<()> {
        self.pgrx.install(&self.workspace, &self.installation, &self.feature(), true)
    }

    /// The cargo feature for the server's version, for example `pg15`.
    pub fn feature(&self) -> String {
        format!("pg{}", self.installation.major())
    }

    /// The cargo features for a build of the extension that shares its dependencies with the other
    /// builds of a test run, and some of its own. For the next version it is a package of its own,
    /// and shares nothing.
    pub fn test_features(&self, own: &[&str]) -> String {
        let version = self.feature();
        let tests = (self.installation.major() < NEXT).then_some("tests");
        let all: Vec<&str> =
            std::iter::once(&*version).chain(tests).chain(own.iter().copied()).collect();
        all.join(",")
    }
}
