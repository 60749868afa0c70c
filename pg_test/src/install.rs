//! One PostgreSQL installation, known by its `pg_config`, and how its programs are run.
//!
//! PostgreSQL's server programs refuse to run as root. When this process is root they run as the
//! system's user `postgres`, who must be able to reach both the programs and the data directories.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};
use nix::unistd::{Gid, Uid, User};

/// The environment variable that names the `pg_config` of the installation the scenarios run on.
pub const PG_CONFIG_VARIABLE: &str = "PG_TEST_PG_CONFIG";

/// The environment variable that names the directory for data directories; without it, the system's
/// temporary directory.
pub const DIRECTORY_VARIABLE: &str = "PG_TEST_DIR";

/// The environment variable that names another directory for data directories that are removed when
/// their test ends; what is kept between runs stays in that of [`DIRECTORY_VARIABLE`].
pub const HOMES_VARIABLE: &str = "PG_TEST_HOMES";

/// The unprivileged user that server processes run as when this process is root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerUser {
    /// User id.
    pub uid: Uid,
    /// Primary group id.
    pub gid: Gid,
}

impl ServerUser {
    /// Name of the user that stands in for root.
    pub const NAME: &str = "postgres";

    /// The user to switch to: `None` when this process is not root and can run servers itself.
    pub fn when_root() -> Result<Option<Self>> {
        if !Uid::effective().is_root() {
            return Ok(None);
        }
        let user = User::from_name(Self::NAME)?.ok_or_else(|| {
            anyhow!(
                "PostgreSQL refuses to run as root and there is no user '{0}' to run it as; \
                 create one (adduser --system {0}) or run as an ordinary user",
                Self::NAME
            )
        })?;
        Ok(Some(Self { uid: user.uid, gid: user.gid }))
    }
}

/// One PostgreSQL installation.
#[derive(Debug, Clone)]
pub struct Installation {
    pg_config: PathBuf,
    bindir: PathBuf,
    libdir: PathBuf,
    version: String,
    major: u32,
    user: Option<ServerUser>,
}

impl Installation {
    /// The installation that [`PG_CONFIG_VARIABLE`] names.
    pub fn from_env() -> Result<Self> {
        let path = std::env::var_os(PG_CONFIG_VARIABLE).ok_or_else(|| {
            anyhow!(
                "{PG_CONFIG_VARIABLE} is not set: run the scenarios with `cargo xtask test`, or set it to \
                 the pg_config of a PostgreSQL that has the extension installed"
            )
        })?;
        Self::from_pg_config(Path::new(&path))
    }

    /// The installation that `pg_config` describes.
    pub fn from_pg_config(pg_config: &Path) -> Result<Self> {
        let ask = |option: &str| -> Result<String> {
            let output = Command::new(pg_config)
                .arg(option)
                .output()
                .with_context(|| format!("cannot run {}", pg_config.display()))?;
            if !output.status.success() {
                bail!("{} {option}: {}", pg_config.display(), output.status);
            }
            Ok(String::from_utf8(output.stdout)?.trim().to_owned())
        };
        let version = ask("--version")?;
        let major = major_version(&version)
            .ok_or_else(|| anyhow!("{}: no version in '{version}'", pg_config.display()))?;
        Ok(Self {
            pg_config: pg_config.to_owned(),
            bindir: ask("--bindir")?.into(),
            libdir: ask("--libdir")?.into(),
            version,
            major,
            user: ServerUser::when_root()?,
        })
    }

    /// Path of the `pg_config`.
    pub fn pg_config(&self) -> &Path {
        &self.pg_config
    }

    /// Directory of the programs.
    pub fn bindir(&self) -> &Path {
        &self.bindir
    }

    /// Directory of the libraries.
    pub fn libdir(&self) -> &Path {
        &self.libdir
    }

    /// Major version, for example 15.
    pub fn major(&self) -> u32 {
        self.major
    }

    /// Full version text as `pg_config --version` prints it.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The user servers run as, when it is not the user of this process.
    pub fn user(&self) -> Option<ServerUser> {
        self.user
    }

    /// A command that runs `program` of this installation as a user it accepts, in a directory that
    /// user can reach, without input, and without the caller's `PG…` variables or locale.
    pub fn command(&self, program: &str) -> Command {
        let mut command = as_server_user(self.user, &self.bindir.join(program));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("PG") {
                command.env_remove(name);
            }
        }
        command.env("LC_ALL", "C").stdin(Stdio::null());
        command
    }

    /// Runs `program` with `arguments` to its end; its output becomes the error when it fails.
    pub fn run<S: AsRef<std::ffi::OsStr>>(
        &self,
        program: &str,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<String> {
        finish(self.command(program).args(arguments))
    }
}

/// `program` as `user`, or as this process's own user when there is none to switch to. The working
/// directory is `/`, because the current one may be closed to that user.
pub fn as_server_user(user: Option<ServerUser>, program: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir("/");
    if let Some(user) = user {
        // Changing the uid as root also drops root's supplementary groups (std does that).
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw()).env("USER", ServerUser::NAME);
    }
    command
}

/// Runs `command` to its end and returns its standard output; a failure carries both outputs.
pub fn finish(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        bail!(
            "{command:?}: {}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The major version in `pg_config --version`'s answer: "PostgreSQL 15.18 (Debian …)", "PostgreSQL
/// 19devel".
fn major_version(version: &str) -> Option<u32> {
    let number = version.split_whitespace().nth(1)?;
    let digits = number.find(|c: char| !c.is_ascii_digit()).unwrap_or(number.len());
    number[..digits].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::major_version;

    #[test]
    fn major_version_is_read_from_releases_and_development_versions() {
        assert_eq!(major_version("PostgreSQL 15.18 (Debian 15.18-0+deb12u1)"), Some(15));
        assert_eq!(major_version("PostgreSQL 19devel"), Some(19));
        assert_eq!(major_version("PostgreSQL"), None);
        assert_eq!(major_version("PostgreSQL x"), None);
    }
}
