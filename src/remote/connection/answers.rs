//! Reading answers, and what a statement's owner can do about its answer: [`Connection::poll`],
//! [`Connection::wait`] and [`Connection::discard`].

use std::ffi::CStr;
use std::rc::Rc;
use std::time::Instant;

use super::Connection;
use super::fitting::fits;
use super::setup;
use super::state::Broken;
use crate::libpq::{Flush, PgResult, Status};
use crate::pg::error::{Error, Result, SqlState};
use crate::pg::versions;
use crate::pg::wait_event::WaitEvent;
use crate::protocol::pipeline::{Answer, Kind, Ticket};
use crate::remote::long_wait::LongWait;
use crate::remote::report;
use crate::remote::wait::{Interest, Interrupts, WaitEnd};

/// A statement that was sent, with the texts that its errors name as CONTEXT.
#[derive(Clone, Debug)]
pub struct Asked {
    pub(super) ticket: Ticket,
    /// What was sent, which may be about a cursor for `query`.
    command: Rc<CStr>,
    /// What its failure is reported for.
    pub(super) query: Rc<CStr>,
}

impl Asked {
    /// A command about a cursor for `query`.
    pub fn about(ticket: Ticket, command: &Rc<CStr>, query: &Rc<CStr>) -> Self {
        Self { ticket, command: Rc::clone(command), query: Rc::clone(query) }
    }

    /// A statement of its own.
    pub fn of(ticket: Ticket, sql: impl Into<Rc<CStr>>) -> Self {
        let sql = sql.into();
        Self { ticket, command: Rc::clone(&sql), query: sql }
    }

    /// For callers that look at many connections at once.
    pub fn ticket(&self) -> Ticket {
        self.ticket
    }

    fn if_lost(&self) -> &CStr {
        if_lost(&self.command, &self.query)
    }
}

/// Which of the two is CONTEXT where the connection is lost, as postgres_fdw has it.
pub fn if_lost<'a>(command: &'a CStr, query: &'a CStr) -> &'a CStr {
    if versions::LOSS_NAMES_COMMAND { command } else { query }
}

impl Connection {
    /// A statement's answer if [`Connection::pump`] has read it. It waits only for the rest of what
    /// a server says that ends the session. What was owed before is judged first.
    ///
    /// # Errors
    /// The remote's error, the lost connection, or a cancel.
    pub fn poll(&self, asked: &Asked) -> Result<Option<Rc<PgResult>>> {
        self.judge_owed()?;
        if self.is_copied_by(asked.ticket) && !self.is_doomed() {
            return Ok(None);
        }
        match self.take(asked.ticket) {
            None => Ok(None),
            Some(Ok(Ok(result))) => Ok(Some(result)),
            Some(Ok(Err(failure))) if failure.is_fatal() => {
                self.read_to_end(Interrupts::Raise)?;
                let opening = self.lost_command();
                let command = opening.as_deref().unwrap_or_else(|| asked.if_lost());
                Err(self.error_of(&failure, Some(command)))
            }
            Some(Ok(Err(failure))) => Err(self.error_behind(asked, &failure)),
            Some(Err(error)) => {
                let opening = self.lost_command();
                let command = opening.as_deref().unwrap_or_else(|| asked.if_lost());
                Err(report::with_sql(error, Some(command)))
            }
        }
    }

    /// Waits for a statement's answer.
    ///
    /// # Errors
    /// Those of [`Connection::poll`].
    pub fn wait(&self, asked: &Asked) -> Result<Rc<PgResult>> {
        loop {
            if let Some(result) = self.wait_until(asked, None)? {
                return Ok(result);
            }
        }
    }

    /// Waits for a statement's answer until `deadline`, if there is one; `None` if it has not come
    /// by then.
    ///
    /// # Errors
    /// Those of [`Connection::poll`].
    pub fn wait_until(
        &self,
        asked: &Asked,
        deadline: Option<Instant>,
    ) -> Result<Option<Rc<PgResult>>> {
        self.wait_since(asked, deadline, Instant::now())
    }

