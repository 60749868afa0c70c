//! PostgreSQL's source, out of Debian's source package of the server; packages of another release
//! of Debian.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use pg_test::install::finish;

/// What of a source package is unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The directory of postgres_fdw, with its tests.
    PostgresFdw,
    /// Everything.
    All,
}

/// Fetches the source package of PostgreSQL `major` from the release of Debian called `release`, or
/// from this machine's own, and returns the source tree. A version that was fetched before is taken
/// as it is.
///
/// The archive keeps the source of the newest versions only, and a machine may be ahead of it or
/// behind: of the versions it lists, the first that can be had is taken.
pub fn fetch(directory: &Path, major: u32, release: Option<&str>, part: Part) -> Result<PathBuf> {
    if let Some(found) = find(directory)? {
        return Ok(found);
    }
    std::fs::create_dir_all(directory)?;
    let apt = Apt::prepare(directory, release.as_slice(), Kind::Source)?;
    let package = format!("postgresql-{major}");
    let listed = finish(apt.command("apt-cache").args(["madison", &package]))?;
    for version in listed.lines().filter_map(source_version) {
        println!("fetching the source of {package} {version}");
        let wanted = format!("{package}={version}");
        let fetched = finish(apt.command("apt-get").args(["source", "--download-only", &wanted]));
        if let Err(error) = fetched {
            println!("not to be had: {error:#}");
            continue;
        }
        unpack(directory, part)?;
        return find(directory)?.context("the package has no contrib/postgres_fdw");
    }
    bail!(
        "no source of {package} can be fetched with this machine's apt; name a source tree with --source:\n{listed}"
    )
}

/// Fetches the package `name` of the release of Debian called `release` into `directory`, and
/// unpacks it there, below the path that is returned.
pub fn unpacked_package(directory: &Path, name: &str, release: &str) -> Result<PathBuf> {
    std::fs::create_dir_all(directory)?;
    let apt = Apt::prepare(directory, &[release], Kind::Package)?;
    println!("fetching {name} of {release}");
    finish(apt.command("apt-get").args(["download", name]))?;
    let root = directory.join("root");
    if unpack_packages(directory, &root)? == 0 {
        bail!("apt-get has left no {name} in {}", directory.display());
    }
    Ok(root)
}

/// Fetches packages of these releases of Debian into `directory`, and everything that they need of
/// which nothing is in `without`; they are unpacked there, below the path that is returned. Nothing
/// that this machine has installed counts.
///
/// `closed` are the packages with what they need, `alone` those without it, each as apt-get takes
/// them: a name, and a release behind a slash where it is not the first.
pub fn unpacked_with_all(
    directory: &Path,
    releases: &[&str],
    (closed, alone): (&[String], &[String]),
    without: &[&str],
) -> Result<PathBuf> {
    std::fs::create_dir_all(directory)?;
    let apt = Apt::prepare(directory, releases, Kind::Package)?;
    let installed: String = without
        .iter()
        .map(|name| {
            format!(
                "Package: {name}\nStatus: install ok installed\nArchitecture: all\nVersion: 9999\n\
                 Maintainer: -\nDescription: -\n\n"
            )
        })
        .collect();
    let status = directory.join("status");
    std::fs::write(&status, installed)?;
    let status = format!("Dir::State::status={}", status.display());
    println!("fetching {} of {} with all they need", closed.join(" "), releases.join(", "));
    let mut fetch = apt.command("apt-get");
    fetch.args(["-o", &status, "-o", "Debug::NoLocking=1"]);
    fetch.args(["install", "--yes", "--no-install-recommends", "--download-only"]).args(closed);
    finish(&mut fetch)?;
    finish(apt.command("apt-get").arg("download").args(alone))?;
    let root = directory.join("root");
    unpack_packages(&directory.join("cache/archives"), &root)?;
    unpack_packages(directory, &root)?;
    Ok(root)
}

/// Unpacks the packages in `directory` below `root`, and returns how many they are.
fn unpack_packages(directory: &Path, root: &Path) -> Result<usize> {
    let mut count = 0;
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            finish(Command::new("dpkg-deb").arg("-x").arg(&path).arg(root))?;
            count += 1;
        }
    }
    Ok(count)
}

/// "postgresql-15 | 15.18-0+deb12u1 | ADDRESS bookworm/main Sources"
fn source_version(line: &str) -> Option<&str> {
    let mut fields = line.split('|').map(str::trim);
    let version = fields.nth(1)?;
    fields.next()?.ends_with("Sources").then_some(version)
}

/// The source tree that was fetched into `directory` before.
pub fn find(directory: &Path) -> Result<Option<PathBuf>> {
    if !directory.exists() {
        return Ok(None);
    }
    for entry in std::fs::read_dir(directory)? {
        let tree = entry?.path();
        if tree.join("contrib/postgres_fdw").is_dir() {
            return Ok(Some(tree));
        }
    }
    Ok(None)
}

