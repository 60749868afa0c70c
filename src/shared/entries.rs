//! One entry per participant that is prepared or about to be, in all databases: what the view
//! shows, and how a backend tells the resolver what it leaves behind. An entry's life is told at
//! [`Entry`].

use std::collections::HashSet;
use std::time::Duration;

use pgrx::pg_sys::{self, Oid};

use crate::pg::error::{Error, Result, SqlState, check_for_interrupts};
use crate::pg::globals::{my_database, my_pid, now};
use crate::pg::latch;
use crate::pg::snapshot::full;
use crate::pg::wait_event::WaitEvent;
use crate::protocol::gid::Gid;
use crate::protocol::participant::Outcome;
use crate::protocol::place::Place;
use crate::protocol::verdict::Reason;
use crate::shared::entry::{Entry, Owner, Status};
use crate::shared::entry_change::{Change, Why};
use crate::shared::shmem::{self, Memory};
use crate::shared::{hold, resolvers};

/// A participant that is about to be prepared, or is.
#[derive(Clone, Copy, Debug)]
pub struct Reserved {
    /// Its gid.
    pub gid: Gid,
    /// Its number on the list.
    pub participant: i32,
    /// The transaction's xid there; 0 where it is not known.
    pub remote_xid: u64,
    /// Where it is.
    pub place: Place,
    /// The server process there that runs PREPARE; 0 if it was prepared before this server's start.
    pub remote_pid: i32,
}

/// How long a transaction that finds no free entry waits for others to be settled.
const ROOM: Duration = Duration::from_secs(5);

