//! One entry per participant that is prepared or about to be, in all databases: what the view shows, and
//! how a backend tells the resolver what it leaves behind.

use std::time::Duration;

use pgrx::pg_sys::{self, Oid};

use crate::log::shmem::{self, Entry, Status};
use crate::log::{stats, workers};
use crate::pg::error::{Error, Result, SqlState};
use crate::protocol::gid::{Gid, Identity, Nonce};
use crate::protocol::verdict::Reason;

impl Entry {
    /// The gid it stands for.
    pub fn gid(&self) -> Option<Gid> {
        Some(Gid {
            identity: Identity::new(self.identity)?,
            nonce: Nonce::new(self.nonce)?,
            serverid: self.serverid.to_u32(),
            userid: self.userid.to_u32(),
        })
    }

    fn is(&self, gid: &Gid) -> bool {
        self.status != Status::Free && self.gid().as_ref() == Some(gid)
    }
}

impl Status {
    /// As the view shows it.
    pub fn label(self) -> &'static str {
        match self {
            Status::Free => "free",
            Status::Preparing => "preparing",
            Status::Prepared => "prepared",
            Status::Committing => "committing",
            Status::Aborting => "aborting",
        }
    }
}

/// A participant that is about to be prepared.
pub struct Reserved {
    /// Its gid.
    pub gid: Gid,
    /// Its number on the list of participants.
    pub participant: i32,
    /// The server process there.
    pub remote_pid: i32,
}

/// Takes an entry for each participant, all or none.
///
/// # Errors
/// 53400 when there are not enough.
pub fn reserve(gids: &[Reserved], xid: pg_sys::TransactionId) -> Result<()> {
    // SAFETY: a plain global of this backend.
    let owner = unsafe { pg_sys::MyProcPid };
    let participants = gids.len() as u32;
    let reserved = shmem::write(|_, entries| {
        let free = entries.iter().filter(|e| e.status == Status::Free).take(gids.len()).count();
        if free < gids.len() {
            return false;
        }
        let mut free = entries.iter_mut().filter(|e| e.status == Status::Free);
        for (r, entry) in gids.iter().zip(&mut free) {
            let new = new_entry(&r.gid, xid, r.participant, participants, Status::Preparing);
            *entry = Entry { owner, remote_pid: r.remote_pid, ..new };
        }
        true
    });
    if reserved {
        return Ok(());
    }
    Err(Error::new(
        SqlState::CONFIGURATION_LIMIT_EXCEEDED,
        "too many prepared transactions on foreign servers",
    )
    .hint("Raise \"pg_fdw_xacts.max_foreign_xacts\" and restart the server."))
}

/// Changes the status of an entry, if there is one.
pub fn set_status(gid: &Gid, status: Status) {
    // SAFETY: reads the clock.
    let now = unsafe { pg_sys::GetCurrentTimestamp() };
    shmem::write(|shared, entries| {
        let Some(entry) = entries.iter_mut().find(|e| e.is(gid)) else { return };
        if status == Status::Prepared
            && entry.status != Status::Prepared
            && let Some(stats) = stats::of(shared, entry.dbid, entry.serverid)
        {
            stats.prepared += 1;
        }
        if matches!(status, Status::Committing | Status::Aborting) {
            entry.since = now;
        }
        entry.status = status;
    });
}

/// Ends an entry: its owner's participant has confirmed the outcome.
pub fn confirmed(gid: &Gid) {
    shmem::write(|shared, entries| {
        let Some(entry) = entries.iter_mut().find(|e| e.is(gid)) else { return };
        if let Some(stats) = stats::of(shared, entry.dbid, entry.serverid) {
            match entry.status {
                Status::Committing => stats.committed += 1,
                Status::Aborting => stats.rolled_back += 1,
                Status::Free | Status::Preparing | Status::Prepared => {}
            }
        }
        entry.status = Status::Free;
    });
}

/// Ends an entry: there is nothing prepared.
pub fn remove(gid: &Gid) {
    set_status(gid, Status::Free);
}

/// Makes an entry that nobody owns this backend's, which is about to deliver the outcome.
pub fn claim(gid: &Gid, status: Status) {
    // SAFETY: a plain global of this backend.
    let owner = unsafe { pg_sys::MyProcPid };
    shmem::write(|_, entries| {
        if let Some(entry) = entries.iter_mut().find(|e| e.is(gid) && e.owner == 0) {
            entry.owner = owner;
            entry.status = status;
        }
    });
}

/// Leaves an entry to the resolver, and tells it.
pub fn hand_over(gid: &Gid, status: Status) {
    let dbid = shmem::write(|_, entries| {
        let entry = entries.iter_mut().find(|e| e.is(gid))?;
        entry.owner = 0;
        entry.status = status;
        entry.reason = Reason::Untried;
        Some(entry.dbid)
    });
    if let Some(dbid) = dbid {
        workers::wake_resolver(dbid);
    }
}

