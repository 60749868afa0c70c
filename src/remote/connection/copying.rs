//! COPY into a table of the server. libpq has none in pipeline mode, so the connection leaves that
//! mode when all that was asked has been answered, and is in it again when the COPY has ended.
//!
//! The first data is there before the command is sent, and whoever reads the server's consent hands
//! it over ([`Connection::note_copy`]). So the server never waits for anything but the network, and
//! nobody here has to wait for its consent. More data may follow as long as the COPY is left open
//! ([`Connection::feed_copy`]). libpq reads no answer from then until the end of the COPY is sent.
//!
//! Until the COPY has ended nothing else can be sent: who wants to, ends it and waits
//! ([`Connection::pass_copy`]). Its owner then needs another one for what is left.

use std::ffi::CStr;
use std::time::Instant;

use super::state::State;
use super::{CLEANUP_TIMEOUT, Connection, Manner};
use crate::libpq::{Flush, PgResult, Status};
use crate::pg::error::Result;
use crate::pg::wait_event::WaitEvent;
use crate::protocol::pipeline::Ticket;
use crate::protocol::plan::Access;
use crate::remote::long_wait::LongWait;
use crate::remote::report;
use crate::remote::wait::Interrupts;

/// How far a COPY has come.
pub(super) enum Copying {
    /// The command was sent. This is handed over when the server is ready to take it.
    Asked { data: Data, ends: bool },
    /// Data was handed over, and more may come.
    Open,
    /// All of it was handed over.
    Ended,
}

/// Why a COPY is made to fail, for the server's log.
const WITHHELD: &CStr = c"canceled";

/// The first data of a COPY.
pub(super) enum Data {
    Wanted(Vec<u8>),
    /// The COPY is to fail.
    Withheld,
}

impl Connection {
    /// Sends the COPY command `sql` and its data, all of it or the first, without waiting for what
    /// becomes of it. It waits for all that was asked before.
    ///
    /// # Errors
    /// The connection is lost or doomed, or the local transaction is ending; a cancel.
    pub fn copy(&self, manner: Manner, sql: &CStr, data: Vec<u8>, ends: bool) -> Result<Ticket> {
        self.pass_copy()?;
        self.pass_all()?;
        if self.has_to_send_before(manner) {
            self.submit(manner, &[], sql)?;
            self.pass_all()?;
        }
        self.check_open(sql)?;
        if !self.conn.exit_pipeline() || !self.conn.send_simple(sql) {
            return Err(report::with_sql(self.lose(), Some(sql)));
        }
        let ticket = {
            let inner = &mut *self.inner.borrow_mut();
            inner.copying = Some(Copying::Asked { data: Data::Wanted(data), ends });
            let transaction = &mut inner.transaction;
            transaction.modifies |= manner.access == Access::Modifies;
            transaction.fetch_run = None;
            transaction.snapshot.is_used();
            transaction.written.omit_question();
            let ticket = inner.fifo.statement(manner.owner, manner.query);
            inner.fifo.sync();
            inner.last_copy = ticket;
            ticket
        };
        self.flush();
        Ok(ticket)
    }

    /// Hands more data over to a COPY that was left open, when the server has consented to it and
    /// the data before has left. `false` if it takes no more: it was ended because another command
    /// needed the connection, the server has said something, which may be that it has failed, or
    /// the connection is lost.
    ///
    /// # Errors
    /// A cancel.
    pub fn feed_copy(&self, ticket: Ticket, data: &[u8]) -> Result<bool> {
        let mut long = LongWait::begin(Interrupts::Raise);
        while self.takes_more(ticket) {
            if !self.is_open() {
                self.pump();
                // Consent or refusal has been read.
                if self.is_open() || !self.takes_more(ticket) {
                    continue;
                }
            } else if self.conn.has_input() {
                self.end_any_copy();
                break;
            } else if self.conn.flush() != Flush::Pending {
                // If it could not be handed over, the connection is lost.
                self.conn.put_copy(data);
                self.flush();
                return Ok(true);
            }
            let sleep = |until| self.wait_once(until, Interrupts::Raise, WaitEvent::Result);
            long.sleep(None, sleep, || vec![self])?;
        }
        Ok(false)
    }

    /// Whether whoever has more data for a COPY, or for the one that follows it, would have to
    /// wait.
    pub fn is_busy_copying(&self, ticket: Ticket) -> bool {
        if self.is_open() {
            return self.conn.flush() == Flush::Pending;
        }
        self.pump();
        self.is_copied_by(ticket)
    }

    /// No more data follows for a COPY.
    pub fn end_copy(&self, ticket: Ticket) {
        if self.is_copied_by(ticket) {
            self.end_any_copy();
        }
    }

    fn end_any_copy(&self) {
        match &mut self.inner.borrow_mut().copying {
            Some(Copying::Asked { ends, .. }) => *ends = true,
            Some(copying @ Copying::Open) => {
                // Of a connection that is lost the next result says so.
                self.conn.end_copy();
                *copying = Copying::Ended;
            }
            _ => {}
        }
        self.flush();
    }

