//! How long a transaction that writes on several shards takes, depending on the round-trip time and
//! on the number of shards.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use pg_test::Cluster;
use postgres::NoTls;

use crate::contender::{Contender, Session};
use crate::effort::{Effort, alternate};
use crate::report::{Report, Table, Target, Unit};
use crate::stand::{Ids, Route, Stand};
use crate::statistics::{Spread, median, ratio};

/// Round trips in ms, as in the plot.
const ROUND_TRIPS: [f64; 4] = [0.0, 0.2, 1.0, 5.0];
const SHARDS: [usize; 4] = [1, 2, 4, 8];
/// The round trip at which the number of shards changes, in ms.
const ROUND_TRIP: f64 = 1.0;
/// So long that only what is done one after the other on the coordinator counts beside it.
const FAR: f64 = 20.0;

/// Medians of a slice, in ms.
#[derive(Clone, Copy)]
struct Latency {
    whole: f64,
    commit: f64,
}

/// By contender and round.
type Latencies = Vec<(Contender, Vec<Latency>)>;

/// Two shards, at each round-trip time.
pub fn by_round_trip(stand: &Stand, effort: Effort, report: &mut Report) -> Result<()> {
    let mut measured = Vec::new();
    let mut wire = Vec::new();
    for round_trip in ROUND_TRIPS {
        measured.push(run(stand, effort, round_trip, 2)?);
        wire.push(ping(stand, round_trip)?);
    }
    let at_one = &measured[ROUND_TRIPS.iter().position(|ms| *ms == 1.0).context("1 ms")?];
    let compare = |ours, theirs| ratio(&whole(at_one, ours)?, &whole(at_one, theirs)?);
    for (ours, theirs, target) in [
        (Contender::Ours, Contender::StockParallel, Some(Target::AtMost(0.5))),
        (Contender::OursWithoutWait, Contender::StockParallel, None),
        (Contender::Ours, Contender::Application, None),
    ] {
        report.row(
            format!(
                "latency of the 2-shard transaction at 1 ms: {}, against {}",
                ours.label(),
                theirs.label()
            ),
            compare(ours, theirs),
            Unit::Ratio,
            target,
            "",
        );
    }
    let in_memory = without_disks(stand, || run(stand, effort, ROUND_TRIP, 2))?;
    report.row(
        format!(
            "the same without waits for disks: {}, against {}",
            Contender::Ours.label(),
            Contender::StockParallel.label()
        ),
        whole(&in_memory, Contender::Ours)
            .zip(whole(&in_memory, Contender::StockParallel))
            .and_then(|(ours, theirs)| ratio(&ours, &theirs)),
        Unit::Ratio,
        None,
        IN_MEMORY,
    );
    let mut table = table(
        "Latency of the transaction on 2 shards in ms",
        "round trip in ms",
        &ROUND_TRIPS.map(|ms| ms.to_string()),
        &measured,
        |latency| latency.whole,
    );
    table.plot = Some("latency-round-trip.svg".to_owned());
    table.lines.push(("(a round trip, measured)".to_owned(), wire));
    report.tables.push(table);
    Ok(())
}

/// At 1 ms, for each number of shards.
pub fn by_shards(stand: &Stand, effort: Effort, report: &mut Report) -> Result<()> {
    let measured = SHARDS
        .iter()
        .map(|shards| run(stand, effort, ROUND_TRIP, *shards))
        .collect::<Result<Vec<_>>>()?;
    let commit = |shards: usize| {
        let place = SHARDS.iter().position(|number| *number == shards)?;
        of(&measured[place], Contender::Ours, |latency| latency.commit)
    };
    let figure = commit(8).zip(commit(2)).and_then(|(eight, two)| ratio(&eight, &two));
    report.row(
        "commit latency with 8 participants against 2, at 1 ms",
        figure,
        Unit::Ratio,
        Some(Target::AtMost(1.3)),
        "",
    );
    for (round_trip, measure, target) in [
        (ROUND_TRIP, "the same without waits for disks", None),
        (FAR, "the same at 20 ms, where shards and links do next to nothing", Some(1.1)),
    ] {
        let commit = |shards| -> Result<Option<Vec<f64>>> {
            let measured = run(stand, effort, round_trip, shards)?;
            Ok(of(&measured, Contender::Ours, |latency| latency.commit))
        };
        let (eight, two) = without_disks(stand, || Ok((commit(8)?, commit(2)?)))?;
        report.row(
            measure,
            eight.zip(two).and_then(|(eight, two)| ratio(&eight, &two)),
            Unit::Ratio,
            target.map(Target::AtMost),
            IN_MEMORY,
        );
    }
    let columns = SHARDS.map(|shards| shards.to_string());
    let mut whole = table(
        "Latency of the transaction at a round trip of 1 ms, in ms",
        "shards",
        &columns,
        &measured,
        |latency| latency.whole,
    );
    whole.plot = Some("latency-shards.svg".to_owned());
    report.tables.push(whole);
    let mut commit = table(
        "Latency of COMMIT alone at a round trip of 1 ms, in ms",
        "shards",
        &columns,
        &measured,
        |latency| latency.commit,
    );
    commit.plot = Some("commit-shards.svg".to_owned());
    report.tables.push(commit);
    Ok(())
}