fn unpack(directory: &Path, part: Part) -> Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().contains(".orig.tar")) {
            // Unpacked beside it and then renamed, so that an interruption leaves nothing
            // incomplete.
            let partial = tempfile::Builder::new().prefix("partial-").tempdir_in(directory)?;
            let mut tar = Command::new("tar");
            tar.arg("-C").arg(partial.path()).arg("-xf").arg(&path);
            if part == Part::PostgresFdw {
                tar.args(["--wildcards", "*/contrib/postgres_fdw/*"]);
            }
            finish(&mut tar)?;
            for tree in std::fs::read_dir(partial.path())? {
                let tree = tree?;
                std::fs::rename(tree.path(), directory.join(tree.file_name()))?;
            }
        }
    }
    Ok(())
}

/// What is listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Source,
    Package,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::Source => "deb-src",
            Self::Package => "deb",
        }
    }
}

/// apt with lists of its own: the machine's are left alone.
struct Apt {
    directory: PathBuf,
}

impl Apt {
    /// With the archives of these releases, or of this machine's own if there are none.
    fn prepare(directory: &Path, releases: &[&str], kind: Kind) -> Result<Self> {
        let own = std::fs::read_to_string("/etc/os-release")?;
        let own = own.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
        let own = own.unwrap_or_default();
        let releases = if releases.is_empty() { &[own] } else { releases };
        let parts = directory.join("sources.d");
        for sub in ["lists/partial", "cache/archives/partial", "sources.d"] {
            std::fs::create_dir_all(directory.join(sub))?;
        }
        let etc = Path::new("/etc/apt");
        let mut files = vec![etc.join("sources.list")];
        for entry in std::fs::read_dir(etc.join("sources.list.d")).into_iter().flatten() {
            files.push(entry?.path());
        }
        for file in files {
            let (Ok(text), Some(name)) = (std::fs::read_to_string(&file), file.file_name()) else {
                continue;
            };
            for release in releases {
                let change = Some((own, *release)).filter(|(own, release)| own != release);
                let part = format!("{release}-{}", name.to_string_lossy());
                std::fs::write(parts.join(part), listing(kind, &text, change))?;
            }
        }
        let apt = Self { directory: directory.to_owned() };
        // An archive of others' that has no sources fails it; what matters is what can be listed
        // then.
        if let Err(error) = finish(apt.command("apt-get").arg("update")) {
            println!("{error:#}");
        }
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let at = |name: &str| self.directory.join(name).display().to_string();
        for (option, value) in [
            ("Dir::Etc::sourcelist", "-".to_owned()),
            ("Dir::Etc::sourceparts", at("sources.d")),
            ("Dir::State::lists", at("lists")),
            ("Dir::Cache", at("cache")),
        ] {
            command.arg("-o").arg(format!("{option}={value}"));
        }
        command.current_dir(&self.directory);
        command
    }
}

/// A list of package archives, in either of apt's formats, as one of `kind`; of another release,
/// where `change` is the name of the one listed and of the one wanted.
fn listing(kind: Kind, text: &str, change: Option<(&str, &str)>) -> String {
    let word = kind.word();
    text.lines()
        .map(|line| match line.strip_prefix("deb ") {
            Some(rest) => format!("{word} {}\n", of_release(rest, change)),
            None if line.starts_with("Types:") => format!("Types: {word}\n"),
            None if line.starts_with("Suites:") => format!("{}\n", of_release(line, change)),
            None => format!("{line}\n"),
        })
        .collect()
}

/// The words of a line, with the suite of the one release replaced by that of the other. Suites of
/// updates go: not every release has them, and the main one is enough for a test.
fn of_release(line: &str, change: Option<(&str, &str)>) -> String {
    let Some((from, to)) = change else { return line.to_owned() };
    let more = format!("{from}-");
    let words = line.split_whitespace().filter(|word| *word != format!("{from}-updates"));
    let words = words.map(|word| match word.strip_prefix(&more) {
        Some(kind) => format!("{to}-{kind}"),
        None if word == from => to.to_owned(),
        None => word.to_owned(),
    });
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::{Kind, listing, source_version};

    #[test]
    fn lists_of_both_formats_become_lists_of_sources() {
        let text = "deb [a=b] address suite main\n# deb old\nTypes: deb deb-src\nURIs: address\n";
        let expected =
            "deb-src [a=b] address suite main\n# deb old\nTypes: deb-src\nURIs: address\n";
        assert_eq!(listing(Kind::Source, text, None), expected);
    }

    #[test]
    fn lists_become_those_of_another_release() {
        let text = "deb [a=b] address one main\nTypes: deb\nSuites: one one-updates\nSuites: one-security\n";
        let expected =
            "deb-src [a=b] address two main\nTypes: deb-src\nSuites: two\nSuites: two-security\n";
        assert_eq!(listing(Kind::Source, text, Some(("one", "two"))), expected);
        let expected = expected.replace("deb-src", "deb");
        assert_eq!(listing(Kind::Package, text, Some(("one", "two"))), expected);
    }

    #[test]
    fn versions_of_sources_are_told_from_those_of_packages() {
        let line = " postgresql-15 | 15.18-0+deb12u1 | address bookworm/main Sources";
        assert_eq!(source_version(line), Some("15.18-0+deb12u1"));
        assert_eq!(source_version(&line.replace("Sources", "amd64 Packages")), None);
        assert_eq!(source_version(""), None);
    }
}
