//! Savepoints of the remote transaction, one for each local subtransaction in which it was used.

use std::cell::Cell;
use std::ffi::CStr;
use std::rc::{Rc, Weak};
use std::time::Instant;

use super::state::Broken;
use super::{CLEANUP_TIMEOUT, Connection, Opening};
use crate::pg::error::{Result, c_string};
use crate::protocol::pipeline::{Control, Ticket};
use crate::remote::report;
use crate::remote::wait::Interrupts;

impl Connection {
    /// The connection keeps this nesting level of one of its users up to date: when a
    /// subtransaction commits, what it began belongs to its parent.
    pub fn track(&self, level: &Rc<Cell<u32>>) {
        let levels = &mut self.inner.borrow_mut().transaction.levels;
        // Users that are gone are removed whenever there is no room, so that the list does not grow
        // with their number.
        if levels.len() == levels.capacity() {
            levels.retain(|level| level.strong_count() > 0);
            levels.reserve(levels.len() + 8);
        }
        levels.push(Rc::downgrade(level));
    }

    fn hand_up(&self, level: u32) {
        let mut inner = self.inner.borrow_mut();
        inner.fifo.hand_up(level);
        inner.transaction.behind.hand_up(level);
        for owner in inner.transaction.levels.iter().filter_map(Weak::upgrade) {
            owner.set(owner.get().min(level - 1));
        }
        for declared in inner.transaction.cursors.values_mut() {
            *declared = (*declared).min(level - 1);
        }
    }

    /// The local subtransaction at `level` committed: its savepoint is released before the next
    /// statement.
    ///
    /// # Errors
    /// The connection is known to be lost, or the clean-up of a savepoint inside this one has
    /// failed.
    pub fn release(&self, level: u32) -> Result<()> {
        if self.inner.borrow().transaction.depth < level {
            self.hand_up(level);
            return Ok(());
        }
        let command = c_string(format!("RELEASE SAVEPOINT s{level}"));
        match self.broken.get() {
            Some(Broken::CleanupFailed | Broken::LostOpening(_)) => return Err(self.doom_error()),
            Some(_) => return Err(self.refusal(&command)),
            None => {}
        }
        self.hand_up(level);
        let mut inner = self.inner.borrow_mut();
        inner.transaction.unanswered = None;
        inner.transaction.depth = level - 1;
        inner.transaction.before_next.push((command, Control::EndSavepoint(level)));
        Ok(())
    }

    /// The local subtransaction at `level` aborted: takes the remote transaction back to where it
    /// began, without waiting for the answer when nothing that it sent is running there. What
    /// cannot be undone dooms the transaction.
    ///
    /// A scan of an outer level may have a FETCH under way, sent before or after the savepoint. It
    /// is cancelled only if something of this level has to be, because a cancel request cannot tell
    /// them apart.
    ///
    /// # Errors
    /// Only out of memory and the like.
    pub fn rollback_to(&self, level: u32) -> Result<()> {
        if !self.is_drained() {
            self.pump();
        }
        let (depth, is_running) = {
            let mut inner = self.inner.borrow_mut();
            // What is owed is not cancelled: a cancel might hit the savepoint before it.
            let behind = &inner.transaction.behind;
            let is_running = inner.fifo.expects_from(level, |ticket| !behind.owes(ticket));
            inner.fifo.abandon_from(level);
            inner.transaction.behind.abandon_from(level);
            inner.transaction.cursors.retain(|_, depth| *depth < level);
            let is_outer = |opening: Rc<Opening>| opening.level.get() < level;
            inner.transaction.openings.retain(|opening| opening.upgrade().is_some_and(is_outer));
            if inner.transaction.depth < level {
                return Ok(());
            }
            inner.transaction.unanswered = None;
            (std::mem::replace(&mut inner.transaction.depth, level - 1), is_running)
        };
        let command =
            c_string(format!("ROLLBACK TO SAVEPOINT s{level}; RELEASE SAVEPOINT s{level}"));
        if self.is_doomed() {
            let warned = self.warn_if_lost(&command);
            self.broken.set(Some(Broken::CleanupFailed));
            return warned;
        }
        // Input from an idle server is usually its FATAL message: then the answer is worth waiting
        // for.
        let stirs = self.is_drained() && self.conn.has_input();
        if is_running {
            self.cancel();
        }
        // After a COPY nothing can be sent before its end, even if it has failed.
        if (is_running || self.is_copying())
            && !self.drain(Instant::now() + CLEANUP_TIMEOUT, Interrupts::Ignore)?
        {
            self.broken.set(Some(Broken::CleanupFailed));
            return Ok(());
        }
        if self.has_failed_outside(level) {
            return Ok(());
        }
        let Some(ticket) = self.queue_undo(level, depth, stirs) else {
            self.broken.set(Some(Broken::CleanupFailed));
            return Ok(());
        };
        self.flush();
        if stirs { self.confirm_undo(ticket, &command) } else { Ok(()) }
    }

    /// Whether savepoint `level` was not set because a statement of an outer level, of whose
    /// failure nobody has heard yet, had failed before. Then there is nothing to go back to: who
    /// hears of that goes back further, and until then everything fails there.
    fn has_failed_outside(&self, level: u32) -> bool {
        let inner = &mut *self.inner.borrow_mut();
        let transaction = &mut inner.transaction;
        // Failures of this level and deeper ones have been forgotten.
        let has_failed = inner.fifo.failure_before(Ticket::MAX).is_some();
        let is_set = transaction.confirmed >= level || inner.fifo.awaits(Control::Savepoint(level));
        if !has_failed || is_set || transaction.confirmed == 0 {
            return false;
        }
        transaction.before_next.clear();
        transaction.depth = transaction.confirmed;
        inner.session.lock_timeout.may_be_undone();
        true
    }

    /// Queues the way back to savepoint `level` in a segment of its own; `None` if there is none.
    /// If its two commands are to be `awaited`, the ticket of the second is returned.
    fn queue_undo(&self, level: u32, depth: u32, awaited: bool) -> Option<Ticket> {
        let inner = &mut *self.inner.borrow_mut();
        // All of these came after the savepoint, so they are undone with it.
        inner.transaction.before_next.clear();
        inner.session.lock_timeout.may_be_undone();
        // A savepoint that was skipped cannot be gone back to. If its answer is still to come, so
        // is this one's.
        let underway = inner.fifo.awaits(Control::Savepoint(level));
        if inner.transaction.confirmed < level && inner.transaction.confirmed < depth && !underway {
            return None;
        }
        inner.transaction.confirmed = inner.transaction.confirmed.min(level - 1);
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
        self.conn.send_sync().then_some(())?;
        inner.fifo.sync();
        Some(ticket)
    }

    /// Waits for the answers to [`Self::queue_undo`]; the last has this ticket.
    fn confirm_undo(&self, last: Ticket, command: &CStr) -> Result<()> {
        let drained = self.drain(Instant::now() + CLEANUP_TIMEOUT, Interrupts::Ignore)?;
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
        self.broken.set(Some(Broken::CleanupFailed));
        Ok(())
    }
}
