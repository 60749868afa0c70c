//! One participant's session: a pipelined connection with its remote transaction.
//!
//! Statements are handed in as messages and travel in one segment with what must come before them:
//! session set-up (in a segment of its own, or ROLLBACK would undo it), START TRANSACTION, savepoints up
//! to the statement's nesting level, and postponed CLOSE and RELEASE commands. Behind them travels the
//! question whether the transaction has an xid, until it has one.
//!
//! Invariants:
//! * Nothing reconnects: a lost connection dooms the transaction that used it.
//! * No borrow of the interior is held across a call into PostgreSQL, which may come back here.
//! * `depth` counts what was sent, `confirmed` what the server answered; they differ only while answers
//!   are outstanding, or when the transaction is doomed.

use std::cell::{Cell, OnceCell, RefCell};
use std::ffi::{CStr, CString, c_int};
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::libpq::{Conn, Flush, PgResult, Status, Transaction};
use crate::pg::backend_local::BackendLocal;
use crate::pg::error::{Error, Result, SqlState, c_string};
use crate::pg::wait_event::WaitEvent;
use crate::protocol::pipeline::{Control, Fifo, Kind, Ticket};
use crate::remote::report;
use crate::remote::session_state::{
    Doom, Fingerprint, PROBE, PROBE_NAME, SETUP, SessionLock, SessionState,
};
use crate::remote::wait::{Patience, WaitSet, Want, Woke};

mod answers;
mod cursors;
mod failures;
mod savepoints;
mod session_lock;

/// How long the clean-up of a cancelled command may take (as postgres_fdw's
/// `CONNECTION_CLEANUP_TIMEOUT`).
pub const CLEANUP_TIMEOUT: Duration = Duration::from_secs(30);

