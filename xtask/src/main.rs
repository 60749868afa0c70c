//! `cargo xtask`: sets up what is missing on this machine, then shows or tests the extension.

#![allow(missing_docs, reason = "a program: its documentation is --help")]

#[cfg(test)]
mod arrows;
mod bench;
mod clients;
mod deb;
mod demo;
mod docs;
mod fuzz;
mod ha;
mod headers;
mod matrix;
mod names;
mod package;
mod packages;
mod pgrx;
mod server;
mod session;
mod setup;
mod suites;
mod upstream;
mod versions;
mod workspace;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use crate::bench::Choice;
use crate::setup::Setup;
use crate::suites::Selection;
use crate::workspace::Workspace;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Set-up, demo and tests of pg_fdw_xacts")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start a coordinator and two shards on this machine and play a session on them
    Demo {
        #[command(flatten)]
        server: ServerChoice,
        /// Stop the servers of an earlier demo
        #[arg(long)]
        stop: bool,
        /// Write the session into the book, as docs/src/demo.md
        #[arg(long)]
        record: bool,
    },
    /// Check formatting, lints, unit tests and the arrows between rooms: what needs no server
    Check {
        #[command(flatten)]
        server: ServerChoice,
        /// Also compile the extension for every version of PostgreSQL, 19's release candidate
        /// included, against headers that are fetched
        #[arg(long)]
        versions: bool,
    },
    /// Run every check and test, or only the tests whose names contain NAME
    ///
    /// With NAME, only the suites that have such a test are built and run. Examples:
    ///
    ///   cargo xtask test fault::resolver          all tests of one file
    ///   cargo xtask test verdict::tests::absence  one test
    ///   cargo xtask test --only checks            one suite
    #[command(verbatim_doc_comment)]
    Test {
        #[command(flatten)]
        server: ServerChoice,
        /// Part of the names of the tests to run, modules included
        name: Option<String>,
        /// Run only this suite (may be given several times)
        #[arg(long, value_enum, value_name = "SUITE")]
        only: Vec<suites::Suite>,
        /// List the names of all tests with their suites, and run none
        #[arg(long, conflicts_with_all = ["name", "only"])]
        list: bool,
    },
    /// Run postgres_fdw's own tests with this extension and print how many lines differ
    Upstream {
        #[command(flatten)]
        server: ServerChoice,
        /// A source tree of PostgreSQL, instead of the source package of Debian's server
        #[arg(long, value_name = "PATH")]
        source: Option<PathBuf>,
        /// Where the source cannot be fetched, say so and end well
        #[arg(long, conflicts_with = "source")]
        if_available: bool,
    },
    /// Run the suites under each version of PostgreSQL that is supported: docs/src/versions.md
    ///
    /// The servers are made under target/matrix, from Debian's sources with assertions where there
    /// are any. Each suite's result goes into the page when it has ended; what the page has already
    /// of this commit, without failures, is not run again, nor are scenarios that have passed in a
    /// run that was interrupted.
    Matrix {
        /// Only this version (may be given several times); 19, which is not supported yet, is run
        /// only where it is named
        #[arg(long, value_parser = clap::value_parser!(u32).range(15..=19))]
        major: Vec<u32>,
        /// Only this suite (may be given several times)
        #[arg(long, value_enum, value_name = "SUITE")]
        only: Vec<matrix::Suite>,
        /// Of the scenarios only those with this in their names (may be given several times); the
        /// page says how many are left
        #[arg(long, value_name = "NAME")]
        scenarios: Vec<String>,
        /// Also what the page has
        #[arg(long)]
        again: bool,
        /// The source tree of the one version chosen, for postgres_fdw's tests, where its server
        /// was not built from source
        #[arg(long, value_name = "PATH", requires = "major")]
        source: Option<PathBuf>,
    },
    /// Run scenarios with the coordinator under valgrind: those of a short list that have not
    /// passed yet, or those with NAME in their names
    Valgrind {
        /// The version of PostgreSQL, one that `matrix` builds from source
        #[arg(long, default_value_t = 15)]
        major: u32,
        /// Part of the names of the scenarios
        names: Vec<String>,
    },
    /// Run the bank: concurrent transfers under random faults, and check that none is lost or
    /// halved
    Torture {
        #[command(flatten)]
        server: ServerChoice,
        /// For how long faults are injected
        #[arg(long, default_value_t = 120)]
        seconds: u64,
        /// Repeats the sequence of faults of an earlier run
        #[arg(long)]
        seed: Option<u64>,
        /// Most sessions record what they do with lists and registers, and what they see; their
        /// history is checked for snapshot isolation
        #[arg(long)]
        history: bool,
        /// Readers do not read consistently: counts how often they are wrong. With --history it is
        /// an error if they never are
        #[arg(long)]
        inconsistent: bool,
    },
    /// Run the bank on servers that fail over, under Patroni and etcd: docs/src/failovers.md
    ///
    ///   cargo xtask ha                       all cases, a quarter of an hour
    ///   cargo xtask ha shard-killed          one of them
    ///   cargo xtask ha --list                their names
    #[command(verbatim_doc_comment)]
    Ha {
        #[command(flatten)]
        server: ServerChoice,
        /// Part of the names of the cases to run
        name: Option<String>,
        /// List the names of all cases, and run none
        #[arg(long, conflicts_with = "name")]
        list: bool,
    },
    /// Check the model of the protocol in every state that can be reached
    ///
    ///   cargo xtask model --participants 3 --crashes 2     deeper than the tests do
    ///   cargo xtask model --rules                          what each rule is good for
    ///   cargo xtask model --help                           all arguments
    #[command(verbatim_doc_comment, disable_help_flag = true)]
    Model {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Look for inputs that break something, and for answers of a shard that do
    ///
    ///   cargo xtask fuzz                          every target of the crate `fuzz`
    ///   cargo xtask fuzz gid --seconds 600        one of them
    ///   cargo xtask fuzz shard --seed 7 --one     rounds with a hostile shard; one repeats a round
    #[command(verbatim_doc_comment)]
    Fuzz {
        #[command(flatten)]
        server: ServerChoice,
        /// Only this one: a target of the crate `fuzz`, or `shard`
        target: Option<String>,
        /// For how long, each
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// How many inputs each target gets, however long that takes
        #[arg(long, conflicts_with = "seconds")]
        inputs: Option<u64>,
        /// The seed of the first round with a hostile shard
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// That round only
        #[arg(long)]
        one: bool,
        /// The shard also says in due form what is not true
        #[arg(long)]
        lying: bool,
    },
    /// Measure against postgres_fdw and an application that commits in two phases itself:
    /// bench/report.md; each part's result is kept in bench/results as soon as it is there
    Bench {
        #[command(flatten)]
        server: ServerChoice,
        /// Short slices and few rounds: five minutes instead of fifteen; into target/bench
        #[arg(long)]
        quick: bool,
        /// Measure what grows with what instead: bench/growth.md, up to twenty minutes, four with
        /// --quick
        #[arg(long)]
        growth: bool,
        /// Measure only these parts, of either report; what is kept of the others stays
        #[arg(long, value_name = "NAME", num_args = 1..)]
        only: Vec<String>,
        /// Leave out parts whose result of this commit is kept
        #[arg(long)]
        resume: bool,
        /// Measure nothing: write both reports from what is kept
        #[arg(long)]
        render: bool,
        /// Write reports and results there instead of into bench/
        #[arg(long, value_name = "PATH")]
        output: Option<PathBuf>,
    },
    /// Render the documentation to HTML: target/book
    Docs {
        #[command(flatten)]
        server: ServerChoice,
        /// First draw the dashboard of monitoring/ anew, with four minutes of traffic and faults on
        /// real servers that Prometheus watches: docs/src/dashboard.svg
        #[arg(long)]
        dashboard: bool,
    },
    /// Build the extension, optimised, and lay out its files as for the server's directories:
    /// target/package
    Package {
        #[command(flatten)]
        server: ServerChoice,
    },
    /// Build a Debian package for each of these versions of PostgreSQL, or for the release's own
    Deb {
        /// For this version (may be given several times)
        #[arg(long, value_name = "MAJOR")]
        pg: Vec<u32>,
        /// For every version that is supported
        #[arg(long, conflicts_with = "pg")]
        all: bool,
        /// Try each in a clean Debian in a chroot: an upgrade from the version before with
        /// transactions in doubt, the package's demo; needs root, and takes some minutes. Writes
        /// docs/src/packages.md
        #[arg(long)]
        check: bool,
    },
}