    /// [`Connection::wait_until`], in a wait that has begun before.
    ///
    /// # Errors
    /// Those of [`Connection::poll`].
    pub fn wait_since(
        &self,
        asked: &Asked,
        deadline: Option<Instant>,
        begin: Instant,
    ) -> Result<Option<Rc<PgResult>>> {
        self.take_note();
        let mut long = LongWait::since(begin, Interrupts::Raise);
        loop {
            if let Some(result) = self.poll(asked)? {
                return Ok(Some(result));
            }
            let sleep = |until| self.wait_once(until, Interrupts::Raise, WaitEvent::Result);
            let end = long.sleep(deadline, sleep, || vec![self])?;
            if end == WaitEnd::Deadline {
                return Ok(None);
            }
            self.pump();
        }
    }

    /// A statement's answer is not wanted any more. The server still works on it.
    pub fn discard(&self, asked: &Asked) {
        self.inner.borrow_mut().fifo.abandon(asked.ticket);
    }

    /// Waits until the server has done with a statement that was discarded, and reports a failure
    /// that has not been reported.
    ///
    /// # Errors
    /// Such a failure, the lost connection, a cancel.
    pub fn wait_discarded(&self, asked: &Asked) -> Result<()> {
        let mut long = LongWait::begin(Interrupts::Raise);
        while self.is_due(asked.ticket) {
            self.pump();
            // Of what was discarded, only the end of the connection is an answer.
            if self.is_due(asked.ticket) && self.poll(asked)?.is_none() {
                let sleep = |until| self.wait_once(until, Interrupts::Raise, WaitEvent::Result);
                long.sleep(None, sleep, || vec![self])?;
            }
        }
        let cause = self.inner.borrow().fifo.failure_before(asked.ticket + 1);
        match cause {
            Some((cause, its_sql)) => Err(self.error_of(&cause, its_sql.as_deref())),
            None => Ok(()),
        }
    }

    /// The answer behind a ticket if it has been read; the error of the lost connection if it
    /// cannot come any more.
    pub fn take(&self, ticket: Ticket) -> Option<Result<Answer<PgResult>>> {
        if self.inner.borrow().session.refusal.is_some() {
            return Some(Err(self.doom_error()));
        }
        let mut inner = self.inner.borrow_mut();
        if let Some(answer) = inner.fifo.take(ticket) {
            return Some(Ok(answer));
        }
        let hopeless = match self.broken.get() {
            None if inner.fifo.expects(ticket) => return None,
            None => return Some(Err(given_up())),
            Some(Broken::Lost | Broken::LostOpening(_)) => {
                // What the server said last is the reason, not that the stream ended after it.
                return Some(match inner.fifo.failure() {
                    Some(cause) => Ok(Err(cause)),
                    None => Err(report::lost(&self.message())),
                });
            }
            Some(Broken::OutOfStep) => true,
            // What was asked is still answered, unless the connection is broken, too.
            Some(Broken::CleanupFailed) => {
                self.conn.is_bad() || self.conn.is_busy() || inner.fifo.is_idle()
            }
        };
        drop(inner);
        hopeless.then(|| Err(self.doom_error()))
    }

    /// Whether the answer to a statement has still to be read, so that it can only be waited for.
    pub fn is_due(&self, ticket: Ticket) -> bool {
        self.inner.borrow().fifo.expects(ticket)
    }

    /// The error that a statement's failed answer is. A statement that only found the transaction
    /// failed is reported as the one that made it fail, if nobody has reported that yet.
    fn error_behind(&self, asked: &Asked, failure: &Rc<PgResult>) -> Error {
        let state = SqlState::parse(failure.error_field(b'C'));
        let cause = self.inner.borrow().fifo.failure_before(asked.ticket);
        if let Some((cause, its_sql)) = cause
            && (state == SqlState::IN_FAILED_SQL_TRANSACTION || Rc::ptr_eq(&cause, failure))
        {
            return self.error_of(&cause, its_sql.as_deref());
        }
        self.error_of(failure, Some(&asked.query))
    }

