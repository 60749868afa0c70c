//! cargo-pgrx in exactly the version of the extension's pgrx: finding or installing, configuring
//! and running it.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use pg_test::Installation;
use pg_test::install::finish;

use crate::workspace::Workspace;

/// A cargo-pgrx of the right version.
pub struct CargoPgrx {
    program: PathBuf,
}

impl CargoPgrx {
    /// Finds cargo-pgrx in the pinned version, or installs it: in cargo's home, or, if another
    /// version is there for other projects, or it is for the next PostgreSQL, in the target
    /// directory.
    pub fn provide(workspace: &Workspace) -> Result<Self> {
        let wanted = &workspace.pgrx_version;
        let root = workspace.target.join(format!("tools/cargo-pgrx-{wanted}"));
        let ours = root.join("bin/cargo-pgrx");
        let mut other = workspace.any_rust().is_some();
        for program in [Path::new("cargo-pgrx"), &ours] {
            match version(program) {
                Some(found) if found == *wanted => {
                    return Ok(Self { program: program.to_owned() });
                }
                found => other |= found.is_some(),
            }
        }
        println!("installing cargo-pgrx {wanted} (some minutes)");
        let mut install = workspace.cargo();
        install.args(["install", "--locked", "cargo-pgrx", "--version", wanted]);
        install.args(workspace.any_rust());
        // It is not what takes time when it runs: without optimising it is there in half the time.
        install.env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0");
        if other {
            install.arg("--root").arg(root);
        }
        let status = install.status()?;
        if !status.success() {
            bail!("cargo install cargo-pgrx: {status}");
        }
        let mut places = vec![PathBuf::from("cargo-pgrx"), ours];
        places.extend(cargo_home().map(|home| home.join("bin/cargo-pgrx")));
        let program = places
            .into_iter()
            .find(|program| version(program).as_ref() == Some(wanted))
            .context("cargo-pgrx was installed, but not where it can be found")?;
        Ok(Self { program })
    }

    /// `cargo pgrx …` for the extension's package.
    pub fn command(&self, workspace: &Workspace) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("pgrx");
        workspace.adapt(&mut command);
        command.current_dir(&workspace.extension);
        // pgrx's own variable for flags of its builds.
        command.envs(workspace.any_rust().map(|flag| ("PGRX_BUILD_FLAGS", flag)));
        // Without this, pgrx builds the extension with other flags than its tests, and every
        // dependency twice.
        command.env("CARGO_PGRX_DISABLE_GC_SECTIONS_WORKAROUND", "1");
        command
    }

    /// Makes `installation` the one that pgrx uses for its major version; other versions keep
    /// theirs.
    pub fn configure(&self, workspace: &Workspace, installation: &Installation) -> Result<()> {
        let home = workspace.pgrx_home();
        let text = std::fs::read_to_string(home.join("config.toml")).unwrap_or_default();
        let before = configured(&text);
        let mut configured = before.clone();
        let path = installation.pg_config().to_string_lossy().into_owned();
        configured.insert(format!("pg{}", installation.major()), path);
        // pgrx fails on any that has gone, whichever it is asked for.
        configured.retain(|_, path| Path::new(path).exists());
        // Cargo rebuilds pgrx when this file is written, so it is only written if it changes.
        if configured == before {
            return Ok(());
        }
        std::fs::create_dir_all(&home)?;
        if !before.is_empty() {
            // `init` only adds to what is there.
            std::fs::remove_file(home.join("config.toml"))?;
        }
        let mut init = self.command(workspace);
        init.args(["init", "--no-run"]);
        init.args(configured.iter().map(|(label, path)| format!("--{label}={path}")));
        finish(&mut init).map(drop)
    }

    /// Builds the extension with the given cargo features, optimised if `release`, and installs it
    /// into `installation`.
    pub fn install(
        &self,
        workspace: &Workspace,
        installation: &Installation,
        features: &str,
        release: bool,
    ) -> Result<()> {
        let status = self
            .command(workspace)
            .args(["install", "--no-default-features", "--features", features, "--pg-config"])
            .arg(installation.pg_config())
            .args(release.then_some("--release"))
            .status()?;
        if !status.success() {
            bail!("the extension cannot be built and installed: {status}");
        }
        Ok(())
    }

    /// Builds the extension for `installation`, optimised, and lays out its files below `root`,
    /// which stands for `/`.
    pub fn package(
        &self,
        workspace: &Workspace,
        installation: &Installation,
        root: &Path,
    ) -> Result<()> {
        let version = format!("pg{}", installation.major());
        let status = self
            .command(workspace)
            .args(["package", "--no-default-features", "--features", &version, "--pg-config"])
            .arg(installation.pg_config())
            .arg("--out-dir")
            .arg(root)
            .status()?;
        if !status.success() {
            bail!("the extension cannot be packaged: {status}");
        }
        Ok(())
    }
}

