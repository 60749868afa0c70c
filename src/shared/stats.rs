//! Counters per foreign server since the start of this server, for `pg_stat_fdw_xacts`. A server
//! gets a place when something happens on it, and loses it when the server or its database no
//! longer exists. Without a place nothing is counted; everything else works.

use std::cell::Cell;

use pgrx::PgLogLevel;
use pgrx::pg_sys::{self, Oid};

use crate::pg::backend_local::BackendLocal;
use crate::pg::error::{Error, SqlState};
use crate::pg::globals::{my_database, now};
use crate::pg::shared_index::{Key, SharedIndex};
use crate::shared::entry::Entry;
use crate::shared::places::{Free, Link, List};
use crate::shared::{resolvers, shmem};

/// The longest error message that is kept, with its NUL.
const ERROR_LEN: usize = 256;

/// What happened on one foreign server since the start of this server.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ServerStats {
    /// The database here.
    pub dbid: Oid,
    /// The foreign server.
    pub serverid: Oid,
    /// Confirmed PREPAREs.
    pub prepared: u64,
    /// Prepared transactions that their owner committed.
    pub committed: u64,
    /// Prepared transactions that their owner rolled back.
    pub rolled_back: u64,
    /// Prepared transactions that the resolver settled.
    pub resolved: u64,
    /// Transactions decided to commit that somebody on the server has undone.
    pub heuristic: u64,
    /// Participants on it on which something may be left.
    pub unsettled: u64,
    /// Attempts of the resolver.
    pub attempts: u64,
    /// Attempts that failed.
    pub failures: u64,
    /// Sessions that have given way in a deadlock while they waited for it.
    pub deadlocks: u64,
    /// When the last attempt failed, in PostgreSQL's microseconds.
    pub last_error_at: i64,
    /// Why, in the server's encoding, ended by a NUL.
    pub last_error: [u8; ERROR_LEN],
}

/// Which places are in use.
#[repr(C)]
pub struct StatsLists {
    free: Free,
    used: List,
    /// A server got no place, and no warning was given yet.
    lacked: bool,
}

impl StatsLists {
    /// As they are when the server starts.
    pub const NONE_USED: Self = Self { free: Free::ALL, used: List::EMPTY, lacked: false };
}

#[repr(C)]
#[derive(Clone, Copy)]
struct ServerKey {
    dbid: u32,
    serverid: u32,
}

// SAFETY: 8 bytes of integers.
unsafe impl Key for ServerKey {}

static BY_SERVER: BackendLocal<SharedIndex<ServerKey>> = BackendLocal::new(SharedIndex::new());

/// How much memory the index needs for so many servers.
pub fn index_size(servers: usize) -> usize {
    SharedIndex::<ServerKey>::size(servers)
}

/// Makes the index, or attaches to it.
pub fn attach(servers: usize) {
    BY_SERVER.get().attach(c"pg_fdw_xacts statistics by server", servers);
}

/// The statistics, locked.
pub struct Statistics<'a> {
    pub(super) lists: &'a mut StatsLists,
    pub(super) stats: &'a mut [ServerStats],
    pub(super) links: &'a mut [Link],
}

/// The statistics of a server for which nothing was counted.
pub fn empty(dbid: Oid, serverid: Oid) -> ServerStats {
    ServerStats {
        dbid,
        serverid,
        prepared: 0,
        committed: 0,
        rolled_back: 0,
        resolved: 0,
        heuristic: 0,
        unsettled: 0,
        attempts: 0,
        failures: 0,
        deadlocks: 0,
        last_error_at: 0,
        last_error: [0; ERROR_LEN],
    }
}

impl Statistics<'_> {
    /// The statistics of a server; takes a place for it if it has none and there is room.
    fn of(&mut self, dbid: Oid, serverid: Oid) -> Option<&mut ServerStats> {
        let key = ServerKey { dbid: dbid.to_u32(), serverid: serverid.to_u32() };
        if let Some(place) = BY_SERVER.get().find(&key) {
            return Some(&mut self.stats[place as usize]);
        }
        let Some(place) = self.lists.free.take(self.links) else {
            self.lists.lacked = true;
            return None;
        };
        if !BY_SERVER.get().set(&key, place) {
            self.lists.free.give_back(self.links, place);
            return None;
        }
        self.lists.used.push(self.links, place);
        self.stats[place as usize] = empty(dbid, serverid);
        Some(&mut self.stats[place as usize])
    }

    /// Counts what happens to an entry.
    pub(super) fn count(&mut self, entry: &Entry, f: impl FnOnce(&mut ServerStats)) {
        if let Some(stats) = self.of(entry.dbid, entry.serverid) {
            f(stats);
        }
    }

    fn of_database(&self, dbid: Oid) -> impl Iterator<Item = &ServerStats> {
        self.lists
            .used
            .iter(self.links)
            .map(|place| &self.stats[place])
            .filter(move |s| s.dbid == dbid)
    }

    /// Gives back the places that `which` picks.
    fn remove(&mut self, which: impl Fn(&ServerStats) -> bool) {
        let mut places: Vec<usize> = self.lists.used.iter(self.links).collect();
        places.retain(|place| which(&self.stats[*place]));
        for place in places {
            let ServerStats { dbid, serverid, .. } = self.stats[place];
            BY_SERVER.get().remove(&ServerKey { dbid: dbid.to_u32(), serverid: serverid.to_u32() });
            self.lists.used.remove(self.links, place as u32);
            self.lists.free.give_back(self.links, place as u32);
        }
    }
}

