//! `cargo xtask ha`: the bank on servers that fail over. Argument: part of the names of the cases.
//! What comes of each is appended to the file that `PG_TEST_HA_REPORT` names, a line of JSON.

use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use pg_test::ha::{Case, REPORT_VARIABLE, Report, run};

fn main() -> ExitCode {
    let start = Instant::now();
    let say = |line: &str| println!("{:6.1} s  {line}", start.elapsed().as_secs_f32());
    let filter = std::env::args().nth(1).unwrap_or_default();
    match run(&filter, say, note) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn note(case: &Case, report: &Report) -> Result<()> {
    let Some(path) = std::env::var_os(REPORT_VARIABLE) else { return Ok(()) };
    let mut file = std::fs::File::options().create(true).append(true).open(path)?;
    writeln!(file, "{}", serde_json::json!({ "case": case.name, "report": report }))?;
    Ok(())
}