/// Writes pgrx's configuration, with the `pg_config` of each version. Cargo builds pgrx again when
/// the file is written, so it is only written if it changes.
pub fn write_configuration(workspace: &Workspace, servers: &[(u32, PathBuf)]) -> Result<()> {
    let mut text = "[configs]\n".to_owned();
    for (major, pg_config) in servers {
        text += &format!("pg{major} = \"{}\"\n", pg_config.display());
    }
    let file = workspace.pgrx_home().join("config.toml");
    if std::fs::read_to_string(&file).ok().as_ref() != Some(&text) {
        std::fs::create_dir_all(workspace.pgrx_home())?;
        std::fs::write(file, text)?;
    }
    Ok(())
}

/// The version of a cargo-pgrx; `None` if there is none.
fn version(program: &Path) -> Option<String> {
    let output = Command::new(program).args(["pgrx", "--version"]).output().ok()?;
    String::from_utf8(output.stdout).ok()?.split_whitespace().nth(1).map(str::to_owned)
}

fn cargo_home() -> Option<PathBuf> {
    std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(std::env::home_dir()?.join(".cargo")))
}

/// The `pgNN = "path"` lines of pgrx's config.toml.
fn configured(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .filter_map(|line| line.split_once('='))
        .map(|(label, path)| (label.trim(), path.trim().trim_matches('"')))
        .filter(|(label, _)| label.strip_prefix("pg").is_some_and(|n| n.parse::<u32>().is_ok()))
        .map(|(label, path)| (label.to_owned(), path.to_owned()))
        .collect()
}

/// If root has no `sudo`, makes a stand-in for the few ways in which `cargo pgrx test --runas`
/// calls it, and returns the directory to put on PATH.
pub fn sudo_stand_in(workspace: &Workspace) -> Result<Option<PathBuf>> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&path).any(|directory| directory.join("sudo").exists()) {
        return Ok(None);
    }
    let directory = workspace.target.join("sudo-stand-in");
    write_script(
        &directory.join("sudo"),
        "# sudo [-u USER] [NAME=VALUE ...] COMMAND, for root.\n\
         if [ \"$1\" = -u ]; then user=$2; shift 2; exec runuser -u \"$user\" -- env \"$@\"; fi\n\
         exec env \"$@\"\n",
    )?;
    Ok(Some(directory))
}

/// The cargo that `cargo pgrx test` is to call: where the Rust here is older than pgrx asks for, a
/// stand-in that adds the flag for it. pgrx adds its flags for cargo only to its builds.
pub fn cargo_stand_in(workspace: &Workspace) -> Result<Option<PathBuf>> {
    let Some(flag) = workspace.any_rust() else { return Ok(None) };
    let script = workspace.target.join("cargo-stand-in/cargo");
    let cargo = workspace.cargo();
    let cargo = cargo.get_program().to_string_lossy();
    write_script(
        &script,
        &format!(
            "if [ \"$1\" = test ]; then shift; exec '{cargo}' test {flag} \"$@\"; fi\n\
             exec '{cargo}' \"$@\"\n"
        ),
    )?;
    Ok(Some(script))
}

fn write_script(path: &Path, commands: &str) -> Result<()> {
    std::fs::create_dir_all(path.parent().context("a script is in a directory")?)?;
    std::fs::write(path, format!("#!/bin/sh\n{commands}"))?;
    Ok(std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?)
}

#[cfg(test)]
mod tests {
    use super::configured;

    #[test]
    fn only_the_versions_are_read_from_the_configuration() {
        let text =
            "# comment\n[configs]\npg15 = \"/a/bin/pg_config\"\npg17=\"/b\"\nbase_port = 28800\n";
        let found = configured(text);
        assert_eq!(found.len(), 2);
        assert_eq!(found["pg15"], "/a/bin/pg_config");
        assert_eq!(found["pg17"], "/b");
    }
}
