//! What the view `pg_stat_fdw_xacts` reads: for each foreign server of this database, what has
//! happened since the start of this server, and what is in doubt now.

use std::collections::HashMap;

use pgrx::datum::TimestampWithTimeZone;
use pgrx::pg_sys::Oid;
use pgrx::prelude::*;

use crate::api::doubt;
use crate::pg::globals::my_database;
use crate::shared::reads::{self, Count};
use crate::shared::stats::{self, ServerStats};

/// One row per foreign server on which something was prepared, was swept, or is in doubt, or for
/// which a session has given way in a deadlock.
#[pg_extern(sql = false)]
#[allow(clippy::type_complexity)]
fn pg_fdw_xacts_statistics() -> TableIterator<
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
        name!(deadlocks, i64),
    ),
> {
    crate::pg::preload::require().unwrap_or_else(|error| error.raise_in_pgrx());
    let mut in_doubt = by_server();
    let row = |s: ServerStats, InDoubt { count, oldest }: InDoubt| {
        (
            s.serverid,
            s.prepared as i64,
            s.committed as i64,
            s.rolled_back as i64,
            s.resolved as i64,
            s.heuristic as i64,
            s.attempts as i64,
            s.failures as i64,
            count,
            oldest.and_then(timestamp),
            stats::last_error(&s),
            Some(s.last_error_at).filter(|at| *at != 0).and_then(timestamp),
            s.deadlocks as i64,
        )
    };
    let known = stats::all();
    let mut rows: Vec<_> = known
        .into_iter()
        .map(|s| row(s, in_doubt.remove(&s.serverid).unwrap_or_default()))
        .collect();
    // A server that was not asked since the start has no statistics yet.
    let others = in_doubt.into_iter();
    rows.extend(others.map(|(serverid, all)| row(stats::empty(my_database(), serverid), all)));
    TableIterator::new(rows)
}

/// What is in doubt on one server.
#[derive(Default)]
struct InDoubt {
    count: i64,
    /// Since when the oldest is.
    oldest: Option<i64>,
}

/// What is in doubt in this database.
fn by_server() -> HashMap<Oid, InDoubt> {
    let mut servers: HashMap<Oid, InDoubt> = HashMap::new();
    doubt::for_each(|shown| {
        if shown.is_here() && shown.is_in_doubt() {
            let all = servers.entry(shown.serverid()).or_default();
            all.count += 1;
            all.oldest = Some(all.oldest.map_or(shown.since, |oldest| oldest.min(shown.since)));
        }
    });
    servers
}

/// How consistent reads have done, in all databases, since the start of this server.
#[pg_extern(sql = false)]
#[allow(clippy::type_complexity)]
fn pg_fdw_xacts_reads() -> TableIterator<
    'static,
    (
        name!(cuts, i64),
        name!(rounds, i64),
        name!(windows, i64),
        name!(too_old, i64),
        name!(in_doubt, i64),
    ),
> {
    crate::pg::preload::require().unwrap_or_else(|error| error.raise_in_pgrx());
    let get = |what| reads::get(what) as i64;
    TableIterator::once((
        get(Count::Cuts),
        get(Count::Rounds),
        get(Count::Windows),
        get(Count::TooOld),
        get(Count::InDoubt),
    ))
}

/// The same as the SQL objects of 0.2.0 call it, until ALTER EXTENSION UPDATE has run.
#[pg_extern(sql = false)]
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
    TableIterator::new(
        pg_fdw_xacts_statistics().map(|(s, p, c, r, re, h, a, f, d, o, e, at, _)| {
            (s, p, c, r, re, h, a, f, d, o, e, at)
        }),
    )
}

fn timestamp(microseconds: i64) -> Option<TimestampWithTimeZone> {
    TimestampWithTimeZone::try_from(microseconds).ok()
}
