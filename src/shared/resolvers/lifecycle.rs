//! The life of a resolver, as the launcher and the resolvers themselves note it: wanted, started,
//! ready, ended.

use pgrx::pg_sys::Oid;

use super::{Slot, State, read_slot, slot_of, slot_or, want};
use crate::pg::globals::{my_database, my_pid};
use crate::protocol::gid::Identity;
use crate::shared::shmem;

/// This process is the launcher.
pub fn become_launcher() {
    let pid = my_pid();
    shmem::write(|m| m.shared.launcher = pid);
    want_lost();
}

/// A resolver's process has ended: another one is wanted, unless there is nothing for it to do.
fn process_ended(slot: &mut Slot) {
    slot.pid = 0;
    if !matches!(slot.state, State::Absent | State::Paused) {
        slot.state = State::Wanted;
    }
}

/// Asks for a new resolver wherever the process of the old one no longer exists, whoever started
/// it.
pub fn want_lost() {
    let processes: Vec<(Oid, i32)> = shmem::read(|m| {
        let taken = m.resolvers.iter().filter(|slot| slot.pid != 0);
        taken.map(|slot| (slot.dbid, slot.pid)).collect()
    });
    let lost: Vec<(Oid, i32)> =
        processes.into_iter().filter(|(_, pid)| !shmem::is_alive(*pid)).collect();
    shmem::write(|m| {
        for slot in m.resolvers.iter_mut() {
            if lost.contains(&(slot.dbid, slot.pid)) {
                process_ended(slot);
            }
        }
    });
}

/// How the resolver of a database is doing.
pub fn state(dbid: Oid) -> State {
    read_slot(dbid).map_or(State::Free, |slot| slot.state)
}

/// Asks for a resolver in a database that nobody has looked at; returns whether there is a slot for
/// it.
pub fn want_to_look(dbid: Oid) -> bool {
    shmem::write(|m| slot_of(m.resolvers, dbid).is_some() || want(m.resolvers, dbid))
}

/// The databases whose resolver has to be started; they count as starting from now on.
pub fn take_wanted() -> Vec<Oid> {
    shmem::write(|m| {
        let wanted = m.resolvers.iter_mut().filter(|slot| slot.state == State::Wanted);
        wanted
            .map(|slot| {
                slot.state = State::Starting;
                slot.dbid
            })
            .collect()
    })
}

/// A resolver could not be started, or has ended without saying so: it is wanted again.
pub fn want_again(dbid: Oid) {
    shmem::write(|m| {
        if let Some(slot) = slot_of(m.resolvers, dbid)
            && slot.pid == 0
            && !matches!(slot.state, State::Absent | State::Paused)
        {
            *slot = Slot::new(State::Wanted, dbid, 0);
        }
    });
}

/// This process becomes the resolver of its database; `false` if another process is, or a command
/// needs the database to itself.
pub fn become_resolver() -> bool {
    let dbid = my_database();
    let pid = my_pid();
    shmem::write(|m| {
        let slot = slot_or(m.resolvers, dbid, |slot| slot.state == State::Free);
        // A process that comes up during a pause ends; another is wanted when the pause is over.
        let is_open =
            |slot: &&mut Slot| [0, pid].contains(&slot.pid) && slot.state != State::Paused;
        let Some(slot) = slot.filter(is_open) else { return false };
        *slot = Slot::new(State::Starting, dbid, pid);
        true
    })
}

/// The resolver is ready, with this identity; `None`: its database has no extension.
pub fn report(identity: Option<Identity>) {
    change_own(|slot| {
        // It may have been paused meanwhile.
        if slot.state != State::Paused {
            slot.state = if identity.is_some() { State::Ready } else { State::Absent };
        }
        slot.identity = identity.map_or(0, Identity::number);
        slot.has_looked = false;
    });
    // It may have the next database looked at.
    shmem::wake(shmem::read(|m| m.shared.launcher));
}

/// The resolver has read the whole decision table.
pub fn report_look() {
    change_own(|slot| slot.has_looked = true);
}

/// How many participants of this database may have something left on servers without a place for
/// statistics.
pub fn set_unsettled_elsewhere(participants: u64) {
    change_own(|slot| slot.unsettled_elsewhere = participants);
}

/// The resolver's process ends.
pub fn leave() {
    change_own(process_ended);
    shmem::wake(shmem::read(|m| m.shared.launcher));
}

/// Changes the slot of this process, if it is the resolver of its database.
fn change_own(f: impl FnOnce(&mut Slot)) {
    let dbid = my_database();
    let pid = my_pid();
    shmem::write(|m| {
        if let Some(slot) = slot_of(m.resolvers, dbid).filter(|slot| slot.pid == pid) {
            f(slot);
        }
    });
}

/// A database no longer exists.
pub fn forget_database(dbid: Oid) {
    shmem::write(|m| {
        if let Some(slot) = slot_of(m.resolvers, dbid).filter(|slot| slot.pid == 0) {
            slot.state = State::Free;
        }
    });
}
