//! Debian packages that the build and the servers need: which are missing, and installing them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::unistd::Uid;

/// What the build needs besides a server: libpq, libclang for bindgen, OpenSSL for cargo-pgrx.
const BUILD: &[&str] = &["libpq-dev", "libclang-dev", "clang", "pkg-config", "libssl-dev"];

/// The releases of Debian, by the version of PostgreSQL they have. None has 16. What 19 has is no
/// release, and cannot be installed by itself.
pub const RELEASES: [(u32, &str); 4] =
    [(15, "bookworm"), (17, "trixie"), (18, "sid"), (19, "experimental")];

/// The release of Debian that has PostgreSQL `major`.
pub fn release_with(major: u32) -> Option<&'static str> {
    RELEASES.iter().find(|(version, _)| *version == major).map(|(_, release)| *release)
}

/// The major version of PostgreSQL in this release of Debian; `None` on any other system.
pub fn debian_postgresql() -> Option<u32> {
    parse_release(&std::fs::read_to_string("/etc/os-release").ok()?)
}

fn parse_release(os_release: &str) -> Option<u32> {
    let value = |key: &str| {
        os_release
            .lines()
            .find_map(|line| Some(line.strip_prefix(key)?.strip_prefix('=')?.trim_matches('"')))
    };
    match (value("ID")?, value("VERSION_ID")?) {
        ("debian", "12") => Some(15),
        ("debian", "13") => Some(17),
        _ => None,
    }
}

/// Installs the missing ones of the packages that the build needs, and of the server of version
/// `major` if one is given. If this process may not install packages, the error is the line to run.
pub fn install_missing(major: Option<u32>) -> Result<()> {
    let mut wanted: Vec<String> = BUILD.iter().map(|&name| name.to_owned()).collect();
    if let Some(major) = major {
        wanted.push(format!("postgresql-{major}"));
        wanted.push(format!("postgresql-server-dev-{major}"));
    }
    install(&wanted)
}

/// Installs those of `wanted` that are missing. If this process may not, the error is the line to
/// run.
pub fn install(wanted: &[String]) -> Result<()> {
    let missing = missing(wanted)?;
    if missing.is_empty() {
        return Ok(());
    }
    let missing: Vec<&str> = missing.iter().map(String::as_str).collect();
    let apt = apt(&missing)?;
    println!("installing {}", missing.join(" "));
    run_apt(&apt, &["update"])?;
    let mut install = vec!["install", "-y", "--no-install-recommends"];
    install.extend(missing);
    run_apt(&apt, &install)
}

/// The command that may install packages; if this process may not, the error is the line to run.
fn apt(packages: &[&str]) -> Result<Vec<&'static str>> {
    let mut apt: Vec<&str> = Vec::new();
    if !Uid::effective().is_root() {
        if !succeeds(Command::new("sudo").args(["-n", "true"])) {
            bail!(
                "packages are missing and this user may not install them; run this line, then try again:\n\
                 sudo apt-get update && sudo apt-get install -y {}",
                packages.join(" ")
            );
        }
        apt.extend(["sudo", "-n"]);
    }
    apt.extend(["env", "DEBIAN_FRONTEND=noninteractive", "apt-get"]);
    Ok(apt)
}

/// Takes one file out of a Debian package without installing the package, because some start a
/// service. The file is kept in `directory` and found there the next time.
pub fn extract(package: &str, file: &str, directory: &Path) -> Result<PathBuf> {
    let kept = directory.join(package);
    let path = kept.join(file);
    if path.exists() {
        return Ok(path);
    }
    println!("fetching {file} of {package}");
    std::fs::create_dir_all(directory)?;
    let download = || {
        let mut command = Command::new("apt-get");
        command.args(["download", package]).current_dir(directory);
        succeeds(&mut command)
    };
    if !download() {
        run_apt(&apt(&[package])?, &["update"])?;
        if !download() {
            bail!("apt-get download {package} fails");
        }
    }
    let is_package = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with(&format!("{package}_")) && name.ends_with(".deb")
    };
    let archive = std::fs::read_dir(directory)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(is_package)
        .with_context(|| format!("no archive of {package} in {}", directory.display()))?;
    // Unpacked beside it and then renamed, so that an interruption leaves nothing incomplete.
    let partial = directory.join(format!("{package}.partial"));
    let mut unpack = Command::new("dpkg-deb");
    if !succeeds(unpack.arg("-x").arg(&archive).arg(&partial)) {
        bail!("{} cannot be unpacked", archive.display());
    }
    std::fs::rename(&partial, &kept)?;
    std::fs::remove_file(archive)?;
    Ok(path)
}

/// Those of `wanted` that are not installed.
fn missing(wanted: &[String]) -> Result<Vec<String>> {
    // dpkg-query fails if it does not know a package, but still reports the others.
    let output = Command::new("dpkg-query")
        .args(["--show", "--showformat=${Package} ${db:Status-Status}\n"])
        .args(wanted)
        .output()
        .with_context(|| {
            format!(
                "this is no Debian; install what corresponds to these packages by hand and name the server \
                 with --pg-config: {}",
                wanted.join(" ")
            )
        })?;
    let known = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(wanted
        .iter()
        .filter(|name| !known.lines().any(|line| line == format!("{name} installed")))
        .cloned()
        .collect())
}

fn run_apt(apt: &[&str], arguments: &[&str]) -> Result<()> {
    let status =
        Command::new(apt[0]).args(&apt[1..]).args(arguments).stdin(Stdio::null()).status()?;
    if !status.success() {
        bail!("{} {}: {status}", apt.join(" "), arguments.join(" "));
    }
    Ok(())
}

/// Whether `command` can be run and succeeds; its output is discarded.
pub fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::parse_release;

    #[test]
    fn debian_12_and_13_are_known_and_others_are_not() {
        assert_eq!(parse_release("NAME=\"Debian\"\nVERSION_ID=\"12\"\nID=debian\n"), Some(15));
        assert_eq!(parse_release("ID=debian\nVERSION_ID=13\n"), Some(17));
        assert_eq!(parse_release("ID=debian\nVERSION_ID=\"11\"\n"), None);
        assert_eq!(parse_release("ID=ubuntu\nVERSION_ID=\"12\"\n"), None);
        assert_eq!(parse_release("ID=debian\n"), None);
    }
}
