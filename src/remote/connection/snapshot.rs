//! The snapshot of the remote transaction, for consistent reads: it is asked for directly behind
//! START TRANSACTION, so it is the transaction's own and costs no wait; and a transaction that has
//! read nothing can be begun again to get a newer one.

use std::ffi::CStr;
use std::rc::Rc;

use super::modes::Modes;
use super::sending::{Isolation, Manner};
use super::state::{RemoteTransaction, State};
use super::wire::Wire;
use super::{Connection, Opening};
use crate::libpq::PgResult;
use crate::pg::error::{Error, Result, SqlState};
use crate::protocol::cut::Snapshot;
use crate::protocol::order::Opened;
use crate::protocol::pipeline::Control;
use crate::protocol::plan::{Access, Xid};
use crate::remote::report;

/// The question, with the name under which it is prepared in a session that is asked for the first
/// time.
const QUESTION: (&CStr, &CStr) =
    (c"px_snapshot", c"SELECT pg_catalog.pg_current_snapshot(), pg_catalog.pg_is_in_recovery()");

/// What is known of the transaction's snapshot.
#[derive(Default)]
pub(super) struct SnapshotOf {
    /// When the unit began that it was taken for; `None` where it was not asked for.
    opened: Option<Opened>,
    /// What it shows, once it has been answered. Where each statement has its own: what those show
    /// between which cursors were opened.
    shown: Vec<Rc<Snapshot>>,
    /// How many are asked for.
    asked: usize,
    /// Those cursors.
    between: Vec<Rc<Opening>>,
    /// It was taken on a standby.
    in_recovery: bool,
    /// Why there was no answer.
    failure: Option<Rc<PgResult>>,
    /// The cut that it belongs to; 0 for none.
    cut: u64,
    /// Nothing else was sent in the transaction.
    is_alone: bool,
}

impl SnapshotOf {
    pub fn answer(&mut self, result: &PgResult) {
        let text = result.value(0, 0).and_then(|text| text.to_str().ok());
        self.shown.extend(text.and_then(Snapshot::parse).map(Rc::new));
        self.in_recovery = result.value(0, 1).is_some_and(|value| value.to_bytes() == b"t");
    }

    pub fn fail(&mut self, failure: Rc<PgResult>) {
        self.failure = Some(failure);
    }

    /// A statement is sent, which reads what it shows.
    pub fn is_used(&mut self) {
        self.is_alone = false;
    }
}

impl Connection {
    /// Not in a transaction whose snapshot stays, because preparing a statement takes one.
    pub(super) fn prepare_snapshot(conn: &Wire, inner: &mut State) -> Option<()> {
        if !inner.session.can_tell_snapshot {
            inner.session.can_tell_snapshot = true;
            conn.send_prepare(QUESTION.0, QUESTION.1).then_some(())?;
            inner.fifo.control(Control::Setup);
            conn.send_sync().then_some(())?;
            inner.fifo.sync();
        }
        Some(())
    }

    pub(super) fn queue_snapshot(conn: &Wire, inner: &mut State, opened: Opened) -> Option<()> {
        conn.send_prepared(QUESTION.0, &[]).then_some(())?;
        inner.fifo.control(Control::Snapshot);
        let (opened, asked) = (Some(opened), 1);
        inner.transaction.snapshot = SnapshotOf { opened, asked, ..SnapshotOf::default() };
        Some(())
    }

    /// Opens all cursors that have been announced, in a transaction where each statement has its
    /// own snapshot, and asks for snapshots before and behind them. What such a message has opened
    /// before is opened again. It begins the transaction if necessary.
    ///
    /// # Errors
    /// The connection is lost or doomed.
    pub fn open_between_snapshots(&self, opened: Opened, level: u32) -> Result<()> {
        self.pass_copy()?;
        if self.is_doomed() {
            return Err(self.refusal(QUESTION.1));
        }
        let (isolation, modes) = (Isolation::ReadCommitted, Modes::current());
        let (opening, query, access) = (None, None, Access::Reads);
        let manner =
            Manner { isolation, modes, opened: None, owner: level, level, access, opening, query };
        let queued = {
            let inner = &mut *self.inner.borrow_mut();
            self.queue_between(inner, manner, opened)
        };
        if queued.is_none() {
            return Err(report::with_sql(self.lose(), Some(QUESTION.1)));
        }
        self.inner.borrow_mut().note_sent(manner, &[]);
        self.flush();
        Ok(())
    }

