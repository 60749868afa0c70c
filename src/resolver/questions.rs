//! What a sweep asks a participant, as SQL.

use std::collections::HashMap;

use crate::pg::error::Result;
use crate::protocol::gid::Identity;
use crate::protocol::pipeline::Ticket;
use crate::protocol::session_lock::SessionLock;
use crate::remote::connection::{Asked, Connection};

/// Takes the fence if it is free, and makes it a lease; else answers who holds it. Who holds it also holds the
/// session lock `own`: a process that settles without the fence sees by it that another copy of the
/// coordinator is there.
pub fn fence(identity: Identity, own: SessionLock) -> String {
    let number = identity.number();
    let SessionLock { key, incarnation } = own;
    format!(
        "SELECT f.taken, \
         (SELECT l.pid::text || coalesce(' of role \"' || a.usename || '\"', '') \
          FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid \
          WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted AND l.classid = {}::oid AND l.objid = {}::oid LIMIT 1), \
         pg_catalog.set_config('idle_session_timeout', '30s', false), \
         CASE WHEN f.taken \
          THEN pg_catalog.pg_try_advisory_lock_shared({key}::int4, {incarnation}::int4) END \
         FROM (SELECT pg_catalog.pg_try_advisory_lock({number}::int8) AS taken OFFSET 0) f",
        number >> 32,
        number & 0xffff_ffff
    )
}

/// The processes that hold the session lock of an identity, each with the start of the server it belongs to.
pub fn sessions(identity: Identity) -> String {
    format!(
        "SELECT pid, objid::int8 FROM pg_catalog.pg_locks \
         WHERE locktype = 'advisory' AND objsubid = 2 AND classid = {}::oid \
         AND pid <> pg_catalog.pg_backend_pid() \
         AND database = (SELECT oid FROM pg_catalog.pg_database \
                         WHERE datname = pg_catalog.current_database())",
        identity.session_key() as u32
    )
}

/// The prepared transactions of an identity in this database, whoever owns them.
pub fn prepared(identity: Identity) -> String {
    format!(
        "SELECT gid FROM pg_catalog.pg_prepared_xacts \
         WHERE pg_catalog.starts_with(gid, '{}') AND database = pg_catalog.current_database()",
        identity.gid_prefix()
    )
}

/// What became of transactions, by their xids. One that the server has not come to yet, because it was restored to an
/// earlier state, is `not known` there.
pub fn status(xids: &[u64]) -> String {
    let list: Vec<String> = xids.iter().map(u64::to_string).collect();
    format!(
        "SELECT x, CASE \
         WHEN x::xid8 < pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot()) \
         THEN pg_catalog.pg_xact_status(x::xid8) ELSE 'not known' END \
         FROM pg_catalog.unnest('{{{}}}'::text[]) AS x",
        list.join(",")
    )
}

/// The answer to [`status`]; a transaction too old to be known is not in it.
///
/// # Errors
/// The question failed: then nothing is known.
pub fn read_status(connection: &Connection, ticket: Ticket) -> Result<HashMap<u64, String>> {
    let answer = connection.wait(&Asked::of(ticket, c"pg_xact_status"))?;
    Ok((0..answer.rows())
        .filter_map(|row| {
            let xid = answer.value(row, 0)?.to_str().ok()?.parse().ok()?;
            Some((xid, answer.value(row, 1)?.to_string_lossy().into_owned()))
        })
        .collect())
}
