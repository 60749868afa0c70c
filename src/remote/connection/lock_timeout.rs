//! The session's `lock_timeout` on the participant: the one that the session here has, if it has
//! one. Otherwise what an application has set here would not hold for most of the locks that it
//! waits for.
//!
//! It travels with the next statement when it has changed, and then costs no wait; mostly that is
//! once per connection. Where none is set here, the participant's own setting counts.

use std::ffi::CString;

use super::Connection;
use crate::pg::error::c_string;
use crate::protocol::pipeline::Control;

/// What is known of the setting there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct LockTimeout {
    /// In milliseconds, 0: its own; `None` where a rollback may have changed it back.
    there: Option<i32>,
    /// It was changed in the current transaction.
    in_transaction: bool,
}

impl Default for LockTimeout {
    fn default() -> Self {
        Self { there: Some(0), in_transaction: false }
    }
}

fn command(milliseconds: i32) -> CString {
    match milliseconds {
        0 => c"RESET lock_timeout".to_owned(),
        _ => c_string(format!("SET lock_timeout = {milliseconds}")),
    }
}

impl LockTimeout {
    /// The command that makes it so, if it is not.
    fn change(&mut self, milliseconds: i32, in_transaction: bool) -> Option<CString> {
        if self.there == Some(milliseconds) {
            return None;
        }
        self.there = Some(milliseconds);
        self.in_transaction |= in_transaction;
        Some(command(milliseconds))
    }

    /// A savepoint is rolled back.
    pub(super) fn may_be_undone(&mut self) {
        if self.in_transaction {
            self.there = None;
        }
    }

    /// The transaction ends, one way or another.
    pub(super) fn end_transaction(&mut self) {
        self.may_be_undone();
        self.in_transaction = false;
    }

    /// The same for a session that takes this one's place, and the command for it.
    pub(super) fn of_new_session(self) -> (Self, Option<CString>) {
        let mut new = Self::default();
        let command = new.change(self.there.unwrap_or(0), false);
        (new, command)
    }
}

impl Connection {
    /// From the next statement on the session there waits for a lock for so many milliseconds; 0:
    /// as the server says.
    pub fn set_lock_timeout(&self, milliseconds: i32) {
        let inner = &mut *self.inner.borrow_mut();
        let has_begun = inner.transaction.depth > 0;
        if let Some(command) = inner.session.lock_timeout.change(milliseconds, has_begun) {
            if has_begun {
                inner.transaction.before_next.push((command, Control::Cleanup));
            } else {
                inner.session.after_transaction.push(command);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_sent_when_it_changes() {
        let mut timeout = LockTimeout::default();
        assert_eq!(timeout.change(0, false), None);
        assert_eq!(timeout.change(5000, false).as_deref(), Some(c"SET lock_timeout = 5000"));
        assert_eq!(timeout.change(5000, true), None);
        timeout.end_transaction();
        assert_eq!(timeout.change(5000, false), None);
        assert_eq!(timeout.change(0, false).as_deref(), Some(c"RESET lock_timeout"));
    }

    #[test]
    fn what_a_transaction_has_changed_is_sent_again_after_a_rollback() {
        let mut timeout = LockTimeout::default();
        assert!(timeout.change(5000, true).is_some());
        timeout.may_be_undone();
        assert!(timeout.change(5000, true).is_some());
        timeout.end_transaction();
        assert!(timeout.change(5000, false).is_some());
        timeout.may_be_undone();
        assert_eq!(timeout.change(5000, false), None);
    }

    #[test]
    fn a_new_session_gets_it_too() {
        let mut timeout = LockTimeout::default();
        assert_eq!(timeout.of_new_session(), (LockTimeout::default(), None));
        timeout.change(7, false);
        let (new, command) = timeout.of_new_session();
        assert_eq!((new, command.as_deref()), (timeout, Some(c"SET lock_timeout = 7")));
    }
}