#[derive(Args)]
struct ServerChoice {
    /// Use this installation of PostgreSQL instead of Debian's; the extension is installed into it
    #[arg(long, value_name = "PATH")]
    pg_config: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    let workspace = Workspace::find()?;
    match command {
        Command::Demo { stop: true, .. } => demo::stop(&workspace),
        Command::Demo { server, stop: false, record } => {
            let root = record.then(|| workspace.root.clone());
            demo::play(&Setup::prepare(workspace, server.pg_config.as_deref())?, root.as_deref())
        }
        Command::Check { server, versions } => {
            suites::run_check(&Setup::prepare(workspace, server.pg_config.as_deref())?)?;
            if versions { versions::compile() } else { Ok(()) }
        }
        Command::Test { list: true, .. } => suites::list(&workspace.root),
        Command::Test { server, name, only, list: false } => {
            let selection = Selection::new(&workspace.root, name, &only)?;
            let setup = Setup::prepare(workspace, server.pg_config.as_deref())?;
            suites::run(&setup, &selection)
        }
        Command::Upstream { server, source, if_available } => {
            let setup = Setup::prepare(workspace, server.pg_config.as_deref())?;
            upstream::run(&setup, source.as_deref(), if_available)
        }
        Command::Matrix { major, only, scenarios, again, source } => {
            let source = source.map(std::path::absolute).transpose()?;
            let choice =
                matrix::Choice { majors: major, suites: only, names: scenarios, again, source };
            matrix::run(&workspace, &choice)
        }
        Command::Valgrind { major, names } => matrix::valgrind(workspace, major, &names),
        Command::Torture { server, seconds, seed, history, inconsistent } => {
            let setup = Setup::prepare(workspace, server.pg_config.as_deref())?;
            suites::torture(&setup, seconds, seed, history, inconsistent)
        }
        Command::Fuzz { server, target, seconds, inputs, seed, one, lying } => {
            if target.as_deref() != Some("shard") {
                return fuzz::run(&workspace, target.as_deref(), seconds, inputs);
            }
            let setup = Setup::prepare(workspace, server.pg_config.as_deref())?;
            fuzz::shard(&setup, seconds, seed, one, lying)
        }
        Command::Ha { list: true, .. } => {
            ha::list();
            Ok(())
        }
        Command::Ha { server, name, list: false } => {
            let setup = Setup::prepare(workspace, server.pg_config.as_deref())?;
            ha::run(&setup, name.as_deref().unwrap_or_default())
        }
        Command::Model { arguments } => suites::model(&workspace, &arguments),
        Command::Bench { server, quick, growth, only, resume, render, output } => {
            let output = output.map(std::path::absolute).transpose()?;
            let setup = Setup::prepare(workspace, server.pg_config.as_deref())?;
            let choice = Choice { quick, growth, only, resume, render };
            bench::run(&setup, &choice, output.as_deref())
        }
        Command::Docs { server, dashboard } => {
            if dashboard {
                let workspace = Workspace::find()?;
                docs::draw_dashboard(&Setup::prepare(workspace, server.pg_config.as_deref())?)?;
            }
            docs::render(&workspace)
        }
        Command::Package { server } => {
            package::run(&Setup::prepare(workspace, server.pg_config.as_deref())?)
        }
        Command::Deb { pg, all, check } => deb::run(if all { &matrix::MAJORS } else { &pg }, check),
    }
}
