//! postgres_fdw's tests out of Debian's source package of the server.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use pg_test::install::finish;

/// Fetches the source package of PostgreSQL `major` and returns the directory of postgres_fdw in
/// it. A version that was fetched before is taken as it is.
///
/// The archive keeps the source of the newest versions only, and a machine may be ahead of it or
/// behind: of the versions it lists, the first that can be had is taken.
pub fn fetch(directory: &Path, major: u32) -> Result<PathBuf> {
    if let Some(found) = find(directory)? {
        return Ok(found);
    }
    std::fs::create_dir_all(directory)?;
    let apt = Apt::prepare(directory)?;
    // An archive of others' that has no sources fails it; what matters is what can be listed then.
    if let Err(error) = finish(apt.command("apt-get").arg("update")) {
        println!("{error:#}");
    }
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
        unpack(directory)?;
        return find(directory)?.context("the package has no contrib/postgres_fdw");
    }
    bail!(
        "no source of {package} can be fetched with this machine's apt; name a source tree with --source:\n{listed}"
    )
}

/// "postgresql-15 | 15.18-0+deb12u1 | ADDRESS bookworm/main Sources"
fn source_version(line: &str) -> Option<&str> {
    let mut fields = line.split('|').map(str::trim);
    let version = fields.nth(1)?;
    fields.next()?.ends_with("Sources").then_some(version)
}

fn find(directory: &Path) -> Result<Option<PathBuf>> {
    if !directory.exists() {
        return Ok(None);
    }
    for entry in std::fs::read_dir(directory)? {
        let tests = entry?.path().join("contrib/postgres_fdw");
        if tests.is_dir() {
            return Ok(Some(tests));
        }
    }
    Ok(None)
}

fn unpack(directory: &Path) -> Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().contains(".orig.tar")) {
            let what = ["--wildcards", "*/contrib/postgres_fdw/*"];
            finish(Command::new("tar").arg("-C").arg(directory).arg("-xf").arg(&path).args(what))?;
        }
    }
    Ok(())
}

/// apt with lists of its own, which have the sources: the machine's are left alone.
struct Apt {
    directory: PathBuf,
}

impl Apt {
    fn prepare(directory: &Path) -> Result<Self> {
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
            std::fs::write(parts.join(name), with_sources(&text))?;
        }
        Ok(Self { directory: directory.to_owned() })
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

/// A list of package archives, in either of apt's formats, as one of source archives.
fn with_sources(text: &str) -> String {
    text.lines()
        .map(|line| match line.strip_prefix("deb ") {
            Some(rest) => format!("deb-src {rest}\n"),
            None if line.starts_with("Types:") => "Types: deb-src\n".to_owned(),
            None => format!("{line}\n"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{source_version, with_sources};

    #[test]
    fn lists_of_both_formats_become_lists_of_sources() {
        let text = "deb [a=b] address suite main\n# deb old\nTypes: deb deb-src\nURIs: address\n";
        let expected =
            "deb-src [a=b] address suite main\n# deb old\nTypes: deb-src\nURIs: address\n";
        assert_eq!(with_sources(text), expected);
    }

    #[test]
    fn versions_of_sources_are_told_from_those_of_packages() {
        let line = " postgresql-15 | 15.18-0+deb12u1 | address bookworm/main Sources";
        assert_eq!(source_version(line), Some("15.18-0+deb12u1"));
        assert_eq!(source_version(&line.replace("Sources", "amd64 Packages")), None);
        assert_eq!(source_version(""), None);
    }
}
