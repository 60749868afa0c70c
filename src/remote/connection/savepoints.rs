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
    ///
    /// # Errors
    /// The connection is known to be lost, or spoilt by the failed clean-up of a savepoint inside this one.
    pub fn release(&self, level: u32) -> Result<()> {
        if self.inner.borrow().depth < level {
            return Ok(());
        }
        let command = c_string(format!("RELEASE SAVEPOINT s{level}"));
        match self.doomed.get() {
            Some(Doom::CleanupFailed) => return Err(self.doom_error()),
            Some(_) => return Err(self.refusal(Some(&command))),
            None => {}
        }
        let mut inner = self.inner.borrow_mut();
        inner.depth = level - 1;
        inner.postponed.push((command, Control::EndSavepoint));
        Ok(())
    }

    /// The local subtransaction at `level` aborted: takes the remote transaction back to where it began,
    /// without waiting for the answer when nothing is running there. Never raises; what cannot be undone dooms
    /// the transaction.
    ///
    /// # Errors
    /// Only out of memory and the like.
    pub fn rollback_to(&self, level: u32) -> Result<()> {
        let depth = {
            let mut inner = self.inner.borrow_mut();
            inner.fifo.abandon_all();
            inner.cursors.retain(|_, depth| *depth < level);
            if inner.depth < level {
                return Ok(());
            }
            std::mem::replace(&mut inner.depth, level - 1)
        };
        self.pump();
        if self.is_drained() && self.conn.hung_up() {
            self.doomed.set(Some(Doom::CleanupFailed));
        }
        if self.is_doomed() {
            self.doomed.set(Some(Doom::CleanupFailed));
            return Ok(());
        }
        if !self.is_drained() {
            self.cancel();
            if !self.drain(Instant::now() + CLEANUP_TIMEOUT, Patience::Stubborn)? {
                self.doomed.set(Some(Doom::CleanupFailed));
                return Ok(());
            }
        }
        let inner = &mut *self.inner.borrow_mut();
        // All of it was postponed after the savepoint was sent, so it goes with it.
        inner.postponed.clear();
        if inner.confirmed < level && inner.confirmed < depth {
            // The savepoint was skipped: there is nothing to go back to.
            self.doom();
            return Ok(());
        }
        let sent = (|| {
            for verb in ["ROLLBACK TO SAVEPOINT", "RELEASE SAVEPOINT"] {
                let command = c_string(format!("{verb} s{level}"));
                self.conn.send_query(&command, &[]).then_some(())?;
                inner.fifo.control(Control::UndoSavepoint);
            }
            self.conn.send_sync().then_some(())?;
            inner.fifo.sync();
            Some(())
        })();
        inner.confirmed = inner.confirmed.min(level - 1);
        if sent.is_none() {
            self.doomed.set(Some(Doom::CleanupFailed));
        }
        self.flush();
        Ok(())
    }
}
