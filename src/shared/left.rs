//! What the resolver leaves on a participant, and why: kept with the entries, so that everybody who is asked tells the
//! same.

use std::collections::{HashMap, HashSet};

use pgrx::pg_sys::{self, Oid};

use crate::pg::globals::server_start;
use crate::protocol::gid::Gid;
use crate::protocol::verdict::Reason;
use crate::shared::entries::{self, Reserved};
use crate::shared::entry::{Entry, Status};
use crate::shared::shmem;
use crate::store::participant_list::ParticipantRecord;

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

/// Some participants, to tell whose an entry is.
#[derive(Clone, Default)]
pub struct Members {
    ids: HashSet<i32>,
    by_mapping: HashMap<(Oid, Oid), i32>,
}

impl<'a> FromIterator<&'a ParticipantRecord> for Members {
    fn from_iter<T: IntoIterator<Item = &'a ParticipantRecord>>(list: T) -> Self {
        let mut members = Self::default();
        for registered in list {
            members.ids.insert(registered.id);
            members.by_mapping.insert((registered.serverid, registered.userid), registered.id);
        }
        members
    }
}

impl Members {
    /// Whether an entry is that of something on one of them. The same server and user are another participant when the
    /// server was moved.
    pub fn have(&self, entry: &Entry) -> bool {
        if entry.participant != 0 {
            return self.ids.contains(&entry.participant);
        }
        self.by_mapping.contains_key(&(entry.serverid, entry.userid))
    }

    /// Their numbers.
    pub fn ids(&self) -> impl Iterator<Item = i32> {
        self.ids.iter().copied()
    }

    /// The one that a gid is of.
    pub fn of(&self, gid: &Gid) -> Option<i32> {
        self.by_mapping.get(&(gid.serverid.into(), gid.userid.into())).copied()
    }
}

/// Notes why each was left on a participant. What has no entry, because it was prepared before this server's start,
/// gets one; tells whether there was room for all.
pub fn note(members: &Members, left: &[Left]) -> bool {
    let entry = |l: &Left| {
        let participant = members.of(&l.gid).unwrap_or(0);
        let reserved = Reserved { gid: l.gid, participant, remote_xid: 0, remote_pid: 0 };
        let new = entries::new_entry(&reserved, l.xid, 0, l.status);
        Entry { reason: l.reason, since: server_start(), ..new }
    };
    let new: Vec<Entry> = left.iter().map(entry).collect();
    shmem::write(|m| {
        let mut table = m.entries();
        let mut room = true;
        for (left, new) in left.iter().zip(new) {
            if let Some(place) = table.find(&left.gid) {
                if table.at(place).is_for_the_resolver() {
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
pub fn note_failure(entries: &[Entry], reason: Reason) {
    shmem::write(|m| {
        let mut table = m.entries();
        for gid in entries.iter().filter_map(Entry::gid) {
            let Some(place) = table.find(&gid) else { continue };
            if table.at(place).is_for_the_resolver() {
                table.change(place, |entry| entry.reason = reason);
            }
        }
    });
}

/// What backends, or an earlier sweep, have left on some participants.
pub fn handed_over(members: &Members) -> Vec<Entry> {
    let mut all = entries::left();
    all.retain(|e| e.status.is_decided() && members.have(e));
    all
}
