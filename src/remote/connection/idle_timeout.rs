//! `pg_fdw_xacts.idle_connection_timeout`: the server ends a session that has been idle for so
//! long, outside of any transaction. The connection is then found to be gone when it is used next,
//! and another takes its place, as after any other end.
//!
//! It is the server's `idle_session_timeout`, which 14 has brought; before that nothing happens.
//!
//! A session that has prepared is outside of any transaction, too, and waits for the others, for
//! the local commit and its synchronous standbys. Until it is told the outcome, it has no timeout.

use std::ffi::CString;

use super::Connection;
use super::state::State;
use super::wire::Wire;
use crate::guc;
use crate::pg::error::c_string;
use crate::protocol::pipeline::Control;

/// The command that has the server wait so many milliseconds; 0: as long as it does by itself.
fn command(milliseconds: i32) -> CString {
    match milliseconds {
        0 => c"RESET idle_session_timeout".to_owned(),
        _ => c_string(format!("SET idle_session_timeout = {milliseconds}")),
    }
}

impl Connection {
    /// Has the server know the setting, with the next transaction, if it has changed.
    pub fn set_idle_timeout(&self) {
        let inner = &mut *self.inner.borrow_mut();
        if inner.transaction.depth == 0 {
            inner.set_idle_timeout(guc::idle_connection_timeout());
        }
    }

    /// Queues what keeps the server from ending the session between `PREPARE TRANSACTION` and the
    /// next command. If that transaction is rolled back, so is this.
    pub(super) fn queue_no_idle_timeout(conn: &Wire, inner: &mut State) -> Option<()> {
        if inner.session.idle_timeout > 0 {
            conn.send_query(&command(0), &[]).then_some(())?;
            inner.fifo.control(Control::Cleanup);
            inner.session.idle_timeout_is_off = true;
        }
        Some(())
    }

    /// Queues what undoes [`Self::queue_no_idle_timeout`], in a segment of its own.
    pub(super) fn queue_idle_timeout_again(conn: &Wire, inner: &mut State) -> Option<()> {
        if std::mem::take(&mut inner.session.idle_timeout_is_off) {
            conn.send_query(&command(inner.session.idle_timeout), &[]).then_some(())?;
            inner.fifo.control(Control::Cleanup);
            conn.send_sync().then_some(())?;
            inner.fifo.sync();
        }
        Some(())
    }
}

impl State {
    /// The same for this many milliseconds.
    pub(super) fn set_idle_timeout(&mut self, milliseconds: i32) {
        if self.session.idle_timeout != milliseconds {
            self.session.idle_timeout = milliseconds;
            self.session.after_transaction.push(command(milliseconds));
        }
    }
}
