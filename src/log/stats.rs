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
            let len = clipped(&text, ERROR_LEN - 1);
            stats.last_error = [0; ERROR_LEN];
            stats.last_error[..len].copy_from_slice(&text[..len]);
        }
    });
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

/// How many bytes of a text fit, without a part of a character.
fn clipped(text: &[u8], limit: usize) -> usize {
    // SAFETY: the bytes and how many they are; in the server's encoding.
    let length =
        unsafe { pg_sys::pg_mbcliplen(text.as_ptr().cast(), text.len() as i32, limit as i32) };
    length as usize
}
