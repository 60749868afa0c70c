//! Savepoints of the remote transaction, one for each local subtransaction in which it was used.

use std::time::Instant;

use super::{CLEANUP_TIMEOUT, Connection};
use crate::pg::error::{Result, c_string};
use crate::protocol::pipeline::Control;
use crate::remote::session_state::Doom;
use crate::remote::wait::Patience;

impl Connection {
    /// The local subtransaction at `level` committed: its savepoint is released before the next
    /// statement.
    pub fn release(&self, level: u32) {
        let mut inner = self.inner.borrow_mut();
        if inner.depth >= level {
            inner.depth = level - 1;
            let command = c_string(format!("RELEASE SAVEPOINT s{level}"));
            inner.postponed.push((command, Control::EndSavepoint));
        }
    }

    /// The local subtransaction at `level` aborted: takes the remote transaction back to where it began,
    /// without waiting for the answer when nothing is running there. Never raises; what cannot be undone dooms
    /// the transaction.
    ///
    /// # Errors
    /// Only out of memory and the like.
    pub fn rollback_to(&self, level: u32) -> Result<()> {
        {
            let mut inner = self.inner.borrow_mut();
            inner.fifo.abandon_all();
            inner.cursors.retain(|_, depth| *depth < level);
            if inner.depth < level {
                return Ok(());
            }
        }
        if self.is_doomed() {
            return Ok(());
        }
        self.pump();
        if !self.is_drained() {
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
