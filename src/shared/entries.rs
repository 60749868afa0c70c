//! One entry per participant that is prepared or about to be, in all databases: what the view shows, and
//! how a backend tells the resolver what it leaves behind.

use std::collections::HashSet;
use std::time::Duration;

use pgrx::pg_sys::{self, Oid};

use crate::pg::error::{Error, Result, SqlState, check_for_interrupts};
use crate::pg::globals::{my_database, my_pid, now};
use crate::pg::latch;
use crate::pg::wait_event::WaitEvent;
use crate::protocol::gid::Gid;
use crate::protocol::verdict::Reason;
use crate::shared::entry::{Entry, Status};
use crate::shared::resolvers;
use crate::shared::shmem::{self, Memory};

/// A participant that is about to be prepared, or is.
#[derive(Clone, Copy, Debug)]
pub struct Reserved {
    /// Its gid.
    pub gid: Gid,
    /// Its number on the list.
    pub participant: i32,
    /// The transaction's xid there; 0 where it is not known.
    pub remote_xid: u64,
    /// The server process there that runs PREPARE; 0 if it was prepared before this server's start.
    pub remote_pid: i32,
}

/// How long somebody who finds no entry waits for those that are being settled to make room.
const ROOM: Duration = Duration::from_secs(5);

/// Takes an entry for each participant, all or none. Where there are too few, those of sessions that have gone on without
/// waiting for an answer are left to the resolvers, which find out what has come of them.
///
/// # Errors
/// 53400 when there are not enough; a cancel.
pub fn reserve(members: &[Reserved], xid: pg_sys::TransactionId) -> Result<()> {
    let owner = my_pid();
    let new: Vec<Entry> = members
        .iter()
        .map(|member| Entry { owner, ..new_entry(member, xid, members.len(), Status::Preparing) })
        .collect();
    let take = || {
        shmem::write(|m| {
            let mut table = m.entries();
            let enough = table.free() >= new.len();
            enough && new.iter().all(|entry| table.insert(*entry))
        })
    };
    while !take() {
        if !make_room() {
            return Err(Error::new(
                SqlState::CONFIGURATION_LIMIT_EXCEEDED,
                "too many prepared transactions on foreign servers",
            )
            .hint("Raise \"pg_fdw_xacts.max_foreign_xacts\" and restart the server."));
        }
        check_for_interrupts()?;
        latch::wait(Duration::from_millis(10), WaitEvent::Resolver);
    }
    Ok(())
}

/// Leaves to the resolvers what idle sessions have not read the answer to; tells whether there may be room soon.
fn make_room() -> bool {
    let now = now();
    let (databases, soon) = shmem::write(|m| {
        let mut databases = HashSet::new();
        let mut table = m.entries();
        for place in table.owned() {
            if table.at(place).unawaited {
                databases.insert(table.at(place).dbid);
                table.change(place, |entry| {
                    entry.owner = 0;
                    entry.reason = Reason::Untried;
                });
            }
        }
        if !databases.is_empty() {
            m.shared.room_made_at = now;
        }
        (databases, now - m.shared.room_made_at < ROOM.as_micros() as i64)
    });
    for dbid in databases {
        resolvers::wake(dbid);
    }
    soon
}

/// Changes an entry, if there is one.
fn change(gid: &Gid, f: impl FnOnce(&mut Entry)) {
    shmem::write(|m| {
        let mut table = m.entries();
        if let Some(place) = table.find(gid) {
            table.change(place, f);
        }
    });
}

/// Changes the status of an entry, if there is one.
pub fn set_status(gid: &Gid, status: Status) {
    let now = now();
    shmem::write(|m| {
        let mut table = m.entries();
        let Some(place) = table.find(gid) else { return };
        let was = *table.at(place);
        if status == Status::Free {
            return table.remove(place);
        }
        table.change(place, |entry| {
            if matches!(status, Status::Committing | Status::Aborting) {
                entry.since = now;
            }
            entry.status = status;
        });
        if status == Status::Prepared && was.status != Status::Prepared {
            m.stats().count(&was, |stats| stats.prepared += 1);
        }
    });
}

/// The owner goes on without waiting for the answer to `COMMIT PREPARED`.
pub fn unawaited(gid: &Gid) {
    change(gid, |entry| entry.unawaited = true);
}

/// Ends an entry: its participant has confirmed the outcome to its owner.
pub fn confirmed(gid: &Gid) {
    shmem::write(|m| {
        let mut table = m.entries();
        let Some(place) = table.find(gid) else { return };
        let was = *table.at(place);
        table.remove(place);
        count_end(m, &was);
    });
}

fn count_end(m: &mut Memory<'_>, was: &Entry) {
    m.stats().count(was, |stats| match was.status {
        Status::Committing => stats.committed += 1,
        Status::Aborting => stats.rolled_back += 1,
        Status::Free | Status::Preparing | Status::Prepared => {}
    });
}

/// Ends an entry: there is nothing prepared.
pub fn remove(gid: &Gid) {
    shmem::write(|m| {
        let mut table = m.entries();
        let Some(place) = table.find(gid) else { return };
        let was = *table.at(place);
        table.remove(place);
        // Its owner has delivered it, and did not come to read that.
        if was.unawaited {
            count_end(m, &was);
        }
    });
}

/// Makes an entry that nobody owns this backend's, which is about to deliver the outcome.
pub fn claim(gid: &Gid, status: Status) {
    let owner = my_pid();
    change(gid, |entry| {
        if entry.owner == 0 {
            entry.owner = owner;
            entry.status = status;
        }
    });
}

