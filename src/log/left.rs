//! What the resolver leaves on a participant, and why: kept with the entries, so that everybody who is asked tells the
//! same.

use pgrx::pg_sys;

use crate::log::entries::{self, Reserved};
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
    let entry = |l: &Left| {
        let own = (registered.serverid, registered.userid)
            == (l.gid.serverid.into(), l.gid.userid.into());
        let participant = if own { registered.id } else { 0 };
        let reserved = Reserved { gid: l.gid, participant, remote_xid: 0, remote_pid: 0 };
        let new = entries::new_entry(&reserved, l.xid, 0, l.status);
        Entry { reason: l.reason, since: started_at(), ..new }
    };
    let new: Vec<Entry> = left.iter().map(entry).collect();
    shmem::write(|m| {
        let mut table = m.entries();
        let mut room = true;
        for (left, new) in left.iter().zip(new) {
            if let Some(place) = table.find(&left.gid) {
                if table.at(place).owner == 0 && is_undelivered(table.at(place)) {
                    table.change(place, |entry| entry.reason = left.reason);
                }
                continue;
            }
            // What is expected has an entry as long as it is anybody's concern.
            if !left.reason.is_expected() && (left.listed || left.reason == Reason::Unlisted) {
                room &= table.insert(new);
            }
        }
        room
    })
}

/// Notes why nothing was settled on a participant.
pub fn note_failure(registered: &Registered, reason: Reason) {
    let entries = handed_over(registered);
    shmem::write(|m| {
        let mut table = m.entries();
        for gid in entries.iter().filter_map(Entry::gid) {
            let Some(place) = table.find(&gid) else { continue };
            if table.at(place).owner == 0 && is_undelivered(table.at(place)) {
                table.change(place, |entry| entry.reason = reason);
            }
        }
    });
}

/// What backends, or an earlier sweep, have left on a participant.
pub fn handed_over(registered: &Registered) -> Vec<Entry> {
    let mut all = entries::left();
    all.retain(|e| is_undelivered(e) && is_at(e, registered));
    all
}

/// Ends the entry of one that is not prepared any more, and of no participant that is on the list.
pub fn end_of_nobodys(gid: &Gid) {
    shmem::write(|m| {
        let mut table = m.entries();
        let Some(place) = table.find(gid) else { return };
        let entry = table.at(place);
        if (entry.owner, entry.participant) == (0, 0) && is_undelivered(entry) {
            table.remove(place);
        }
    });
}

/// The entry's participant is not on the list any more: it is that of whoever has its server and user.
pub fn release(gid: &Gid) {
    shmem::write(|m| {
        let mut table = m.entries();
        if let Some(place) = table.find(gid) {
            table.change(place, |entry| entry.participant = 0);
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
