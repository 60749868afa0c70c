//! The advisory lock by which a session shows others on the participant that it is alive, and the
//! sessions that may have lost it unnoticed.

use std::ffi::{CStr, CString};

use super::Connection;
use super::state::SkippedPrepare;
use crate::libpq::PgResult;
use crate::pg::error::c_string;
use crate::protocol::session_lock::SessionLock;

impl SessionLock {
    /// Takes the lock, twice, so that [`Self::check`] can give one back without letting go; and the
    /// owner lock of the process `pid` here. If somebody keeps that away, no deadlock is seen that
    /// this session is part of.
    pub(super) fn take(self, pid: i32) -> CString {
        let try_lock = self.call("pg_try_advisory_lock_shared");
        let owner = Self { key: self.owner_key(), incarnation: pid };
        let try_owner = owner.call("pg_try_advisory_lock_shared");
        c_string(format!("SELECT {try_lock} AND {try_lock}, {try_owner}"))
    }

    /// The name under which [`Self::check`] is prepared.
    pub(super) fn check_name(self) -> CString {
        c_string(format!("px_lock {} {}", self.key, self.incarnation))
    }

    /// Fails with a division by zero where the session does not hold the lock. To take it again
    /// would prove nothing: somebody may have found it free meanwhile. To look for it among all
    /// locks of the server would cost too much.
    pub(super) fn check(self) -> CString {
        let (unlock, try_lock) =
            (self.call("pg_advisory_unlock_shared"), self.call("pg_try_advisory_lock_shared"));
        c_string(format!(
            "SELECT 1 OPERATOR(pg_catalog./) (CASE WHEN {unlock} THEN {try_lock} ELSE false END)::pg_catalog.int4"
        ))
    }

    fn call(self, function: &str) -> String {
        format!(
            "pg_catalog.{function}({}::pg_catalog.int4, {}::pg_catalog.int4)",
            self.key, self.incarnation
        )
    }
}

/// Whether a failure is that of [`SessionLock::check`] where the lock is not held.
pub(super) fn is_not_held(failure: &PgResult) -> bool {
    failure.error_field(b'C').map(CStr::to_bytes) == Some(b"22012")
}

/// What has become of the session's advisory lock.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Lock {
    /// The session has none, and none is wanted.
    #[default]
    Absent,
    /// It has to take this one, with the next command.
    Wanted(SessionLock),
    /// It has been asked to take this one.
    Asked(SessionLock),
    /// It holds this one.
    Held(SessionLock),
}

impl Lock {
    /// The lock that the session has, or will have.
    fn target(self) -> Option<SessionLock> {
        match self {
            Self::Absent => None,
            Self::Wanted(lock) | Self::Asked(lock) | Self::Held(lock) => Some(lock),
        }
    }

    /// The session is to have this lock. `is_certain`: only we can have released it there.
    fn want(&mut self, lock: SessionLock, is_certain: bool) {
        if self.target() != Some(lock) || !is_certain {
            *self = Self::Wanted(lock);
        }
    }

    /// The lock to ask for now, if it has not been asked for.
    pub fn ask(&mut self) -> Option<SessionLock> {
        let Self::Wanted(lock) = *self else { return None };
        *self = Self::Asked(lock);
        Some(lock)
    }

    /// The server answers. If somebody there keeps the lock away, it is asked for again with the
    /// next transaction.
    pub fn answer(&mut self, taken: bool) {
        if let Self::Asked(lock) = *self {
            *self = if taken { Self::Held(lock) } else { Self::Absent };
        }
    }

    /// The session has turned out not to hold it.
    pub fn lose(&mut self) {
        *self = Self::Absent;
    }

    /// The lock, if the session holds one.
    pub fn held(self) -> Option<SessionLock> {
        match self {
            Self::Held(lock) => Some(lock),
            _ => None,
        }
    }

