//! `cargo xtask bench`: measures this extension against `postgres_fdw` and against an application
//! that commits in two phases itself, side by side on the same servers, and writes a report.

#![allow(missing_docs, reason = "a program: its documentation is --help")]

mod application;
mod contender;
mod curve;
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
use pg_test::Fleet;

use crate::effort::Effort;
use crate::machine::Machine;
use crate::measures::growth;
use crate::progress::say;
use crate::report::Report;
use crate::report::growth::GrowthReport;
use crate::stand::Stand;

#[derive(Parser)]
#[command(about = "The benchmark of pg_fdw_xacts")]
struct Arguments {
    /// Short slices and few rounds: three minutes instead of fifteen
    #[arg(long)]
    quick: bool,
    /// Measure what grows with what instead, for growth.md: two minutes with --quick, else twelve
    #[arg(long)]
    growth: bool,
    /// Take only these measures
    #[arg(long, value_name = "NAME", num_args = 1.., value_parser = names())]
    only: Vec<String>,
    /// Where report.md or growth.md, report.json and the plots are written
    #[arg(long, value_name = "PATH")]
    output: PathBuf,
}

impl Arguments {
    fn chosen(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|chosen| chosen == name)
    }
}

fn names() -> PossibleValuesParser {
    let measures = measures::ALL.iter().map(|(name, _)| *name);
    PossibleValuesParser::new(measures.chain(growth::ALL.iter().map(|(name, _)| *name)))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let run = if arguments.growth { run_growth } else { run };
    match run(&arguments) {
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
    for (name, measure) in measures::ALL.iter().filter(|(name, _)| arguments.chosen(name)) {
        // The other measures are still worth having.
        if let Err(error) = measure(&stand, effort, &mut report) {
            failed += 1;
            say(&format!("{name} FAILED: {error:#}"));
        }
    }
    report.write(&arguments.output)?;
    end(arguments, "report.md", failed)
}

fn run_growth(arguments: &Arguments) -> Result<()> {
    let load = Machine::load()?;
    let mut report = GrowthReport {
        machine: Machine::describe(load, &mut Fleet::start()?.session()?)?,
        quick: arguments.quick,
        curves: Vec::new(),
    };
    let effort = Effort { quick: arguments.quick };
    let mut failed = 0;
    for (name, measure) in growth::ALL.iter().filter(|(name, _)| arguments.chosen(name)) {
        say(&format!("growth: {name}"));
        match measure(effort) {
            Ok(curves) => report.curves.extend(curves),
            Err(error) => {
                failed += 1;
                say(&format!("{name} FAILED: {error:#}"));
            }
        }
    }
    report.write(&arguments.output)?;
    end(arguments, "growth.md", failed)
}

fn end(arguments: &Arguments, file: &str, failed: usize) -> Result<()> {
    say(&format!("done: {}", arguments.output.join(file).display()));
    if failed > 0 {
        bail!("{failed} measures failed and are not in the report");
    }
    Ok(())
}
