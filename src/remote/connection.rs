//! One participant's session: a pipelined connection with its remote transaction.
//!
//! * [`wire`]: what is handed to libpq, and the log of it; [`setup`]: what each session begins
//!   with;
//! * [`sending`]: statements with all that travels with them; [`cursors`], [`savepoints`],
//!   [`session_lock`], [`lock_timeout`], [`idle_timeout`]: some of it;
//! * [`copying`]: COPY, for which the connection leaves the pipeline;
//! * [`snapshot`]: what the transaction sees there, for consistent reads;
//! * [`answers`]: reading answers and asking for them; [`fitting`]: whether one can be that;
//!   [`waiting`]: until there is nothing more to
//!   come;
//! * [`behind`]: statements whose answers are taken later than by their owners;
//! * [`state`]: what is known of the session and its transaction; [`written`]: whether that has an
//!   xid;
//! * [`failures`]: how a broken connection is reported; [`anew`]: how its transaction begins on
//!   another.
//!
//! Invariants:
//! * A lost connection dooms the transaction that used it, unless nothing of it had been answered
//!   (see [`anew`]).
//! * No borrow of the interior is held across a call into PostgreSQL, which may come back here.
//! * `depth` counts what was sent, `confirmed` what the server answered; they differ only while
//!   answers are outstanding, or when the transaction has failed or is doomed.

use std::cell::{Cell, RefCell};
use std::ffi::{CString, c_int};
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::libpq::{Conn, PgResult, Sending, Transaction};
use crate::pg::backend_local::BackendLocal;
use crate::pg::error::Result;
use crate::protocol::fingerprint::Fingerprint;
use crate::protocol::pipeline::Control;
use crate::protocol::place::Place;
use crate::protocol::plan::Work;
use crate::remote::wait::WaitSet;
use crate::remote::{pooler, report};

mod anew;
mod answers;
mod behind;
mod copying;
mod cursors;
mod failures;
mod fitting;
mod idle_timeout;
mod lock_timeout;
mod modes;
mod preparing;
mod savepoints;
mod sending;
mod session_lock;
mod setup;
mod snapshot;
mod state;
mod waiting;
mod wire;
mod written;

pub use answers::{Asked, if_lost};
pub use cursors::{Opening, declare_command, fetch_command};
pub use modes::Modes;
pub use sending::{Isolation, Manner, Message};

use state::{Broken, State};
use wire::Wire;

/// How long the clean-up of a cancelled command may take (as postgres_fdw's
/// `CONNECTION_CLEANUP_TIMEOUT`).
pub const CLEANUP_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a cancel request may take.
pub const CANCEL_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a cancel request and its effect may take where the server may go on without.
pub const CANCEL_EFFECT: Duration = Duration::from_secs(2);

/// How long a cancel waits for what it must not hit; beyond that the server counts as hung.
const SPARED_TIMEOUT: Duration = Duration::from_secs(1);

static CONNECTIONS_MADE: BackendLocal<Cell<u64>> = BackendLocal::new(Cell::new(0));

