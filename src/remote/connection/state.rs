//! What is known of the remote session and of the transaction in it, and how the answers to the
//! connection's own commands change that.

use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::CString;
use std::rc::{Rc, Weak};

use super::anew::Unanswered;
use super::behind::Behind;
use super::copying::Copying;
use super::cursors::Opening;
use super::lock_timeout::LockTimeout;
use super::modes::ReadOnly;
use super::sending::Isolation;
use super::session_lock::{self, Lock};
use super::setup;
use super::snapshot::SnapshotOf;
use super::written::Written;
use crate::libpq::PgResult;
use crate::pg::error::SqlState;
use crate::protocol::fingerprint::Fingerprint;
use crate::protocol::pipeline::{Control, Effect, Fifo, Ticket};
use crate::protocol::plan::Access;
use crate::protocol::session_lock::SessionLock;

/// Why a connection takes no more statements.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Broken {
    /// The connection broke.
    Lost,
    /// The connection broke while the savepoint of this level was being made. Nothing may be tried
    /// on it any more.
    LostOpening(u32),
    /// The remote transaction's state is not what it has to be. What was asked is still answered.
    CleanupFailed,
    /// Answers came that do not fit what was asked: they can no longer be assigned to statements.
    OutOfStep,
}

/// What is known of the other end.
#[derive(Default)]
pub(super) struct State {
    /// The answers that are due.
    pub fifo: Fifo<PgResult>,
    pub session: Session,
    pub transaction: RemoteTransaction,
    /// The COPY that the server has not ended yet.
    pub copying: Option<Copying>,
    /// The ticket of the last COPY.
    pub last_copy: Ticket,
    /// Whether a `COMMIT PREPARED` that nobody waits for was done, once it has been answered.
    pub delivered: Option<bool>,
    /// The failure of the last transaction's `COMMIT`, for which nobody waited.
    pub failed_ending: Option<Rc<PgResult>>,
    /// The last number given to a prepared statement.
    pub last_statement: u32,
}

/// What is known of the session, which ends with the connection.
#[derive(Default)]
pub(super) struct Session {
    /// The set-up has been queued.
    pub is_set_up: bool,
    /// Which server it is on, once the set-up has been answered.
    pub fingerprint: Option<Fingerprint>,
    /// When that server was started, in microseconds since 1970.
    pub started: Option<i64>,
    /// The server process that ran the set-up.
    pub server_pid: Option<i32>,
    /// The advisory lock that shows others that this session is alive.
    pub lock: Lock,
    /// Why the server has refused the set-up: nothing that follows is an answer of a session that
    /// has it.
    pub refusal: Option<Rc<PgResult>>,
    /// A transaction has begun in it, so that it has been set up.
    pub has_begun: bool,
    /// A statement of the connection's own is not prepared there any more.
    pub is_incomplete: bool,
    /// The question for the snapshot is prepared.
    pub can_tell_snapshot: bool,
    /// The lock for which [`SessionLock::check`] is prepared.
    pub prepared_check: Option<SessionLock>,
    /// How long it may be idle, in milliseconds; 0: as the server says.
    pub idle_timeout: i32,
    /// That does not hold there until the next command is sent.
    pub idle_timeout_is_off: bool,
    /// How long it waits for locks.
    pub lock_timeout: LockTimeout,
    /// Commands to send outside of any transaction, where their failure does no harm, or with the
    /// next statement when there are many.
    pub after_transaction: Vec<CString>,
}

/// What is known of the current remote transaction.
#[derive(Default)]
pub(super) struct RemoteTransaction {
    /// 0 outside a remote transaction, 1 inside, n with savepoint `s<n>`.
    pub depth: u32,
    /// The depth that the server has confirmed.
    pub confirmed: u32,
    /// How it was begun.
    pub isolation: Option<Isolation>,
    /// Where it is READ ONLY.
    pub read_only: ReadOnly,
    /// Something else than a query was sent.
    pub modifies: bool,
    /// Whether it has an xid.
    pub written: Written,
    /// Why the server has skipped PREPARE, if it has.
    pub skipped: Option<SkippedPrepare>,
    /// Its snapshot, where reads are consistent.
    pub snapshot: SnapshotOf,
    /// How many units that are being read need that as it is.
    pub pins: u32,
    /// The statements whose owners have gone on without their answers.
    pub behind: Behind,
    /// What was sent, as long as nothing has been answered.
    pub unanswered: Option<Unanswered>,
    /// It has been sent a second time.
    pub began_anew: bool,
    /// The last statement with parameters, if nothing else was parsed since.
    pub parsed: Option<Parsed>,
    /// The `FETCH` commands that nothing else has come between.
    pub fetch_run: Option<FetchRun>,
    /// Commands to send before the next statement. If there is none, the end of the transaction
    /// makes them needless.
    pub before_next: Vec<(CString, Control)>,
    /// Open cursors by number, with the depth they were declared at.
    pub cursors: HashMap<u32, u32>,
    /// Cursors that are to be opened.
    pub openings: Vec<Weak<Opening>>,
    /// Those that were opened in the segment that is being sent.
    pub opened: Vec<Rc<Opening>>,
    /// The nesting levels of the connection's users.
    pub levels: Vec<Weak<Cell<u32>>>,
    /// The last number given to a cursor.
    pub last_cursor: u32,
}