    /// The socket, for a wait on several connections.
    pub fn interest(&self) -> Interest {
        // First: it may find that the connection has ended, and have libpq close the socket.
        let write = self.conn.flush() == Flush::Pending;
        Interest { socket: self.conn.socket(), write }
    }

    /// Sleeps once until there may be something to read, or to write what is still to be sent.
    pub(super) fn wait_once(
        &self,
        deadline: Option<Instant>,
        interrupts: Interrupts,
        event: WaitEvent,
    ) -> Result<WaitEnd> {
        let interest = self.interest();
        match self.wait_set.try_borrow_mut() {
            Ok(mut set) => set.wait(&[interest], deadline, interrupts, event),
            // A termination inside the wait ends the process from there, and its abort comes here
            // again.
            Err(_) => Ok(WaitEnd::Interrupted),
        }
    }

    /// Reads what has come, without waiting, and takes note of it.
    pub fn pump(&self) {
        self.flush();
        let alive = self.conn.consume_input();
        self.digest(alive);
    }

    /// Takes note of what has been read already: when only a command was sent since, that is all
    /// there can be.
    pub fn take_note(&self) {
        self.digest(true);
    }

    fn digest(&self, alive: bool) {
        self.note_message();
        if self.broken.get() == Some(Broken::OutOfStep) {
            return;
        }
        let inner = &mut *self.inner.borrow_mut();
        let mut ends = 0;
        let mut woken = !alive;
        let may_go_on = || self.broken.get() != Some(Broken::OutOfStep);
        while !inner.fifo.is_idle()
            && !self.is_open_in(inner)
            && !self.conn.is_busy()
            && ends < 2
            && may_go_on()
        {
            let Some(result) = self.conn.result() else {
                ends += 1;
                self.note_end_of_copy(inner);
                continue;
            };
            ends = 0;
            woken = true;
            if self.note_copy(inner, &result) {
                continue;
            }
            let Some(kind) = kind_of(&result) else {
                // COPY in pipeline mode leaves libpq in a state that nothing ends.
                self.broken.set(Some(Broken::OutOfStep));
                return;
            };
            if inner.fifo.next_control().is_some_and(|control| !fits(control, kind, &result)) {
                self.distrust();
                return;
            }
            // First of all: a command that fails because the connection ends says nothing of its
            // own.
            if kind == Kind::Failed {
                if result.is_fatal() || self.conn.is_bad() {
                    self.note_end(inner);
                }
                inner.transaction.fetch_run = None;
                inner.transaction.parsed = None;
                inner.session.is_incomplete |= setup::is_unknown_statement(&result);
            }
            match inner.fifo.answer(kind, result) {
                Ok(effect) => inner.note(effect, &self.broken),
                // What libpq makes of the end of a connection answers nothing.
                Err(_)
                    if matches!(self.broken.get(), Some(Broken::Lost | Broken::LostOpening(_))) => {
                }
                Err(_) => {
                    self.broken.set(Some(Broken::OutOfStep));
                    return;
                }
            }
        }
        if !alive || self.conn.is_bad() {
            self.note_end(inner);
        }
        if woken {
            if inner.fifo.is_idle() {
                self.answered.set(self.conn.asked());
            }
            self.wake_watcher();
        }
    }
}

/// `None` for COPY in a pipeline.
fn kind_of(result: &PgResult) -> Option<Kind> {
    Some(match result.status() {
        Status::CommandOk | Status::TuplesOk => Kind::Done,
        Status::Error | Status::Other => Kind::Failed,
        Status::PipelineAborted => Kind::Skipped,
        Status::PipelineSync => Kind::Sync,
        Status::CopyIn | Status::Copy => return None,
    })
}

#[cold]
fn given_up() -> Error {
    Error::new(SqlState::INTERNAL_ERROR, "the answer to a remote statement has been given up")
}