/// The session with one participant.
pub struct Connection {
    /// Which foreign server this is, for messages.
    pub server_name: CString,
    number: Cell<u64>,
    conn: Wire,
    wait_set: RefCell<WaitSet>,
    inner: RefCell<State>,
    /// Why nothing more may be sent in this transaction.
    broken: Cell<Option<Broken>>,
    /// What libpq said when the connection turned out to be broken.
    end: RefCell<Option<CString>>,
    /// The end of the local transaction has begun: no statement may follow.
    sealed: Cell<bool>,
    /// Somebody sleeps until the socket is readable (see [`Connection::watch`]).
    watched: Cell<bool>,
    /// The transaction will modify or lock rows, or run commands of the user's.
    is_to_modify: Cell<bool>,
    /// A user's own commands have run in the session (see [`Connection::taint`]).
    tainted: Cell<bool>,
    /// When it was last asked something that it has answered, with all before that.
    answered: Cell<Option<Instant>>,
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
        wire::log_opening(&server_name, &conn);
        let wait_set = RefCell::new(WaitSet::new(&[conn.socket()]));
        let number = CONNECTIONS_MADE.get();
        number.set(number.get() + 1);
        Ok(Self {
            server_name,
            number: Cell::new(number.get()),
            conn: Wire::new(conn),
            wait_set,
            inner: RefCell::default(),
            broken: Cell::new(None),
            end: RefCell::default(),
            sealed: Cell::new(false),
            watched: Cell::new(false),
            is_to_modify: Cell::new(false),
            tainted: Cell::new(false),
            answered: Cell::new(None),
            owns_process: Cell::new(false),
        })
    }

    /// Its number: no other connection of this process ever has it.
    pub fn number(&self) -> u64 {
        self.number.get()
    }

    /// The server process behind the connection. A pooler invents one, which counts until the
    /// set-up is answered.
    pub fn backend_pid(&self) -> c_int {
        self.inner.borrow().session.server_pid.unwrap_or_else(|| self.conn.backend_pid())
    }

    /// The socket; negative when libpq has closed it.
    pub fn socket(&self) -> c_int {
        self.conn.socket()
    }

    /// Which server this is, once the set-up has been answered.
    pub fn fingerprint(&self) -> Option<Fingerprint> {
        self.inner.borrow().session.fingerprint.clone()
    }

    /// The same in one number, for a foreign server that leads there, once the set-up has been
    /// answered.
    pub fn place(&self, server: u32) -> Option<Place> {
        let session = &self.inner.borrow().session;
        let fingerprint = session.fingerprint.as_ref()?;
        let cluster = (fingerprint.system_identifier, fingerprint.database.to_bytes());
        Some(Place::new(server, &cluster, session.started))
    }

    /// Whether something between us and the server may hand sessions around: the process that
    /// answered the set-up is not the one that was announced when we connected, and it is not known
    /// to be ours.
    pub fn is_pooled(&self) -> bool {
        let announced = self.conn.backend_pid();
        let answered = self.inner.borrow().session.server_pid;
        !self.owns_process.get() && answered.is_some_and(|pid| pid != announced)
    }

    /// Whether the process that was announced when we connected may be the server's.
    pub fn may_be_direct(&self) -> bool {
        pooler::may_be_a_process(self.conn.backend_pid())
    }

    /// Whether the server has answered all that it was asked, and was asked within this time. When
    /// an answer was read says nothing: it may have come long before.
    pub fn has_answered_within(&self, time: Duration) -> bool {
        self.answered.get().is_some_and(|asked| asked.elapsed() < time)
    }

    /// The server process stays with this connection, whatever is in between.
    pub fn owns_process(&self) {
        self.owns_process.set(true);
    }

    /// The session is for a question or two and not for statements: it is not set up.
    pub fn use_for_questions(&self) {
        self.inner.borrow_mut().session.is_set_up = true;
    }

    /// The remote transaction's xid, if it is known to have one.
    pub fn xid(&self) -> Option<u64> {
        self.inner.borrow().transaction.written.xid()
    }

    /// What the remote transaction has done, as far as it is known.
    pub fn work(&self, can_prepare: bool) -> Work {
        let inner = self.inner.borrow();
        Work { access: inner.access(), xid: inner.transaction.written.state(), can_prepare }
    }

    /// Whether a remote transaction was begun.
    pub fn in_transaction(&self) -> bool {
        self.inner.borrow().transaction.depth > 0
    }

    /// How the remote transaction was begun, if one was.
    pub fn isolation(&self) -> Option<Isolation> {
        self.inner.borrow().transaction.isolation
    }

    /// A statement of the transaction will modify or lock rows there, or is a user's own command.
    pub fn expect_modification(&self) {
        self.is_to_modify.set(true);
    }

    /// Whether that was said in this transaction.
    pub fn expects_modification(&self) -> bool {
        self.is_to_modify.get()
    }

    /// Whether the connection may be used again for another transaction: alive, and nothing
    /// outstanding.
    pub fn is_reusable(&self) -> bool {
        self.broken.get().is_none() && !self.conn.is_bad() && {
            let inner = self.inner.borrow();
            let ends = match inner.fifo.is_idle() {
                true => matches!(self.conn.transaction(), Transaction::Idle),
                false => inner.fifo.is_ending(),
            };
            ends && !inner.session.is_incomplete
        }
    }

    /// Whether something has failed because a statement of the connection's own is not prepared
    /// there any more. Nothing of that transaction is committed.
    pub fn is_incomplete(&self) -> bool {
        self.inner.borrow().session.is_incomplete
    }

    /// The same, as of what has come since it was last used. Never waits.
    pub fn is_still_reusable(&self) -> bool {
        // First: it takes note of what has come.
        !self.hung_up() && self.is_reusable()
    }

    /// Whether the other end has gone while the connection was idle.
    fn hung_up(&self) -> bool {
        if self.conn.hung_up() {
            return true;
        }
        // The end of the last answer and the word that the session ends may have come together.
        self.take_note();
        self.is_drained() && self.conn.is_told_of_end()
    }

    /// Whether the other end has closed, in use or not; reads nothing.
    #[cfg(not(pre_pg18))]
    pub fn is_closed_by_peer(&self) -> bool {
        self.conn.is_closed_by_peer()
    }

    /// From now on no statement may be sent any more: the local transaction is ending.
    pub fn seal(&self) {
        self.sealed.set(true);
    }

    /// Whether the answer to a `COMMIT PREPARED` that nobody waits for is still to come, or to be
    /// taken.
    pub fn has_delivery(&self) -> bool {
        let inner = self.inner.borrow();
        inner.delivered.is_some() || inner.fifo.awaits(Control::Delivery)
    }

    /// Whether a `COMMIT PREPARED` that nobody waits for was done, once that is known.
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

    /// Asks the server to stop what it is doing; waits for the request to be taken, not for its
    /// effect. The transaction is doomed if the server does not take it.
    pub fn cancel(&self) {
        self.withhold_copy();
        if !self.pass_spared(Instant::now() + SPARED_TIMEOUT) {
            self.doom();
            return;
        }
        let deadline = Instant::now() + CANCEL_TIMEOUT;
        if !self.start_cancel().is_some_and(|sending| sending.wait_until(deadline)) {
            self.doom();
        }
        self.end_cancelled_copy();
    }

    /// Starts to ask the server to stop what it is doing, whatever that is; `None` if that is not
    /// possible. As long as it is unknown whether the server has taken it, it may hit whatever
    /// comes next.
    pub fn start_cancel(&self) -> Option<Sending> {
        wire::log_cancel(&self.server_name, &self.conn);
        self.conn.cancel()?.start()
    }

    /// The remote transaction is over, one way or another.
    pub fn reset(&self) {
        self.inner.borrow_mut().end_transaction();
        self.conn.clear_gid();
        self.sealed.set(false);
        self.is_to_modify.set(false);
    }
}
