//! `cargo xtask bench`: measures this extension against `postgres_fdw` and against an application
//! that commits in two phases itself, side by side on the same servers, and what grows with what.
//! The result of each part is kept on disk, and the reports are made of what is kept.

#![allow(missing_docs, reason = "a program: its documentation is --help")]

mod application;
mod contender;
mod curve;
mod document;
mod effort;
mod kept;
mod machine;
mod measures;
mod part;
mod plot;
mod progress;
mod report;
mod stand;
mod statistics;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, bail};
use clap::Parser;
use clap::builder::PossibleValuesParser;

use crate::document::Document;
use crate::effort::Effort;
use crate::kept::{Kept, Store};
use crate::machine::{Circumstances, Machine};
use crate::part::Part;
use crate::progress::say;

#[derive(Parser)]
#[command(about = "The benchmark of pg_fdw_xacts")]
struct Arguments {
    /// Short slices and few rounds
    #[arg(long)]
    quick: bool,
    /// Measure what grows with what, for growth.md, instead of the measures against others
    #[arg(long)]
    growth: bool,
    /// Measure only these parts
    #[arg(long, value_name = "NAME", num_args = 1.., value_parser = names())]
    only: Vec<String>,
    /// Leave out parts whose result of this commit is kept
    #[arg(long)]
    resume: bool,
    /// Measure nothing: write both reports from what is kept
    #[arg(long)]
    render: bool,
    /// Where report.md, growth.md, the plots and the results are written
    #[arg(long, value_name = "PATH")]
    output: PathBuf,
}

impl Arguments {
    fn chooses(&self, document: Document, part: &Part) -> bool {
        match self.only.as_slice() {
            [] => (document == Document::Growth) == self.growth,
            names => names.iter().any(|name| name == part.name),
        }
    }
}

fn names() -> PossibleValuesParser {
    let parts = Document::ALL.iter().flat_map(|document| document.parts());
    PossibleValuesParser::new(parts.map(|part| part.name))
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
    let store = Store::beside(&arguments.output)?;
    if arguments.render {
        return Document::ALL.iter().try_for_each(|doc| doc.write(&arguments.output, &store));
    }
    let effort = Effort { quick: arguments.quick };
    let (machine, commit) = (Machine::describe()?, machine::commit());
    let mut plan = Vec::new();
    for document in Document::ALL {
        for part in document.parts().iter().filter(|part| arguments.chooses(document, part)) {
            let earlier = store.find(part.name)?.filter(|kept| kept.quick == effort.quick);
            if arguments.resume && earlier.as_ref().is_some_and(|kept| kept.commit == commit) {
                continue;
            }
            // This machine has taken as long before, if it was this machine.
            let seconds = earlier.map_or(part.seconds(effort), |kept| kept.seconds);
            plan.push((document, part, seconds));
        }
    }
    let mut stand = None;
    let mut failed = Vec::new();
    for (place, (document, part, _)) in plan.iter().enumerate() {
        let left: u64 = plan[place..].iter().map(|(_, _, seconds)| seconds).sum();
        say(&format!(
            "part {} of {}: {}; about {} left",
            place + 1,
            plan.len(),
            part.name,
            minutes(left)
        ));
        let (circumstances, start) = (Circumstances::now()?, Instant::now());
        let measured = part.measure(effort, &mut stand).and_then(|report| {
            let kept = Kept {
                quick: effort.quick,
                commit: commit.clone(),
                circumstances,
                machine: machine.clone(),
                seconds: start.elapsed().as_secs(),
                report,
            };
            store.keep(part.name, &kept)?;
            document.write(&arguments.output, &store)
        });
        // The other parts are still worth having.
        if let Err(error) = measured {
            failed.push(part.name);
            say(&format!("{} FAILED: {error:#}", part.name));
        }
    }
    for document in Document::ALL {
        if plan.iter().any(|(other, _, _)| *other == document) {
            say(&format!("done: {}", arguments.output.join(document.file()).display()));
        }
    }
    if !failed.is_empty() {
        bail!(
            "these parts failed, and what was kept of them before is still there: {}",
            failed.join(", ")
        );
    }
    Ok(())
}

fn minutes(seconds: u64) -> String {
    match seconds.div_ceil(60) {
        0 | 1 => "a minute".to_owned(),
        minutes => format!("{minutes} minutes"),
    }
}
