//! What a transaction on two shards writes and forces to disk, on the coordinator and on a shard.

use anyhow::Result;
use pg_test::{Cluster, DEADLINE, wait_until};

use crate::effort::Effort;
use crate::progress::say;
use crate::report::{Report, Table};
use crate::stand::{Route, Stand};
use crate::statistics::Spread;

/// Counters since the start of a server.
#[derive(Debug, Clone, Copy)]
struct Wal {
    bytes: f64,
    syncs: f64,
}

/// The table of the report on WAL, one client without a delay.
pub fn measure(stand: &Stand, effort: Effort, report: &mut Report) -> Result<()> {
    let transactions = effort.choose(100, 500);
    let mut lines = Vec::new();
    for contender in stand.contenders() {
        say(&format!("WAL and syncs: {}", contender.label()));
        let servers = [&stand.fleet.coordinator, stand.fleet.shard(1), stand.fleet.shard(2)];
        for server in servers {
            wait_for_no_session(server)?;
        }
        let before = servers.map(counted);
        let mut session = stand.session(contender, Route::Direct, 2)?;
        for _ in 0..transactions {
            session.transaction(stand.ids().next())?;
        }
        // Sessions report what they have written when they end.
        drop(session);
        for server in servers {
            wait_for_no_session(server)?;
        }
        let mut values = Vec::new();
        for (server, before) in servers.into_iter().zip(before) {
            let (before, after) = (before?, counted(server)?);
            // The transactions that warmed it up count too.
            let transactions = f64::from(transactions + Stand::WARM_UP);
            values.push((after.syncs - before.syncs) / transactions);
            values.push((after.bytes - before.bytes) / transactions);
        }
        let values = values.into_iter().map(|value| Some(Spread::single(value))).collect();
        lines.push((contender.label().to_owned(), values));
    }
    report.tables.push(Table {
        title: "WAL of a transaction on 2 shards, one client: syncs and bytes".to_owned(),
        condition: "per transaction".to_owned(),
        columns: ["coordinator", "shard 1", "shard 2"]
            .iter()
            .flat_map(|server| [format!("{server}: syncs"), format!("{server}: bytes")])
            .collect(),
        lines,
        plot: None,
    });
    Ok(())
}

fn counted(server: &Cluster) -> Result<Wal> {
    let mut session = server.client()?;
    let version: i32 =
        session.query_one("SELECT current_setting('server_version_num')::int", &[])?.get(0);
    let syncs = if version >= 180_000 {
        "(SELECT coalesce(sum(fsyncs), 0) FROM pg_stat_io WHERE object = 'wal')"
    } else {
        "wal_sync"
    };
    let sql = format!("SELECT wal_bytes::float8, {syncs}::float8 FROM pg_stat_wal");
    let row = session.query_one(&sql, &[])?;
    Ok(Wal { bytes: row.get(0), syncs: row.get(1) })
}

/// Waits until the asking session is the only client's on `server`.
fn wait_for_no_session(server: &Cluster) -> Result<()> {
    let mut session = server.client()?;
    wait_until("the sessions end", DEADLINE, || {
        let sql = "SELECT count(*) FROM pg_stat_activity
                   WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
                   AND application_name <> 'pg_fdw_xacts resolver'";
        Ok(session.query_one(sql, &[])?.get::<_, i64>(0) == 0)
    })
}
