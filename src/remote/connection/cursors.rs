//! Cursors and prepared statements of a session: their names, and when they are closed.

use std::ffi::{CStr, CString};

use pgrx::pg_sys;

use super::{Connection, failures};
use crate::pg::error::{Result, c_string};
use crate::protocol::pipeline::Control;

/// `DECLARE` of a cursor for a query.
pub fn declare_command(cursor: u32, query: &[u8]) -> CString {
    c_string([format!("DECLARE c{cursor} CURSOR FOR\n").as_bytes(), query].concat())
}

/// `FETCH` of so many rows from a cursor.
pub fn fetch_command(cursor: u32, rows: usize) -> CString {
    c_string(format!("FETCH {rows} FROM c{cursor}"))
}

impl Connection {
    /// A number for a new cursor; numbers begin anew with each transaction.
    pub fn new_cursor(&self) -> u32 {
        let mut inner = self.inner.borrow_mut();
        inner.last_cursor += 1;
        inner.last_cursor
    }

    /// A cursor was declared in the segment just sent.
    pub fn cursor_opened(&self, cursor: u32) {
        let mut inner = self.inner.borrow_mut();
        let depth = inner.depth;
        inner.cursors.insert(cursor, depth);
    }

    /// Closes a cursor before the next statement, unless the end of its savepoint has done so.
    ///
    /// # Errors
    /// 08006: the connection is known to be lost. Not at COMMIT, where no portal is active: there the commit says
    /// what becomes of the transaction.
    pub fn close_cursor(&self, cursor: u32) -> Result<()> {
        let was_open = self.inner.borrow_mut().cursors.remove(&cursor).is_some();
        if !was_open {
            return Ok(());
        }
        let command = c_string(format!("CLOSE c{cursor}"));
        // SAFETY: a plain global.
        let in_statement = unsafe { !pg_sys::ActivePortal.is_null() };
        if in_statement && self.is_doomed() && self.conn.is_bad() {
            return Err(failures::no_connection(&command));
        }
        self.inner.borrow_mut().postponed.push((command, Control::Cleanup));
        // So that COMMIT need not wait long for the answer.
        self.ask_if_written();
        Ok(())
    }

    /// A name for a new prepared statement, unique on this connection.
    pub fn new_statement_name(&self) -> CString {
        let mut inner = self.inner.borrow_mut();
        inner.last_statement += 1;
        c_string(format!("px_{}", inner.last_statement))
    }

    /// Deallocates a prepared statement after this transaction.
    pub fn deallocate(&self, name: &CStr) {
        self.inner.borrow_mut().chores.push(c_string([b"DEALLOCATE ", name.to_bytes()].concat()));
    }
}
