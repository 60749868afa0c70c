//! Taking the answers to statements, with or without waiting for them.

use std::ffi::CStr;
use std::rc::Rc;
use std::time::Instant;

use super::Connection;
use crate::libpq::PgResult;
use crate::pg::error::{Error, Result, SqlState};
use crate::pg::wait_event::WaitEvent;
use crate::pg::{latch, versions};
use crate::protocol::pipeline::{Answer, Ticket};
use crate::remote::report;
use crate::remote::session_state::Doom;
use crate::remote::wait::{Patience, Woke};

impl Connection {
    /// A statement's answer if it has come; the error of the lost connection if it cannot come any more.
    pub fn take(&self, ticket: Ticket) -> Option<Result<Answer<PgResult>>> {
        let mut inner = self.inner.borrow_mut();
        if let Some(answer) = inner.fifo.take(ticket) {
            return Some(Ok(answer));
        }
        let hopeless = match self.doomed.get() {
            None if inner.fifo.expects(ticket) => return None,
            None => return Some(Err(given_up())),
            Some(Doom::Lost | Doom::LostOpening(_)) => {
                // What the server said last is the reason, not that the stream ended after it.
                return Some(match inner.fifo.failure() {
                    Some(cause) => Ok(Err(cause)),
                    None => Err(report::lost(&self.message())),
                });
            }
            Some(Doom::OutOfStep) => true,
            // What was asked is still answered, unless the connection is broken too.
            Some(Doom::CleanupFailed) => {
                self.conn.is_bad() || self.conn.is_busy() || inner.fifo.is_idle()
            }
        };
        drop(inner);
        hopeless.then(|| Err(self.doom_error()))
    }

    /// Whether a statement's answer is still to be read: who wants it has to wait for it.
    pub fn is_due(&self, ticket: Ticket) -> bool {
        self.inner.borrow().fifo.expects(ticket)
    }

    /// Waits for a statement's answer; a failure is raised with `sql` as its CONTEXT.
    ///
    /// # Errors
    /// The remote's error, the lost connection, or a cancel.
    pub fn answer(&self, ticket: Ticket, sql: Option<&CStr>) -> Result<Rc<PgResult>> {
        self.answer_to(ticket, sql, sql)
    }

    /// Waits as [`Connection::answer`] does; where the connection is lost, CONTEXT is what postgres_fdw tells then
    /// ([`versions::LOSS_NAMES_COMMAND`]): the command that was `sent`, which may be about a cursor for `sql`.
    ///
    /// # Errors
    /// Those of [`Connection::answer`].
    pub fn answer_to(
        &self,
        ticket: Ticket,
        sent: Option<&CStr>,
        sql: Option<&CStr>,
    ) -> Result<Rc<PgResult>> {
        loop {
            if let Some(result) = self.answer_by(ticket, sent, sql, None)? {
                return Ok(result);
            }
        }
    }

    /// [`Self::answer_to`] with a deadline; `None` if there was no answer by then.
    ///
    /// # Errors
    /// Those of [`Self::answer_to`].
    pub fn answer_by(
        &self,
        ticket: Ticket,
        sent: Option<&CStr>,
        sql: Option<&CStr>,
        deadline: Option<Instant>,
    ) -> Result<Option<Rc<PgResult>>> {
        self.take_note();
        loop {
            if let Some(result) = self.answer_if_read(ticket, sent, sql)? {
                return Ok(Some(result));
            }
            if self.wait(deadline, Patience::Interruptible, WaitEvent::Result)? == Woke::Deadline {
                return Ok(None);
            }
            self.pump();
        }
    }