    fn takes_more(&self, ticket: Ticket) -> bool {
        let is_left_open = |copying: &Copying| match copying {
            Copying::Asked { ends, .. } => !ends,
            Copying::Open => true,
            Copying::Ended => false,
        };
        self.is_copied_by(ticket)
            && !self.is_doomed()
            && self.inner.borrow().copying.as_ref().is_some_and(is_left_open)
    }

    fn is_open(&self) -> bool {
        self.is_open_in(&self.inner.borrow())
    }

    /// Whether the server takes data of a COPY, so that libpq reads no answers.
    pub(super) fn is_open_in(&self, inner: &State) -> bool {
        matches!(inner.copying, Some(Copying::Open)) && !self.conn.is_bad()
    }

    /// Whether something has to be sent before a command in this manner.
    fn has_to_send_before(&self, manner: Manner) -> bool {
        let transaction = &self.inner.borrow().transaction;
        transaction.depth < manner.level
            || !transaction.before_next.is_empty()
            || !transaction.openings.is_empty()
    }

    /// Whether a COPY has not ended, so that nothing else can be sent.
    pub(super) fn is_copying(&self) -> bool {
        self.inner.borrow().copying.is_some()
    }

    /// Whether a COPY with this ticket has not ended: its answer may have come, but nothing can be
    /// sent before the server is ready again.
    pub(super) fn is_copied_by(&self, ticket: Ticket) -> bool {
        let inner = self.inner.borrow();
        inner.copying.is_some() && inner.last_copy == ticket && !self.conn.is_bad()
    }

    /// Ends the COPY that is under way, if one is, and waits until it has ended. What becomes of it
    /// is for its owner.
    ///
    /// # Errors
    /// A cancel.
    pub(super) fn pass_copy(&self) -> Result<()> {
        if self.is_copying() {
            self.end_any_copy();
        }
        self.wait_while(Self::is_copying)
    }

    /// Waits until all that was asked has been answered.
    fn pass_all(&self) -> Result<()> {
        self.wait_while(|this| !this.is_drained())
    }

    fn wait_while(&self, is_so: impl Fn(&Self) -> bool) -> Result<()> {
        if !is_so(self) {
            return Ok(());
        }
        self.pump();
        let mut long = LongWait::begin(Interrupts::Raise);
        while is_so(self) && !self.is_doomed() {
            let sleep = |until| self.wait_once(until, Interrupts::Raise, WaitEvent::Result);
            long.sleep(None, sleep, || vec![self])?;
            self.pump();
        }
        Ok(())
    }

    /// The data of a COPY is not wanted any more: unless all of it was handed over, the COPY fails.
    pub(super) fn withhold_copy(&self) {
        match &mut self.inner.borrow_mut().copying {
            Some(Copying::Asked { data, .. }) => *data = Data::Withheld,
            Some(copying @ Copying::Open) => {
                self.conn.fail_copy(WITHHELD);
                *copying = Copying::Ended;
            }
            _ => {}
        }
    }

    /// Waits for the end of a COPY that the server was asked to cancel: before, it cannot be told
    /// to roll back. If that does not come, the transaction is doomed.
    pub(super) fn end_cancelled_copy(&self) {
        if self.is_copying() && !self.is_doomed() {
            let deadline = Instant::now() + CLEANUP_TIMEOUT;
            if !matches!(self.drain(deadline, Interrupts::Return), Ok(true)) {
                self.doom();
            }
        }
    }

    /// An answer has come: if the server is ready to take the data of a COPY, hands that over and
    /// returns `true`.
    pub(super) fn note_copy(&self, inner: &mut State, result: &PgResult) -> bool {
        let consent = result.status() == Status::CopyIn;
        match &mut inner.copying {
            Some(copying @ Copying::Asked { .. }) if consent => {
                let asked = std::mem::replace(copying, Copying::Ended);
                let Copying::Asked { data, ends } = asked else { return true };
                // If it could not be handed over, the connection is lost and the next result says
                // so.
                match data {
                    Data::Withheld => self.conn.fail_copy(WITHHELD),
                    Data::Wanted(data) if ends => self.conn.put_copy(&data) && self.conn.end_copy(),
                    Data::Wanted(data) => {
                        *copying = Copying::Open;
                        self.conn.put_copy(&data)
                    }
                };
                true
            }
            // Done, without having been given the data.
            Some(Copying::Asked { .. }) if result.status() != Status::Error => {
                self.distrust();
                true
            }
            _ => false,
        }
    }

    /// There are no more answers to a command for now: if it was a COPY, it has ended.
    pub(super) fn note_end_of_copy(&self, inner: &mut State) {
        if inner.copying.is_none() || self.conn.is_bad() {
            return;
        }
        inner.copying = None;
        if inner.fifo.segment_ended().is_err() || !self.conn.enter_pipeline() {
            self.distrust();
        }
    }
}
