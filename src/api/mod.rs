//! SQL functions and what the views read.
//!
//! * [`connections`]: this session's connections to foreign servers;
//! * [`statistics`]: what `pg_stat_fdw_xacts` reads;
//! * [`operators`]: try now, give up;
//! * [`tracking`]: what became of a labelled transaction;
//! * [`exec`]: any SQL on a participant, in its transaction;
//! * [`guard`]: refuses to drop what is still needed;
//! * [`databases`]: commands that need a database without its resolver.

mod connections;
mod databases;
mod exec;
pub mod guard;
mod operators;
mod statistics;
mod tracking;

use pgrx::prelude::*;

use crate::log::decisions;
use crate::log::shmem::{Entry, Status};
use crate::log::{entries, registered};
use crate::protocol::gid::{Gid, Identity};
use crate::protocol::verdict::Decision;

/// What the view `pg_fdw_xacts` shows: one row per participant that is prepared or about to be, in all
/// databases. Transactions that are prepared in this database are read from its own table too, so that
/// they are there right after a restart.
#[pg_extern(sql = "
CREATE FUNCTION pg_fdw_xacts_list(OUT dbid oid, OUT transaction xid, OUT serverid oid, OUT userid oid,
    OUT status text, OUT identifier text) RETURNS SETOF record
    LANGUAGE c STRICT VOLATILE AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
")]
#[allow(clippy::type_complexity)]
fn pg_fdw_xacts_list() -> TableIterator<
    'static,
    (
        name!(dbid, pg_sys::Oid),
        name!(transaction, pg_sys::TransactionId),
        name!(serverid, pg_sys::Oid),
        name!(userid, pg_sys::Oid),
        name!(status, String),
        name!(identifier, String),
    ),
> {
    crate::require_preload().unwrap_or_else(|error| error.raise_in_pgrx());
    let mut rows: Vec<_> = entries::all()
        .into_iter()
        .filter_map(|entry: Entry| {
            let gid = entry.gid()?;
            Some((
                entry.dbid,
                entry.xid,
                entry.serverid,
                entry.userid,
                entry.status.label().to_owned(),
                gid.to_string(),
            ))
        })
        .collect();
    // SAFETY: a plain global of this backend.
    let dbid = unsafe { pg_sys::MyDatabaseId };
    for (xid, gid) in pending_here() {
        let identifier = gid.to_string();
        if rows.iter().all(|row| row.5 != identifier) {
            rows.push((
                dbid,
                xid,
                pg_sys::Oid::from_u32(gid.serverid),
                pg_sys::Oid::from_u32(gid.userid),
                Status::Prepared.label().to_owned(),
                identifier,
            ));
        }
    }
    TableIterator::new(rows)
}

/// The participants of what is prepared in this database, from its own table.
fn pending_here() -> Vec<(pg_sys::TransactionId, Gid)> {
    let mut found = Vec::new();
    let rows = decisions::all();
    if rows.iter().all(|row| row.decision != Decision::InProgress) {
        return found;
    }
    let Some(identity): Option<Identity> = registered::known_identity() else { return found };
    let list = registered::all();
    for row in rows.iter().filter(|row| row.decision == Decision::InProgress) {
        found.extend(row.gids(identity, &list).map(|gid| (row.xid, gid)));
    }
    found
}
