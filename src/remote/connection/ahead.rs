//! What is asked ahead: the opening of a cursor and its first FETCH, whose rows are likely to be
//! needed. If they turn out not to be, it is as if nothing had been asked: its failure is nobody's,
//! and it keeps nobody waiting for long. That is possible because it is all that there is in its
//! transaction, which is then rolled back.

use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use super::state::State;
use super::{CLEANUP_TIMEOUT, Connection, Opening};
use crate::pg::error::Result;
use crate::protocol::pipeline::Ticket;
use crate::remote::wait::Interrupts;

/// What nobody needs is given so much time in any case, because stopping it costs more.
const SHORT: Duration = Duration::from_millis(100);

impl Connection {
    /// Whether a cursor that has been announced can be asked ahead: nothing is in the transaction,
    /// and no other cursor will be.
    pub fn may_ask_ahead(&self) -> bool {
        let inner = self.inner.borrow();
        let transaction = &inner.transaction;
        transaction.depth == 0
            && transaction.openings.iter().filter(|opening| opening.strong_count() > 0).count() == 1
            && !self.is_tainted()
            && !self.is_doomed()
    }

    /// A cursor's first FETCH has been sent ahead.
    pub fn note_asked_ahead(&self, opening: &Rc<Opening>) {
        self.inner.borrow_mut().transaction.ahead = Some(Rc::downgrade(opening));
    }

    /// Its rows are needed: from now on it is a statement as any other.
    pub fn need(&self, opening: &Rc<Opening>) {
        let ahead = &mut self.inner.borrow_mut().transaction.ahead;
        if ahead.as_ref().is_some_and(|known| known.ptr_eq(&Rc::downgrade(opening))) {
            *ahead = None;
        }
    }

    /// Something else is going to be sent in the transaction: waits until what was asked ahead has
    /// been answered, and takes it back if it has failed. The cursor is opened again with the next
    /// statement that would change what it shows.
    ///
    /// # Errors
    /// The connection is lost, a cancel.
    pub fn pass_ahead(&self) -> Result<()> {
        if self.has_asked_ahead() {
            self.wait_for_ahead()?;
            self.conclude_ahead(false)?;
        }
        Ok(())
    }

    /// The rows are not needed. What has been under way since then is waited for as long again, and
    /// cancelled after that. `is_kept`: if it has been answered, its transaction goes on.
    ///
    /// # Errors
    /// Those of [`Self::pass_ahead`].
    pub fn give_up_ahead(
        &self,
        opening: &Rc<Opening>,
        since: Instant,
        is_kept: bool,
    ) -> Result<()> {
        let is_it = self
            .inner
            .borrow()
            .transaction
            .ahead
            .as_ref()
            .is_some_and(|ahead| ahead.ptr_eq(&Rc::downgrade(opening)));
        if !is_it {
            return Ok(());
        }
        let patience = since.elapsed().max(SHORT);
        let mut is_taken_back = !is_kept;
        if !self.drain(Instant::now() + patience, Interrupts::Raise)? && !self.is_doomed() {
            is_taken_back = true;
            self.cancel();
            self.wait_for_ahead()?;
        }
        self.conclude_ahead(is_taken_back)
    }

    fn has_asked_ahead(&self) -> bool {
        self.inner.borrow().transaction.ahead.is_some()
    }

    fn wait_for_ahead(&self) -> Result<()> {
        while !self.is_doomed()
            && !self.drain(Instant::now() + CLEANUP_TIMEOUT, Interrupts::Raise)?
        {}
        Ok(())
    }

    /// It has been answered, or cannot be any more.
    fn conclude_ahead(&self, is_taken_back: bool) -> Result<()> {
        let (ahead, has_failed) = {
            let mut inner = self.inner.borrow_mut();
            let has_failed = inner.fifo.failure_before(Ticket::MAX).is_some();
            (inner.transaction.ahead.take(), has_failed)
        };
        if self.is_doomed() {
            self.inner.borrow_mut().lose_transaction();
        } else if is_taken_back || has_failed {
            self.begin_afresh()?;
        } else {
            return Ok(());
        }
        if let Some(opening) = ahead.as_ref().and_then(Weak::upgrade) {
            opening.sent.set(None);
            self.announce(&opening);
        }
        Ok(())
    }

    /// Whether the connection was lost with nothing in the transaction but what was asked ahead and
    /// not needed. The transaction can end as if it had not been used.
    pub fn is_lost_in_vain(&self) -> bool {
        self.is_doomed() && self.inner.borrow().transaction.is_in_vain
    }
}

impl State {
    fn lose_transaction(&mut self) {
        self.transaction.begin_again();
        self.transaction.is_in_vain = true;
        self.fifo.abandon_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lost_in_vain_was_never_begun_and_is_still_read_by_others() {
        let mut state = State::default();
        state.transaction.depth = 2;
        state.transaction.confirmed = 1;
        state.transaction.pins = 1;
        state.lose_transaction();
        let transaction = &state.transaction;
        assert_eq!((transaction.depth, transaction.confirmed, transaction.pins), (0, 0, 1));
        assert!(transaction.is_in_vain);
        state.end_transaction();
        assert!(!state.transaction.is_in_vain);
    }
}
