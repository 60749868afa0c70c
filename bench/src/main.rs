//! `cargo xtask bench`: measures this extension against `postgres_fdw` and against an application
//! that commits in two phases itself, side by side on the same servers, and writes a report.

#![allow(missing_docs, reason = "a program: its documentation is --help")]

mod application;
mod contender;
mod effort;
mod machine;
mod measures;
mod plot;
mod progress;
mod report;
mod stand;
mod statistics;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Parser;
use clap::builder::PossibleValuesParser;

use crate::effort::Effort;
use crate::machine::Machine;
use crate::progress::say;
use crate::report::Report;
use crate::stand::Stand;

#[derive(Parser)]
#[command(about = "The benchmark of pg_fdw_xacts")]
struct Arguments {
    /// Short slices and few rounds: three minutes instead of fifteen
    #[arg(long)]
    quick: bool,
    /// Take only these measures
    #[arg(long, value_name = "NAME", num_args = 1.., value_parser = names())]
    only: Vec<String>,
    /// Where report.md, report.json and the plots are written
    #[arg(long, value_name = "PATH")]
    output: PathBuf,
}

fn names() -> PossibleValuesParser {
    PossibleValuesParser::new(measures::ALL.iter().map(|(name, _)| *name))
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let load = Machine::load()?;
    let stand = Stand::start()?;
    let mut report = Report {
        machine: Machine::describe(load, &mut stand.fleet.session()?)?,
        quick: arguments.quick,
        rows: Vec::new(),
        tables: Vec::new(),
    };
    let effort = Effort { quick: arguments.quick };
    let mut failed = 0;
    for (name, measure) in measures::ALL {
        if !arguments.only.is_empty() && !arguments.only.iter().any(|chosen| chosen == name) {
            continue;
        }
        // The other measures are still worth having.
        if let Err(error) = measure(&stand, effort, &mut report) {
            failed += 1;
            say(&format!("{name} FAILED: {error:#}"));
        }
    }
    report.write(&arguments.output)?;
    say(&format!("done: {}", arguments.output.join("report.md").display()));
    if failed > 0 {
        bail!("{failed} measures failed and are not in the report");
    }
    Ok(())
}
