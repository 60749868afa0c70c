//! A page of the book as its tests see it: the blocks that are to be run, in order, with the output
//! that is shown.
//!
//! `docs/README.md` says how a page marks them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// What a block is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Statements, given to psql.
    Sql,
    /// Command lines.
    Shell,
    /// A program, run with the packages of the clients that the tests try.
    Python,
    /// Lines of `postgresql.conf`.
    Settings,
}

/// One block to be run.
#[derive(Debug, Clone)]
pub struct Block {
    pub kind: Kind,
    /// The servers it is for, one after the other: `coordinator`, `shardN`.
    pub on: Vec<String>,
    /// The session, for statements.
    pub session: String,
    /// The database, for statements.
    pub database: String,
    /// Whether it takes a moment until the output is as shown.
    pub wait: bool,
    /// Whether it is only shown.
    pub not_run: bool,
    pub code: String,
    /// What follows it as its output.
    pub output: Option<String>,
    /// Line in the page.
    pub line: usize,
}

/// The directory of the book's pages.
pub fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/src")
}

/// The text of a page.
pub fn text(page: &str) -> Result<String> {
    std::fs::read_to_string(directory().join(page)).with_context(|| page.to_owned())
}

/// The page whose blocks have to be run before those of `text`.
pub fn runs_after(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("<!-- runs after ")?;
    Some(rest.split_once(" -->")?.0)
}

/// The blocks of a page that are run, or marked as not to be run; drawings and samples of text are
/// left out.
pub fn blocks(text: &str) -> Result<Vec<Block>> {
    let mut blocks: Vec<Block> = Vec::new();
    // Whether nothing but prose has come since the last block that was run.
    let mut follows = false;
    let mut lines = text.lines().enumerate();
    while let Some((index, line)) = lines.next() {
        let Some(info) = line.strip_prefix("```") else { continue };
        let mut code = String::new();
        loop {
            let (_, line) = lines.next().with_context(|| format!("line {index}: no end"))?;
            if line == "```" {
                break;
            }
            code.push_str(line);
            code.push('\n');
        }
        let mut words = info.split(',');
        let kind = match words.next().unwrap_or_default() {
            "sql" => Kind::Sql,
            "sh" => Kind::Shell,
            "python" => Kind::Python,
            "ini" => Kind::Settings,
            "output" if follows => {
                blocks.last_mut().context("an output of nothing")?.output = Some(code);
                follows = false;
                continue;
            }
            "text" | "sequence" | "java" | "yaml" => continue,
            other => bail!("line {}: what is a block '{other}'?", index + 1),
        };
        let mut block = Block {
            kind,
            on: vec!["coordinator".to_owned()],
            session: String::new(),
            database: "app".to_owned(),
            wait: false,
            not_run: false,
            code,
            output: None,
            line: index + 1,
        };
        for word in words {
            match word.split_once('=') {
                Some(("on", servers)) => {
                    block.on = servers.split('+').map(str::to_owned).collect();
                }
                Some(("session", name)) => block.session = name.to_owned(),
                Some(("db", name)) => block.database = name.to_owned(),
                None if word == "wait" => block.wait = true,
                None if word == "not-run" => block.not_run = true,
                _ => bail!("line {}: what is '{word}'?", index + 1),
            }
        }
        blocks.push(block);
        follows = true;
    }
    Ok(blocks)
}

/// `code` with the servers' names of the book replaced by where the test's servers are.
pub fn substitute(code: &str, ports: &BTreeMap<String, u16>) -> Result<String> {
    let mut code = code.to_owned();
    for (server, port) in ports {
        let name = format!("{server}.example");
        for (written, meant) in [
            (format!("SET host '{name}'"), format!("SET host '127.0.0.1', SET port '{port}'")),
            (format!("host '{name}'"), format!("host '127.0.0.1', port '{port}'")),
            (format!("host={name}"), format!("host=127.0.0.1 port={port}")),
            (format!("-h {name}"), format!("-h 127.0.0.1 -p {port}")),
            (format!("@{name}/"), format!("@127.0.0.1:{port}/")),
        ] {
            code = code.replace(&written, &meant);
        }
    }
    if code.contains(".example") {
        bail!("a server's name in a place that the tests do not know: {code}");
    }
    Ok(code)
}

/// Whether `real` is what `shown` says. In what is shown, `…` stands for anything within a line,
/// and as a line by itself for any lines; the width of columns does not matter.
pub fn matches(shown: &str, real: &str) -> bool {
    let tidy = |text: &str| -> Vec<String> {
        let lines = text.lines().map(|line| {
            let rule = !line.is_empty() && line.bytes().all(|byte| matches!(byte, b'-' | b'+'));
            let line = if rule { line.replace('-', "") + "-" } else { line.to_owned() };
            line.split_whitespace().collect::<Vec<_>>().join(" ")
        });
        lines.filter(|line| !line.is_empty()).collect()
    };
    let (shown, real) = (tidy(shown), tidy(real));
    let shown: Vec<&str> = shown.iter().map(String::as_str).collect();
    let real: Vec<&str> = real.iter().map(String::as_str).collect();
    fits(&shown, &real, "…", &|shown, real| {
        let split = |line: &'_ str| -> Vec<char> { line.chars().collect() };
        fits(&split(shown), &split(real), '…', &|a, b| a == b)
    })
}

/// Whether `text` is `pattern`, where `any` in the pattern stands for any number of items.
fn fits<T: Copy + PartialEq>(
    pattern: &[T],
    text: &[T],
    any: T,
    same: &dyn Fn(T, T) -> bool,
) -> bool {
    match (pattern.split_first(), text.split_first()) {
        (None, None) => true,
        (Some((first, rest)), _) if *first == any => {
            (0..=text.len()).any(|skipped| fits(rest, &text[skipped..], any, same))
        }
        (Some((first, rest)), Some((head, tail))) => {
            same(*first, *head) && fits(rest, tail, any, same)
        }
        _ => false,
    }
}
