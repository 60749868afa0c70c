//! Counters per foreign server since the start of this server, for `pg_stat_fdw_xacts`.

use pgrx::pg_sys::{self, Oid};

use crate::log::shmem::{self, ERROR_LEN, ServerStats, Shared};
use crate::pg::error::Error;

/// The statistics of a server of a database, made if there is room.
pub fn of(shared: &mut Shared, dbid: Oid, serverid: Oid) -> Option<&mut ServerStats> {
    let known = |s: &ServerStats| s.dbid == dbid && s.serverid == serverid;
    let place = shared
        .stats
        .iter()
        .position(known)
        .or_else(|| shared.stats.iter().position(|s| s.dbid == Oid::INVALID))?;
    let stats = &mut shared.stats[place];
    stats.dbid = dbid;
    stats.serverid = serverid;
    Some(stats)
}

/// The statistics of a server of which nothing has been counted.
pub fn empty(dbid: Oid, serverid: Oid) -> ServerStats {
    ServerStats {
        dbid,
        serverid,
        prepared: 0,
        committed: 0,
        rolled_back: 0,
        resolved: 0,
        heuristic: 0,
        unswept: 0,
        attempts: 0,
        failures: 0,
        last_error_at: 0,
        last_error: [0; ERROR_LEN],
    }
}

/// The resolver has tried to settle what is on a server.
pub fn attempt(serverid: Oid, resolved: u64, heuristic: u64, error: Option<&Error>) {
    // SAFETY: a plain global, and the clock.
    let (dbid, now) = unsafe { (pg_sys::MyDatabaseId, pg_sys::GetCurrentTimestamp()) };
    let text = error.map(Error::summary).unwrap_or_default();
    shmem::write(|shared, _| {
        let Some(stats) = of(shared, dbid, serverid) else { return };
        stats.attempts += 1;
        stats.resolved += resolved;
        stats.heuristic += heuristic;
        if error.is_some() {
            stats.failures += 1;
            stats.last_error_at = now;
            let len = text.len().min(ERROR_LEN - 1);
            stats.last_error = [0; ERROR_LEN];
            stats.last_error[..len].copy_from_slice(&text[..len]);
        }
    });
}

/// Why the last attempt that failed did, if one has.
pub fn last_error(stats: &ServerStats) -> Option<String> {
    let end = stats.last_error.iter().position(|b| *b == 0).unwrap_or(stats.last_error.len());
    let text = String::from_utf8_lossy(&stats.last_error[..end]);
    (stats.last_error_at != 0).then(|| text.into_owned())
}

/// How many participants on a server have not been swept clean.
pub fn set_unswept(serverid: Oid, participants: u64) {
    // SAFETY: a plain global of this process.
    let dbid = unsafe { pg_sys::MyDatabaseId };
    shmem::write(|shared, _| {
        if let Some(stats) = of(shared, dbid, serverid) {
            stats.unswept = participants;
        }
    });
}

/// The statistics of this database's servers.
pub fn all() -> Vec<ServerStats> {
    // SAFETY: a plain global of this backend.
    of_database(unsafe { pg_sys::MyDatabaseId })
}

/// The statistics of a database's servers.
pub fn of_database(dbid: Oid) -> Vec<ServerStats> {
    shmem::read(|shared, _| shared.stats.iter().filter(|s| s.dbid == dbid).copied().collect())
}