/// Leaves an entry to the resolver, and tells it.
pub fn hand_over(gid: &Gid, status: Status) {
    let dbid = shmem::write(|m| {
        let mut table = m.entries();
        let place = table.find(gid)?;
        table.change(place, |entry| {
            entry.owner = 0;
            entry.status = status;
            entry.unawaited = false;
            entry.reason = Reason::Untried;
        });
        Some(table.at(place).dbid)
    });
    if let Some(dbid) = dbid {
        resolvers::wake(dbid);
    }
}

/// An entry of this database without an owner.
pub(super) fn new_entry(
    member: &Reserved,
    xid: pg_sys::TransactionId,
    participants: usize,
    status: Status,
) -> Entry {
    let Reserved { gid, participant, remote_xid, remote_pid } = *member;
    let (dbid, since) = (my_database(), now());
    Entry {
        status,
        owner: 0,
        remote_pid,
        since,
        dbid,
        xid,
        serverid: Oid::from_u32(gid.serverid),
        userid: Oid::from_u32(gid.userid),
        identity: gid.identity.number(),
        nonce: gid.nonce.number(),
        participant,
        remote_xid,
        participants: participants as u32,
        unawaited: false,
        reason: Reason::Untried,
    }
}

/// Adds an entry that the resolver found in the table, of a transaction that is prepared here with so many participants,
/// unless there is one.
pub fn adopt(member: &Reserved, xid: pg_sys::TransactionId, participants: usize) {
    let entry = new_entry(member, xid, participants, Status::Prepared);
    shmem::write(|m| {
        // Without one it is settled all the same, only not shown.
        if m.entries().find(&member.gid).is_none() && !m.entries().insert(entry) {
            m.shared.entries_lacked = true;
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
    let (none_open, lacked) = shmem::read(|m| (m.entries().open() == 0, m.shared.entries_lacked));
    // A resolver that is up has made entries for all that was prepared before the start of this server.
    let complete = !lacked && resolvers::is_up();
    if none_open && complete {
        return Ok(Known::Local);
    }
    let Some(xid) = of()? else { return Ok(Known::Local) };
    let mut mine = of_transaction(xid);
    mine.retain(|e| matches!(e.status, Status::Preparing | Status::Prepared));
    let gids: Vec<Gid> = mine.iter().filter_map(Entry::gid).collect();
    Ok(match mine.first() {
        None if complete => Known::Local,
        Some(first) if gids.len() == first.participants as usize => Known::Participants(gids),
        _ => Known::Unknown,
    })
}

/// All entries in use.
pub fn all() -> Vec<Entry> {
    shmem::read(|m| m.entries().all())
}

/// The entries of this database that no backend looks after.
pub fn left() -> Vec<Entry> {
    let dbid = my_database();
    shmem::read(|m| {
        let table = m.entries();
        table.left().into_iter().map(|place| *table.at(place)).filter(|e| e.dbid == dbid).collect()
    })
}

/// As long as it is the same, nothing has been left to the resolvers.
pub fn left_changes() -> u64 {
    shmem::read(|m| m.entries().left_changes())
}

/// The entry of a gid.
pub fn of(gid: &Gid) -> Option<Entry> {
    shmem::read(|m| {
        let table = m.entries();
        table.find(gid).map(|place| *table.at(place))
    })
}

/// The entries of a transaction of this database.
pub fn of_transaction(xid: pg_sys::TransactionId) -> Vec<Entry> {
    let dbid = my_database();
    shmem::read(|m| m.entries().of_transaction(dbid, xid))
}

/// The entries that a backend looks after, in all databases.
pub fn owned() -> Vec<Entry> {
    shmem::read(|m| {
        let table = m.entries();
        table.owned().into_iter().map(|place| *table.at(place)).collect()
    })
}

/// Takes over the entries of backends that have gone without settling them, or have not settled them within
/// `limit` of the decision. What became of the transaction is found out as for those that are prepared here.
pub fn reap(limit: Duration) {
    let owners: HashSet<i32> = owned().iter().map(|e| e.owner).collect();
    if owners.is_empty() {
        return;
    }
    let gone: HashSet<i32> = owners.into_iter().filter(|pid| !shmem::is_alive(*pid)).collect();
    let overdue = now() - limit.as_micros() as i64;
    shmem::write(|m| {
        let mut table = m.entries();
        for place in table.owned() {
            let Entry { owner, status, since, .. } = *table.at(place);
            let decided = matches!(status, Status::Committing | Status::Aborting);
            if gone.contains(&owner) || (decided && since < overdue) {
                table.change(place, |entry| {
                    entry.owner = 0;
                    if entry.status == Status::Preparing {
                        entry.status = Status::Prepared;
                    }
                });
            }
        }
    });
}

/// An entry's participant is not on the list any more: it is that of whoever has its server and user.
pub fn release(gid: &Gid) {
    change(gid, |entry| entry.participant = 0);
}

/// Ends an entry that no backend looks after, because it was settled or somebody gave it up; tells whether there was one.
pub fn forget(gid: &Gid) -> bool {
    shmem::write(|m| {
        let mut table = m.entries();
        let place = table.find(gid).filter(|place| table.at(*place).owner == 0);
        place.map(|place| table.remove(place)).is_some()
    })
}

/// Ends all such entries of a server of this database, but not what is prepared here too; returns how many.
pub fn forget_server(serverid: Oid) -> usize {
    let dbid = my_database();
    shmem::write(|m| {
        let mut table = m.entries();
        let mut places = table.left();
        places.retain(|place| {
            let e = table.at(*place);
            (e.dbid, e.serverid) == (dbid, serverid)
                && matches!(e.status, Status::Committing | Status::Aborting)
        });
        places.iter().for_each(|place| table.remove(*place));
        places.len()
    })
}
