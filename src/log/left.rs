//! What the resolver leaves on a participant, and why: kept with the entries, so that everybody who is asked tells the
//! same.

use std::collections::HashMap;

use pgrx::pg_sys;

use crate::log::entries;
use crate::log::registered::Registered;
use crate::log::shmem::{self, Entry, Status};
use crate::protocol::gid::Gid;
use crate::protocol::verdict::Reason;

/// A prepared transaction that a sweep has left.
#[derive(Clone, Copy, Debug)]
pub struct Left {
    /// Which.
    pub gid: Gid,
    /// What has to be delivered.
    pub status: Status,
    /// The local transaction, 0 where its row does not tell.
    pub xid: pg_sys::TransactionId,
    /// Why it was left.
    pub reason: Reason,
    /// The participant lists it: it is prepared there.
    pub listed: bool,
}

/// Notes why each was left on a participant. What has no entry, because it was prepared before this server's start,
/// gets one; tells whether there was room for all.
pub fn note(registered: &Registered, left: &[Left]) -> bool {
    let mut missing: HashMap<Gid, &Left> = left.iter().map(|l| (l.gid, l)).collect();
    let entry = |l: &Left| {
        let own = (registered.serverid, registered.userid)
            == (l.gid.serverid.into(), l.gid.userid.into());
        let participant = if own { registered.id } else { 0 };
        entries::new_entry(&l.gid, l.xid, participant, 0, l.status)
    };
    let new: HashMap<Gid, Entry> = left.iter().map(|l| (l.gid, entry(l))).collect();
    shmem::write(|_, entries| {
        for entry in entries.iter_mut().filter(|e| e.status != Status::Free) {
            let Some(left) = entry.gid().and_then(|gid| missing.remove(&gid)) else { continue };
            if entry.owner == 0 && is_undelivered(entry) {
                entry.reason = left.reason;
            }
        }
        // What is expected has an entry as long as it is anybody's concern.
        missing.retain(|_, left| {
            !left.reason.is_expected() && (left.listed || left.reason == Reason::Unlisted)
        });
        let mut free = entries.iter_mut().filter(|e| e.status == Status::Free);
        missing.into_iter().all(|(gid, left)| match (free.next(), new.get(&gid)) {
            (Some(entry), Some(new)) => {
                *entry = Entry { reason: left.reason, since: started_at(), ..*new };
                true
            }
            _ => false,
        })
    })
}

/// Notes why nothing was settled on a participant.
pub fn note_failure(registered: &Registered, reason: Reason) {
    // SAFETY: a plain global of this process.
    let dbid = unsafe { pg_sys::MyDatabaseId };
    shmem::write(|_, entries| {
        for entry in entries
            .iter_mut()
            .filter(|e| e.dbid == dbid && e.owner == 0 && is_undelivered(e) && is_at(e, registered))
        {
            entry.reason = reason;
        }
    });
}

/// What backends, or an earlier sweep, have left on a participant.
pub fn handed_over(registered: &Registered) -> Vec<Entry> {
    // SAFETY: a plain global of this process.
    let dbid = unsafe { pg_sys::MyDatabaseId };
    let mut all = entries::all();
    all.retain(|e| e.dbid == dbid && e.owner == 0 && is_undelivered(e) && is_at(e, registered));
    all
}

/// Ends the entry of one that is not prepared any more, and of no participant that is on the list.
pub fn end_of_nobodys(gid: &Gid) {
    shmem::write(|_, entries| {
        let is_it = |e: &&mut Entry| {
            (e.owner, e.participant) == (0, 0) && e.gid().as_ref() == Some(gid) && is_undelivered(e)
        };
        if let Some(entry) = entries.iter_mut().find(is_it) {
            entry.status = Status::Free;
        }
    });
}

/// The entry's participant is not on the list any more: it is that of whoever has its server and user.
pub fn release(gid: &Gid) {
    shmem::write(|_, entries| {
        if let Some(entry) = entries.iter_mut().find(|e| e.gid().as_ref() == Some(gid)) {
            entry.participant = 0;
        }
    });
}

/// Whether an entry is that of something on this participant. The same server and user are another participant when the
/// server was moved.
pub fn is_at(entry: &Entry, registered: &Registered) -> bool {
    if entry.participant != 0 {
        return entry.participant == registered.id;
    }
    (entry.serverid, entry.userid) == (registered.serverid, registered.userid)
}

fn is_undelivered(entry: &Entry) -> bool {
    matches!(entry.status, Status::Committing | Status::Aborting)
}

/// The start of this server, in PostgreSQL's microseconds: since then, at least, is in doubt what was before it.
pub fn started_at() -> i64 {
    // SAFETY: a plain global, set by the postmaster.
    unsafe { pg_sys::PgStartTime }
}
