//! Savepoints of the remote transaction, one for each local subtransaction in which it was used.

use std::cell::Cell;
use std::rc::{Rc, Weak};
use std::time::Instant;

use super::{CLEANUP_TIMEOUT, Connection};
use crate::pg::error::{Result, c_string};
use crate::protocol::pipeline::Control;
use crate::remote::session_state::Doom;
use crate::remote::wait::Patience;

impl Connection {
    /// The connection keeps the nesting level of one who uses it up to date: when a subtransaction commits,
    /// what it began belongs to its parent.
    pub fn track(&self, level: &Rc<Cell<u32>>) {
        let levels = &mut self.inner.borrow_mut().levels;
        // What has gone away is dropped whenever there is no room, so the list stays in proportion.
        if levels.len() == levels.capacity() {
            levels.retain(|level| level.strong_count() > 0);
            levels.reserve(levels.len() + 8);
        }
        levels.push(Rc::downgrade(level));
    }

    /// The local subtransaction at `level` committed: its savepoint is released before the next
    /// statement.
    pub fn release(&self, level: u32) {
        let mut inner = self.inner.borrow_mut();
        inner.fifo.hand_up(level);
        for owner in inner.levels.iter().filter_map(Weak::upgrade) {
            owner.set(owner.get().min(level - 1));
        }
        for declared in inner.cursors.values_mut() {
            *declared = (*declared).min(level - 1);
        }
        if inner.depth >= level {
            inner.depth = level - 1;
            let command = c_string(format!("RELEASE SAVEPOINT s{level}"));
            inner.postponed.push((command, Control::EndSavepoint));
        }
    }

    /// The local subtransaction at `level` aborted: takes the remote transaction back to where it began,
    /// without waiting for the answer when nothing that it sent is running there. Never raises; what cannot
    /// be undone dooms the transaction.
    ///
    /// A scan of an outer level may have a FETCH under way, sent before or after the savepoint. That one
    /// is not disturbed, unless something of this level has to be cancelled: then both may be.
    ///
    /// # Errors
    /// Only out of memory and the like.
    pub fn rollback_to(&self, level: u32) -> Result<()> {
        self.pump();
        let is_running = {
            let mut inner = self.inner.borrow_mut();
            let is_running = inner.fifo.expects_from(level);
            inner.fifo.abandon_from(level);
            inner.cursors.retain(|_, depth| *depth < level);
            if inner.depth < level {
                return Ok(());
            }
            is_running
        };
        if self.is_doomed() {
            return Ok(());
        }
        if is_running {
            self.cancel();
            if !self.drain(Instant::now() + CLEANUP_TIMEOUT, Patience::Stubborn)? {
                self.doom();
                return Ok(());
            }
        }
        let inner = &mut *self.inner.borrow_mut();
        // All of it was postponed after the savepoint was sent, so it goes with it.
        inner.postponed.clear();
        if inner.confirmed < level && inner.confirmed < inner.depth {
            // The savepoint was skipped: there is nothing to go back to.
            self.doom();
            return Ok(());
        }
        let sent = (|| {
            for verb in ["ROLLBACK TO SAVEPOINT", "RELEASE SAVEPOINT"] {
                let command = c_string(format!("{verb} s{level}"));
                self.conn.send_query(&command, &[]).then_some(())?;
                inner.fifo.control(Control::EndSavepoint);
            }
            self.conn.send_sync().then_some(())?;
            inner.fifo.sync();
            Some(())
        })();
        inner.depth = level - 1;
        inner.confirmed = inner.confirmed.min(level - 1);
        if sent.is_none() {
            self.doomed.set(Some(Doom::Lost));
        }
        self.flush();
        Ok(())
    }
}