/// Takes an entry for each participant, all or none. `local_xid`: the transaction, if it has
/// written here, too. Where there are too few, those of sessions that have gone on without waiting
/// for an answer are left to the resolvers, which find out what became of them.
///
/// # Errors
/// 53400 when there are not enough; a cancel.
pub fn reserve(
    members: &[Reserved],
    xid: pg_sys::TransactionId,
    local_xid: Option<u64>,
) -> Result<()> {
    let owner = Owner::Backend(my_pid());
    let new: Vec<Entry> = members
        .iter()
        .map(|member| {
            let new = new_entry(member, xid, members.len(), Status::Preparing);
            Entry { owner, local_xid: local_xid.unwrap_or(0), ..new }
        })
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

/// Leaves to the resolvers the entries whose answers idle sessions have not read; tells whether
/// there may be room soon.
fn make_room() -> bool {
    let now = now();
    let (databases, soon) = shmem::write(|m| {
        let mut databases = HashSet::new();
        let mut table = m.entries();
        for place in table.owned() {
            if table.at(place).unawaited {
                databases.insert(table.at(place).dbid);
                table.change(place, |entry| {
                    entry.owner = Owner::Resolver;
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

/// Has an entry follow a step of its owner, this backend. What is left to the resolver wakes it.
pub fn follow(gid: &Gid, change: Change) {
    match change {
        Change::Nothing | Change::Made => {}
        Change::End(why) => {
            end(gid, why);
        }
        Change::Show(_) | Change::Unawaited | Change::Claim(_) => {
            write(gid, change);
        }
        Change::Leave(_) => {
            if let Some(dbid) = write(gid, change) {
                resolvers::wake(dbid);
            }
        }
    }
}

/// Has all entries of a transaction follow the decision to commit. `is_delivered`: it will be
/// delivered now, so it gets its number, if need be after a wait.
pub fn decide(changes: &[(Gid, Change)], is_delivered: bool) {
    let (pid, now) = (my_pid(), now());
    let held_up = shmem::write(|m| {
        for (gid, change) in changes {
            let mut table = m.entries();
            if let Some(place) = table.find(gid) {
                table.change(place, |entry| change.write(entry, pid, now));
            }
        }
        // Any one that has an entry gives all of them their number; without one they are delivered
        // all the same.
        let mut gids = changes.iter().map(|(gid, _)| gid);
        let first = gids.find(|gid| m.entries().find(gid).is_some());
        let first = first.or(changes.first().map(|(gid, _)| gid))?;
        (is_delivered && !hold::deliver(m, first, now)).then_some(*first)
    });
    if let Some(gid) = held_up {
        hold::deliver_later(&gid);
    }
}

/// Writes a change to an entry, if there is one; returns its database.
fn write(gid: &Gid, change: Change) -> Option<Oid> {
    let (pid, now) = (my_pid(), now());
    shmem::write(|m| {
        let mut table = m.entries();
        let place = table.find(gid)?;
        let was = *table.at(place);
        table.change(place, |entry| change.write(entry, pid, now));
        if change == Change::Show(Status::Prepared) {
            m.stats().count(&was, |stats| stats.prepared += 1);
        }
        Some(was.dbid)
    })
}

/// Ends an entry, if there is one that may end for this reason; tells whether there was.
pub fn end(gid: &Gid, why: Why) -> bool {
    shmem::write(|m| {
        let place = m.entries().find(gid);
        place.is_some_and(|place| end_at(m, place, why))
    })
}

fn end_at(m: &mut Memory<'_>, place: usize, why: Why) -> bool {
    let was = *m.entries().at(place);
    if !why.may_end(&was) {
        return false;
    }
    m.entries().remove(place);
    // What an operator gives up is not waited for.
    if was.number != 0 && was.remote_xid != 0 && why != Why::GivenUp {
        m.shared.order.ended(was.place, was.remote_xid, was.number);
    }
    if why.is_by_owner(&was) {
        m.stats().count(&was, |stats| match was.status {
            Status::Committing => stats.committed += 1,
            Status::Aborting => stats.rolled_back += 1,
            Status::Preparing | Status::Prepared => {}
        });
    }
    true
}

/// Ends what an operator gives up with a server of this database, but not what is prepared here
/// too; returns how many.
pub fn end_server(serverid: Oid) -> usize {
    let dbid = my_database();
    shmem::write(|m| {
        let table = m.entries();
        let is_meant = |place: &usize| {
            let e = table.at(*place);
            (e.dbid, e.serverid) == (dbid, serverid) && e.status.is_decided()
        };
        let places: Vec<usize> = table.left().into_iter().filter(is_meant).collect();
        places.iter().filter(|place| end_at(m, **place, Why::GivenUp)).count()
    })
}

/// The application's 'gxid' that an entry waits for has been settled without a session's delivering
/// it.
pub fn note_decided(gid: &Gid, outcome: Outcome) {
    let now = now();
    change(gid, |entry| {
        if (entry.owner, entry.status) == (Owner::Resolver, Status::Prepared) {
            entry.since = now;
            entry.status = match outcome {
                Outcome::Commit => Status::Committing,
                Outcome::Abort => Status::Aborting,
            };
        }
    });
}

/// An entry of this database, left to the resolver.
pub(super) fn new_entry(
    member: &Reserved,
    xid: pg_sys::TransactionId,
    participants: usize,
    status: Status,
) -> Entry {
    let Reserved { gid, participant, remote_xid, place, remote_pid } = *member;
    let (dbid, since) = (my_database(), now());
    Entry {
        status,
        owner: Owner::Resolver,
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
        local_xid: 0,
        place,
        number: 0,
        acknowledged: false,
        participants: participants as u32,
        unawaited: false,
        reason: Reason::Untried,
    }
}

/// Adds an entry for what the resolver found in the decision table, of a transaction that is
/// prepared here with so many participants, unless there is one.
pub fn adopt(member: &Reserved, xid: pg_sys::TransactionId, participants: usize) {
    // Whether it has written here is not known any more.
    let local_xid = full(xid);
    let new = new_entry(member, xid, participants, Status::Prepared);
    let entry = Entry { local_xid, ..new };
    shmem::write(|m| {
        // Without an entry it is settled all the same, only not shown.
        if m.entries().find(&member.gid).is_none() && !m.entries().insert(entry) {
            m.shared.entries_lacked = true;
        }
    });
}

/// What the entries tell of a transaction that is prepared here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Known {
    /// These are its participants.
    Participants(Vec<Gid>),
    /// It has none.
    Local,
    /// Not everything: the decision row has to be read.
    Unknown,
}

/// What the entries tell of a transaction of this database that is prepared here; `of` finds its
/// xid, and is only called if there is something to look for.
///
/// # Errors
/// Those of `of`.
pub fn prepared_here(of: impl FnOnce() -> Result<Option<pg_sys::TransactionId>>) -> Result<Known> {
    let (none_open, lacked) = shmem::read(|m| (m.entries().open() == 0, m.shared.entries_lacked));
    // A resolver that is up has made entries for what was prepared before the start of this server.
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

/// Whether something that is in doubt has no entry, for lack of room.
pub fn are_lacking() -> bool {
    shmem::read(|m| m.shared.entries_lacked)
}

/// All entries in use.
pub fn all() -> Vec<Entry> {
    shmem::read(|m| m.entries().all())
}

/// The entries of this database that are left to the resolver.
pub fn left() -> Vec<Entry> {
    let dbid = my_database();
    shmem::read(|m| {
        let table = m.entries();
        table.left().into_iter().map(|place| *table.at(place)).filter(|e| e.dbid == dbid).collect()
    })
}

/// Changes whenever something is left to the resolvers.
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

/// The entries that backends settle, in all databases.
pub fn owned() -> Vec<Entry> {
    shmem::read(|m| {
        let table = m.entries();
        table.owned().into_iter().map(|place| *table.at(place)).collect()
    })
}

/// Takes over the entries of backends that have gone without settling them, or have not settled
/// them within `limit` of the decision. The resolver finds out what became of their transactions.
pub fn reap(limit: Duration) {
    let owner = |entry: &Entry| match entry.owner {
        Owner::Backend(pid) => Some(pid),
        Owner::Resolver => None,
    };
    let owners: HashSet<i32> = owned().iter().filter_map(owner).collect();
    if owners.is_empty() {
        return;
    }
    let gone: HashSet<i32> = owners.into_iter().filter(|pid| !shmem::is_alive(*pid)).collect();
    let now = now();
    shmem::write(|m| {
        let mut table = m.entries();
        for place in table.owned() {
            let entry = *table.at(place);
            let is_gone = owner(&entry).is_some_and(|pid| gone.contains(&pid));
            if is_gone || entry.is_overdue(now, limit) {
                table.change(place, |entry| {
                    entry.owner = Owner::Resolver;
                    if entry.status == Status::Preparing {
                        entry.status = Status::Prepared;
                    }
                });
            }
        }
    });
}

/// An entry's participant is not on the list any more: from now on the entry counts as one of each
/// participant with its server and user.
pub fn release(gid: &Gid) {
    change(gid, |entry| entry.participant = 0);
}
