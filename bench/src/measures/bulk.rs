//! Many rows at once, to one shard and from it, without a delay in between.

use std::time::Instant;

use anyhow::{Context, Result};
use postgres::Client;

use crate::contender::Contender;
use crate::effort::{Effort, alternate};
use crate::progress::say;
use crate::report::{Report, Table, Target, Unit};
use crate::stand::Stand;
use crate::statistics::{Spread, ratio};

/// INSERT … SELECT from a local table.
pub fn insert(stand: &Stand, effort: Effort, report: &mut Report) -> Result<()> {
    let rows = effort.choose(20_000, 100_000);
    let mut shard = stand.fleet.shard(1).client()?;
    shard.batch_execute("CREATE TABLE filled (id int, v text)")?;
    let mut session = stand.fleet.session()?;
    session.batch_execute(&format!(
        "CREATE TABLE source AS SELECT i AS id, 'value ' || i AS v FROM generate_series(1, {rows}) i;
         ANALYZE source;
         CREATE FOREIGN TABLE x_filled (id int, v text) SERVER x1 OPTIONS (table_name 'filled');
         CREATE FOREIGN TABLE s_filled (id int, v text) SERVER s1 OPTIONS (table_name 'filled');
         CREATE FOREIGN TABLE s_filled_100 (id int, v text) SERVER s1
             OPTIONS (table_name 'filled', batch_size '100')"
    ))?;
    let lines = [
        (Contender::Ours.label(), "x_filled"),
        (Contender::Stock.label(), "s_filled"),
        ("postgres_fdw, batch_size 100", "s_filled_100"),
    ];
    for (_, table) in &lines {
        session.batch_execute(&format!("INSERT INTO {table} SELECT * FROM source LIMIT 100"))?;
    }
    let rounds = effort.choose(3, 5);
    let what = format!("INSERT … SELECT of {rows} rows");
    let measured = alternate(&what, rounds, &mut lines.clone(), |(_, table)| {
        shard.batch_execute("TRUNCATE filled")?;
        shard.batch_execute("CHECKPOINT")?;
        let start = Instant::now();
        session.batch_execute(&format!("INSERT INTO {table} SELECT * FROM source"))?;
        Ok(start.elapsed().as_secs_f64() * 1000.0)
    })?;
    for (peer, least) in [(1, 20.0), (2, 1.0)] {
        report.row(
            format!("INSERT … SELECT of {rows} rows: speed against {}", lines[peer].0),
            // Speeds are compared the other way round than times.
            ratio(&measured[peer], &measured[0]),
            Unit::Ratio,
            Some(Target::AtLeast(least)),
            "",
        );
    }
    report.tables.push(Table {
        title: format!("INSERT … SELECT of {rows} rows to one shard in ms"),
        condition: String::new(),
        columns: vec!["time".to_owned()],
        lines: lines
            .iter()
            .zip(&measured)
            .map(|((name, _), times)| ((*name).to_owned(), vec![Spread::of(times)]))
            .collect(),
        plot: None,
    });
    Ok(())
}

/// Full scans with two fetch sizes.
pub fn scan(stand: &Stand, effort: Effort, report: &mut Report) -> Result<()> {
    let rows = effort.choose(200_000, 1_000_000);
    say(&format!("filling a table with {rows} rows"));
    let mut shard = stand.fleet.shard(1).client()?;
    shard.batch_execute(&format!(
        "CREATE TABLE big AS SELECT i AS id, 'value ' || i AS v FROM generate_series(1, {rows}) i"
    ))?;
    shard.batch_execute("VACUUM ANALYZE big")?;
    let mut session = stand.fleet.session()?;
    let fetch_sizes = [100, 10_000];
    let mut lines = [Contender::Ours, Contender::Stock].map(|contender| (contender, Vec::new()));
    for fetch_size in fetch_sizes {
        let mut tables = Vec::new();
        for (contender, _) in &lines {
            let letter = contender.letter().context("it has foreign tables")?;
            let table = format!("{letter}_big_{fetch_size}");
            session.batch_execute(&format!(
                "CREATE FOREIGN TABLE {table} (id int, v text) SERVER {letter}1
                     OPTIONS (table_name 'big', fetch_size '{fetch_size}')"
            ))?;
            read(&mut session, &table)?;
            tables.push(table);
        }
        let what = format!("scan of {rows} rows, fetch_size {fetch_size}");
        let measured = alternate(&what, effort.choose(3, 7), &mut tables, |table| {
            let start = Instant::now();
            read(&mut session, table)?;
            Ok(start.elapsed().as_secs_f64() * 1000.0)
        })?;
        report.row(
            format!("{what}: speed against postgres_fdw"),
            ratio(&measured[1], &measured[0]),
            Unit::Ratio,
            Some(Target::AtLeast(1.0)),
            "pg_fdw_xacts comes to fetch up to four times as many",
        );
        for ((_, values), times) in lines.iter_mut().zip(&measured) {
            values.push(Spread::of(times));
        }
    }
    report.tables.push(Table {
        title: format!("Scan of {rows} rows in ms"),
        condition: "fetch_size".to_owned(),
        columns: fetch_sizes.map(|size| size.to_string()).to_vec(),
        lines: lines.map(|(contender, values)| (contender.label().to_owned(), values)).to_vec(),
        plot: None,
    });
    Ok(())
}

/// Reads all rows and columns on the coordinator, which does nothing with them.
fn read(session: &mut Client, table: &str) -> Result<()> {
    Ok(session.batch_execute(&format!(
        "EXPLAIN (ANALYZE, TIMING OFF, SUMMARY OFF) SELECT * FROM {table}"
    ))?)
}
