//! Handing commands to libpq: the one place that all of them pass, where
//! `pg_fdw_xacts.log_remote_commands` logs them.
//!
//! A line of the log is written only when the connection's interior is not borrowed any more,
//! because a client that does not read may end the process from there, and its abort comes to the
//! connection again. So the commands that were queued are kept until [`Wire::log`]. They may
//! have reached the server by then.

use std::cell::{Cell, RefCell};
use std::ffi::CStr;

use pgrx::PgLogLevel;

use super::setup;
use crate::guc;
use crate::libpq::Conn;
use crate::pg::error::{Error, SqlState};

/// A connection of libpq to a foreign server.
pub(super) struct Wire {
    conn: Conn,
    /// How many statements have been parsed without a name: the server keeps the last of them.
    parsed: Cell<u64>,
    /// The usual commands are prepared there.
    has_usual: Cell<bool>,
    /// The gid of the current transaction, once its PREPARE TRANSACTION has been sent.
    gid: RefCell<Option<Vec<u8>>>,
    /// Commands that are queued and have still to be logged.
    unlogged: RefCell<Vec<Vec<u8>>>,
}

impl std::ops::Deref for Wire {
    type Target = Conn;
    fn deref(&self) -> &Conn {
        &self.conn
    }
}

impl Wire {
    pub fn new(conn: Conn) -> Self {
        Self {
            conn,
            parsed: Cell::new(0),
            has_usual: Cell::new(false),
            gid: RefCell::default(),
            unlogged: RefCell::default(),
        }
    }

    /// Exchanges what two are connected to. No text of either may be held.
    pub fn swap(&self, other: &Self) {
        self.conn.swap(&other.conn);
        self.parsed.swap(&other.parsed);
        self.has_usual.swap(&other.has_usual);
    }

    /// Changes whenever the server forgets its last statement without a name.
    pub fn parsed(&self) -> u64 {
        self.parsed.get()
    }

    /// From here on the usual commands are executed as they were prepared.
    pub fn has_usual_commands(&self) {
        self.has_usual.set(true);
    }

    fn prepared_name(&self, sql: &CStr) -> Option<&'static CStr> {
        if self.has_usual.get() { setup::prepared_name(sql) } else { None }
    }

    /// Queues a statement with text parameters, parsed anew unless it is one of the usual commands.
    pub fn send_query(&self, sql: &CStr, params: &[Option<&CStr>]) -> bool {
        self.note(&[sql]);
        if let Some(name) = self.prepared_name(sql) {
            return self.conn.send_prepared(name, params);
        }
        self.parsed.set(self.parsed.get() + 1);
        self.conn.send_query(sql, params)
    }

    /// Sends a command by the simple protocol, outside of pipeline mode.
    pub fn send_simple(&self, sql: &CStr) -> bool {
        self.note(&[sql]);
        self.parsed.set(self.parsed.get() + 1);
        self.conn.send_simple(sql)
    }

    /// Queues the preparation of a statement under a name.
    pub fn send_prepare(&self, name: &CStr, sql: &CStr) -> bool {
        self.note(&[c"PREPARE ", name, c" AS ", sql]);
        self.conn.send_prepare(name, sql)
    }

    /// Queues the execution of a prepared statement.
    pub fn send_prepared(&self, name: &CStr, params: &[Option<&CStr>]) -> bool {
        self.note(&[c"EXECUTE ", name]);
        self.conn.send_prepared(name, params)
    }

    /// Queues the last statement without a name, whose text this is, once more.
    pub fn send_again(&self, sql: &CStr, params: &[Option<&CStr>]) -> bool {
        self.note(&[sql]);
        self.conn.send_prepared(self.prepared_name(sql).unwrap_or(c""), params)
    }

    /// From now on the log names this transaction by the gid in its PREPARE TRANSACTION.
    pub fn set_gid(&self, prepare: &CStr) {
        let gid = prepare.to_bytes().split(|byte| *byte == b'\'').nth(1);
        self.gid.replace(gid.map(<[u8]>::to_vec));
    }

    /// The transaction has ended.
    pub fn clear_gid(&self) {
        self.gid.take();
    }

    fn note(&self, command: &[&CStr]) {
        if guc::log_remote_commands() {
            let text: Vec<u8> = command.iter().flat_map(|part| part.to_bytes()).copied().collect();
            self.unlogged.borrow_mut().push(text);
        }
    }

    /// Logs what has been queued since the last call.
    pub fn log(&self, server: &CStr) {
        if self.unlogged.borrow().is_empty() {
            return;
        }
        let commands = self.unlogged.take();
        let gid = self.gid.borrow().clone();
        for command in commands {
            log_event(server, gid.as_deref(), b"remote command", &[b": ", &command[..]].concat());
        }
    }
}

/// Logs that a connection has been made, and to which server process.
pub(super) fn log_opening(server: &CStr, conn: &Conn) {
    if guc::log_remote_commands() {
        let pid = format!(": process {}", conn.backend_pid());
        log_event(server, None, b"connected", pid.as_bytes());
    }
}

/// Logs that the server is asked to cancel what it is doing.
pub(super) fn log_cancel(server: &CStr, wire: &Wire) {
    if guc::log_remote_commands() {
        let gid = wire.gid.borrow().clone();
        log_event(server, gid.as_deref(), b"cancel request", b"");
    }
}

fn log_event(server: &CStr, gid: Option<&[u8]>, what: &[u8], text: &[u8]) {
    let gid = gid.map_or_else(Vec::new, |gid| [b", gid ", gid].concat());
    let message = [what, b" on server \"", server.to_bytes(), b"\"", &gid, text].concat();
    // Only memory that has run out can keep it from being written, and nothing may depend on the
    // log.
    let _ = Error::new(SqlState(0), message).log(PgLogLevel::LOG);
}
