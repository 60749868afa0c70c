//! Cursors and prepared statements of a session: their names, and when they are opened and closed.
//!
//! `DECLARE` travels with the first `FETCH`, so that a cursor without a FETCH costs nothing. A
//! cursor shows the rows that were there when it was opened, so whatever may change them has it
//! opened first. It ends with the savepoint in which it was opened, so it is opened before the next
//! savepoint.

use std::cell::Cell;
use std::ffi::{CStr, CString};
use std::rc::{Rc, Weak};

use super::state::State;
use super::wire::Wire;
use super::{Asked, Connection, failures};
use crate::pg::error::{Result, c_string};
use crate::pg::globals::is_in_statement;
use crate::protocol::pipeline::{Control, Ticket};
use crate::protocol::plan::Access;

/// `DECLARE` of a cursor for a query.
pub fn declare_command(cursor: u32, query: &[u8]) -> CString {
    c_string([format!("DECLARE c{cursor} CURSOR FOR\n").as_bytes(), query].concat())
}

/// `FETCH` of so many rows from a cursor.
pub fn fetch_command(cursor: u32, rows: usize) -> CString {
    c_string(format!("FETCH {rows} FROM c{cursor}"))
}

/// A cursor that is to be opened.
#[derive(Debug)]
pub struct Opening {
    /// Its number.
    pub cursor: u32,
    /// Its `DECLARE`.
    pub declare: Rc<CStr>,
    /// Its parameters.
    pub params: Vec<Option<CString>>,
    /// The query that its failure is reported for.
    pub query: Rc<CStr>,
    /// The nesting level of its owner.
    pub level: Rc<Cell<u32>>,
    /// What the query may do.
    pub access: Access,
    /// The ticket of `DECLARE`, once that was sent.
    pub sent: Cell<Option<Ticket>>,
}

impl Opening {
    /// `DECLARE`, once it was sent.
    pub fn asked(&self) -> Option<Asked> {
        self.sent.get().map(|ticket| Asked::about(ticket, &self.declare, &self.query))
    }
}

impl Connection {
    /// A cursor will be opened, unless its owner drops the [`Opening`] before.
    pub fn announce(&self, opening: &Rc<Opening>) {
        self.inner.borrow_mut().transaction.openings.push(Rc::downgrade(opening));
    }

    /// Queues `DECLARE` of those cursors that have been announced and belong to savepoints that are
    /// open.
    pub(super) fn queue_openings(conn: &Wire, inner: &mut State) -> Option<()> {
        for opening in
            std::mem::take(&mut inner.transaction.openings).iter().filter_map(Weak::upgrade)
        {
            Self::queue_opening(conn, inner, &opening)?;
            if opening.sent.get().is_none() {
                inner.transaction.openings.push(Rc::downgrade(&opening));
            }
        }
        Some(())
    }

    /// Queues `DECLARE`, unless that was done, or its savepoint is not open yet.
    pub(super) fn queue_opening(
        conn: &Wire,
        inner: &mut State,
        opening: &Rc<Opening>,
    ) -> Option<()> {
        let level = opening.level.get();
        if opening.sent.get().is_some() || level > inner.transaction.depth {
            return Some(());
        }
        let params: Vec<Option<&CStr>> = opening.params.iter().map(Option::as_deref).collect();
        conn.send_query(&opening.declare, &params).then_some(())?;
        opening.sent.set(Some(inner.fifo.statement(level, Some(&opening.query))));
        inner.transaction.opened.push(Rc::clone(opening));
        inner.transaction.cursors.insert(opening.cursor, inner.transaction.depth);
        inner.transaction.modifies |= opening.access == Access::Modifies;
        Some(())
    }

    /// Queues `CLOSE` of a cursor that is to be opened again.
    pub(super) fn queue_closing(
        conn: &Wire,
        inner: &mut State,
        opening: &Rc<Opening>,
    ) -> Option<()> {
        let Some(ticket) = opening.sent.take() else { return Some(()) };
        inner.fifo.abandon(ticket);
        if inner.transaction.cursors.remove(&opening.cursor).is_some() {
            conn.send_query(&c_string(format!("CLOSE c{}", opening.cursor)), &[]).then_some(())?;
            inner.fifo.control(Control::Cleanup);
        }
        Some(())
    }

    /// A number for a new cursor; numbers begin anew with each transaction.
    pub fn new_cursor(&self) -> u32 {
        let mut inner = self.inner.borrow_mut();
        inner.transaction.last_cursor += 1;
        inner.transaction.last_cursor
    }

    /// A cursor was declared in the segment just sent.
    pub fn cursor_opened(&self, cursor: u32) {
        let mut inner = self.inner.borrow_mut();
        let depth = inner.transaction.depth;
        inner.transaction.cursors.insert(cursor, depth);
    }

    /// Closes a cursor before the next statement, unless the end of its savepoint has done so.
    ///
    /// # Errors
    /// 08006: the connection is known to be lost. At COMMIT, where no portal is active, there is no
    /// error: the commit tells what becomes of the transaction.
    pub fn close_cursor(&self, cursor: u32) -> Result<()> {
        let was_open = self.inner.borrow_mut().transaction.cursors.remove(&cursor).is_some();
        if !was_open {
            return Ok(());
        }
        let command = c_string(format!("CLOSE c{cursor}"));
        if is_in_statement() && self.is_doomed() && self.conn.is_bad() {
            return Err(failures::no_connection(&command));
        }
        self.inner.borrow_mut().transaction.before_next.push((command, Control::Cleanup));
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
        let command = c_string([b"DEALLOCATE ", name.to_bytes()].concat());
        self.inner.borrow_mut().session.after_transaction.push(command);
    }
}
