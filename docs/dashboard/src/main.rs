//! Draws the dashboard of `monitoring/`: `dashboard PICTURE [REMARK]`. Use `cargo xtask docs
//! --dashboard`.
//!
//! Some minutes of traffic and faults on real servers, which postgres_exporter and Prometheus watch;
//! then each panel's expressions are asked of Prometheus, as Grafana does, and its answers drawn.

#![allow(missing_docs, reason = "a program")]

mod picture;
mod story;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::{Context, Result, ensure};
use pg_test::dashboard::{self, Panel, Target};
use pg_test::prometheus::{Prometheus, Series};
use pg_test::{Fleet, FleetOptions};

use crate::picture::{Chart, Line};

/// Between two points of a line, in seconds.
const STEP: u32 = 2;

/// What rates are taken over. Prometheus asks once each second.
const RATE_INTERVAL: &str = "10s";

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let Some(path) = arguments.next().map(PathBuf::from) else {
        eprintln!("usage: dashboard PICTURE [REMARK]");
        return ExitCode::FAILURE;
    };
    match run(&path, &arguments.next().unwrap_or_default()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(path: &Path, remark: &str) -> Result<()> {
    let mut fleet =
        Fleet::start_with(&FleetOptions { shards: 3, proxied: true, ..FleetOptions::default() })?;
    let prometheus = Prometheus::start(&fleet.coordinator)?;
    let start = SystemTime::now();
    let moments = story::play(&mut fleet, start)?;
    let end = SystemTime::now();
    // What was undone by hand has to be told at once.
    let alert = "ALERTS{alertname=\"PgFdwXactsHeuristicOutcome\",alertstate=\"firing\"}";
    ensure!(!prometheus.instant(alert)?.is_empty(), "no alert of the heuristic outcome");
    let length = end.duration_since(start)?.as_secs();
    let mut charts = Vec::new();
    for panel in dashboard::panels()? {
        let mut lines = Vec::new();
        for target in &panel.targets {
            let expression = target.expression(RATE_INTERVAL, &format!("{length}s"));
            for series in prometheus.range(&expression, start, end, STEP)? {
                lines.push(line(target, &series, start)?);
            }
        }
        charts.push(chart(&panel, lines)?);
    }
    let remark = format!("Rates are over {RATE_INTERVAL}. {remark}");
    picture::draw(path, &charts, &moments, length as f64, &remark)
        .with_context(|| path.display().to_string())
}

/// What a panel shows. Of lines that are zero all the time it shows none, unless all are.
fn chart(panel: &Panel, mut lines: Vec<Line>) -> Result<Chart> {
    ensure!(!lines.is_empty(), "\"{}\" shows nothing", panel.title);
    let is_zero = |line: &Line| line.points.iter().all(|(_, value)| *value == 0.0);
    if !lines.iter().all(is_zero) {
        lines.retain(|line| !is_zero(line));
    }
    Ok(Chart { title: panel.title.clone(), unit: panel.unit().to_owned(), lines })
}

/// A series, named as the target says, at seconds since `start`.
fn line(target: &Target, series: &Series, start: SystemTime) -> Result<Line> {
    let start = start.duration_since(SystemTime::UNIX_EPOCH)?.as_secs_f64();
    let mut name = target.legend_format.clone();
    for label in target.labels() {
        let value = series.labels.get(label).with_context(|| format!("a series has no {label}"))?;
        name = name.replace(&format!("{{{{{label}}}}}"), value);
    }
    let points = series.values.iter().filter(|(_, value)| value.is_finite());
    Ok(Line { name, points: points.map(|(time, value)| (time - start, *value)).collect() })
}
