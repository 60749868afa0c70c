//! The page of the book that says which packages were tried, when, and where:
//! `docs/src/packages.md`. Its table is all that is kept; a run writes the row of its version.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};

use super::Deb;

const HEAD: &str = "| PostgreSQL | Debian | its libpq | C library, at least | package | upgraded from | day | commit |\n\
                    |---|---|---|---|---|---|---|---|\n";

/// When a package was tried, and of which commit it is.
pub struct When {
    /// The day.
    pub day: String,
    /// The commit, as in `docs/src/versions.md`.
    pub commit: String,
}

/// Writes what a run on a Debian has found, lines `KEY=VALUE`, into the book of the clone at
/// `root`.
pub fn record(root: &Path, deb: &Deb, release: &str, facts: &str, when: &When) -> Result<()> {
    let page = root.join("docs/src/packages.md");
    let text = std::fs::read_to_string(&page).with_context(|| page.display().to_string())?;
    let row = row(deb.major, &deb.needs.libc, release, facts, when)?;
    let text = with_row(&text, row).context("docs/src/packages.md has no table")?;
    std::fs::write(&page, text)?;
    println!("written to {}", page.display());
    Ok(())
}

/// The row of a version, with the version that it is sorted by.
fn row(
    major: u32,
    libc: &str,
    release: &str,
    facts: &str,
    When { day, commit }: &When,
) -> Result<(u32, String)> {
    let facts: BTreeMap<&str, &str> =
        facts.lines().filter_map(|line| line.split_once('=')).collect();
    let fact = |name: &str| facts.get(name).copied().with_context(|| format!("{name} is not said"));
    let (from, to) = (fact("from")?, fact("to")?);
    let from = if from == to { "not tried" } else { from };
    let (server, libpq) = (fact("server")?, fact("libpq")?);
    let row =
        format!("| {server} | {release} | {libpq} | {libc} | {to} | {from} | {day} | `{commit}` |");
    Ok((major, row))
}

/// The page with `row` instead of the one of that version.
fn with_row(page: &str, (major, row): (u32, String)) -> Option<String> {
    let (before, table) = page.split_once(HEAD)?;
    let end = table.lines().take_while(|line| line.starts_with('|')).map(|line| line.len() + 1);
    let (rows, after) = table.split_at_checked(end.sum())?;
    let version = |line: &str| line.split(['|', '.', ' ']).find_map(|word| word.parse().ok());
    let mut rows: BTreeMap<u32, &str> =
        rows.lines().filter_map(|line| Some((version(line)?, line))).collect();
    rows.insert(major, &row);
    let rows: String = rows.values().map(|row| format!("{row}\n")).collect();
    Some(format!("{before}{HEAD}{rows}{after}"))
}

#[cfg(test)]
mod tests {
    use super::{HEAD, When, row, with_row};

    const FACTS: &str = "server=17.12\nfrom=0.2.0\nto=0.3.0\nlibpq=17.12-0\n";

    fn when() -> When {
        When { day: "2026-01-02".to_owned(), commit: "abc".to_owned() }
    }

    #[test]
    fn a_row_takes_the_place_of_the_one_of_its_version() {
        let old = "| 17.10 | trixie | old |\n";
        let page = format!("before\n\n{HEAD}| 15.1 | x |\n{old}| 18.1 | y |\n\nafter\n");
        let new = "| 17.12 | trixie | 17.12-0 | 2.34 | 0.3.0 | 0.2.0 | 2026-01-02 | `abc` |\n";
        let expected = page.replace(old, new);
        let found = with_row(&page, row(17, "2.34", "trixie", FACTS, &when()).unwrap()).unwrap();
        assert_eq!(found, expected);
        let empty = page.replace(old, "");
        let found = with_row(&empty, row(17, "2.34", "trixie", FACTS, &when()).unwrap()).unwrap();
        assert_eq!(found, expected);
    }

    #[test]
    fn the_book_has_the_table() {
        assert!(include_str!("../../../docs/src/packages.md").contains(HEAD));
    }

    #[test]
    fn what_was_not_found_is_not_said() {
        assert!(row(17, "2.34", "trixie", &FACTS.replace("libpq", "x"), &when()).is_err());
        let (_, row) =
            row(17, "2.34", "trixie", &FACTS.replace("0.2.0", "0.3.0"), &when()).unwrap();
        assert!(row.contains("| 0.3.0 | not tried |"), "{row}");
    }
}
