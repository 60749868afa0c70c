//! `pg_fdw_xacts.max_foreign_xacts`: how many places there are for prepared transactions.

use anyhow::Result;
use postgres::Client;

use super::ground::Ground;
use super::work::{note_query, note_time, note_transactions};
use crate::curve::{Curve, Figure};
use crate::effort::Effort;
use crate::progress::say;

const EXPLICIT: Figure = Figure {
    label: "ten times PREPARE TRANSACTION and COMMIT PREPARED on a shard, ms",
    reason: "",
};
const VIEW: Figure = Figure { label: "SELECT count(*) FROM pg_fdw_xacts, ms", reason: "" };
const SHARED: Figure = Figure {
    label: "shared memory, MB",
    reason: "Each place takes the same; that is what the setting is for.",
};

/// From a thousand to a million.
pub fn measure(effort: Effort) -> Result<Vec<Curve>> {
    let mut curve = Curve::new(
        "limit",
        "places for prepared transactions",
        "The coordinator was started with so high a `pg_fdw_xacts.max_foreign_xacts`.",
    );
    for limit in ["1000", "10000", "100000", "1000000"] {
        say(&format!("max_foreign_xacts {limit}"));
        curve.point(limit.parse()?);
        let ground = Ground::start(2, &[("pg_fdw_xacts.max_foreign_xacts", limit)], &[])?;
        ground.make_shards(1, 2)?;
        note_transactions(&ground, effort, &mut curve)?;
        let mut session = ground.fleet.session()?;
        session.batch_execute("INSERT INTO x1 VALUES (0, 'value')")?;
        note_time(effort, &mut curve, EXPLICIT, || explicit(&mut session))?;
        note_query(effort, &mut curve, VIEW, &mut session, "SELECT count(*) FROM pg_fdw_xacts")?;
        let size = "SELECT sum(allocated_size)::float8 / 1e6 FROM pg_shmem_allocations
                    WHERE name LIKE 'pg_fdw_xacts%'";
        curve.note(SHARED, &[session.query_one(size, &[])?.get(0)]);
    }
    Ok(vec![curve])
}

fn explicit(session: &mut Client) -> Result<()> {
    for _ in 0..10 {
        session
            .batch_execute("BEGIN; UPDATE x1 SET v = 'y' WHERE id = 0; PREPARE TRANSACTION 'x'")?;
        session.batch_execute("COMMIT PREPARED 'x'")?;
    }
    Ok(())
}
