//! `PREPARE TRANSACTION`, and what goes with it to the server.

use std::ffi::CStr;

use super::Connection;
use super::setup::CONSTRAINTS;
use crate::protocol::pipeline::{Control, Ticket};

impl Connection {
    /// Sends `PREPARE TRANSACTION`, which is executed only if the session still holds its advisory
    /// lock. Deferred constraints are checked before that, because their triggers might release it.
    /// `is_settled_here`: the next command is `COMMIT PREPARED` or `ROLLBACK PREPARED`, so the
    /// server must not end the session before that comes. It is sent on a doomed or sealed
    /// connection too. `None` if the connection is lost.
    pub fn send_prepare(&self, prepare: &CStr, is_settled_here: bool) -> Option<Ticket> {
        let check = self.inner.borrow().session.lock.held()?.check_name();
        self.conn.set_gid(prepare);
        self.send_commands(
            |conn, inner| {
                conn.send_prepared(CONSTRAINTS.0, &[]).then_some(())?;
                inner.fifo.control(Control::Constraints);
                if is_settled_here {
                    Self::queue_no_idle_timeout(conn, inner)?;
                }
                conn.send_prepared(&check, &[]).then_some(())?;
                inner.fifo.control(Control::LockCheck);
                Some(())
            },
            prepare,
            |fifo| fifo.statement(0, None),
        )
    }
}
