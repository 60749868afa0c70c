//! A command such as DROP DATABASE needs a database to itself: its resolver makes way for a moment.

use std::time::Duration;

use pgrx::pg_sys::Oid;

use super::{Slot, State, read_slot, slot_of};
use crate::pg::globals::{my_database, my_pid, now};
use crate::protocol::wall_clock::has_passed;
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
                if slot.has_paused_for(limit, now) {
                    slot.state = State::Wanted;
                } else {
                    others = true;
                }
            }
        }
        others
    })
}

impl Slot {
    fn has_paused_for(&self, limit: Duration, now: i64) -> bool {
        has_passed(self.paused_at, now, limit)
    }
}

/// Whether this resolver has to leave its database.
pub fn is_paused() -> bool {
    read_slot(my_database()).is_some_and(|slot| slot.state == State::Paused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_ends_whatever_happens_to_the_clock() {
        let limit = Duration::from_micros(10);
        let paused_at = 3_600_000_000;
        let slot = Slot { paused_at, ..Slot::new(State::Paused, Oid::from_u32(1), 0) };
        assert!(!slot.has_paused_for(limit, paused_at + 9));
        assert!(slot.has_paused_for(limit, paused_at + 11));
        assert!(slot.has_paused_for(limit, 0), "the clock was set back by an hour");
    }
}
