//! COPY into a table of the server. libpq has none in pipeline mode, so the connection leaves that
//! mode when all that was asked has been answered, and is in it again when the COPY has ended.
//!
//! The data is there before the command is sent, and whoever reads the server's consent hands it
//! over ([`Connection::note_copy`]). So the server never waits for anything but the network, and
//! nobody here has to wait for its consent. Until the COPY has ended nothing else can be sent: who
//! wants to, waits ([`Connection::pass_copy`]).

use std::ffi::CStr;
use std::time::Instant;

use super::state::State;
use super::{CLEANUP_TIMEOUT, Connection, Manner};
use crate::libpq::{PgResult, Status};
use crate::pg::error::Result;
use crate::pg::wait_event::WaitEvent;
use crate::protocol::pipeline::Ticket;
use crate::protocol::plan::Access;
use crate::remote::long_wait::LongWait;
use crate::remote::report;
use crate::remote::wait::Interrupts;

/// How far a COPY has come.
pub(super) enum Copying {
    /// The command was sent. This is handed over when the server is ready to take it; `None`: it is
    /// not wanted any more.
    Asked(Option<Vec<u8>>),
    /// The data was handed over.
    Sent,
}

impl Connection {
    /// Sends the COPY command `sql` and its data, without waiting for what becomes of it. It waits
    /// for all that was asked before.
    ///
    /// # Errors
    /// The connection is lost or doomed, or the local transaction is ending; a cancel.
    pub fn copy(&self, manner: Manner, sql: &CStr, data: Vec<u8>) -> Result<Ticket> {
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
            inner.copying = Some(Copying::Asked(Some(data)));
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

    /// Waits until no COPY is under way. What becomes of it is for its owner.
    ///
    /// # Errors
    /// A cancel.
    pub(super) fn pass_copy(&self) -> Result<()> {
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

    /// The data of a COPY is not wanted any more, if it has not been handed over.
    pub(super) fn withhold_copy(&self) {
        if let Some(Copying::Asked(data)) = &mut self.inner.borrow_mut().copying {
            data.take();
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
            Some(Copying::Asked(data)) if consent => {
                match data.take() {
                    Some(data) => self.conn.put_copy(&data),
                    None => self.conn.fail_copy(c"canceled"),
                };
                // If it could not be handed over, the connection is lost and the next result says
                // so.
                inner.copying = Some(Copying::Sent);
                true
            }
            // Done, without having been given the data.
            Some(Copying::Asked(_)) if result.status() != Status::Error => {
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
