//! The SQL functions, those that the views read included.
//!
//! * [`connections`]: this session's connections to foreign servers;
//! * [`doubt`]: what is in doubt, which the others show;
//! * [`statistics`]: what `pg_stat_fdw_xacts` reads;
//! * [`operators`]: have the resolver try now, give up;
//! * [`restore_point`]: one restore point on this server and the foreign ones;
//! * [`tracking`]: what became of a labelled transaction;
//! * [`waits`]: what `pg_fdw_xacts_waits` reads.

mod connections;
mod doubt;
mod operators;
mod restore_point;
mod statistics;
mod tracking;
mod waits;

use pgrx::prelude::*;

use crate::api::doubt::Shown;

/// What the view `pg_fdw_xacts` shows: one row per participant of a transaction that is prepared
/// there or about to be, in all databases, with the reason if it was left. What was decided before
/// the start of this server is among them until it is known whether it was delivered.
#[pg_extern(sql = false)]
#[allow(clippy::type_complexity)]
fn pg_fdw_xacts_participants() -> TableIterator<
    'static,
    (
        name!(dbid, pg_sys::Oid),
        name!(transaction, pg_sys::TransactionId),
        name!(serverid, pg_sys::Oid),
        name!(userid, pg_sys::Oid),
        name!(status, String),
        name!(identifier, String),
        name!(reason, Option<Vec<u8>>),
    ),
> {
    crate::pg::preload::require().unwrap_or_else(|error| error.raise_in_pgrx());
    TableIterator::new(doubt::all().into_iter().map(|s: Shown| {
        (
            s.dbid,
            s.xid,
            s.serverid(),
            pg_sys::Oid::from_u32(s.gid.userid),
            s.status.label().to_owned(),
            s.gid.to_string(),
            s.reason,
        )
    }))
}

/// The same as the SQL objects of 0.2.0 call it, until ALTER EXTENSION UPDATE has run.
#[pg_extern(sql = false)]
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
    TableIterator::new(
        pg_fdw_xacts_participants().map(|(d, x, s, u, status, gid, _)| (d, x, s, u, status, gid)),
    )
}
