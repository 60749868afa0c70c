//! `cargo xtask model`: checks the protocol and writes what it has found.

#![allow(missing_docs, reason = "a program: its documentation is --help")]

use std::process::ExitCode;

use clap::Parser;
use model::check::{Report, check};
use model::rules::Rule;
use model::setting::{self, Setting};

#[derive(Parser)]
#[command(name = "cargo xtask model")]
struct Arguments {
    /// How many participants
    #[arg(long, default_value_t = 2)]
    participants: usize,
    /// How many crashes, where a setting has any
    #[arg(long, default_value_t = 1)]
    crashes: u8,
    /// How many lost connections, where a setting has any
    #[arg(long, default_value_t = 1)]
    losses: u8,
    /// Leave out one rule after the other, and show what breaks
    #[arg(long)]
    rules: bool,
    /// Only these settings, or rules
    #[arg(long, value_name = "NAME", num_args = 1..)]
    only: Vec<String>,
}

impl Arguments {
    fn has(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == name)
    }

    fn adapt(&self, mut setting: Setting) -> Setting {
        setting.participants = self.participants;
        setting.faults.crashes *= self.crashes;
        setting.faults.losses *= self.losses;
        setting
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let threads = std::thread::available_parallelism().map_or(1, |number| number.get());
    println!("{:<18} {:<12} {:>10} {:>6} {:>9}", "without", "setting", "states", "steps", "time");
    let mut holds = true;
    if arguments.rules {
        for rule in Rule::ALL.into_iter().filter(|rule| arguments.has(&format!("{rule:?}"))) {
            let setting = arguments.adapt(Setting::of(rule).without(rule));
            show(&format!("{rule:?}"), setting, &check(setting, true, threads));
        }
    } else {
        let all = setting::ALL.into_iter().chain([setting::COPIED_GXID]);
        for setting in all.filter(|setting| arguments.has(setting.name)) {
            let setting = arguments.adapt(setting);
            let report = check(setting, false, threads);
            show("-", setting, &report);
            holds &= report.broken.is_none();
        }
    }
    if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn show(without: &str, setting: Setting, report: &Report) {
    let Report { states, depth, time, .. } = report;
    let (name, seconds) = (setting.name, time.as_secs_f64());
    println!("{without:<18} {name:<12} {states:>10} {depth:>6} {seconds:>7.1} s");
    print!("{}", report.story());
}
