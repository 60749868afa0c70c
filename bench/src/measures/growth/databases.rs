//! Databases of the coordinator with the extension, each of which has a resolver.

use std::time::{Duration, Instant};

use anyhow::Result;
use pg_test::wait_until;
use postgres::Client;

use super::ground::{Ground, PATIENCE};
use super::memory;
use super::work::{milliseconds, note_transactions};
use crate::curve::{Curve, Figure};
use crate::effort::Effort;
use crate::measures::processor::used_by_process;
use crate::progress::say;

const IDLE: Figure = Figure {
    label: "processor time of all resolvers while nobody uses them, ms per s",
    reason: "Each resolver looks every few seconds after processes that have ended.",
};
const MEMORY: Figure = Figure { label: "memory of one resolver, MB", reason: "" };
const START: Figure = Figure {
    label: "from the start until all resolvers work, ms",
    reason: "They are started a few at a time, each connects to its database.",
};

/// From one to two hundred.
pub fn measure(effort: Effort) -> Result<Vec<Curve>> {
    let workers = &[("max_worker_processes", "260"), ("max_connections", "50")];
    let mut ground = Ground::start(2, workers, &[])?;
    ground.make_shards(1, 2)?;
    let mut curve = Curve::new(
        "databases",
        "databases with the extension",
        "In each the extension was created; transactions run in one of them.",
    );
    let mut there = 1;
    for &databases in effort.choose(&[1, 5, 20][..], &[1, 10, 50, 200]) {
        say(&format!("{databases} databases"));
        curve.point(databases);
        let mut session = ground.fleet.session()?;
        for number in there..databases {
            session.batch_execute(&format!("CREATE DATABASE d{number} STRATEGY file_copy"))?;
            ground
                .fleet
                .coordinator
                .client_for(&format!("d{number}"), "postgres")?
                .batch_execute("CREATE EXTENSION pg_fdw_xacts CASCADE")?;
        }
        there = databases;
        drop(session);
        ground.fleet.coordinator.restart()?;
        let start = Instant::now();
        let mut session = ground.fleet.session()?;
        wait_until("all resolvers work", PATIENCE, || Ok(idle(&mut session)?.len() == databases))?;
        curve.note(START, &[milliseconds(start.elapsed())]);
        note_transactions(&ground, effort, &mut curve)?;
        let resolvers = idle(&mut session)?;
        let all: Vec<f64> =
            resolvers.iter().map(|pid| memory::of_process(*pid)).collect::<Result<_>>()?;
        curve.note(MEMORY, &[all.iter().sum::<f64>() / all.len() as f64]);
        let used = |processes: &[i32]| -> Result<f64> {
            processes.iter().map(|pid| used_by_process(*pid)).sum()
        };
        let (before, start) = (used(&resolvers)?, Instant::now());
        std::thread::sleep(Duration::from_secs(effort.choose(3, 10)));
        let spent = used(&resolvers)? - before;
        curve.note(IDLE, &[spent / 1e6 / start.elapsed().as_secs_f64()]);
    }
    Ok(vec![curve])
}

/// The processes of resolvers that have nothing to do.
fn idle(session: &mut Client) -> Result<Vec<i32>> {
    let sql = "SELECT pid FROM pg_stat_activity
               WHERE backend_type = 'pg_fdw_xacts resolver' AND query LIKE 'waiting; 0 of %'";
    Ok(session.query(sql, &[])?.iter().map(|row| row.get(0)).collect())
}