    /// The same for a session that takes this one's place.
    pub fn of_new_session(self) -> Self {
        self.target().map_or(Self::Absent, Self::Wanted)
    }
}

impl Connection {
    /// Whether the server has skipped the transaction's `PREPARE TRANSACTION`, because something
    /// before it failed.
    pub fn has_skipped_prepare(&self) -> bool {
        self.inner.borrow().transaction.skipped.is_some()
    }

    /// Whether that was because the session does not hold its advisory lock any more.
    pub fn has_lost_its_lock(&self) -> bool {
        self.inner.borrow().transaction.skipped == Some(SkippedPrepare::LockLost)
    }

    /// The session is to hold this advisory lock. Unless it does, it is asked for with the next
    /// statement; call it outside of a remote transaction or before its PREPARE is sent. A user's
    /// commands may have released it (`pg_advisory_unlock_all()`): then it is taken again.
    pub fn lock_session(&self, lock: SessionLock) {
        self.inner.borrow_mut().session.lock.want(lock, !self.is_tainted());
    }

    /// Sends the session's lock now, if it is still to be sent.
    pub fn send_lock(&self) {
        let sent = {
            let inner = &mut *self.inner.borrow_mut();
            self.queue_preamble(inner)
        };
        if sent.is_none() {
            let _ = self.lose();
        }
        self.flush();
    }

    /// Whether the server has confirmed the session's advisory lock.
    pub fn holds(&self, lock: SessionLock) -> bool {
        self.inner.borrow().session.lock.held() == Some(lock)
    }

    /// A user's own commands run in the session. What functions and blocks leave there (settings,
    /// prepared statements, locks) cannot be seen, and a later transaction must not find it.
    pub fn taint(&self) {
        self.tainted.set(true);
    }

    /// Whether the session must end with its transaction.
    pub fn is_tainted(&self) -> bool {
        self.tainted.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCK: SessionLock = SessionLock { key: 1, incarnation: 2 };
    const OTHER: SessionLock = SessionLock { key: 1, incarnation: 3 };

    #[test]
    fn a_lock_is_wanted_asked_for_and_held() {
        let mut lock = Lock::default();
        assert_eq!(lock.ask(), None);
        lock.want(LOCK, true);
        assert_eq!((lock.ask(), lock.ask(), lock.held()), (Some(LOCK), None, None));
        lock.answer(true);
        assert_eq!(lock.held(), Some(LOCK));
        lock.want(LOCK, true);
        assert_eq!(lock.held(), Some(LOCK));
    }

    #[test]
    fn one_that_may_have_been_released_is_asked_for_again() {
        let mut lock = Lock::Held(LOCK);
        lock.want(LOCK, false);
        assert_eq!((lock.held(), lock.ask()), (None, Some(LOCK)));
    }

    #[test]
    fn one_that_was_refused_or_lost_is_asked_for_again() {
        let mut lock = Lock::Asked(LOCK);
        lock.answer(false);
        assert_eq!(lock.ask(), None);
        lock.want(LOCK, true);
        assert_eq!(lock.ask(), Some(LOCK));
        lock.answer(true);
        lock.lose();
        lock.want(LOCK, true);
        assert_eq!(lock.ask(), Some(LOCK));
    }

    #[test]
    fn an_answer_does_not_stand_for_a_lock_that_was_wanted_since() {
        let mut lock = Lock::Asked(LOCK);
        lock.want(OTHER, true);
        lock.answer(true);
        assert_eq!((lock.held(), lock.ask()), (None, Some(OTHER)));
    }

    #[test]
    fn a_new_session_takes_the_lock_of_the_old_one() {
        for lock in [Lock::Wanted(LOCK), Lock::Asked(LOCK), Lock::Held(LOCK)] {
            assert_eq!(lock.of_new_session(), Lock::Wanted(LOCK));
        }
        assert_eq!(Lock::Absent.of_new_session(), Lock::Absent);
    }
}
