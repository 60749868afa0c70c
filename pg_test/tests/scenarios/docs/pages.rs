//! The book: every command it shows is run, and what it shows as output is what comes out. Programs
//! in Python are run with the packages of [`pg_test::client`].

use std::collections::BTreeSet;

use crate::docs::page::{self, Block, Kind};
use crate::docs::run;
use crate::support::Outcome;

macro_rules! pages {
    ($($test:ident: $page:literal,)*) => {
        /// The pages with something to run.
        const PAGES: &[&str] = &[$($page,)*];
        $(
            #[test]
            fn $test() -> Outcome {
                run::run($page)
            }
        )*
    };
}

pages! {
    quick_start_runs: "quick-start.md",
    concepts_runs: "concepts.md",
    from_postgres_fdw_runs: "from-postgres-fdw.md",
    sharding_runs: "sharding.md",
    tuning_runs: "tuning.md",
    following_runs: "following.md",
    schema_changes_run: "schema-changes.md",
    transaction_managers_run: "transaction-managers.md",
    several_coordinators_run: "several-coordinators.md",
    operating_runs: "operating.md",
    security_runs: "security.md",
    shard_administrators_runs: "shard-administrators.md",
    backup_runs: "backup.md",
    lost_answers_runs: "lost-answers.md",
    uninstalling_runs: "uninstalling.md",
}

/// What the book shows without running it, and where else it is run.
const NOT_RUN: &[(&str, &str)] = &[
    ("cargo install --locked cargo-pgrx", "cargo xtask test installs it where it is missing"),
    ("cargo pgrx", "cargo xtask test configures and installs that way"),
    ("cargo xtask", "a test of the tests would not end"),
    (
        "echo \"shared_preload_libraries",
        "the tests' servers are configured so, not those of cargo pgrx",
    ),
    ("apt", "cargo xtask deb --check"),
    ("/usr/share/doc/", "cargo xtask deb --check"),
];

fn all_pages() -> anyhow::Result<Vec<(String, Vec<Block>)>> {
    let mut pages = Vec::new();
    for entry in std::fs::read_dir(page::directory())? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.ends_with(".md") {
            let blocks =
                page::blocks(&page::text(&name)?).map_err(|error| error.context(name.clone()))?;
            pages.push((name, blocks));
        }
    }
    Ok(pages)
}

#[test]
fn every_page_of_the_book_with_a_command_is_run() -> Outcome {
    let with_commands: BTreeSet<String> = all_pages()?
        .into_iter()
        .filter(|(_, blocks)| blocks.iter().any(|block| !block.not_run))
        .map(|(name, _)| name)
        .collect();
    let run: BTreeSet<String> = PAGES.iter().map(|&page| page.to_owned()).collect();
    assert_eq!(with_commands, run);
    Ok(())
}

#[test]
fn only_what_builds_or_installs_is_shown_and_not_run() -> Outcome {
    for (page, blocks) in all_pages()? {
        for block in blocks.iter().filter(|block| block.not_run) {
            if block.kind == Kind::Python {
                continue;
            }
            for line in block.code.lines().filter(|line| !line.starts_with(['#', ' '])) {
                let command = line.trim_start_matches("sudo ");
                assert!(
                    NOT_RUN.iter().any(|(known, _)| command.starts_with(known)),
                    "{page}, line {}: '{line}' should be run",
                    block.line
                );
            }
        }
    }
    Ok(())
}

#[test]
fn every_page_of_the_book_is_in_its_table_of_contents() -> Outcome {
    let contents = page::text("SUMMARY.md")?;
    for (page, _) in all_pages()? {
        assert!(page == "SUMMARY.md" || contents.contains(&format!("({page})")), "{page}");
    }
    Ok(())
}

#[test]
fn what_comes_out_is_compared_but_for_widths_and_dots() {
    let real = " id |  v  \n----+-----\n  1 | one\n(1 row)\n";
    assert!(page::matches(" id | v\n----+---\n 1 | one\n(1 row)", real));
    assert!(page::matches(" id | v\n----+---\n … | o…\n(1 row)", real));
    assert!(page::matches("…\n(1 row)", real));
    assert!(!page::matches(" id | v\n----+---\n 2 | one\n(1 row)", real));
    assert!(!page::matches(" id | v\n----+---\n 1 | one", real));
}
