//! The advisory lock by which a session tells others on the participant that it lives, and the sessions of which nobody
//! knows whether they still have it.

use super::Connection;
use crate::protocol::session_lock::SessionLock;

impl Connection {
    /// Asks for the session's advisory lock, unless this very one has been asked for. It travels with the
    /// next statement; call it outside of a remote transaction or before its PREPARE is sent. A user's commands may have
    /// released it (`pg_advisory_unlock_all()`): then it is taken again.
    pub fn lock_session(&self, lock: SessionLock) {
        let mut inner = self.inner.borrow_mut();
        if inner.asked_lock == Some(lock) && !self.is_tainted() {
            return;
        }
        inner.asked_lock = Some(lock);
        inner.session_lock = None;
        inner.lock_to_send = true;
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
        self.inner.borrow().session_lock == Some(lock)
    }

    /// A user's own commands run in the session. What functions and blocks leave there (settings, prepared statements,
    /// locks) cannot be seen, and must not be met by a later transaction.
    pub fn taint(&self) {
        self.tainted.set(true);
    }

    /// Whether the session must end with its transaction.
    pub fn is_tainted(&self) -> bool {
        self.tainted.get()
    }
}
