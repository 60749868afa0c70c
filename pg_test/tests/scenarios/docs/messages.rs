//! What the book quotes from elsewhere is there: messages in the source, tests by their names.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::docs::page;
use crate::support::Outcome;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The text of all Rust files under a directory, each with its path.
fn sources(directory: &Path) -> Result<Vec<(PathBuf, String)>> {
    let mut found = Vec::new();
    let entries = std::fs::read_dir(directory).with_context(|| directory.display().to_string())?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(sources(&path)?);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            let text = std::fs::read_to_string(&path)?;
            found.push((path, text));
        }
    }
    Ok(found)
}

/// What stands between backquotes in a text.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The messages of the tables of the page: those of the first column, and of the second where the
/// first is a level.
fn messages(page: &str) -> Vec<&str> {
    let rows = page.lines().filter_map(|line| line.strip_prefix("| "));
    rows.flat_map(|row| {
        let mut cells = row.split(" | ");
        let first = cells.next().unwrap_or_default();
        let level = ["LOG", "WARNING", "ERROR", "FATAL"].contains(&first);
        quoted(if level { cells.next().unwrap_or_default() } else { first })
    })
    .collect()
}

#[test]
fn every_message_of_the_troubleshooting_page_is_in_the_source() -> Outcome {
    const TELLING: usize = 6;
    let source: String = sources(&root().join("src"))?.into_iter().map(|(_, text)| text).collect();
    let source = source.replace("\\\"", "\"");
    let text = page::text("troubleshooting.md")?;
    let messages = messages(&text);
    assert!(messages.len() > 50, "{messages:#?}");
    for message in messages {
        for piece in message.split('…').filter(|piece| piece.trim().len() >= TELLING) {
            assert!(source.contains(piece.trim()), "'{piece}' of '{message}' is nowhere in src");
        }
    }
    Ok(())
}

/// `group::file`, with `::test…` where one test shows it: as protocol.md names the tests of a
/// claim.
#[test]
fn every_test_that_the_protocol_names_exists() -> Outcome {
    const GROUPS: [&str; 8] =
        ["clients", "commit", "deadlock", "docs", "exec", "fault", "fdw", "resolver"];
    let text = page::text("protocol.md")?;
    let directory = root().join("pg_test/tests/scenarios");
    let mut count = 0;
    for name in quoted(&text) {
        let mut parts = name.split("::");
        let (Some(group), Some(file)) = (parts.next(), parts.next()) else { continue };
        if !GROUPS.contains(&group) {
            continue;
        }
        let path = directory.join(group).join(format!("{file}.rs"));
        let source = std::fs::read_to_string(&path)
            .with_context(|| format!("protocol.md names `{name}`: {}", path.display()))?;
        if let Some(test) = parts.next() {
            let test = test.trim_end_matches('…');
            assert!(source.contains(&format!("fn {test}")), "protocol.md names `{name}`");
        }
        count += 1;
    }
    assert!(count > 20, "{count} tests are named");
    Ok(())
}

/// The rows of the walks in ARCHITECTURE.md: a file of `src`, and functions in it.
fn walks(text: &str) -> Vec<(&str, Vec<&str>)> {
    let (_, walks) = text.split_once("\n## Walks\n").expect("ARCHITECTURE.md has walks");
    let walks = walks.split("\n## ").next().unwrap_or(walks);
    let rows = walks.lines().filter_map(|line| line.strip_prefix("| "));
    rows.filter_map(|row| {
        let mut cells = row.split(" | ");
        let file = quoted(cells.next()?).next()?;
        Some((file, quoted(cells.next()?).collect()))
    })
    .collect()
}

#[test]
fn every_function_of_a_walk_is_in_its_file() -> Outcome {
    let text = std::fs::read_to_string(root().join("ARCHITECTURE.md"))?;
    let walks = walks(&text);
    assert!(walks.len() > 30, "{walks:#?}");
    for (file, functions) in walks {
        let source = std::fs::read_to_string(root().join("src").join(file))
            .with_context(|| format!("ARCHITECTURE.md names src/{file}"))?;
        for function in functions {
            let is_there =
                ["(", "<"].iter().any(|end| source.contains(&format!("fn {function}{end}")));
            assert!(is_there, "ARCHITECTURE.md: there is no {function} in src/{file}");
        }
    }
    Ok(())
}