/// An entry of this database without an owner.
pub(super) fn new_entry(
    gid: &Gid,
    xid: pg_sys::TransactionId,
    participant: i32,
    participants: u32,
    status: Status,
) -> Entry {
    // SAFETY: a plain global of this backend, and the clock.
    let (dbid, since) = unsafe { (pg_sys::MyDatabaseId, pg_sys::GetCurrentTimestamp()) };
    Entry {
        status,
        owner: 0,
        remote_pid: 0,
        since,
        dbid,
        xid,
        serverid: Oid::from_u32(gid.serverid),
        userid: Oid::from_u32(gid.userid),
        identity: gid.identity.number(),
        nonce: gid.nonce.number(),
        participants,
        participant,
        reason: Reason::Untried,
    }
}

/// Adds an entry that the resolver found in the table, of a transaction that is prepared here with so many participants,
/// unless there is one.
pub fn adopt(gid: &Gid, xid: pg_sys::TransactionId, participant: i32, participants: usize) {
    shmem::write(|shared, entries| {
        if entries.iter().any(|e| e.is(gid)) {
            return;
        }
        match entries.iter_mut().find(|e| e.status == Status::Free) {
            Some(entry) => {
                let count = participants as u32;
                *entry = new_entry(gid, xid, participant, count, Status::Prepared);
            }
            // It is settled all the same, only not shown.
            None => shared.entries_lacked = true,
        }
    });
}

/// What the entries say of a transaction that is prepared here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Known {
    /// These are its participants.
    Participants(Vec<Gid>),
    /// It has none.
    Local,
    /// Not enough: its row tells.
    Unknown,
}

/// What the entries say of a transaction of this database that is prepared here; `of` finds its xid, and is only called
/// if there is something to look for.
///
/// # Errors
/// Those of `of`.
pub fn prepared_here(of: impl FnOnce() -> Result<Option<pg_sys::TransactionId>>) -> Result<Known> {
    // SAFETY: a plain global of this backend.
    let dbid = unsafe { pg_sys::MyDatabaseId };
    let is_open =
        |e: &&Entry| e.dbid == dbid && matches!(e.status, Status::Preparing | Status::Prepared);
    let (open, lacked) = shmem::read(|shared, entries| {
        (entries.iter().filter(is_open).copied().collect::<Vec<_>>(), shared.entries_lacked)
    });
    // A resolver that is up has made entries for all that was prepared before the start of this server.
    let complete = !lacked && workers::resolver_is_up();
    if open.is_empty() && complete {
        return Ok(Known::Local);
    }
    let Some(xid) = of()? else { return Ok(Known::Local) };
    let mine: Vec<&Entry> = open.iter().filter(|e| e.xid == xid).collect();
    let gids: Vec<Gid> = mine.iter().filter_map(|e| e.gid()).collect();
    Ok(match mine.first() {
        None if complete => Known::Local,
        Some(first) if gids.len() == first.participants as usize => Known::Participants(gids),
        _ => Known::Unknown,
    })
}

/// All entries in use.
pub fn all() -> Vec<Entry> {
    shmem::read(|_, entries| entries.iter().filter(|e| e.status != Status::Free).copied().collect())
}

/// Takes over the entries of backends that have gone without settling them, or have not settled them within
/// `limit` of the decision. What became of the transaction is found out as for those that are prepared here.
pub fn reap(limit: Duration) {
    let owners: Vec<i32> = all().iter().map(|e| e.owner).filter(|pid| *pid != 0).collect();
    if owners.is_empty() {
        return;
    }
    let gone: Vec<i32> = owners.into_iter().filter(|pid| !shmem::is_alive(*pid)).collect();
    // SAFETY: reads the clock.
    let overdue = unsafe { pg_sys::GetCurrentTimestamp() } - limit.as_micros() as i64;
    shmem::write(|_, entries| {
        for entry in entries.iter_mut() {
            let decided = matches!(entry.status, Status::Committing | Status::Aborting);
            if gone.contains(&entry.owner) || (decided && entry.since < overdue) {
                entry.owner = 0;
                if entry.status == Status::Preparing {
                    entry.status = Status::Prepared;
                }
            }
        }
    });
}

/// Ends an entry that no backend looks after, because somebody gave it up; tells whether there was one.
pub fn forget(gid: &Gid) -> bool {
    shmem::write(|_, entries| {
        let Some(entry) = entries.iter_mut().find(|e| e.is(gid) && e.owner == 0) else {
            return false;
        };
        entry.status = Status::Free;
        true
    })
}

/// Ends all such entries of a server of this database, but not what is prepared here too; returns how many.
pub fn forget_server(serverid: Oid) -> usize {
    // SAFETY: a plain global of this process.
    let dbid = unsafe { pg_sys::MyDatabaseId };
    shmem::write(|_, entries| {
        let of_server = entries.iter_mut().filter(|e| {
            (e.dbid, e.serverid, e.owner) == (dbid, serverid, 0)
                && matches!(e.status, Status::Committing | Status::Aborting)
        });
        of_server.map(|entry| entry.status = Status::Free).count()
    })
}