/// Why the server has skipped PREPARE, which fails with anything before it in its segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum SkippedPrepare {
    /// A deferred constraint, or the check of the session's lock, has failed.
    Failure,
    /// The session does not hold its advisory lock any more.
    LockLost,
}

/// A statement that was sent without a name.
pub(super) struct Parsed {
    pub sql: CString,
    /// What [`super::wire::Wire::parsed`] was then.
    pub number: u64,
}

/// `FETCH` commands in a row.
pub(super) struct FetchRun {
    /// The last of them.
    pub fetch: CString,
    /// What [`super::wire::Wire::parsed`] was then.
    pub parsed: u64,
    /// How many they are.
    pub length: u32,
}

impl RemoteTransaction {
    /// Whether more than so many `FETCH` commands in a row were sent last.
    pub fn has_fetched(&self, count: u32) -> bool {
        self.fetch_run.as_ref().is_some_and(|run| run.length > count)
    }
}

impl State {
    /// All that this transaction's statements might do, together. On a standby nothing can be done
    /// but read.
    pub fn access(&self) -> Access {
        let standby = self.session.fingerprint.as_ref().is_some_and(|f| f.in_recovery);
        if self.transaction.modifies && !standby { Access::Modifies } else { Access::Reads }
    }

    /// The transaction has ended, and nobody will ask for any of its answers.
    pub fn end_transaction(&mut self) {
        self.fifo.abandon_all();
        self.transaction = RemoteTransaction::default();
        self.session.lock_timeout.end_transaction();
    }

    /// The session has ended, and another takes its place, where the transaction begins anew.
    /// Statements get tickets from `next` on again.
    pub fn change_session(&mut self, next: Option<Ticket>) {
        self.fifo.begin_anew(next);
        self.copying = None;
        let idle_timeout = self.session.idle_timeout;
        let (lock_timeout, command) = self.session.lock_timeout.of_new_session();
        self.session = Session {
            lock: self.session.lock.of_new_session(),
            lock_timeout,
            after_transaction: command.into_iter().collect(),
            ..Session::default()
        };
        self.set_idle_timeout(idle_timeout);
        let transaction = &mut self.transaction;
        transaction.depth = 0;
        transaction.modifies = false;
        transaction.written = Written::No;
        transaction.fetch_run = None;
        transaction.parsed = None;
        transaction.opened.clear();
        transaction.began_anew = true;
    }

    /// Notes the answer to a command of the connection's own, and in `broken` if nothing more may
    /// be sent after it.
    pub fn note(&mut self, effect: Effect<PgResult>, broken: &Cell<Option<Broken>>) {
        match effect {
            Effect::None => {}
            Effect::Done(control, result) => self.note_done(control, &result),
            Effect::Failed(control, failure) => {
                if self.note_failed(control, failure, broken.get()) {
                    broken.set(Some(Broken::CleanupFailed));
                }
            }
        }
    }

    fn note_done(&mut self, control: Control, result: &PgResult) {
        match control {
            Control::UndoSavepoint | Control::Cleanup => {}
            Control::Ending | Control::Constraints | Control::LockCheck => {}
            // Any other tag means that it was not prepared there.
            Control::Delivery => {
                self.delivered = Some(result.command_tag() == c"COMMIT PREPARED");
            }
            Control::Setup => {
                if result.rows() == 1 {
                    self.session.fingerprint = setup::fingerprint(result);
                    self.session.started = setup::started(result);
                    self.session.server_pid = setup::server_pid(result);
                }
            }
            Control::SessionLock => {
                let taken = result.value(0, 0).is_some_and(|v| v.to_bytes() == b"t");
                self.session.lock.answer(taken);
            }
            Control::Begin => {
                self.session.has_begun = true;
                self.transaction.confirmed = 1;
                self.transaction.unanswered = None;
            }
            Control::Snapshot => self.transaction.snapshot.answer(result),
            Control::Savepoint(level) => self.transaction.confirmed = level,
            Control::EndSavepoint(level) => self.transaction.confirmed = level - 1,
            Control::XidProbe => {
                let xid = result.value(0, 0).and_then(|v| v.to_str().ok()?.parse().ok());
                self.transaction.written.answer(xid);
            }
        }
    }

