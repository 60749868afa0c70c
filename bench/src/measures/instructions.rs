//! What the library costs a local transaction in instructions, counted by valgrind in a single-user
//! server: by the clock so little cannot be told from noise.

use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use pg_test::install::as_server_user;
use pg_test::{Cluster, Installation};

use crate::effort::Effort;
use crate::progress::say;
use crate::report::{Headline, Report, Target, Unit};
use crate::stand::Stand;
use crate::statistics::Spread;

/// What both servers begin with.
const PREPARATION: &str = "CREATE TABLE lt (id int PRIMARY KEY, v text);
    INSERT INTO lt VALUES (7, 'x');
    CREATE EXTENSION pg_fdw_xacts CASCADE;
    VACUUM ANALYZE;";

/// One local transaction; a single-user server takes a line for a statement.
const TRANSACTION: &str =
    "BEGIN;\nSELECT v FROM lt WHERE id = 7;\nUPDATE lt SET v = 'v' WHERE id = 7;\nCOMMIT;\n";

/// The transactions of two runs, whose difference counts: that leaves out starting and stopping the
/// server. With `--quick`, and without.
const RUNS: [[usize; 2]; 2] = [[100, 300], [500, 1500]];

/// The row of the report on instructions.
pub fn measure(_: &Stand, effort: Effort, report: &mut Report) -> Result<()> {
    say("local transactions: counting instructions");
    let installation = Installation::from_env()?;
    let per_transaction = |with_library| -> Result<f64> {
        let counts = effort.choose(RUNS[0], RUNS[1]);
        let [few, many] = counts.map(|count| instructions(&installation, with_library, count));
        Ok((many? - few?) / (counts[1] - counts[0]) as f64)
    };
    let (with, without) = (per_transaction(true)?, per_transaction(false)?);
    let figure = Spread::of(&[with / without]);
    report.headline(Headline::Local, figure);
    report.row(
        "local transactions: instructions of the server with the library loaded, against without",
        figure,
        Unit::Ratio,
        Some(Target::AtMost(1.01)),
        format!("{with:.0} against {without:.0}, without those of the kernel"),
    );
    Ok(())
}

/// The instructions of a server that runs this many transactions.
fn instructions(
    installation: &Installation,
    with_library: bool,
    transactions: usize,
) -> Result<f64> {
    let cluster = Cluster::create(installation, "instructions")?;
    let program = installation.bindir().join("postgres");
    single_user(
        installation,
        &program,
        &[],
        &cluster,
        true,
        &PREPARATION.replace(";\n    ", ";\n"),
    )?;
    let mut valgrind =
        vec!["--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"];
    valgrind.push(program.to_str().context("a path in UTF-8")?);
    let input = TRANSACTION.repeat(transactions);
    let said = single_user(
        installation,
        Path::new("valgrind"),
        &valgrind,
        &cluster,
        with_library,
        &input,
    )?;
    let count = said.lines().filter_map(|line| line.split("refs:").nth(1)).next_back();
    let count = count.with_context(|| format!("valgrind has counted nothing: {said}"))?;
    Ok(count.trim().replace(',', "").parse()?)
}

/// Runs a single-user server to the end of `input`, and returns what it prints on standard error.
fn single_user(
    installation: &Installation,
    program: &Path,
    arguments: &[&str],
    cluster: &Cluster,
    with_library: bool,
    input: &str,
) -> Result<String> {
    let mut server = as_server_user(installation.user(), program)
        .args(arguments)
        .args(["--single", "-D"])
        .arg(cluster.data())
        .args([
            "-c",
            "autovacuum=off",
            "-c",
            "log_statement=none",
            "-c",
            "shared_preload_libraries=",
        ])
        .args(
            with_library
                .then_some(["-c", "shared_preload_libraries=pg_fdw_xacts"])
                .into_iter()
                .flatten(),
        )
        .arg("postgres")
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", program.display()))?;
    let mut stdin = server.stdin.take().context("a pipe")?;
    let input = input.to_owned();
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = server.wait_with_output()?;
    writer.join().expect("the writer does not panic")?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{}: {}\n{said}", program.display(), output.status);
    Ok(said)
}
