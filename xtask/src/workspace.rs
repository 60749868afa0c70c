//! The workspace: where it is, where its output goes, which pgrx it needs, and running cargo in it.
//! The extension for the next version of PostgreSQL is a package of its own beside it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use pg_test::install::{ServerUser, as_server_user, finish};
use serde_json::Value;

use crate::matrix::NEXT;

/// Name of the package that is the extension.
pub const EXTENSION: &str = "pg_fdw_xacts";

/// What `cargo metadata` says of the workspace.
#[derive(Clone)]
pub struct Workspace {
    /// The directory of the root Cargo.toml.
    pub root: PathBuf,
    /// The directory of the extension's Cargo.toml.
    pub extension: PathBuf,
    /// Cargo's target directory.
    pub target: PathBuf,
    /// Where cargo's output goes instead, with pgrx's configuration.
    build: Option<PathBuf>,
    /// The pgrx version that the extension pins; cargo-pgrx must be the same.
    pub pgrx_version: String,
}

impl Workspace {
    /// The workspace that this program was built from.
    pub fn find() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .context("xtask is a member of a workspace")?;
        Self::at(root)
    }

    /// The workspace below `root`, which may be one of another version of the extension.
    pub fn at(root: &Path) -> Result<Self> {
        let metadata = metadata(root)?;
        let directory = |key: &str| -> Result<PathBuf> {
            Ok(metadata[key]
                .as_str()
                .with_context(|| format!("no {key} in cargo metadata"))?
                .into())
        };
        Ok(Self {
            root: directory("workspace_root")?,
            extension: directory("workspace_root")?,
            target: directory("target_directory")?,
            build: None,
            pgrx_version: pinned_pgrx(&metadata)?,
        })
    }

    /// The same for a server of version `major`, which decides where the extension's package is.
    pub fn for_version(self, major: u32) -> Result<Self> {
        if major != NEXT {
            return Ok(self);
        }
        let extension = self.root.join(format!("pg{NEXT}"));
        let pgrx_version = pinned_pgrx(&metadata(&extension)?)?;
        Ok(Self { extension, pgrx_version, ..self })
    }

    /// The flag that has cargo build the extension with an older Rust than its pgrx asks for. The
    /// pgrx of the next version asks for a newer one than it uses.
    pub fn any_rust(&self) -> Option<&'static str> {
        (self.extension != self.root).then_some("--ignore-rust-version")
    }

    /// The same with another directory for what cargo builds: pgrx is built for one `pg_config`,
    /// and again for each change of it.
    pub fn building_in(self, directory: PathBuf) -> Self {
        Self { build: Some(directory), ..self }
    }

    /// A cargo command in this workspace, with the environment that pgrx needs.
    pub fn cargo(&self) -> Command {
        let mut command = cargo_command();
        self.adapt(&mut command);
        command
    }

    /// `cargo SUBCOMMAND` for the extension's package.
    pub fn cargo_for_extension(&self, subcommand: &str) -> Command {
        let mut command = self.cargo();
        command.current_dir(&self.extension).arg(subcommand).args(self.any_rust());
        command.args(["--package", EXTENSION, "--no-default-features"]);
        command
    }

    /// Has `command` run in the workspace with its PGRX_HOME, and without the variables that cargo
    /// has set for this program: another cargo would take them for its own.
    pub fn adapt(&self, command: &mut Command) {
        command
            .current_dir(&self.root)
            .env("PGRX_HOME", self.pgrx_home())
            .env_remove("PGRX_PG_CONFIG_PATH");
        if let Some(build) = &self.build {
            command.env("CARGO_TARGET_DIR", build);
        }
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
                command.env_remove(&name);
            }
        }
    }

    /// pgrx's configuration for the commands of this program. Each clone has its own, so that two
    /// clones can be built for different servers. Other cargo commands use `~/.pgrx`, or what
    /// `PGRX_HOME` says.
    pub fn pgrx_home(&self) -> PathBuf {
        match &self.build {
            Some(build) => build.join("pgrx"),
            None => self.root.join("target/pgrx"),
        }
    }

    /// The directory for files that server processes have to reach: servers, data directories. It
    /// is the target directory, or one under /var/tmp if servers run as another user who cannot get
    /// there.
    pub fn server_files(&self) -> Result<PathBuf> {
        std::fs::create_dir_all(&self.target)?;
        let Some(user) = ServerUser::when_root()? else {
            return Ok(self.target.clone());
        };
        let reachable = as_server_user(Some(user), Path::new("test"))
            .arg("-x")
            .arg(&self.target)
            .status()
            .context("cannot run test")?
            .success();
        if reachable {
            return Ok(self.target.clone());
        }
        let name: String = self
            .root
            .to_string_lossy()
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
            .collect();
        let elsewhere = PathBuf::from(format!("/var/tmp/{EXTENSION}{name}"));
        std::fs::create_dir_all(&elsewhere)?;
        println!(
            "the user {} cannot reach {}: servers and their data go to {}",
            ServerUser::NAME,
            self.target.display(),
            elsewhere.display()
        );
        Ok(elsewhere)
    }
}