    /// Whether nothing more may be sent after this failure.
    fn note_failed(
        &mut self,
        control: Control,
        failure: Rc<PgResult>,
        broken: Option<Broken>,
    ) -> bool {
        match control {
            Control::Cleanup | Control::Begin | Control::Savepoint(_) => false,
            // Should the transaction still be open, the next one cannot begin and does nothing.
            Control::Ending => {
                self.failed_ending = Some(failure);
                false
            }
            Control::Delivery => {
                self.delivered = Some(false);
                false
            }
            Control::Constraints | Control::LockCheck => {
                // The end of the connection says nothing of what the server still does.
                let is_answer = broken.is_none() && failure.error_field(b'C').is_some();
                if is_answer {
                    self.skip_prepare(
                        control == Control::LockCheck && session_lock::is_not_held(&failure),
                    );
                }
                is_answer && setup::is_unknown_statement(&failure)
            }
            // The statement before it failed, or the question itself: it may have written.
            Control::XidProbe => {
                self.transaction.written.fail();
                // Something there has removed it from the session (`DEALLOCATE ALL` in a function).
                broken.is_none() && setup::is_unknown_statement(&failure)
            }
            Control::Snapshot => {
                let is_unknown = broken.is_none() && setup::is_unknown_statement(&failure);
                self.transaction.snapshot.fail(failure);
                is_unknown
            }
            // In any case this is reported as a clean-up that has failed.
            Control::UndoSavepoint => true,
            // Unless the connection has just broken.
            Control::Setup | Control::SessionLock if broken.is_none() => {
                if !self.session.has_begun {
                    self.session.refusal.get_or_insert(failure);
                }
                true
            }
            Control::Setup | Control::SessionLock => false,
            // Something around the savepoint had failed, with which it will be undone. To go back
            // to it would undo work that has become part of the level around it.
            Control::EndSavepoint(level) if has_failed_before(&failure) => {
                self.transaction.confirmed = level - 1;
                false
            }
            Control::EndSavepoint(_) => broken.is_none(),
        }
    }

    /// The first failure in the segment of PREPARE is the reason.
    fn skip_prepare(&mut self, lock_lost: bool) {
        if self.transaction.skipped.is_none() && lock_lost {
            self.transaction.skipped = Some(SkippedPrepare::LockLost);
            // The next transaction takes it again.
            self.session.lock.lose();
        }
        self.transaction.skipped.get_or_insert(SkippedPrepare::Failure);
    }
}

/// Whether the transaction had failed before this command.
fn has_failed_before(failure: &PgResult) -> bool {
    SqlState::parse(failure.error_field(b'C')) == SqlState::IN_FAILED_SQL_TRANSACTION
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCK: SessionLock = SessionLock { key: 1, incarnation: 2 };

    #[test]
    fn a_lost_lock_is_the_reason_only_where_nothing_failed_before() {
        let mut state = State::default();
        state.session.lock = Lock::Held(LOCK);
        state.skip_prepare(false);
        // The check of the lock was skipped with the same failure.
        state.skip_prepare(true);
        assert_eq!(state.transaction.skipped, Some(SkippedPrepare::Failure));
        assert_eq!(state.session.lock.held(), Some(LOCK));
        state.end_transaction();
        state.skip_prepare(true);
        assert_eq!(state.transaction.skipped, Some(SkippedPrepare::LockLost));
        assert_eq!(state.session.lock.held(), None);
    }

    #[test]
    fn a_new_session_knows_nothing_and_the_transaction_keeps_what_is_its_own() {
        let mut state = State::default();
        state.session.is_set_up = true;
        state.session.lock = Lock::Held(LOCK);
        state.transaction.depth = 2;
        state.transaction.modifies = true;
        state.transaction.written = Written::Yes(5);
        state.transaction.last_cursor = 3;
        state.last_statement = 4;
        state.change_session(None);
        assert!(!state.session.is_set_up && state.session.lock == Lock::Wanted(LOCK));
        let RemoteTransaction { depth, modifies, written, last_cursor, began_anew, .. } =
            state.transaction;
        assert_eq!((depth, modifies, written), (0, false, Written::No));
        assert_eq!((last_cursor, state.last_statement, began_anew), (3, 4, true));
    }

    #[test]
    fn the_end_of_a_transaction_leaves_the_session() {
        let mut state = State::default();
        state.session.after_transaction.push(c"DEALLOCATE px_1".to_owned());
        state.transaction.before_next.push((c"CLOSE c1".to_owned(), Control::Cleanup));
        state.transaction.depth = 1;
        state.end_transaction();
        assert!(state.transaction.before_next.is_empty() && state.transaction.depth == 0);
        assert_eq!(state.session.after_transaction.len(), 1);
    }
}