/// All servers share this machine's disk. With a disk each, simultaneous syncs would not slow each
/// other down.
const IN_MEMORY: &str = "`fsync = off` on all servers, which share one disk here";

/// Measures without waits for disks.
pub fn without_disks<T>(stand: &Stand, measure: impl FnOnce() -> Result<T>) -> Result<T> {
    stand.set_fsync(false)?;
    let measured = measure();
    stand.set_fsync(true)?;
    measured
}

/// All contenders on `shards` shards at `round_trip` ms; without a delay they have no link in
/// between.
fn run(stand: &Stand, effort: Effort, round_trip: f64, shards: usize) -> Result<Latencies> {
    let route = if round_trip == 0.0 { Route::Direct } else { Route::Linked };
    stand.set_round_trip(Duration::ZERO);
    let contenders = stand.contenders();
    let mut sessions = contenders
        .iter()
        .map(|contender| stand.session(*contender, route, shards))
        .collect::<Result<Vec<_>>>()?;
    stand.set_round_trip(Duration::from_secs_f64(round_trip / 1000.0));
    let what = format!("latency at {round_trip} ms, {shards} shards");
    let ids = stand.ids();
    let measured = alternate(&what, effort.rounds(), &mut sessions, |session| {
        slice(session, &ids, effort.slice())
    })?;
    stand.set_round_trip(Duration::ZERO);
    Ok(contenders.into_iter().zip(measured).collect())
}

/// Transactions one after the other for `length`, at least three.
fn slice(session: &mut Session, ids: &Ids, length: Duration) -> Result<Latency> {
    // What the slice before has left under way does not count here.
    session.transaction(ids.next())?;
    let (mut whole, mut commit) = (Vec::new(), Vec::new());
    let start = Instant::now();
    while start.elapsed() < length || whole.len() < 3 {
        let timing = session.transaction(ids.next())?;
        whole.push(timing.whole.as_secs_f64() * 1000.0);
        commit.push(timing.commit.as_secs_f64() * 1000.0);
    }
    let median = |values: &[f64]| median(values).context("no transaction");
    Ok(Latency { whole: median(&whole)?, commit: median(&commit)? })
}

/// What an empty statement takes on the route that the contenders have, in ms.
fn ping(stand: &Stand, round_trip: f64) -> Result<Option<Spread>> {
    let route = if round_trip == 0.0 { Route::Direct } else { Route::Linked };
    let mut client = Cluster::config_at(stand.port(route, 1)).connect(NoTls)?;
    stand.set_round_trip(Duration::from_secs_f64(round_trip / 1000.0));
    let mut times = Vec::new();
    for _ in 0..50 {
        let start = Instant::now();
        client.batch_execute("")?;
        times.push(start.elapsed().as_secs_f64() * 1000.0);
    }
    stand.set_round_trip(Duration::ZERO);
    Ok(median(&times).map(Spread::single))
}

/// One figure of `contender`, by round.
fn of(measured: &Latencies, contender: Contender, figure: fn(&Latency) -> f64) -> Option<Vec<f64>> {
    let (_, rounds) = measured.iter().find(|(other, _)| *other == contender)?;
    Some(rounds.iter().map(figure).collect())
}

fn whole(measured: &Latencies, contender: Contender) -> Option<Vec<f64>> {
    of(measured, contender, |latency| latency.whole)
}

/// A column for each of `measured`.
fn table(
    title: &str,
    condition: &str,
    columns: &[String],
    measured: &[Latencies],
    figure: fn(&Latency) -> f64,
) -> Table {
    let contenders = measured.first().into_iter().flatten().map(|(contender, _)| *contender);
    let lines = contenders
        .map(|contender| {
            let values =
                measured.iter().map(|column| Spread::of(&of(column, contender, figure)?)).collect();
            (contender.label().to_owned(), values)
        })
        .collect();
    Table {
        title: title.to_owned(),
        condition: condition.to_owned(),
        columns: columns.to_vec(),
        lines,
        plot: None,
    }
}