/// The resolver has tried to settle what is on a server.
pub fn attempt(serverid: Oid, resolved: u64, heuristic: u64, error: Option<&Error>) {
    let now = now();
    let dbid = my_database();
    let text = error.map(Error::summary).unwrap_or_default();
    shmem::write(|m| {
        let mut all = m.stats();
        let Some(stats) = all.of(dbid, serverid) else { return };
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

/// This session gives way in a deadlock while it waits for a server.
pub fn deadlock(serverid: Oid) {
    let dbid = my_database();
    shmem::write(|m| {
        if let Some(stats) = m.stats().of(dbid, serverid) {
            stats.deadlocks += 1;
        }
    });
}

/// Why the last failed attempt has failed, if there was one.
pub fn last_error(stats: &ServerStats) -> Option<Vec<u8>> {
    let end = stats.last_error.iter().position(|b| *b == 0).unwrap_or(stats.last_error.len());
    (stats.last_error_at != 0).then(|| stats.last_error[..end].to_vec())
}

/// Sets on how many participants of a server something may be left; `false` if the server has no
/// place.
#[must_use]
pub fn set_unsettled(serverid: Oid, participants: u64) -> bool {
    let dbid = my_database();
    shmem::write(|m| {
        let mut all = m.stats();
        let stats = all.of(dbid, serverid);
        stats.map(|stats| stats.unsettled = participants).is_some()
    })
}

/// The statistics of this database's servers.
pub fn all() -> Vec<ServerStats> {
    let dbid = my_database();
    shmem::read(|m| m.stats().of_database(dbid).copied().collect())
}

/// Whether something without an entry may be left on one of the servers of a database that `which`
/// picks. If that is the case on a server without a place, it may be any server.
pub fn may_be_unsettled(dbid: Oid, which: impl Fn(Oid) -> bool) -> bool {
    shmem::read(|m| {
        resolvers::is_unsettled_elsewhere(m.resolvers, dbid)
            || m.stats().of_database(dbid).any(|s| s.unsettled > 0 && which(s.serverid))
    })
}

/// Gives back the places of servers of this database that no longer exist and have nothing left.
/// Called in a transaction.
pub fn forget_dropped() {
    let dbid = my_database();
    let unused = |s: &ServerStats| s.dbid == dbid && s.unsettled == 0;
    let candidates: Vec<Oid> = shmem::read(|m| {
        m.stats().of_database(dbid).filter(|s| unused(s)).map(|s| s.serverid).collect()
    });
    // SAFETY: catalog look-ups that may find nothing.
    let dropped: Vec<Oid> = candidates
        .into_iter()
        .filter(|id| unsafe {
            pg_sys::GetForeignServerExtended(*id, pg_sys::FSV_MISSING_OK as u16).is_null()
        })
        .collect();
    if !dropped.is_empty() {
        shmem::write(|m| m.stats().remove(|s| unused(s) && dropped.contains(&s.serverid)));
    }
}

/// Gives back the places of databases that no longer exist.
pub fn forget_databases(existing: &[Oid]) {
    shmem::write(|m| m.stats().remove(|s| !existing.contains(&s.dbid)));
}

/// Warns that a server got no place; once, until there is room again.
pub fn report_lack() {
    static TOLD: BackendLocal<Cell<bool>> = BackendLocal::new(Cell::new(false));
    let lacked = shmem::write(|m| {
        let all = m.stats();
        if all.lists.free.len(all.links) > 0 {
            all.lists.lacked = false;
        }
        all.lists.lacked
    });
    if !TOLD.get().replace(lacked) && lacked {
        let _ = Error::new(
            SqlState::CONFIGURATION_LIMIT_EXCEEDED,
            "statistics of some foreign servers are not kept",
        )
        .detail("There are more servers than places. Transactions on them are settled and shown all the same.")
        .hint("Raise \"pg_fdw_xacts.max_servers\" and restart the server.")
        .log(PgLogLevel::WARNING);
    }
}

/// How many bytes of a text fit without cutting a character.
fn clipped(text: &[u8], limit: usize) -> usize {
    // SAFETY: the bytes of a text in the server's encoding, with their number.
    let length =
        unsafe { pg_sys::pg_mbcliplen(text.as_ptr().cast(), text.len() as i32, limit as i32) };
    length as usize
}
