//! `docs/src/demo.md`: the demo as the book shows it, written by `cargo xtask demo --record`.

use std::path::Path;

use anyhow::Result;

/// The page, below the root of the repository.
const PAGE: &str = "docs/src/demo.md";

/// Writes the page with what was printed, under that version of PostgreSQL.
pub fn write(root: &Path, postgres: &str, printed: &str) -> Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    let page = format!(
        "# The demo\n\n\
         `cargo xtask demo` starts a coordinator and two shards on your machine, plays this session and leaves the servers\n\
         running. On the left is what the session does, on the right what the shards are sent. Each line with `ok` was\n\
         checked. Recorded by `cargo xtask demo --record` with version {version} on PostgreSQL {postgres}.\n\n\
         ```text\n{}\n```\n",
        printed.trim()
    );
    Ok(std::fs::write(root.join(PAGE), page)?)
}

/// A line without the escape sequences that colour it.
pub fn without_colours(line: &str) -> String {
    let mut parts = line.split("\x1b[");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + part.split_once('m').map_or(part, |(_, rest)| rest))
}

#[cfg(test)]
mod tests {
    use super::without_colours;

    #[test]
    fn colours_are_not_recorded() {
        assert_eq!(without_colours("plain m"), "plain m");
        assert_eq!(without_colours("  \x1b[32mok\x1b[0m so \x1b[2;4mm\x1b[0m"), "  ok so m");
    }

    /// Whoever changes the steps of the demo records it again.
    #[test]
    fn the_page_has_the_steps_of_the_demo() {
        let page = include_str!("../../../docs/src/demo.md");
        let sources = [include_str!("../session.rs"), include_str!("concurrent.rs")];
        let titles: Vec<&str> = sources
            .iter()
            .flat_map(|source| source.split("stage.step(\n").skip(1))
            .filter_map(|call| call.split('"').nth(1))
            .collect();
        assert!(titles.len() > 5, "{titles:?}");
        for title in titles {
            let beginning = title.split('{').next().unwrap_or(title);
            assert!(
                page.contains(beginning),
                "docs/src/demo.md: cargo xtask demo --record: {title}"
            );
        }
    }
}
