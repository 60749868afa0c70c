//! The resolvers: which database has one, and how it is doing. Each has a slot in shared memory,
//! which also asks the launcher for a resolver where there is none.
//!
//! * [`lifecycle`]: what the launcher and the resolvers themselves note;
//! * [`pausing`]: a command that needs a database to itself;
//! * [`waiting`]: a backend that waits for its resolver.

use pgrx::pg_sys::Oid;

use crate::pg::globals::{my_database, my_pid};
use crate::protocol::gid::Identity;
use crate::shared::shmem;

mod lifecycle;
mod pausing;
mod waiting;

pub use lifecycle::{
    become_launcher, become_resolver, forget_database, leave, report, report_look,
    set_unsettled_elsewhere, state, take_wanted, want_again, want_lost, want_to_look,
};
pub use pausing::{end_pause, end_pauses, is_paused, pause};
pub use waiting::{await_look_at, identity};

pub(super) use waiting::wait_for;

/// How a database's resolver is doing.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// The slot is unused; 0, as shared memory is at the start.
    Free,
    /// A resolver is needed: the launcher starts it.
    Wanted,
    /// The launcher has started it.
    Starting,
    /// It works, and the identity is known.
    Ready,
    /// The database has no extension.
    Absent,
    /// A command needs the database to itself for a moment.
    Paused,
}

/// A database's resolver.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Slot {
    state: State,
    dbid: Oid,
    /// Its process, 0 while there is none.
    pid: i32,
    /// Since when it is paused, in PostgreSQL's microseconds.
    paused_at: i64,
    /// The backend that has paused it.
    paused_by: i32,
    /// The database's identity; 0 until the resolver is ready.
    identity: u64,
    /// Changes whenever a number on the list of participants may have lost its meaning.
    generation: u64,
    /// It has read the whole decision table since the start of this server.
    has_looked: bool,
    /// How many participants may have something left on servers without a place for statistics.
    unsettled_elsewhere: u64,
}

impl Slot {
    fn new(state: State, dbid: Oid, pid: i32) -> Self {
        Self {
            state,
            dbid,
            pid,
            paused_at: 0,
            paused_by: 0,
            identity: 0,
            generation: 0,
            has_looked: false,
            unsettled_elsewhere: 0,
        }
    }

    fn is_of(&self, dbid: Oid) -> bool {
        self.state != State::Free && self.dbid == dbid
    }
}

fn slot_of(slots: &mut [Slot], dbid: Oid) -> Option<&mut Slot> {
    slots.iter_mut().find(|slot| slot.is_of(dbid))
}

/// A database's slot, or one that is `unused`.
fn slot_or(slots: &mut [Slot], dbid: Oid, unused: impl Fn(&Slot) -> bool) -> Option<&mut Slot> {
    let own = slots.iter().position(|slot| slot.is_of(dbid));
    let n = own.or_else(|| slots.iter().position(unused))?;
    Some(&mut slots[n])
}

/// A copy of a database's slot.
fn read_slot(dbid: Oid) -> Option<Slot> {
    shmem::read(|m| m.resolvers.iter().find(|slot| slot.is_of(dbid)).copied())
}

/// Wakes the resolver of a database, or has the launcher start one if there is none.
pub fn wake(dbid: Oid) {
    let pid = shmem::write(|m| {
        match slot_of(m.resolvers, dbid) {
            Some(slot) if slot.state != State::Absent => slot.pid,
            // Its database has an extension now, or nobody has looked yet.
            _ => {
                want(m.resolvers, dbid);
                m.shared.launcher
            }
        }
    });
    shmem::wake(pid);
}

/// Asks for a resolver in a database; returns whether there is a slot for it.
fn want(slots: &mut [Slot], dbid: Oid) -> bool {
    // The slot of a database without the extension may be taken by another database.
    let unused =
        |slot: &Slot| slot.state == State::Free || (slot.state == State::Absent && slot.pid == 0);
    let slot = slot_or(slots, dbid, unused);
    slot.map(|slot| *slot = Slot::new(State::Wanted, dbid, 0)).is_some()
}

/// The identity of this database if its resolver is ready. If it is not, asks for it and does not
/// wait.
pub fn identity_if_ready() -> Option<Identity> {
    let identity = read_slot(my_database()).and_then(|slot| Identity::new(slot.identity));
    if identity.is_none() {
        wake(my_database());
    }
    identity
}

/// Whether this database's resolver is ready and has read the whole decision table since the start
/// of this server.
pub fn is_up() -> bool {
    read_slot(my_database()).is_some_and(|slot| slot.state == State::Ready && slot.has_looked)
}

/// Whether it is known what may be in doubt in a database: its resolver is ready, or has found no
/// extension there.
pub fn has_been_looked_at(dbid: Oid) -> bool {
    read_slot(dbid).is_some_and(|slot| match slot.state {
        State::Ready | State::Absent => true,
        // It was ready before it was paused.
        State::Paused => slot.identity != 0,
        State::Free | State::Wanted | State::Starting => false,
    })
}

/// The resolver's view of this database is out of date, because the extension has been dropped and
/// created again: it starts over.
pub fn doubt() {
    let dbid = my_database();
    let pid = shmem::write(|m| {
        let slot = slot_of(m.resolvers, dbid)?;
        if slot.state == State::Ready {
            slot.state = State::Starting;
            slot.identity = 0;
        }
        Some(slot.pid)
    });
    shmem::wake(pid.unwrap_or(0));
}

/// Whether this process is the resolver of its database, and nobody doubts or pauses it.
pub fn is_trusted() -> bool {
    let pid = my_pid();
    read_slot(my_database()).is_some_and(|slot| slot.state == State::Ready && slot.pid == pid)
}

/// The generation of this database's list of participants: while it stays the same, the numbers on
/// the list keep their meaning.
pub fn generation() -> u64 {
    read_slot(my_database()).map_or(0, |slot| slot.generation)
}

/// Begins a new generation: numbers on the list of participants lose their meaning.
pub fn new_generation() {
    let dbid = my_database();
    shmem::write(|m| {
        m.shared.last_serial += 1;
        if let Some(slot) = slot_of(m.resolvers, dbid) {
            slot.generation = m.shared.last_serial;
        }
    });
}

/// The other databases of which it is known that they have the extension.
pub fn other_databases() -> Vec<Oid> {
    let here = my_database();
    let has_it = |slot: &&Slot| slot.state != State::Free && slot.identity != 0;
    shmem::read(|m| {
        m.resolvers.iter().filter(has_it).map(|slot| slot.dbid).filter(|d| *d != here).collect()
    })
}

/// Whether something may be left in a database on servers without a place for statistics.
pub(super) fn is_unsettled_elsewhere(slots: &[Slot], dbid: Oid) -> bool {
    slots.iter().any(|slot| slot.is_of(dbid) && slot.unsettled_elsewhere > 0)
}
