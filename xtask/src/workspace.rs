//! The workspace: where it is, where its output goes, which pgrx it needs, and running cargo in it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow};
use pg_test::install::{ServerUser, as_server_user, finish};
use serde_json::Value;

/// Name of the package that is the extension.
pub const EXTENSION: &str = "pg_fdw_xacts";

/// What `cargo metadata` says of the workspace.
pub struct Workspace {
    /// The directory of the root Cargo.toml.
    pub root: PathBuf,
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
        let text = finish(
            cargo_command()
                .args(["metadata", "--format-version=1", "--no-deps", "--manifest-path"])
                .arg(root.join("Cargo.toml")),
        )?;
        let metadata: Value = serde_json::from_str(&text)?;
        let pgrx_version = pinned_pgrx(&metadata)
            .ok_or_else(|| anyhow!("Cargo.toml must pin pgrx exactly: pgrx = \"=x.y.z\""))?;
        let directory = |key: &str| -> Result<PathBuf> {
            Ok(metadata[key]
                .as_str()
                .with_context(|| format!("no {key} in cargo metadata"))?
                .into())
        };
        Ok(Self {
            root: directory("workspace_root")?,
            target: directory("target_directory")?,
            build: None,
            pgrx_version,
        })
    }

    /// The same with another directory for what cargo builds: pgrx is built for one `pg_config`,
    /// and again for each change of it.
    pub fn building_in(self, directory: PathBuf) -> Self {
        Self { build: Some(directory), ..self }
    }

    /// Where cargo's output goes.
    pub fn output(&self) -> &Path {
        self.build.as_ref().unwrap_or(&self.target)
    }

    /// A cargo command in this workspace, with the environment that pgrx needs.
    pub fn cargo(&self) -> Command {
        let mut command = cargo_command();
        self.adapt(&mut command);
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

/// The version in the extension's requirement "=x.y.z".
fn pinned_pgrx(metadata: &Value) -> Option<String> {
    let named = |list: &Value, name: &str| -> Option<Value> {
        // A renamed one is the pgrx of another version of PostgreSQL.
        let is_wanted = |entry: &&Value| entry["name"] == name && entry["rename"].is_null();
        list.as_array()?.iter().find(is_wanted).cloned()
    };
    let extension = named(&metadata["packages"], EXTENSION)?;
    let pgrx = named(&extension["dependencies"], "pgrx")?;
    pgrx["req"].as_str()?.strip_prefix('=').map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::pinned_pgrx;

    fn requirement(text: &str) -> Option<String> {
        pinned_pgrx(&json!({"packages": [
            {"name": "xtask", "dependencies": []},
            {"name": "pg_fdw_xacts", "dependencies": [
                {"name": "pgrx", "rename": "pgrx99", "req": "=99.0.0"},
                {"name": "pgrx", "rename": null, "req": text}
            ]}
        ]}))
    }

    #[test]
    fn only_an_exact_requirement_pins_pgrx() {
        assert_eq!(requirement("=0.18.1").as_deref(), Some("0.18.1"));
        assert_eq!(requirement("^0.18"), None);
    }
}
