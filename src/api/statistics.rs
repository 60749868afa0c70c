//! What the view `pg_stat_fdw_xacts` reads: per foreign server of this database, what happened since the start of
//! this server and what is in doubt now.

use pgrx::datum::TimestampWithTimeZone;
use pgrx::prelude::*;

use crate::log::shmem::{Entry, ServerStats, Status};
use crate::log::{entries, stats};

/// One row per foreign server that has been prepared on or swept.
#[pg_extern(sql = "
CREATE FUNCTION pg_fdw_xacts_stats(OUT serverid oid, OUT prepared bigint, OUT committed bigint,
    OUT rolled_back bigint, OUT resolved bigint, OUT heuristic bigint, OUT attempts bigint,
    OUT failures bigint, OUT in_doubt bigint, OUT oldest_in_doubt timestamptz, OUT last_error text,
    OUT last_error_at timestamptz) RETURNS SETOF record
    LANGUAGE c STRICT VOLATILE AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
")]
#[allow(clippy::type_complexity)]
fn pg_fdw_xacts_stats() -> TableIterator<
    'static,
    (
        name!(serverid, pg_sys::Oid),
        name!(prepared, i64),
        name!(committed, i64),
        name!(rolled_back, i64),
        name!(resolved, i64),
        name!(heuristic, i64),
        name!(attempts, i64),
        name!(failures, i64),
        name!(in_doubt, i64),
        name!(oldest_in_doubt, Option<TimestampWithTimeZone>),
        name!(last_error, Option<Vec<u8>>),
        name!(last_error_at, Option<TimestampWithTimeZone>),
    ),
> {
    crate::require_preload().unwrap_or_else(|error| error.raise_in_pgrx());
    let entries = entries::all();
    let rows: Vec<_> = stats::all()
        .into_iter()
        .map(|s| {
            let in_doubt: Vec<&Entry> = entries.iter().filter(|e| is_in_doubt(e, &s)).collect();
            let oldest = in_doubt.iter().map(|e| e.since).min();
            let failed = s.last_error_at != 0;
            (
                s.serverid,
                s.prepared as i64,
                s.committed as i64,
                s.rolled_back as i64,
                s.resolved as i64,
                s.heuristic as i64,
                s.attempts as i64,
                s.failures as i64,
                in_doubt.len() as i64,
                oldest.and_then(timestamp),
                failed.then(|| text(&s)),
                failed.then(|| timestamp(s.last_error_at)).flatten(),
            )
        })
        .collect();
    TableIterator::new(rows)
}

/// Prepared there and not settled: it holds locks there.
fn is_in_doubt(entry: &Entry, stats: &ServerStats) -> bool {
    (entry.dbid, entry.serverid) == (stats.dbid, stats.serverid)
        && matches!(entry.status, Status::Prepared | Status::Committing | Status::Aborting)
}

fn timestamp(microseconds: i64) -> Option<TimestampWithTimeZone> {
    TimestampWithTimeZone::try_from(microseconds).ok()
}

/// In the server's encoding; a text is made of its bytes, as a bytea is.
fn text(stats: &ServerStats) -> Vec<u8> {
    let end = stats.last_error.iter().position(|b| *b == 0).unwrap_or(stats.last_error.len());
    stats.last_error[..end].to_vec()
}