fn cargo_command() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// What cargo says of the Cargo.toml in `directory`.
fn metadata(directory: &Path) -> Result<Value> {
    let mut metadata = cargo_command();
    metadata.args(["metadata", "--format-version=1", "--no-deps", "--manifest-path"]);
    Ok(serde_json::from_str(&finish(metadata.arg(directory.join("Cargo.toml")))?)?)
}

/// The one with this name.
fn named(list: &Value, name: &str) -> Option<Value> {
    list.as_array()?.iter().find(|entry| entry["name"] == name).cloned()
}

/// The version in the extension's requirement "=x.y.z".
fn pinned_pgrx(metadata: &Value) -> Result<String> {
    let version = || {
        let extension = named(&metadata["packages"], EXTENSION)?;
        let pgrx = named(&extension["dependencies"], "pgrx")?;
        pgrx["req"].as_str()?.strip_prefix('=').map(str::to_owned)
    };
    version().context("Cargo.toml must pin pgrx exactly: pgrx = \"=x.y.z\"")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::{EXTENSION, metadata, named, pinned_pgrx};
    use crate::matrix::NEXT;

    fn requirement(text: &str) -> Option<String> {
        let version = pinned_pgrx(&json!({"packages": [
            {"name": "xtask", "dependencies": []},
            {"name": "pg_fdw_xacts", "dependencies": [
                {"name": "pgrx", "req": text}
            ]}
        ]}));
        version.ok()
    }

    #[test]
    fn the_package_for_the_next_version_is_the_same_but_for_its_pgrx() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let next = root.join(format!("pg{NEXT}"));
        let [ours, next] = [root, &next].map(|directory| {
            let extension = named(&metadata(directory).unwrap()["packages"], EXTENSION).unwrap();
            let of_pgrx = |name: &str| name.starts_with("pgrx");
            let mut dependencies: Vec<(String, String)> = extension["dependencies"]
                .as_array()
                .unwrap()
                .iter()
                .map(|dependency| (dependency["name"].as_str().unwrap(), &dependency["req"]))
                .filter(|(name, _)| !of_pgrx(name))
                .map(|(name, req)| (name.to_owned(), req.to_string()))
                .collect();
            dependencies.sort();
            // One may be there for tests, and as an option beside.
            dependencies.dedup();
            (extension["version"].clone(), extension["edition"].clone(), dependencies)
        });
        assert_eq!(ours, next);
    }

    #[test]
    fn only_an_exact_requirement_pins_pgrx() {
        assert_eq!(requirement("=0.18.1").as_deref(), Some("0.18.1"));
        assert_eq!(requirement("^0.18"), None);
    }
}
