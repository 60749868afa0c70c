//! How much processor time a transaction takes, on the coordinator and on the shards: all processes
//! of the servers, those in the background too. Time in the kernel counts; waits do not.

use std::time::Instant;

use anyhow::{Context, Result};
use pg_test::Cluster;
use postgres::Client;

use super::latency::without_disks;
use super::throughput::slice;
use crate::contender::{Contender, Session};
use crate::effort::{Effort, alternate};
use crate::report::{Report, Table, Target, Unit};
use crate::stand::{Ids, Route, Stand};
use crate::statistics::{Spread, median, ratio};

const CLIENTS: usize = 16;
const SHARDS: usize = 2;

const COLUMNS: [&str; 3] = ["coordinator", "each shard", "all servers"];

/// Processor time of a transaction in microseconds, by [`COLUMNS`].
type Cost = [f64; 3];

/// A transaction of one statement on one shard: its name, and its text for a foreign table and the
/// number of a row.
pub type Statement = (&'static str, fn(&str, i32) -> String);

pub const STATEMENTS: [Statement; 3] = [
    ("SELECT by key", |table, _| format!("SELECT v FROM {table} WHERE id = 0")),
    ("single-row INSERT", |table, id| format!("INSERT INTO {table} VALUES ({id}, 'value')")),
    ("direct UPDATE", |table, _| format!("UPDATE {table} SET v = 'value' WHERE id = 0")),
];

/// The rows of the report on processor time, and the tables behind them.
pub fn measure(stand: &Stand, effort: Effort, report: &mut Report) -> Result<()> {
    let with_disks = transactions(stand, effort, "2-shard transactions", report)?;
    let name = "2-shard transactions, `fsync = off`";
    let without = without_disks(stand, || transactions(stand, effort, name, report))?;
    report.tables.extend([with_disks, without]);
    let mut lines = Vec::new();
    for statement in STATEMENTS {
        lines.extend(one_statement(stand, effort, statement, report)?);
    }
    report.tables.push(table("a transaction of one statement, 1 client", lines));
    Ok(())
}

/// All contenders with [`CLIENTS`] clients each.
fn transactions(stand: &Stand, effort: Effort, name: &str, report: &mut Report) -> Result<Table> {
    let contenders = stand.contenders();
    let mut sessions = contenders
        .iter()
        .map(|contender| {
            (0..CLIENTS)
                .map(|_| stand.session(*contender, Route::Direct, SHARDS))
                .collect::<Result<Vec<Session>>>()
        })
        .collect::<Result<Vec<_>>>()?;
    let ids = stand.ids();
    let what = format!("processor time, {name}");
    let measured = alternate(&what, effort.rounds(), &mut sessions, |sessions| {
        cost(stand, SHARDS, || {
            let start = Instant::now();
            Ok(slice(sessions, &ids, effort.slice())? * start.elapsed().as_secs_f64())
        })
    })?;
    let of = |contender| contenders.iter().position(|c| *c == contender).map(|i| &measured[i]);
    let (ours, theirs) = (of(Contender::Ours), of(Contender::StockParallel));
    if let Some((ours, theirs)) = ours.zip(theirs) {
        row(report, &what, Contender::StockParallel, ours, theirs, Some(Target::AtMost(1.1)));
    }
    let lines = contenders.iter().zip(&measured);
    let lines = lines.map(|(contender, costs)| (contender.label().to_owned(), spreads(costs)));
    Ok(table(&format!("{name}, {CLIENTS} clients"), lines.collect()))
}

fn table(what: &str, lines: Vec<(String, Vec<Option<Spread>>)>) -> Table {
    Table {
        title: format!("Processor time per transaction in µs: {what}"),
        condition: "on".to_owned(),
        columns: COLUMNS.map(str::to_owned).to_vec(),
        lines,
        plot: None,
    }
}

/// By [`COLUMNS`].
fn spreads(costs: &[Cost]) -> Vec<Option<Spread>> {
    (0..COLUMNS.len()).map(|column| Spread::of(&pick(costs, column))).collect()
}

/// One client of ours and one of stock's: a line for each.
fn one_statement(
    stand: &Stand,
    effort: Effort,
    (name, text): Statement,
    report: &mut Report,
) -> Result<Vec<(String, Vec<Option<Spread>>)>> {
    const CONTENDERS: [Contender; 2] = [Contender::Ours, Contender::Stock];
    let ids = stand.ids();
    let mut sessions = CONTENDERS
        .iter()
        .map(|contender| {
            let mut client = stand.client(*contender)?;
            let table = Stand::table(*contender, Route::Direct, 1)?;
            run(&mut client, &table, text, &ids, Stand::WARM_UP)?;
            Ok((client, table))
        })
        .collect::<Result<Vec<_>>>()?;
    let count = effort.choose(300, 600);
    let what = format!("processor time, {name}");
    let measured = alternate(&what, effort.rounds(), &mut sessions, |(client, table)| {
        cost(stand, 1, || {
            run(client, table, text, &ids, count)?;
            Ok(f64::from(count))
        })
    })?;
    row(report, &what, Contender::Stock, &measured[0], &measured[1], None);
    let lines = CONTENDERS.iter().zip(&measured);
    let line = |(contender, costs): (&Contender, &Vec<Cost>)| {
        (format!("{name}: {}", contender.label()), spreads(costs))
    };
    Ok(lines.map(line).collect())
}

fn run(
    client: &mut Client,
    table: &str,
    text: fn(&str, i32) -> String,
    ids: &Ids,
    count: u32,
) -> Result<()> {
    (0..count).try_for_each(|_| Ok(client.batch_execute(&text(table, ids.next()))?))
}

fn row(
    report: &mut Report,
    what: &str,
    peer: Contender,
    ours: &[Cost],
    theirs: &[Cost],
    target: Option<Target>,
) {
    let all = |costs: &[Cost]| pick(costs, COLUMNS.len() - 1);
    let (ours, theirs) = (all(ours), all(theirs));
    let middle = |values: &[f64]| median(values).unwrap_or_default();
    report.row(
        format!("{what}: pg_fdw_xacts, against {}", peer.label()),
        ratio(&ours, &theirs),
        Unit::Ratio,
        target,
        format!("{:.0} µs against {:.0} µs, all servers", middle(&ours), middle(&theirs)),
    );
}

fn pick(costs: &[Cost], column: usize) -> Vec<f64> {
    costs.iter().map(|cost| cost[column]).collect()
}

/// What each of the transactions costs that `work` runs and counts, on the coordinator and the
/// first `shards` shards.
fn cost(stand: &Stand, shards: usize, work: impl FnOnce() -> Result<f64>) -> Result<Cost> {
    let fleet = &stand.fleet;
    let used = || -> Result<(f64, f64)> {
        let shards: Result<Vec<f64>> = fleet.shards().iter().take(shards).map(used_by).collect();
        Ok((used_by(&fleet.coordinator)?, shards?.iter().sum()))
    };
    let before = used()?;
    let count = work()?;
    let after = used()?;
    let (coordinator, all_shards) = (after.0 - before.0, after.1 - before.1);
    let each = |nanoseconds: f64| nanoseconds / count / 1000.0;
    Ok([each(coordinator), each(all_shards / shards as f64), each(coordinator + all_shards)])
}

/// What all processes of a server have used so far, in nanoseconds; without those that have ended.
pub fn used_by(server: &Cluster) -> Result<f64> {
    let file = std::fs::read_to_string(server.data().join("postmaster.pid"))?;
    let postmaster = file.lines().next().context("an empty postmaster.pid")?;
    let children = format!("/proc/{postmaster}/task/{postmaster}/children");
    let children = std::fs::read_to_string(children)?;
    let mut sum = 0.0;
    for pid in children.split_whitespace().chain([postmaster]) {
        // One that has ended meanwhile has no file.
        sum += used_by_process(pid).unwrap_or_default();
    }
    Ok(sum)
}

/// What a process has used so far, in nanoseconds.
pub fn used_by_process(pid: impl std::fmt::Display) -> Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/schedstat"))?;
    Ok(text.split_whitespace().next().context("an empty schedstat")?.parse()?)
}