    /// [`Self::answer_to`] if [`Connection::pump`] has read the answer; it waits only for the rest of what a server
    /// says that goes away.
    ///
    /// # Errors
    /// Those of [`Self::answer_to`].
    pub fn answer_if_read(
        &self,
        ticket: Ticket,
        sent: Option<&CStr>,
        sql: Option<&CStr>,
    ) -> Result<Option<Rc<PgResult>>> {
        let lost = if versions::LOSS_NAMES_COMMAND { sent } else { sql };
        match self.take(ticket) {
            None => Ok(None),
            Some(Ok(Ok(result))) => Ok(Some(result)),
            Some(Ok(Err(failure))) if failure.is_fatal() => {
                self.read_to_end(Patience::Interruptible)?;
                let opening = self.lost_command();
                Err(self.error_of(&failure, opening.as_deref().or(lost)))
            }
            Some(Ok(Err(failure))) => Err(self.error_behind(ticket, &failure, sql)),
            Some(Err(error)) => {
                let opening = self.lost_command();
                Err(report::with_sql(error, opening.as_deref().or(lost)))
            }
        }
    }

    /// The error that a statement's failed answer is. A statement that only found the transaction failed is
    /// reported as the one that made it fail, if nobody has reported that yet.
    fn error_behind(&self, ticket: Ticket, failure: &Rc<PgResult>, sql: Option<&CStr>) -> Error {
        let state = SqlState::parse(failure.error_field(b'C'));
        let cause = self.inner.borrow().fifo.failure_before(ticket);
        if let Some((cause, its_sql)) = cause
            && (state == SqlState::IN_FAILED_SQL_TRANSACTION || Rc::ptr_eq(&cause, failure))
        {
            return self.error_of(&cause, its_sql.as_deref());
        }
        self.error_of(failure, sql)
    }

    /// A statement's answer is not wanted any more. The server still works on it.
    pub fn abandon(&self, ticket: Ticket) {
        self.inner.borrow_mut().fifo.abandon(ticket);
    }

    /// Waits until a statement that was abandoned has been answered, and reports a failure that nobody has
    /// been told of.
    ///
    /// # Errors
    /// Such a failure, the lost connection, a cancel.
    pub fn settle(&self, ticket: Ticket, sql: &CStr) -> Result<()> {
        while self.is_due(ticket) {
            self.pump();
            // Only the end of the connection answers what was abandoned.
            if self.is_due(ticket) && self.answer_if_read(ticket, Some(sql), Some(sql))?.is_none() {
                self.wait(None, Patience::Interruptible, WaitEvent::Result)?;
            }
        }
        let cause = self.inner.borrow().fifo.failure_before(ticket + 1);
        match cause {
            Some((cause, its_sql)) => Err(self.error_of(&cause, its_sql.as_deref())),
            None => Ok(()),
        }
    }

    /// Waits until all that was sent has left, if it has not; whether it waited. Somebody who then waits
    /// only for the socket to be readable is sure that the server has been asked.
    ///
    /// # Errors
    /// A cancel.
    pub fn flush_out(&self) -> Result<bool> {
        let mut waited = false;
        while self.want().write {
            self.wait(None, Patience::Interruptible, WaitEvent::Result)?;
            // A server that sends does not read: its answers are taken meanwhile.
            self.pump();
            waited = true;
        }
        Ok(waited)
    }

    /// Somebody is going to sleep until the socket is readable, or the latch is set. Whoever reads from the
    /// socket before that sets the latch, because what was read no longer wakes the sleeper. With
    /// `false` nobody is.
    pub fn watch(&self, watched: bool) {
        self.watched.set(watched);
    }

    /// Sleeps once until there may be something to read, or to write what is still to be sent.
    pub(super) fn wait(
        &self,
        deadline: Option<Instant>,
        patience: Patience,
        event: WaitEvent,
    ) -> Result<Woke> {
        let want = self.want();
        match self.wait_set.try_borrow_mut() {
            Ok(mut set) => set.wait(&[want], deadline, patience, event),
            // A termination inside the wait ends the process from there, and its abort comes here again.
            Err(_) => Ok(Woke::Interrupted),
        }
    }

    pub(super) fn wake_watcher(&self) {
        if self.watched.replace(false) {
            latch::set();
        }
    }
}

#[cold]
fn given_up() -> Error {
    Error::new(SqlState::INTERNAL_ERROR, "the answer to a remote statement has been given up")
}
