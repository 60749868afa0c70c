//! How long a transaction that writes on several shards takes, depending on the round-trip time and
//! on the number of shards.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use pg_test::Cluster;
use postgres::NoTls;

use crate::contender::{Contender, Session};
use crate::effort::{Effort, alternate};
use crate::report::{Headline, Report, Table, Target, Unit};
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
    let all = stand.contenders();
    let mut measured = Vec::new();
    let mut wire = Vec::new();
    for round_trip in ROUND_TRIPS {
        measured.push(run(stand, effort, &all, round_trip, 2)?);
        wire.push(ping(stand, round_trip)?);
    }
    let at_one = &measured[ROUND_TRIPS.iter().position(|ms| *ms == 1.0).context("1 ms")?];
    let compare = |ours, theirs| ratio(&whole(at_one, ours)?, &whole(at_one, theirs)?);
    report.headline(Headline::Latency, compare(Contender::Ours, Contender::StockParallel));
    for (ours, theirs, target) in [
        (Contender::Ours, Contender::StockParallel, Some(Target::AtMost(0.5))),
        (Contender::OursWithoutWait, Contender::StockParallel, None),
        (Contender::OursBehind, Contender::StockParallel, Some(Target::AtMost(0.35))),
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
    let two = [Contender::Ours, Contender::StockParallel];
    let in_memory = without_disks(stand, || run(stand, effort, &two, ROUND_TRIP, 2))?;
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
    let all = stand.contenders();
    let measured = SHARDS
        .iter()
        .map(|shards| run(stand, effort, &all, ROUND_TRIP, *shards))
        .collect::<Result<Vec<_>>>()?;
    let near = eight_against_two(stand, effort, ROUND_TRIP)?;
    let (in_memory, far) = without_disks(stand, || {
        let near = eight_against_two(stand, effort, ROUND_TRIP)?;
        Ok((near, eight_against_two(stand, effort, FAR)?))
    })?;
    for (figure, measure, target, remark) in [
        (near, "commit latency with 8 participants against 2, at 1 ms", Some(1.3), ""),
        (in_memory, "the same without waits for disks", None, IN_MEMORY),
        (far, "the same at 20 ms, where shards and links do next to nothing", Some(1.1), SERIAL),
    ] {
        report.row(measure, figure, Unit::Ratio, target.map(Target::AtMost), remark);
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

const SERIAL: &str =
    "`fsync = off`; what the coordinator does for one participant after the other shows here";

/// Measures without waits for disks.
pub fn without_disks<T>(stand: &Stand, measure: impl FnOnce() -> Result<T>) -> Result<T> {
    stand.set_fsync(false)?;
    let measured = measure();
    stand.set_fsync(true)?;
    measured
}

/// `contenders` on `shards` shards at `round_trip` ms.
fn run(
    stand: &Stand,
    effort: Effort,
    contenders: &[Contender],
    round_trip: f64,
    shards: usize,
) -> Result<Latencies> {
    let sessions = contenders.iter().map(|contender| (*contender, shards));
    let what = format!("latency at {round_trip} ms, {shards} shards");
    let measured = take_turns(stand, effort, &what, round_trip, sessions)?;
    Ok(contenders.iter().copied().zip(measured).collect())
}

/// The time of our COMMIT with eight participants over that with two.
fn eight_against_two(stand: &Stand, effort: Effort, round_trip: f64) -> Result<Option<Spread>> {
    let sessions = [8, 2].map(|shards| (Contender::Ours, shards));
    let what = format!("COMMIT at {round_trip} ms, 8 shards and 2");
    let measured = take_turns(stand, effort, &what, round_trip, sessions)?;
    let [eight, two] = [0, 1].map(|place| -> Vec<f64> {
        measured[place].iter().map(|latency: &Latency| latency.commit).collect()
    });
    Ok(ratio(&eight, &two))
}

/// A session of each of these contenders on so many shards, in turn at `round_trip` ms; without a
/// delay they have no link in between.
fn take_turns(
    stand: &Stand,
    effort: Effort,
    what: &str,
    round_trip: f64,
    sessions: impl IntoIterator<Item = (Contender, usize)>,
) -> Result<Vec<Vec<Latency>>> {
    let route = if round_trip == 0.0 { Route::Direct } else { Route::Linked };
    stand.set_round_trip(Duration::ZERO);
    let mut sessions = sessions
        .into_iter()
        .map(|(contender, shards)| stand.session(contender, route, shards))
        .collect::<Result<Vec<_>>>()?;
    stand.set_round_trip(Duration::from_secs_f64(round_trip / 1000.0));
    let ids = stand.ids();
    let measured = alternate(what, effort.rounds(), &mut sessions, |session| {
        slice(session, &ids, effort.slice())
    });
    stand.set_round_trip(Duration::ZERO);
    measured
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
