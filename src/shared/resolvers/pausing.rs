//! A command such as DROP DATABASE needs a database to itself: its resolver makes way for a moment.

use std::time::Duration;

use pgrx::pg_sys::Oid;

use super::{State, read_slot, slot_of};
use crate::pg::globals::{my_database, my_pid, now};
use crate::shared::shmem;

/// Has the resolver of a database leave it, because this backend needs it to itself.
pub fn pause(dbid: Oid) {
    let (now, paused_by) = (now(), my_pid());
    let pid = shmem::write(|m| {
        let slot = slot_of(m.resolvers, dbid)?;
        if slot.state != State::Absent {
            slot.state = State::Paused;
            slot.paused_at = now;
            slot.paused_by = paused_by;
        }
        Some(slot.pid)
    });
    shmem::wake(pid.unwrap_or(0));
}

/// This backend no longer needs the database to itself. Unless another one does now, the resolver
/// goes on, or a new one is started.
pub fn end_pause(dbid: Oid) {
    let own_pid = my_pid();
    let launcher = shmem::write(|m| {
        let slot = slot_of(m.resolvers, dbid)?;
        if slot.state == State::Paused && slot.paused_by == own_pid {
            slot.state = match (slot.pid, slot.identity) {
                (0, _) => State::Wanted,
                // If its process is about to end, it will be wanted then.
                (_, 0) => State::Starting,
                _ => State::Ready,
            };
        }
        Some(m.shared.launcher)
    });
    shmem::wake(launcher.unwrap_or(0));
}

/// Ends the pauses that have lasted for `limit`: their resolvers are wanted again. Returns whether
/// there are others.
pub fn end_pauses(limit: Duration) -> bool {
    let now = now();
    shmem::write(|m| {
        let mut others = false;
        for slot in m.resolvers.iter_mut() {
            if slot.state == State::Paused && slot.pid == 0 {
                if now - slot.paused_at >= limit.as_micros() as i64 {
                    slot.state = State::Wanted;
                } else {
                    others = true;
                }
            }
        }
        others
    })
}

/// Whether this resolver has to leave its database.
pub fn is_paused() -> bool {
    read_slot(my_database()).is_some_and(|slot| slot.state == State::Paused)
}
