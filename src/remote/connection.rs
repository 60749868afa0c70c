//! One participant's session: a pipelined connection with its remote transaction.
//!
//! What is sent, and what travels with it, is in `sending`; the answers are read here and taken in `answers`.
//!
//! Invariants:
//! * A lost connection dooms the transaction that used it, unless nothing of it had been answered (see `anew`).
//! * No borrow of the interior is held across a call into PostgreSQL, which may come back here.
//! * `depth` counts what was sent, `confirmed` what the server answered; they differ only while answers
//!   are outstanding, or when the transaction is doomed.

use std::cell::{Cell, RefCell};
use std::ffi::{CString, c_int};
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::libpq::{Conn, Flush, PgResult, Sending, Status, Transaction};
use crate::pg::backend_local::BackendLocal;
use crate::pg::error::Result;
use crate::pg::wait_event::WaitEvent;
use crate::protocol::fingerprint::Fingerprint;
use crate::protocol::pipeline::{Control, Kind};
use crate::protocol::plan::Work;
use crate::remote::session_state::{Doom, SessionState};
use crate::remote::wait::{Patience, WaitSet, Want, Woke};
use crate::remote::{pooler, report};

mod anew;
mod answers;
mod cursors;
mod failures;
mod savepoints;
mod sending;
mod session_lock;

pub use anew::Unanswered;
pub use cursors::{Opening, declare_command, fetch_command};
pub use sending::{Isolation, Manner, Message};

/// How long the clean-up of a cancelled command may take (as postgres_fdw's
/// `CONNECTION_CLEANUP_TIMEOUT`).
pub const CLEANUP_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a cancel request may take.
pub const CANCEL_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a cancel request and its effect may take where the server may go on without.
pub const CANCEL_EFFECT: Duration = Duration::from_secs(2);

/// How long a cancel waits for the end of the transaction before: one that takes longer hangs.
const ENDING_TIMEOUT: Duration = Duration::from_secs(1);

static CONNECTIONS_MADE: BackendLocal<Cell<u64>> = BackendLocal::new(Cell::new(0));

/// The session with one participant.
pub struct Connection {
    /// Which foreign server this is, for messages.
    pub server_name: CString,
    /// No other connection of this process ever has it.
    number: Cell<u64>,
    conn: Conn,
    wait_set: RefCell<WaitSet>,
    inner: RefCell<SessionState>,
    /// Why nothing more may be sent in this transaction.
    doomed: Cell<Option<Doom>>,
    /// What libpq said when the connection turned out to be broken.
    end: RefCell<Option<CString>>,
    /// The end of the local transaction has begun: no statement may follow.
    sealed: Cell<bool>,
    /// Somebody sleeps until the socket is readable (see [`Connection::watch`]).
    watched: Cell<bool>,
    /// A user's own commands have run in the session (see [`Connection::taint`]).
    tainted: Cell<bool>,
    /// Its pooler is known to leave the server process to it.
    owns_process: Cell<bool>,
}

impl Connection {
    /// Takes over an established connection.
    ///
    /// # Errors
    /// libpq refuses pipeline mode.
    pub fn new(server_name: CString, conn: Conn) -> Result<Self> {
        if !conn.enter_pipeline() {
            return Err(report::lost(conn.error_message()));
        }
        let wait_set = RefCell::new(WaitSet::new(&[conn.socket()]));
        let number = CONNECTIONS_MADE.get();
        number.set(number.get() + 1);
        Ok(Self {
            server_name,
            number: Cell::new(number.get()),
            conn,
            wait_set,
            inner: RefCell::default(),
            doomed: Cell::new(None),
            end: RefCell::default(),
            sealed: Cell::new(false),
            watched: Cell::new(false),
            tainted: Cell::new(false),
            owns_process: Cell::new(false),
        })
    }

    /// Its number: no other connection of this process ever has it.
    pub fn number(&self) -> u64 {
        self.number.get()
    }

    /// The server process behind the connection. A pooler tells of one that there is not, until the set-up is answered.
    pub fn backend_pid(&self) -> c_int {
        self.inner.borrow().server_pid.unwrap_or_else(|| self.conn.backend_pid())
    }

    /// The socket; negative when libpq has closed it.
    pub fn socket(&self) -> c_int {
        self.conn.socket()
    }

    /// The socket, for a wait on several connections.
    pub fn want(&self) -> Want {
        // First: it may find that the connection has ended, and have libpq close the socket.
        let write = self.conn.flush() == Flush::Pending;
        Want { socket: self.conn.socket(), write }
    }

    /// Which server this is, once the set-up has been answered.
    pub fn fingerprint(&self) -> Option<Fingerprint> {
        self.inner.borrow().fingerprint.clone()
    }