/// A statement to send.
#[derive(Clone, Copy)]
pub enum Message<'a> {
    /// Parsed anew, with text parameters.
    Query(&'a CStr, &'a [Option<&'a CStr>]),
    /// Prepares a statement under a name.
    Prepare(&'a CStr, &'a CStr),
    /// Executes a prepared statement.
    Execute(&'a CStr, &'a [Option<&'a CStr>]),
}

/// How a remote transaction begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Isolation {
    /// The local transaction is READ COMMITTED or REPEATABLE READ.
    RepeatableRead,
    /// The local transaction is SERIALIZABLE.
    Serializable,
}

/// How long a cancel request may take.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a cancel waits for the end of the transaction before: one that takes longer hangs.
const ENDING_TIMEOUT: Duration = Duration::from_secs(1);

static CONNECTIONS_MADE: BackendLocal<Cell<u64>> = BackendLocal::new(Cell::new(0));

/// The session with one participant.
pub struct Connection {
    /// Which foreign server this is, for messages.
    pub server_name: CString,
    /// No other connection of this process ever has it.
    number: u64,
    conn: Conn,
    wait_set: RefCell<WaitSet>,
    inner: RefCell<SessionState>,
    /// Why nothing more may be sent in this transaction.
    doomed: Cell<Option<Doom>>,
    /// What libpq said when the connection turned out to be broken.
    end: OnceCell<CString>,
    /// The end of the local transaction has begun: no statement may follow.
    sealed: Cell<bool>,
    /// Somebody sleeps until the socket is readable (see [`Connection::watch`]).
    watched: Cell<bool>,
    /// A user's own commands have run in the session (see [`Connection::taint`]).
    tainted: Cell<bool>,
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
            number: number.get(),
            conn,
            wait_set,
            inner: RefCell::default(),
            doomed: Cell::new(None),
            end: OnceCell::new(),
            sealed: Cell::new(false),
            watched: Cell::new(false),
            tainted: Cell::new(false),
        })
    }

    /// Its number: no other connection of this process ever has it.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The server process behind the connection.
    pub fn backend_pid(&self) -> c_int {
        self.conn.backend_pid()
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

    /// Whether something between us and the server hands sessions around: who answered the set-up is not who answered
    /// the connection.
    pub fn is_pooled(&self) -> bool {
        self.inner.borrow().server_pid.is_some_and(|pid| pid != self.backend_pid())
    }

    /// The remote transaction's xid, if it is known to have one.
    pub fn xid(&self) -> Option<u64> {
        self.inner.borrow().xid
    }

    /// Whether the remote transaction has written, or may have.
    pub fn wrote(&self) -> bool {
        let inner = self.inner.borrow();
        inner.xid.is_some() || inner.probe_failed
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

    /// Sends statements at a nesting level, as one segment, without waiting. The tickets of the
    /// messages are consecutive; the first is returned. `sql` becomes CONTEXT where the connection is lost.
    /// `query` is for statements that others may be sent behind before they are answered: what fails because
    /// of them is reported as its failure.
    ///
    /// # Errors
    /// The connection is lost or doomed, or the local transaction is ending.
    pub fn submit(
        &self,
        isolation: Isolation,
        level: u32,
        messages: &[Message],
        sql: Option<&CStr>,
        query: Option<&Rc<CStr>>,
    ) -> Result<Ticket> {
        if self.is_doomed() {
            return Err(self.refusal(sql));
        }
        if self.sealed.get() {
            return Err(Error::new(
                SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
                [
                    b"cannot run a statement on server \"",
                    self.server_name.to_bytes(),
                    b"\" while the transaction is ending",
                ]
                .concat(),
            ));
        }
        let sent = self.queue_segment(isolation, level, messages, query);
        match sent {
            Some(ticket) => {
                self.flush();
                Ok(ticket)
            }
            None => Err(report::with_sql(self.lose(), sql)),
        }
    }

    fn queue_segment(
        &self,
        isolation: Isolation,
        level: u32,
        messages: &[Message],
        query: Option<&Rc<CStr>>,
    ) -> Option<Ticket> {
        let conn = &self.conn;
        let inner = &mut *self.inner.borrow_mut();
        self.queue_preamble(inner)?;
        if inner.depth == 0 {
            let start = match isolation {
                Isolation::RepeatableRead => c"START TRANSACTION ISOLATION LEVEL REPEATABLE READ",
                Isolation::Serializable => c"START TRANSACTION ISOLATION LEVEL SERIALIZABLE",
            };
            conn.send_query(start, &[]).then_some(())?;
            inner.fifo.control(Control::Begin);
            inner.depth = 1;
        }
        for (command, control) in std::mem::take(&mut inner.postponed) {
            conn.send_query(&command, &[]).then_some(())?;
            inner.fifo.control(control);
        }
        while inner.depth < level {
            let next = inner.depth + 1;
            conn.send_query(&c_string(format!("SAVEPOINT s{next}")), &[]).then_some(())?;
            inner.fifo.control(Control::Savepoint(next));
            inner.depth = next;
        }
        let mut first = None;
        for message in messages {
            let queued = match *message {
                Message::Query(sql, params) => conn.send_query(sql, params),
                Message::Prepare(name, sql) => conn.send_prepare(name, sql),
                Message::Execute(name, params) => conn.send_prepared(name, params),
            };
            queued.then_some(())?;
            let ticket = inner.fifo.statement(level, query);
            first.get_or_insert(ticket);
        }
        if inner.xid.is_none() {
            conn.send_prepared(PROBE_NAME, &[]).then_some(())?;
            inner.fifo.control(Control::XidProbe);
        }
        conn.send_sync().then_some(())?;
        inner.fifo.sync();
        Some(first.unwrap_or(0))
    }

    /// Session set-up, the session's lock and chores, each in a segment of its own.
    fn queue_preamble(&self, inner: &mut SessionState) -> Option<()> {
        let conn = &self.conn;
        if !inner.set_up {
            inner.set_up = true;
            conn.send_query(SETUP, &[]).then_some(())?;
            inner.fifo.control(Control::Setup);
            conn.send_prepare(PROBE_NAME, PROBE).then_some(())?;
            inner.fifo.control(Control::Setup);
            conn.send_sync().then_some(())?;
            inner.fifo.sync();
        }
        if inner.lock_to_send
            && let Some(SessionLock { key, incarnation }) = inner.asked_lock
        {
            inner.lock_to_send = false;
            let sql = format!(
                "SELECT pg_catalog.pg_try_advisory_lock_shared({key}::int4, {incarnation}::int4)"
            );
            conn.send_query(&c_string(sql), &[]).then_some(())?;
            inner.fifo.control(Control::SessionLock);
            conn.send_sync().then_some(())?;
            inner.fifo.sync();
        }
        if inner.depth == 0 && !inner.chores.is_empty() {
            for command in std::mem::take(&mut inner.chores) {
                conn.send_query(&command, &[]).then_some(())?;
                inner.fifo.control(Control::Cleanup);
            }
            conn.send_sync().then_some(())?;
            inner.fifo.sync();
        }
        Some(())
    }

    /// Sends one command outside of any statement's segment, as the protocol needs: PREPARE
    /// TRANSACTION, COMMIT, COMMIT PREPARED, ROLLBACK PREPARED, ROLLBACK, and the resolver's questions.
    /// It does not look at dooms and seals. `None` if the connection is lost.
    pub fn send_alone(&self, command: &CStr) -> Option<Ticket> {
        self.send_segment(command, |fifo| fifo.statement(0, None))
    }

    /// Sends what ends a transaction, as [`Self::send_alone`] does, for an answer that the connection takes itself.
    /// `false` if the connection is lost.
    pub fn send_ending(&self, command: &CStr, control: Control) -> bool {
        self.send_segment(command, |fifo| fifo.control(control)).is_some()
    }

    /// Sends one command as a segment of its own; `expect` notes whose the answer is. `None` if the connection is lost.
    fn send_segment<T>(
        &self,
        command: &CStr,
        expect: impl FnOnce(&mut Fifo<PgResult>) -> T,
    ) -> Option<T> {
        let sent = {
            let inner = &mut *self.inner.borrow_mut();
            (|| {
                self.queue_preamble(inner)?;
                self.conn.send_query(command, &[]).then_some(())?;
                let expected = expect(&mut inner.fifo);
                self.conn.send_sync().then_some(())?;
                inner.fifo.sync();
                Some(expected)
            })()
        };
        if sent.is_none() {
            let _ = self.lose();
        }
        self.flush();
        sent
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

    fn flush(&self) {
        if self.conn.flush() == Flush::Failed {
            // What the server said before it went is still to be read: `pump` finds out.
            let _ = self.conn.consume_input();
        }
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
            if kind == Kind::Failed && (result.is_fatal() || self.conn.is_bad()) {
                self.note_end(inner);
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
        let sent = self.conn.cancel().is_some_and(|cancel| cancel.send(CANCEL_TIMEOUT));
        if !sent {
            self.doom();
        }
    }

    /// The remote transaction is over, one way or another.
    pub fn reset(&self) {
        let mut inner = self.inner.borrow_mut();
        inner.fifo.abandon_all();
        inner.depth = 0;
        inner.confirmed = 0;
        inner.xid = None;
        inner.probe_failed = false;
        inner.postponed.clear();
        inner.cursors.clear();
        inner.levels.clear();
        inner.last_cursor = 0;
        self.sealed.set(false);
    }
}
