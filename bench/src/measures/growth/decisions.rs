//! Rows of the decision table, of transactions that all participants have confirmed.

use std::time::Instant;

use anyhow::Result;
use pg_test::wait_until;

use super::ground::{Ground, PATIENCE};
use super::memory;
use super::work::{milliseconds, note_query, note_time, note_transactions};
use crate::contender::Contender;
use crate::curve::{Curve, Figure};
use crate::effort::Effort;
use crate::measures::processor::used_by_process;
use crate::progress::say;

const LOOK: Figure = Figure {
    label: "processor time of the resolver for reading all of them, ms",
    reason: "It reads the table as a whole, once in `pg_fdw_xacts.resolver_interval`, and a part at a time.",
};
const MEMORY: Figure = Figure {
    label: "memory of the resolver, MB",
    reason: "It remembers which transactions are confirmed until `pg_fdw_xacts.forget_delay` has passed.",
};
const FORGOTTEN: Figure = Figure {
    label: "memory of the resolver once they are forgotten, MB",
    reason: "The C library keeps a part of what was freed, less than a byte for each.",
};
const RESTART: Figure = Figure {
    label: "from a crash to the first COMMIT, ms",
    reason: "PostgreSQL's recovery reads what was written since the last checkpoint.",
};
const SETTLED: Figure = Figure {
    label: "from a crash until nothing is in doubt, ms",
    reason: "What was decided before a crash is asked for on its participants, ten thousand at a time.",
};
const VIEW: Figure = Figure { label: "SELECT count(*) FROM pg_fdw_xacts, ms", reason: "" };
const STATISTICS: Figure = Figure { label: "SELECT * FROM pg_stat_fdw_xacts, ms", reason: "" };

/// From none to a million.
pub fn measure(effort: Effort) -> Result<Vec<Curve>> {
    let mut ground = Ground::start(2, &[("shared_buffers", "512MB")], &[])?;
    ground.make_shards(1, 2)?;
    let mut curve = Curve::new(
        "decisions",
        "rows of the decision table",
        "The rows are of transactions on two shards that were delivered. Before each point the coordinator is \
         killed, so that the resolver finds them as after a crash.",
    );
    for &rows in effort.choose(&[0, 1_000, 100_000][..], &[0, 10_000, 100_000, 1_000_000]) {
        say(&format!("{rows} rows of the decision table"));
        curve.point(rows);
        // So that the participants are on the list.
        drop(ground.session(Contender::Ours, 2)?);
        ground.fleet.session()?.batch_execute(&format!(
            "INSERT INTO fdw_xacts.decision
             SELECT n, (SELECT array_agg(id::int8 ORDER BY id) FROM fdw_xacts.participant), ARRAY[1, 1]
             FROM generate_series(1, {rows}) n;
             CHECKPOINT"
        ))?;
        ground.fleet.coordinator.kill9()?;
        let start = Instant::now();
        ground.fleet.coordinator.start()?;
        drop(ground.session(Contender::Ours, 2)?);
        curve.note(RESTART, &[milliseconds(start.elapsed())]);
        let resolver = ground.idle_resolver()?;
        curve.note(SETTLED, &[milliseconds(start.elapsed())]);
        note_transactions(&ground, effort, &mut curve)?;
        let mut session = ground.fleet.session()?;
        note_query(effort, &mut curve, VIEW, &mut session, "SELECT count(*) FROM pg_fdw_xacts")?;
        let statistics = "SELECT * FROM pg_stat_fdw_xacts";
        note_query(effort, &mut curve, STATISTICS, &mut session, statistics)?;
        let mut used = Vec::new();
        note_time(effort, &mut curve, ASK, || {
            let before = used_by_process(resolver)?;
            session.batch_execute("SELECT FROM pg_fdw_xacts_resolve()")?;
            used.push((used_by_process(resolver)? - before) / 1e6);
            Ok(())
        })?;
        curve.note(LOOK, &used);
        curve.note(MEMORY, &[memory::of_process(resolver)?]);
        curve.note(FORGOTTEN, &[memory_without(&ground, resolver)?]);
    }
    Ok(vec![curve])
}

/// The memory of the resolver after it has deleted all rows.
fn memory_without(ground: &Ground, resolver: i32) -> Result<f64> {
    let mut session = ground.fleet.session()?;
    let mut set = |statement: &str| -> Result<()> {
        session.batch_execute(statement)?;
        ground.fleet.coordinator.reload()
    };
    set("ALTER SYSTEM SET pg_fdw_xacts.forget_delay = 0")?;
    let mut other = ground.fleet.session()?;
    wait_until("the decisions are forgotten", PATIENCE, || {
        Ok(!other
            .query_one("SELECT EXISTS (SELECT FROM fdw_xacts.decision)", &[])?
            .get::<_, bool>(0))
    })?;
    ground.idle_resolver()?;
    set("ALTER SYSTEM RESET pg_fdw_xacts.forget_delay")?;
    memory::of_process(resolver)
}

const ASK: Figure = Figure {
    label: "SELECT FROM pg_fdw_xacts_resolve(), ms",
    reason: "It has the resolver read the table at once.",
};
