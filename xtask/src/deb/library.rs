//! What a library needs of the system where it is loaded: which C library, which libpq.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use pg_test::install::finish;

use crate::packages;

/// What a library needs.
#[derive(Debug, PartialEq, Eq)]
pub struct Needs {
    /// The oldest C library it can be loaded with, such as "2.34".
    pub libc: String,
    /// Whether the dynamic linker is told to look in directories of the library's own choice.
    has_path: bool,
    /// Whether it needs libpq.
    libpq: bool,
}

/// The C library of a release of Debian that will not get another one.
const LIBC: [(&str, &str); 2] = [("bookworm", "2.36"), ("trixie", "2.41")];

/// What the library at `path` needs.
pub fn needs(path: &Path) -> Result<Needs> {
    Ok(parse(&finish(Command::new("objdump").arg("--private-headers").arg(path))?))
}

/// Reads what objdump prints of the dynamic section and of the versions of symbols.
fn parse(headers: &str) -> Needs {
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let lines: Vec<Vec<String>> = headers.lines().map(words).collect();
    let libc = lines
        .iter()
        .filter_map(|line| line.last()?.strip_prefix("GLIBC_"))
        .max_by_key(|version| numbers(version))
        .unwrap_or("2.17");
    let first = |line: &Vec<String>, word: &str| line.first().is_some_and(|first| first == word);
    Needs {
        libc: libc.to_owned(),
        has_path: lines.iter().any(|line| first(line, "RPATH") || first(line, "RUNPATH")),
        libpq: lines.iter().any(|line| *line == ["NEEDED", "libpq.so.5"]),
    }
}

fn numbers(version: &str) -> Vec<u32> {
    version.split('.').filter_map(|number| number.parse().ok()).collect()
}

impl Needs {
    /// Whether the Debian that has PostgreSQL `major` has what is needed. The libpq has to be the
    /// system's, which the server's own `postgres_fdw` uses: a process has room for one.
    pub fn check(&self, major: u32) -> Result<()> {
        ensure!(self.libpq && !self.has_path, "the library is not linked to the system's libpq");
        let release = packages::release_with(major);
        let known = LIBC.iter().find(|(name, _)| Some(*name) == release);
        if let Some((name, libc)) = known {
            ensure!(
                numbers(&self.libc) <= numbers(libc),
                "a library that was built here needs version {} of the C library, and {name} has {libc}: \
                 build this package on {name}",
                self.libc
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Needs, parse};

    const HEADERS: &str = "
Dynamic Section:
  NEEDED               libpq.so.5
  NEEDED               libc.so.6
  SONAME               x

Version References:
  required from libc.so.6:
    0x09691a75 0x00 03 GLIBC_2.2.5
    0x06969194 0x00 02 GLIBC_2.34
    0x0696919a 0x00 02 GLIBC_2.9
";

    #[test]
    fn the_newest_version_of_a_symbol_says_which_c_library_is_needed() {
        let needs = parse(HEADERS);
        assert_eq!(needs, Needs { libc: "2.34".to_owned(), has_path: false, libpq: true });
        needs.check(15).unwrap();
    }

    #[test]
    fn a_library_for_an_older_debian_is_not_built_here() {
        let needs = parse(&HEADERS.replace("GLIBC_2.34", "GLIBC_2.38"));
        assert!(needs.check(15).unwrap_err().to_string().contains("bookworm has 2.36"));
        needs.check(17).unwrap();
        needs.check(18).unwrap();
    }

    /// E12. Red on 0.2.0, which took whichever libpq was found.
    #[test]
    fn a_package_has_no_libpq_but_the_systems() {
        let with_path = HEADERS.replace("SONAME ", "RUNPATH");
        assert!(parse(&with_path).check(17).is_err());
        assert!(parse(&HEADERS.replace("libpq.so.5", "libx.so")).check(17).is_err());
    }
}
