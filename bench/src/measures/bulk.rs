//! Many rows at once, to one shard and from it, without a delay in between.

use std::io::Write;
use std::time::Instant;

use anyhow::{Context, Result};
use postgres::Client;

use crate::contender::Contender;
use crate::effort::{Effort, alternate};
use crate::progress::say;
use crate::report::{Headline, Report, Table, Target, Unit};
use crate::stand::Stand;
use crate::statistics::{Spread, ratio};

/// How rows come into a table of the shard.
#[derive(Clone, Copy)]
enum Way {
    /// INSERT … SELECT from a local table into this foreign table.
    Insert(&'static str),
    /// COPY from the client into this foreign table.
    Copy(&'static str),
    /// COPY from the client, connected to the shard.
    Straight,
}

/// INSERT … SELECT from a local table, and COPY.
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
    let ours = Contender::Ours.label();
    let ways = [
        (format!("{ours}: INSERT … SELECT"), Way::Insert("x_filled")),
        (format!("{ours}: COPY"), Way::Copy("x_filled")),
        ("COPY straight into the shard".to_owned(), Way::Straight),
        ("postgres_fdw, batch_size 100: INSERT … SELECT".to_owned(), Way::Insert("s_filled_100")),
        ("postgres_fdw: INSERT … SELECT".to_owned(), Way::Insert("s_filled")),
    ];
    for (_, way) in &ways {
        if let Way::Insert(table) = way {
            session
                .batch_execute(&format!("INSERT INTO {table} SELECT * FROM source LIMIT 100"))?;
        }
    }
    let mut fill = |rows: usize, ways: &[(String, Way)]| {
        let text: String = (1..=rows).map(|i| format!("{i}\tvalue {i}\n")).collect();
        let what = format!("INSERT … SELECT and COPY of {rows} rows");
        alternate(&what, effort.rounds(), &mut ways.to_vec(), |(_, way)| {
            shard.batch_execute("TRUNCATE filled")?;
            shard.batch_execute("CHECKPOINT")?;
            let start = Instant::now();
            match *way {
                Way::Insert(table) => session.batch_execute(&format!(
                    "INSERT INTO {table} SELECT * FROM source WHERE id <= {rows}"
                ))?,
                Way::Copy(table) => copy(&mut session, table, &text)?,
                Way::Straight => copy(&mut shard, "filled", &text)?,
            }
            Ok(start.elapsed().as_secs_f64() * 1000.0)
        })
    };
    // Row by row takes so long that a tenth of the rows has to do.
    let fewer = rows / 10;
    let (few, many) = (fill(fewer, &ways)?, fill(rows, &ways[..4])?);
    let against_straight = |way: usize| ratio(&many[way], &many[2]);
    report.headline(Headline::Bulk, against_straight(0));
    // Speeds are compared the other way round than times.
    for (rows, peer, figure, least) in
        [(fewer, 4, ratio(&few[4], &few[0]), 20.0), (rows, 3, ratio(&many[3], &many[0]), 1.0)]
    {
        report.row(
            format!("INSERT … SELECT of {rows} rows: speed against {}", ways[peer].0),
            figure,
            Unit::Ratio,
            Some(Target::AtLeast(least)),
            "",
        );
    }
    for (way, name) in ["INSERT … SELECT", "COPY into a foreign table"].into_iter().enumerate() {
        report.row(
            format!("{name}, {rows} rows: time against COPY straight into the shard"),
            against_straight(way),
            Unit::Ratio,
            Some(Target::AtMost(1.5)),
            "",
        );
    }
    let spread = |times: Option<&Vec<f64>>| times.and_then(|times| Spread::of(times));
    let line = |(place, (name, _)): (usize, &(String, Way))| {
        (name.clone(), vec![spread(few.get(place)), spread(many.get(place))])
    };
    report.tables.push(Table {
        title: "Many rows into a table of one shard, in ms".to_owned(),
        condition: "rows".to_owned(),
        columns: vec![fewer.to_string(), rows.to_string()],
        lines: ways.iter().enumerate().map(line).collect(),
        plot: None,
    });
    Ok(())
}

/// COPY from the client.
fn copy(session: &mut Client, table: &str, text: &str) -> Result<()> {
    let mut writer = session.copy_in(&format!("COPY {table} FROM STDIN"))?;
    writer.write_all(text.as_bytes())?;
    writer.finish()?;
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
        let measured = alternate(&what, effort.rounds(), &mut tables, |table| {
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
