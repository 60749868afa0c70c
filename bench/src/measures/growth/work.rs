//! The transactions that are measured beside what grows.

use std::time::{Duration, Instant};

use anyhow::Result;
use postgres::Client;

use super::ground::Ground;
use crate::contender::{Contender, Session};
use crate::curve::{Curve, Figure};
use crate::effort::Effort;
use crate::measures::processor::used_by;
use crate::measures::throughput::timed_slice;
use crate::statistics::median;

/// What came of a slice.
#[derive(Debug, Clone, Copy)]
pub struct Slice {
    /// Transactions per second.
    pub rate: f64,
    /// The median time of a transaction, in milliseconds.
    pub latency: f64,
    /// That of its COMMIT.
    pub commit: f64,
    /// Processor time of all processes of the coordinator, per transaction, in microseconds.
    pub processor: f64,
}

/// Has all `sessions` run transactions at once for a while.
pub fn slice(ground: &Ground, sessions: &mut [Session], length: Duration) -> Result<Slice> {
    let before = used_by(&ground.fleet.coordinator)?;
    let start = Instant::now();
    let timings = timed_slice(sessions, &ground.ids, length)?;
    let seconds = start.elapsed().as_secs_f64();
    let used = used_by(&ground.fleet.coordinator)? - before;
    let count = timings.len().max(1) as f64;
    let middle = |times: Vec<f64>| median(&times).unwrap_or_default();
    Ok(Slice {
        rate: count / seconds,
        latency: middle(timings.iter().map(|t| milliseconds(t.whole)).collect()),
        commit: middle(timings.iter().map(|t| milliseconds(t.commit)).collect()),
        processor: used / count / 1000.0,
    })
}

/// The length of a slice.
pub fn length(effort: Effort) -> Duration {
    Duration::from_millis(effort.choose(200, 500))
}

/// How often it is repeated.
pub fn rounds(effort: Effort) -> usize {
    effort.choose(2, 4)
}

/// Why times differ from point to point that do not depend on what grows.
pub const MACHINE: &str = "A point is measured minutes after the one before, and the machine is not always as fast: \
                       what counts is the ratio to postgres_fdw beside it.";
const LATENCY: Figure = Figure { label: "a 2-shard transaction, ms", reason: MACHINE };
const PROCESSOR: Figure =
    Figure { label: "processor time of it on the coordinator, µs", reason: MACHINE };
const LATENCY_RATIO: Figure = Figure { label: "its time, against postgres_fdw", reason: "" };
const PROCESSOR_RATIO: Figure =
    Figure { label: "its processor time, against postgres_fdw", reason: "" };

/// Notes how one client does that writes on two shards, and one that does so with `postgres_fdw`
/// in turn.
pub fn note_transactions(ground: &Ground, effort: Effort, curve: &mut Curve) -> Result<()> {
    let mut ours = [ground.session(Contender::Ours, 2)?];
    let mut stock = [ground.session(Contender::StockParallel, 2)?];
    let pairs = (0..rounds(effort))
        .map(|_| {
            let measure = |sessions| slice(ground, sessions, length(effort));
            Ok((measure(&mut ours)?, measure(&mut stock)?))
        })
        .collect::<Result<Vec<_>>>()?;
    let mut note = |figure: Figure, ratio: Figure, of: fn(&Slice) -> f64| {
        curve.note(figure, &pairs.iter().map(|(ours, _)| of(ours)).collect::<Vec<_>>());
        let ratios = pairs.iter().map(|(ours, stock)| of(ours) / of(stock));
        curve.note(ratio, &ratios.collect::<Vec<_>>());
    };
    note(LATENCY, LATENCY_RATIO, |slice| slice.latency);
    note(PROCESSOR, PROCESSOR_RATIO, |slice| slice.processor);
    Ok(())
}

/// One figure of each slice.
pub fn pick(slices: &[Slice], figure: impl Fn(&Slice) -> f64) -> Vec<f64> {
    slices.iter().map(figure).collect()
}

/// Notes how long something takes, in milliseconds.
pub fn note_time(
    effort: Effort,
    curve: &mut Curve,
    figure: Figure,
    mut work: impl FnMut() -> Result<()>,
) -> Result<()> {
    let times = (0..rounds(effort))
        .map(|_| {
            let start = Instant::now();
            work()?;
            Ok(milliseconds(start.elapsed()))
        })
        .collect::<Result<Vec<f64>>>()?;
    curve.note(figure, &times);
    Ok(())
}

/// Notes how long a query takes, all of whose rows are read.
pub fn note_query(
    effort: Effort,
    curve: &mut Curve,
    figure: Figure,
    session: &mut Client,
    query: &str,
) -> Result<()> {
    note_time(effort, curve, figure, || Ok(session.query(query, &[]).map(drop)?))
}

/// In milliseconds.
pub fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
