//! Transactions that are decided and that a shard has not heard of, because it is down.

use std::time::{Duration, Instant};

use anyhow::Result;
use pg_test::{StopMode, wait_until};
use postgres::Client;

use super::ground::{Ground, PATIENCE};
use super::memory;
use super::work::{milliseconds, note_query, note_transactions};
use crate::contender::Contender;
use crate::curve::{Curve, Figure};
use crate::effort::Effort;
use crate::measures::processor::{used_by, used_by_process};
use crate::progress::say;

const LEAVE: Figure = Figure {
    label: "processor time for leaving one more, without the resolver's, ms",
    reason: "It is prepared on this server, too, and PostgreSQL goes through all prepared transactions to find one, \
             and for each snapshot.",
};
const NOTICE: Figure = Figure {
    label: "that of the resolver, ms",
    reason: "It is woken for each, and goes through all of them.",
};
const VIEW: Figure =
    Figure { label: "SELECT count(*) FROM pg_fdw_xacts, ms", reason: "It shows a row for each." };
const STATISTICS: Figure =
    Figure { label: "SELECT * FROM pg_stat_fdw_xacts, ms", reason: "It counts all of them." };
const IDLE: Figure = Figure {
    label: "processor time of the resolver that tries in vain, ms per s",
    reason: "It notes at each of them why it was not settled.",
};
const SETTLED: Figure = Figure {
    label: "from the shard's start until all are settled, ms for each",
    reason: "What it takes to reach the shard again is divided by more of them.",
};
const MEMORY: Figure =
    Figure { label: "memory of the resolver, MB", reason: "It knows each of them." };

/// The shard that goes down, and one that stays.
const LOST: usize = 3;

/// From none to five thousand.
pub fn measure(effort: Effort) -> Result<Vec<Curve>> {
    let prepared = ("max_prepared_transactions", "5100");
    let limit = ("pg_fdw_xacts.max_foreign_xacts", "20000");
    let mut ground = Ground::start(3, &[prepared, limit], &[prepared])?;
    ground.make_shards(1, 3)?;
    let mut curve = Curve::new(
        "in-doubt",
        "transactions in doubt",
        "They were prepared on two shards under names of the application, and are committed when one of the \
         shards is down. The transactions that are measured beside them write on the two others.",
    );
    for &count in effort.choose(&[0, 50, 300][..], &[0, 100, 1_000, 5_000]) {
        say(&format!("{count} transactions in doubt"));
        curve.point(count);
        let mut session = ground.fleet.session()?;
        drop(ground.session(Contender::Ours, 3)?);
        prepare(&ground, &mut session, count)?;
        ground.fleet.shard_mut(LOST).stop(StopMode::Fast)?;
        let resolver = resolver(&mut session)?;
        let used = || {
            Ok::<_, anyhow::Error>((
                used_by(&ground.fleet.coordinator)?,
                used_by_process(resolver)?,
            ))
        };
        let before = used()?;
        session.batch_execute("SET client_min_messages = error")?;
        for number in 0..count {
            session.batch_execute(&format!("COMMIT PREPARED 'g{number}'"))?;
        }
        if count > 0 {
            let now = used()?;
            let noticed = now.1 - before.1;
            curve.note(LEAVE, &[(now.0 - before.0 - noticed) / 1e6 / count as f64]);
            curve.note(NOTICE, &[noticed / 1e6 / count as f64]);
        }
        note_transactions(&ground, effort, &mut curve)?;
        note_query(effort, &mut curve, VIEW, &mut session, "SELECT count(*) FROM pg_fdw_xacts")?;
        let statistics = "SELECT * FROM pg_stat_fdw_xacts";
        note_query(effort, &mut curve, STATISTICS, &mut session, statistics)?;
        let (before, start) = (used_by_process(resolver)?, Instant::now());
        std::thread::sleep(Duration::from_secs(effort.choose(1, 3)));
        let used = used_by_process(resolver)? - before;
        curve.note(IDLE, &[used / 1e6 / start.elapsed().as_secs_f64()]);
        curve.note(MEMORY, &[memory::of_process(resolver)?]);
        ground.fleet.shard_mut(LOST).start()?;
        let start = Instant::now();
        session.batch_execute("SELECT FROM pg_fdw_xacts_resolve()")?;
        wait_until("all are settled", PATIENCE, || {
            let sql = "SELECT count(*) FROM pg_fdw_xacts WHERE status <> 'preparing'";
            Ok(session.query_one(sql, &[])?.get::<_, i64>(0) == 0)
        })?;
        if count > 0 {
            curve.note(SETTLED, &[milliseconds(start.elapsed()) / count as f64]);
        }
    }
    Ok(vec![curve])
}

/// Prepares so many transactions under names of the application.
fn prepare(ground: &Ground, session: &mut Client, count: usize) -> Result<()> {
    for number in 0..count {
        let id = ground.ids.next();
        session.batch_execute("BEGIN")?;
        session.batch_execute(&format!("INSERT INTO x1 VALUES ({id}, 'value')"))?;
        session.batch_execute(&format!("INSERT INTO x{LOST} VALUES ({id}, 'value')"))?;
        session.batch_execute(&format!("PREPARE TRANSACTION 'g{number}'"))?;
    }
    Ok(())
}

fn resolver(session: &mut Client) -> Result<i32> {
    let sql = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'pg_fdw_xacts resolver'";
    Ok(session.query_one(sql, &[])?.get(0))
}
