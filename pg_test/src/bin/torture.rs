//! `cargo xtask torture`: the bank for as long as one likes. Arguments: seconds, seed; `history` to
//! record transactions and check their history; and `off` for reads that are not consistent, whose
//! errors are counted.

use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pg_test::bank::{Plan, run};

fn main() -> ExitCode {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let consistent_reads = arguments.pop_if(|last| last == "off").is_none();
    let with_history = arguments.pop_if(|last| last == "history").is_some();
    let mut arguments = arguments.into_iter().map(|argument| argument.parse::<u64>());
    let mut next = |default: u64| arguments.next().map_or(Some(default), Result::ok);
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_secs());
    let (Some(seconds), Some(seed)) = (next(120), next(clock)) else {
        eprintln!("usage: torture [SECONDS [SEED]] [history] [off]");
        return ExitCode::FAILURE;
    };
    println!("{seconds} s with seed {seed}");
    let plan = if with_history { Plan::with_history(seed) } else { Plan::draw(seed) };
    let plan = Plan { consistent_reads, ..plan };
    match run(&plan, Duration::from_secs(seconds), |line| println!("{line}")) {
        Ok(report) => {
            let has_failed =
                with_history && !consistent_reads && report.recorded.anomalies.is_empty();
            let report = serde_json::json!({ "seed": seed, "seconds": seconds, "report": report });
            println!("{report:#}");
            if has_failed {
                eprintln!("seed {seed}: without consistent reads there should be anomalies");
                return ExitCode::FAILURE;
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("seed {seed}: {error:#}");
            ExitCode::FAILURE
        }
    }
}
