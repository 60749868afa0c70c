//! What the resolver has left on participants, and why. The reasons are kept in the entries, so
//! that the view, the statistics and the log all say the same.

use std::collections::{HashMap, HashSet};

use pgrx::pg_sys::{self, Oid};

use crate::pg::globals::server_start;
use crate::protocol::gid::Gid;
use crate::protocol::participant::Outcome;
use crate::protocol::place::Place;
use crate::protocol::verdict::{Decision, Reason};
use crate::shared::entries::{self, Reserved};
use crate::shared::entry::{Entry, Owner, Status};
use crate::shared::{order, shmem};
use crate::store::decisions;
use crate::store::participant_list::ParticipantRecord;

/// A prepared transaction that a sweep has left.
#[derive(Clone, Copy, Debug)]
pub struct Left {
    /// Its name there.
    pub gid: Gid,
    /// Where that is.
    pub place: Place,
    /// The transaction's xid there; 0 where it is not known.
    pub remote_xid: u64,
    /// What has to be delivered.
    pub status: Status,
    /// The local transaction, 0 where it is not known.
    pub xid: pg_sys::TransactionId,
    /// Why it was left.
    pub reason: Reason,
    /// The participant lists it, so it is prepared there.
    pub listed: bool,
}

/// A group of participants, to find out which entries are theirs.
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
    /// Whether an entry is of one of them. Server and user alone do not tell: if the server was
    /// moved, they may be those of two participants.
    pub fn have(&self, entry: &Entry) -> bool {
        if entry.participant != 0 {
            return self.has(entry.participant);
        }
        self.by_mapping.contains_key(&(entry.serverid, entry.userid))
    }

    /// Whether this is the number of one of them.
    pub fn has(&self, id: i32) -> bool {
        self.ids.contains(&id)
    }

    /// Their numbers.
    pub fn ids(&self) -> impl Iterator<Item = i32> {
        self.ids.iter().copied()
    }

    /// The number of the one that a gid is of.
    pub fn of(&self, gid: &Gid) -> Option<i32> {
        self.by_mapping.get(&(gid.serverid.into(), gid.userid.into())).copied()
    }
}

/// Notes in the entries why each was left. Makes an entry where there is none, because it was
/// prepared before the start of this server; returns whether there was room for all.
pub fn note(members: &Members, left: &[Left]) -> bool {
    let entry = |l: &Left| {
        let participant = members.of(&l.gid).unwrap_or(0);
        let Left { gid, place, remote_xid, .. } = *l;
        let reserved = Reserved { gid, participant, remote_xid, place, remote_pid: 0 };
        let new = entries::new_entry(&reserved, l.xid, 0, l.status);
        Entry { reason: l.reason, since: server_start(), ..new }
    };
    let new: Vec<Entry> = left.iter().map(entry).collect();
    shmem::write(|m| {
        let mut room = true;
        for (left, new) in left.iter().zip(new) {
            let mut table = m.entries();
            if let Some(place) = table.find(&left.gid) {
                if table.at(place).is_for_the_resolver() {
                    table.change(place, |entry| entry.reason = left.reason);
                }
                continue;
            }
            // What is part of normal operation has an entry as long as it is not settled.
            if !left.reason.is_expected() && (left.listed || left.reason == Reason::Unlisted) {
                room &= table.insert(new);
                // It may have been delivered elsewhere before the start of this server.
                if left.status == Status::Committing {
                    order::number(m, &left.gid);
                }
            }
        }
        m.shared.entries_lacked |= !room;
        room
    })
}

/// Notes in the entries of a participant why nothing was settled there.
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

/// Leaves an entry to the resolver whose answer its owner, which is idle, has not read: somebody
/// waits for it.
pub fn leave_unawaited(gid: &Gid) {
    shmem::write(|m| {
        let mut table = m.entries();
        if let Some(place) = table.find(gid).filter(|place| table.at(*place).unawaited) {
            table.change(place, |entry| {
                entry.owner = Owner::Resolver;
                entry.reason = Reason::Untried;
            });
        }
    });
}

/// What backends or earlier sweeps have left on some participants.
pub fn handed_over(members: &Members) -> Vec<Entry> {
    let mut all = entries::left();
    all.retain(|e| e.status.is_decided() && members.have(e));
    all
}

/// Notices what was prepared under the application's 'gxid' and is not any more, without a session
/// having delivered it: the outcomes, which are the resolver's to deliver now.
pub fn note_ended() -> Vec<(Gid, Outcome)> {
    let mut ended = Vec::new();
    for entry in entries::left() {
        let Some(gid) = entry.gid().filter(|_| entry.status == Status::Prepared) else { continue };
        let outcome = match decisions::of(entry.xid) {
            Decision::InProgress => continue,
            Decision::Committed => Outcome::Commit,
            Decision::Absent => Outcome::Abort,
        };
        entries::note_decided(&gid, outcome);
        ended.push((gid, outcome));
    }
    ended
}
