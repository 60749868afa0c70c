//! Savepoints of the remote transaction, one for each local subtransaction in which it was used.

use std::cell::Cell;
use std::ffi::CStr;
use std::rc::{Rc, Weak};
use std::time::Instant;

use super::{CLEANUP_TIMEOUT, Connection, Opening};
use crate::pg::error::{Result, c_string};
use crate::protocol::pipeline::{Control, Ticket};
use crate::remote::report;
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

    fn hand_up(&self, level: u32) {
        let mut inner = self.inner.borrow_mut();
        inner.fifo.hand_up(level);
        for owner in inner.levels.iter().filter_map(Weak::upgrade) {
            owner.set(owner.get().min(level - 1));
        }
        for declared in inner.cursors.values_mut() {
            *declared = (*declared).min(level - 1);
        }
    }

    /// The local subtransaction at `level` committed: its savepoint is released before the next
    /// statement.
    ///
    /// # Errors
    /// The connection is known to be lost, or spoilt by the failed clean-up of a savepoint inside this one.
    pub fn release(&self, level: u32) -> Result<()> {
        if self.inner.borrow().depth < level {
            self.hand_up(level);
            return Ok(());
        }
        let command = c_string(format!("RELEASE SAVEPOINT s{level}"));
        match self.doomed.get() {
            Some(Doom::CleanupFailed | Doom::LostOpening(_)) => return Err(self.doom_error()),
            Some(_) => return Err(self.refusal(Some(&command))),
            None => {}
        }
        self.hand_up(level);
        let mut inner = self.inner.borrow_mut();
        inner.unanswered = None;
        inner.depth = level - 1;
        inner.postponed.push((command, Control::EndSavepoint));
        Ok(())
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
        if !self.is_drained() {
            self.pump();
        }
        let (depth, is_running) = {
            let mut inner = self.inner.borrow_mut();
            let is_running = inner.fifo.expects_from(level);
            inner.fifo.abandon_from(level);
            inner.cursors.retain(|_, depth| *depth < level);
            let is_outer = |opening: Rc<Opening>| opening.level.get() < level;
            inner.openings.retain(|opening| opening.upgrade().is_some_and(is_outer));
            if inner.depth < level {
                return Ok(());
            }
            inner.unanswered = None;
            (std::mem::replace(&mut inner.depth, level - 1), is_running)
        };
        let command =
            c_string(format!("ROLLBACK TO SAVEPOINT s{level}; RELEASE SAVEPOINT s{level}"));
        if self.is_doomed() {
            let warned = self.warn_if_lost(&command);
            self.doomed.set(Some(Doom::CleanupFailed));
            return warned;
        }
        // What an idle server sends is mostly its last word: then the answer is worth waiting for.
        let stirs = self.is_drained() && self.conn.has_input();
        if is_running {
            self.cancel();
            if !self.drain(Instant::now() + CLEANUP_TIMEOUT, Patience::Stubborn)? {
                self.doomed.set(Some(Doom::CleanupFailed));
                return Ok(());
            }
        }
        let Some(ticket) = self.queue_undo(level, depth, stirs) else {
            self.doomed.set(Some(Doom::CleanupFailed));
            return Ok(());
        };
        self.flush();
        if stirs { self.confirm_undo(ticket, &command) } else { Ok(()) }
    }

    /// Queues the way back to savepoint `level` in a segment of its own; `None` if there is none. Returns the ticket of
    /// the second of its two commands, if they are to be `awaited`.
    fn queue_undo(&self, level: u32, depth: u32, awaited: bool) -> Option<Ticket> {
        let inner = &mut *self.inner.borrow_mut();
        // All of it was postponed after the savepoint was sent, so it goes with it.
        inner.postponed.clear();
        // The savepoint was skipped: there is nothing to go back to. Where that is still to be answered, so is this.
        let underway = inner.fifo.awaits(Control::Savepoint(level));
        if inner.confirmed < level && inner.confirmed < depth && !underway {
            return None;
        }
        inner.confirmed = inner.confirmed.min(level - 1);
        let mut ticket = 0;
        for verb in ["ROLLBACK TO SAVEPOINT", "RELEASE SAVEPOINT"] {
            let command = c_string(format!("{verb} s{level}"));
            self.conn.send_query(&command, &[]).then_some(())?;
            if awaited {
                ticket = inner.fifo.statement(0, None);
            } else {
                inner.fifo.control(Control::UndoSavepoint);
            }
        }
        // The question behind a statement that failed has failed with it.
        Self::queue_probe(&self.conn, inner)?;
        inner.unasked = false;
        self.conn.send_sync().then_some(())?;
        inner.fifo.sync();
        Some(ticket)
    }

    /// Waits for the answers to [`Self::queue_undo`]; the last has this ticket.
    fn confirm_undo(&self, last: Ticket, command: &CStr) -> Result<()> {
        let drained = self.drain(Instant::now() + CLEANUP_TIMEOUT, Patience::Stubborn)?;
        let first = self.take(last - 1);
        let answer = match (first, self.take(last)) {
            (Some(Ok(Ok(_))), last) => last,
            (first, _) => first,
        };
        match answer {
            Some(Ok(Ok(_))) if drained => return Ok(()),
            Some(Ok(Err(failure))) => self.warn_of(&failure, command)?,
            Some(Err(error)) => self.warn(report::with_sql(error, Some(command)))?,
            _ => {}
        }
        self.doomed.set(Some(Doom::CleanupFailed));
        Ok(())
    }
}