    fn queue_between(&self, inner: &mut State, manner: Manner, opened: Opened) -> Option<()> {
        let conn = &self.conn;
        if inner.transaction.isolation == Some(Isolation::RepeatableRead) {
            Self::queue_rollback(conn, inner)?;
        }
        self.queue_preamble(inner)?;
        Self::prepare_snapshot(conn, inner)?;
        Self::queue_begin(conn, inner, manner, false)?;
        Self::queue_before_next(conn, inner)?;
        for opening in std::mem::take(&mut inner.transaction.snapshot.between) {
            Self::queue_closing(conn, inner, &opening)?;
            inner.transaction.openings.push(Rc::downgrade(&opening));
        }
        inner.transaction.opened.clear();
        Self::queue_snapshot(conn, inner, opened)?;
        Self::queue_savepoints(conn, inner, manner)?;
        Self::queue_openings(conn, inner)?;
        conn.send_prepared(QUESTION.0, &[]).then_some(())?;
        inner.fifo.control(Control::Snapshot);
        let between = inner.transaction.opened.clone();
        let snapshot = &mut inner.transaction.snapshot;
        (snapshot.asked, snapshot.between) = (2, between);
        conn.send_sync().then_some(())?;
        inner.fifo.sync();
        Some(())
    }

    /// Begins a transaction that tells its snapshot, and nothing else yet. One that has begun and
    /// [has nothing to lose](Self::has_nothing_to_lose) is rolled back first.
    ///
    /// # Errors
    /// The connection is lost or doomed.
    pub fn take_snapshot(&self, isolation: Isolation, opened: Opened) -> Result<()> {
        if self.is_doomed() {
            return Err(self.refusal(QUESTION.1));
        }
        let (opening, query) = (None, None);
        let (owner, level, access) = (1, 1, Access::Reads);
        let modes = Modes::current();
        let manner =
            Manner { isolation, modes, opened: Some(opened), owner, level, access, opening, query };
        let queued = {
            let inner = &mut *self.inner.borrow_mut();
            self.queue_take(inner, manner)
        };
        if queued.is_none() {
            return Err(report::with_sql(self.lose(), Some(QUESTION.1)));
        }
        self.inner.borrow_mut().note_sent(manner, &[]);
        self.flush();
        Ok(())
    }

    fn queue_take(&self, inner: &mut State, manner: Manner) -> Option<()> {
        let conn = &self.conn;
        Self::queue_rollback(conn, inner)?;
        self.queue_preamble(inner)?;
        Self::queue_begin(conn, inner, manner, false)?;
        inner.transaction.snapshot.is_alone = true;
        conn.send_sync().then_some(())?;
        inner.fifo.sync();
        Some(())
    }

    /// Takes back a transaction that [has nothing to lose](Self::has_nothing_to_lose), so that the
    /// next statement begins another: nothing is sent before that.
    ///
    /// # Errors
    /// The connection is lost.
    pub fn begin_afresh(&self) -> Result<()> {
        let queued = Self::queue_rollback(&self.conn, &mut self.inner.borrow_mut());
        queued.ok_or_else(|| report::with_sql(self.lose(), Some(c"ROLLBACK")))
    }

    fn queue_rollback(conn: &Wire, inner: &mut State) -> Option<()> {
        if inner.transaction.depth > 0 {
            conn.send_query(c"ROLLBACK", &[]).then_some(())?;
            inner.fifo.control(Control::Cleanup);
            conn.send_sync().then_some(())?;
            inner.fifo.sync();
            inner.transaction.begin_again();
            inner.session.lock_timeout.end_transaction();
            // Nobody wants what was asked in it, nor is a failure of it one of the new one.
            inner.fifo.abandon_all();
        }
        Some(())
    }

