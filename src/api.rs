//! SQL functions and what the views read.
//!
//! * [`connections`]: this session's connections to foreign servers;
//! * [`doubt`]: what is in doubt, for all of these;
//! * [`statistics`]: what `pg_stat_fdw_xacts` reads;
//! * [`operators`]: try now, give up;
//! * [`tracking`]: what became of a labelled transaction;

mod connections;
mod doubt;
mod operators;
mod statistics;
mod tracking;

use pgrx::prelude::*;

use crate::api::doubt::Shown;

/// What the view `pg_fdw_xacts` shows: one row per participant that is prepared or about to be, in all databases, and
/// for what is left there why. What was decided before the start of this server is among them as long as it is not
/// known whether the participant has heard of it.
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

/// The same for the objects of 0.2.0, until they are updated.
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