    /// Whether something between us and the server may hand sessions around: who answered the set-up is not who answered
    /// the connection, and the server process is not known to be ours.
    pub fn is_pooled(&self) -> bool {
        let told = self.conn.backend_pid();
        !self.owns_process.get() && self.inner.borrow().server_pid.is_some_and(|pid| pid != told)
    }

    /// Whether what the connection was told of at its start may be the server process.
    pub fn may_be_direct(&self) -> bool {
        pooler::may_be_a_process(self.conn.backend_pid())
    }

    /// The server process stays with this connection, whatever is in between.
    pub fn owns_process(&self) {
        self.owns_process.set(true);
    }

    /// The session is for a question or two and not for statements: it is not set up.
    pub fn use_for_questions(&self) {
        self.conn.listen_for_end();
        self.inner.borrow_mut().set_up = true;
    }

    /// Waits until the server tells, unasked, that it ends the session because it was idle; `false` if it has not by then,
    /// or the connection has ended otherwise.
    ///
    /// # Errors
    /// A cancel.
    pub fn hears_of_idle_end(&self, deadline: Instant) -> Result<bool> {
        loop {
            self.pump();
            if self.conn.ended_idle() {
                return Ok(true);
            }
            let woke = self.wait(Some(deadline), Patience::Interruptible, WaitEvent::Connect)?;
            if woke == Woke::Deadline || self.is_doomed() {
                return Ok(false);
            }
        }
    }

    /// The remote transaction's xid, if it is known to have one.
    pub fn xid(&self) -> Option<u64> {
        self.inner.borrow().xid
    }

    /// What the remote transaction has done, as far as it is known.
    pub fn work(&self, can_prepare: bool) -> Work {
        let inner = self.inner.borrow();
        Work { access: inner.access(), xid: inner.xid_known(), can_prepare }
    }

    /// Whether a remote transaction was begun.
    pub fn in_transaction(&self) -> bool {
        self.inner.borrow().depth > 0
    }

    /// Whether the connection may be used again for another transaction: alive, and nothing outstanding.
    pub fn is_reusable(&self) -> bool {
        self.doomed.get().is_none() && !self.conn.is_bad() && {
            let fifo = &self.inner.borrow().fifo;
            match fifo.is_idle() {
                true => matches!(self.conn.transaction(), Transaction::Idle),
                false => fifo.is_ending(),
            }
        }
    }

    /// Whether the other end has gone while the connection was idle.
    pub fn hung_up(&self) -> bool {
        self.conn.hung_up()
    }

    /// Whether the other end has closed, in use or not; reads nothing.
    #[cfg(feature = "pg18")]
    pub fn is_closed_by_peer(&self) -> bool {
        self.conn.is_closed_by_peer()
    }

    /// From now on no statement may be sent any more: the local transaction is ending.
    pub fn seal(&self) {
        self.sealed.set(true);
    }

    /// Whether a `COMMIT PREPARED` that nobody waits for has still to be answered, or its answer to be taken.
    pub fn has_delivery(&self) -> bool {
        let inner = self.inner.borrow();
        inner.delivered.is_some() || inner.fifo.awaits(Control::Delivery)
    }

    /// What became of a `COMMIT PREPARED` that nobody waits for: whether it was done, once that is known.
    pub fn take_delivered(&self) -> Option<bool> {
        self.inner.borrow_mut().delivered.take()
    }

    /// Whether a `COMMIT` that nobody waits for has still to be answered.
    pub fn has_ending(&self) -> bool {
        self.inner.borrow().fifo.awaits(Control::Ending)
    }

    /// The failure of a `COMMIT` that nobody waited for, once it has been read.
    pub fn take_failed_ending(&self) -> Option<Rc<PgResult>> {
        self.inner.borrow_mut().failed_ending.take()
    }

    /// Reads what has come, without waiting, and takes note of it.
    pub fn pump(&self) {
        self.flush();
        let alive = self.conn.consume_input();
        self.digest(alive);
    }

    /// Takes note of what has been read already: with nothing but a command sent since, that is all there can be.
    pub fn take_note(&self) {
        self.digest(true);
    }