    /// Whether the answer to the question for the snapshot has still to come.
    pub fn awaits_snapshot(&self) -> bool {
        self.inner.borrow().fifo.awaits(Control::Snapshot)
    }

    /// The transaction's snapshot, or those that what was opened last lies between; with the time
    /// when its unit began.
    ///
    /// # Errors
    /// The server has refused to begin the transaction, to open a cursor, or to tell its snapshot.
    pub fn snapshots(&self) -> Result<(Vec<Rc<Snapshot>>, Opened)> {
        let (known, failure, between) = {
            let snapshot = &self.inner.borrow().transaction.snapshot;
            let is_known = snapshot.asked > 0 && snapshot.shown.len() == snapshot.asked;
            let known = is_known.then(|| snapshot.shown.clone()).zip(snapshot.opened);
            (known, snapshot.failure.clone(), snapshot.between.clone())
        };
        if failure.is_some() {
            // That of a cursor is reported for its query.
            for asked in between.iter().filter_map(|opening| opening.asked()) {
                self.wait(&asked)?;
            }
        }
        known.ok_or_else(|| match failure {
            Some(failure) => self.error_of(&failure, Some(QUESTION.1)),
            None if self.is_doomed() => self.refusal(QUESTION.1),
            None => Error::new(
                SqlState::FDW_ERROR,
                [b"server \"", self.server_name.to_bytes(), b"\" has told no snapshot"].concat(),
            ),
        })
    }

    /// Whether the snapshot was taken on a standby.
    pub fn snapshot_is_of_standby(&self) -> bool {
        self.inner.borrow().transaction.snapshot.in_recovery
    }

    /// The cut that the snapshot belongs to; 0 for none.
    pub fn cut(&self) -> u64 {
        self.inner.borrow().transaction.snapshot.cut
    }

    /// Whether a transaction was begun for a cut that was not taken, and nothing else: the unit has
    /// failed, and its error was caught.
    pub fn is_left_over(&self) -> bool {
        let snapshot = &self.inner.borrow().transaction.snapshot;
        snapshot.is_alone && snapshot.cut == 0
    }

    /// The snapshot belongs to this cut.
    pub fn set_cut(&self, cut: u64) {
        let snapshot = &mut self.inner.borrow_mut().transaction.snapshot;
        snapshot.cut = cut;
        // They are read, and must not be opened again.
        snapshot.between.clear();
    }

    /// A unit that will be read needs the snapshot as it is, or as it will be told with the next
    /// statement; [`Self::unpin`] has to follow.
    pub fn pin(&self) {
        self.inner.borrow_mut().transaction.pins += 1;
    }

    /// That unit is not read any more.
    pub fn unpin(&self) {
        let pins = &mut self.inner.borrow_mut().transaction.pins;
        *pins = pins.saturating_sub(1);
    }

    /// Whether the transaction can be rolled back and begun again without anybody's noticing:
    /// nothing was written, nothing is open, and nobody needs its snapshot. Its savepoints are made
    /// again with the next statement.
    pub fn has_nothing_to_lose(&self) -> bool {
        let inner = self.inner.borrow();
        let RemoteTransaction { depth, confirmed, modifies, written, cursors, pins, .. } =
            &inner.transaction;
        *depth > 0
            && confirmed >= depth
            && !modifies
            && written.state() == Xid::None
            && cursors.is_empty()
            && *pins == 0
            && inner.fifo.is_idle()
            && !self.is_tainted()
            && !self.is_doomed()
    }
}

impl RemoteTransaction {
    /// It has been rolled back, and begins again. What is still to be opened stays.
    fn begin_again(&mut self) {
        let was = std::mem::take(self);
        *self = Self {
            openings: was.openings,
            levels: was.levels,
            last_cursor: was.last_cursor,
            began_anew: was.began_anew,
            ..Self::default()
        };
    }
}
