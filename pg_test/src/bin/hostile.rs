//! `cargo xtask fuzz shard`: rounds with a hostile shard for as long as one likes. Arguments:
//! seconds, first seed, and `lying`, `one` or both.

use std::process::ExitCode;
use std::time::Duration;

use pg_test::hostile::{Manner, Options, run};

fn main() -> ExitCode {
    let (mut manner, mut rounds, mut numbers) = (Manner::Garbled, u64::MAX, Vec::new());
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "lying" => manner = Manner::Lying,
            "one" => rounds = 1,
            number => match number.parse::<u64>() {
                Ok(number) => numbers.push(number),
                Err(_) => {
                    eprintln!("usage: hostile [SECONDS [SEED]] [lying] [one]");
                    return ExitCode::FAILURE;
                }
            },
        }
    }
    let (seconds, seed) =
        (numbers.first().copied().unwrap_or(60), numbers.get(1).copied().unwrap_or(1));
    let duration = Duration::from_secs(seconds);
    let options = Options { seed, manner, may_be_silent: true, duration, rounds };
    match run(options, |line| println!("{line}")) {
        Ok(report) => {
            println!("{:#}", serde_json::json!({ "seed": seed, "report": report }));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