    fn digest(&self, alive: bool) {
        self.note_message();
        if self.doomed.get() == Some(Doom::OutOfStep) {
            return;
        }
        let inner = &mut *self.inner.borrow_mut();
        let mut ends = 0;
        let mut woken = !alive;
        while !inner.fifo.is_idle() && !self.conn.is_busy() && ends < 2 {
            let Some(result) = self.conn.result() else {
                ends += 1;
                continue;
            };
            ends = 0;
            woken = true;
            let kind = match result.status() {
                Status::CommandOk | Status::TuplesOk => Kind::Done,
                Status::Error | Status::Other => Kind::Failed,
                Status::PipelineAborted => Kind::Skipped,
                Status::PipelineSync => Kind::Sync,
                Status::Copy => {
                    // COPY in pipeline mode leaves libpq in a state that nothing ends.
                    self.doomed.set(Some(Doom::OutOfStep));
                    return;
                }
            };
            // First of all: what fails for that reason says nothing of its own.
            if kind == Kind::Failed {
                if result.is_fatal() || self.conn.is_bad() {
                    self.note_end(inner);
                }
                inner.fetch_run = None;
            }
            match inner.fifo.answer(kind, result) {
                Ok(effect) => inner.note(effect, &self.doomed),
                // What libpq makes of the end of a connection answers nothing.
                Err(_) if matches!(self.doomed.get(), Some(Doom::Lost | Doom::LostOpening(_))) => {}
                Err(_) => {
                    self.doomed.set(Some(Doom::OutOfStep));
                    return;
                }
            }
        }
        if !alive || self.conn.is_bad() {
            self.note_end(inner);
        }
        if woken {
            self.wake_watcher();
        }
    }

    /// Waits until everything asked has been answered. `Ok(false)` if it was not by then.
    ///
    /// # Errors
    /// A cancel, under [`Patience::Interruptible`].
    pub fn drain(&self, deadline: Instant, patience: Patience) -> Result<bool> {
        loop {
            self.pump();
            if self.inner.borrow().fifo.is_idle() {
                return Ok(true);
            }
            if self.is_doomed()
                || self.wait(Some(deadline), patience, WaitEvent::Cleanup)? != Woke::Ready
            {
                return Ok(false);
            }
        }
    }

    /// Whether everything asked has been answered, as far as it has been read.
    pub fn is_drained(&self) -> bool {
        self.inner.borrow().fifo.is_idle()
    }

    /// Whether a statement has still to be answered: what only the connection itself has asked takes no time.
    pub fn is_at_work(&self) -> bool {
        self.inner.borrow().fifo.expects_statements()
    }

    /// Waits until a `COMMIT PREPARED` that nobody has waited for is answered, or the deadline has come.
    ///
    /// # Errors
    /// A cancel.
    pub fn pass_deliveries(&self, deadline: Instant) -> Result<()> {
        loop {
            self.pump();
            let is_underway = self.inner.borrow().fifo.awaits(Control::Delivery);
            if !is_underway || self.is_doomed() {
                return Ok(());
            }
            if self.wait(Some(deadline), Patience::Interruptible, WaitEvent::Settle)? != Woke::Ready
            {
                return Ok(());
            }
        }
    }

    /// Waits until no end of an earlier transaction is on its way any more; `false` if one still is by then, or
    /// somebody is tired of waiting.
    fn pass_endings(&self, deadline: Instant) -> bool {
        loop {
            let underway = {
                let fifo = &self.inner.borrow().fifo;
                fifo.awaits(Control::Delivery) || fifo.awaits(Control::Ending)
            };
            if !underway || self.is_doomed() {
                return !underway;
            }
            let woke = self.wait(Some(deadline), Patience::Settling, WaitEvent::Settle);
            if !matches!(woke, Ok(Woke::Ready)) {
                return false;
            }
            self.pump();
        }
    }

    /// Asks the server to stop what it is doing; waits for the request to be taken, not for its effect.
    /// A server that does not take it is given up: the connection is doomed.
    pub fn cancel(&self) {
        // What the next transaction gives up must not hit the end of the one before.
        if !self.pass_endings(Instant::now() + ENDING_TIMEOUT) {
            self.doom();
            return;
        }
        let deadline = Instant::now() + CANCEL_TIMEOUT;
        if !self.start_cancel().is_some_and(|sending| sending.wait_until(deadline)) {
            self.doom();
        }
    }

    /// Starts to ask the server to stop what it is doing, whatever that is; `None` if that is not possible. As long as
    /// nobody knows whether the server has taken it, it may hit whatever comes next.
    pub fn start_cancel(&self) -> Option<Sending> {
        self.conn.cancel()?.start()
    }

    /// The remote transaction is over, one way or another.
    pub fn reset(&self) {
        let mut inner = self.inner.borrow_mut();
        inner.fifo.abandon_all();
        inner.depth = 0;
        inner.confirmed = 0;
        inner.xid = None;
        inner.modified = false;
        inner.prepare_skipped = false;
        inner.lock_lost = false;
        inner.probe_failed = false;
        inner.unasked = false;
        inner.unanswered = None;
        inner.began_anew = false;
        inner.fetch_run = None;
        inner.postponed.clear();
        inner.cursors.clear();
        inner.openings.clear();
        inner.opened.clear();
        inner.levels.clear();
        inner.last_cursor = 0;
        self.sealed.set(false);
    }
}
