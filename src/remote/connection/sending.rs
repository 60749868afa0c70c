//! Sending: a statement travels in one segment with what must come before it: session set-up (in a segment of its
//! own, or ROLLBACK would undo it), START TRANSACTION, savepoints up to the statement's nesting level, and postponed
//! CLOSE and RELEASE commands. Behind it travels the question whether the transaction has an xid, until it has one;
//! behind many FETCH commands in a row it is asked once.

use std::ffi::CStr;
use std::rc::Rc;

use super::Connection;
use crate::libpq::{Conn, Flush, PgResult};
use crate::pg::error::{Error, Result, SqlState, c_string};
use crate::protocol::pipeline::{Control, Fifo, Ticket};
use crate::remote::report;
use crate::remote::session_state::{FetchRun, PROBE, PROBE_NAME, SETUP, SessionLock, SessionState};

/// A statement to send.
#[derive(Clone, Copy)]
pub enum Message<'a> {
    /// Parsed anew, with text parameters.
    Query(&'a CStr, &'a [Option<&'a CStr>]),
    /// Prepares a statement under a name.
    Prepare(&'a CStr, &'a CStr),
    /// Executes a prepared statement.
    Execute(&'a CStr, &'a [Option<&'a CStr>]),
    /// A further `FETCH` from a cursor, after the one before it was answered. Of many in a row the server parses one, and
    /// most are not followed by the question whether the transaction has written.
    FetchMore(&'a CStr),
}

/// How a remote transaction begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Isolation {
    /// The local transaction is READ COMMITTED or REPEATABLE READ.
    RepeatableRead,
    /// The local transaction is SERIALIZABLE.
    Serializable,
}

/// So many chores wait for the end of the transaction. With more of them it would keep too much memory of the server's.
const MOST_CHORES: usize = 8;

/// How many `FETCH` commands in a row are followed by the question for the xid. Behind more of them the questions cost
/// more than the wait for the answer to one at the end, which is a small part of the waits before.
const FETCHES_WITH_QUESTION: u32 = 64;

impl Connection {
    /// Sends statements at a nesting level, as one segment, without waiting. The tickets of the
    /// messages are consecutive; the first is returned. `sql` becomes CONTEXT where the connection is lost.
    /// `query` is for statements that others may be sent behind before they are answered: what fails because
    /// of them is reported as its failure.
    ///
    /// # Errors
    /// The connection is lost or doomed, or the local transaction is ending.
    pub fn submit(
        &self,
        isolation: Isolation,
        level: u32,
        messages: &[Message],
        sql: Option<&CStr>,
        query: Option<&Rc<CStr>>,
    ) -> Result<Ticket> {
        if self.is_doomed() {
            return Err(self.refusal(sql));
        }
        if self.sealed.get() {
            return Err(Error::new(
                SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
                [
                    b"cannot run a statement on server \"",
                    self.server_name.to_bytes(),
                    b"\" while the transaction is ending",
                ]
                .concat(),
            ));
        }
        let sent = self.queue_segment(isolation, level, messages, query);
        match sent {
            Some(ticket) => {
                self.inner.borrow_mut().note_sent(isolation, level, messages, query, ticket);
                self.flush();
                Ok(ticket)
            }
            None => Err(report::with_sql(self.lose(), sql)),
        }
    }

    pub(super) fn queue_segment(
        &self,
        isolation: Isolation,
        level: u32,
        messages: &[Message],
        query: Option<&Rc<CStr>>,
    ) -> Option<Ticket> {
        let conn = &self.conn;
        let inner = &mut *self.inner.borrow_mut();
        self.queue_preamble(inner)?;
        if inner.depth == 0 {
            inner.keep_unanswered();
            let start = match isolation {
                Isolation::RepeatableRead => c"START TRANSACTION ISOLATION LEVEL REPEATABLE READ",
                Isolation::Serializable => c"START TRANSACTION ISOLATION LEVEL SERIALIZABLE",
            };
            conn.send_query(start, &[]).then_some(())?;
            inner.fifo.control(Control::Begin);
            inner.depth = 1;
        }
        for (command, control) in std::mem::take(&mut inner.postponed) {
            conn.send_query(&command, &[]).then_some(())?;
            inner.fifo.control(control);
        }
        if inner.chores.len() > MOST_CHORES {
            Self::queue_chores(conn, inner)?;
        }
        while inner.depth < level {
            let next = inner.depth + 1;
            conn.send_query(&c_string(format!("SAVEPOINT s{next}")), &[]).then_some(())?;
            inner.fifo.control(Control::Savepoint(next));
            inner.depth = next;
        }
        let mut first = None;
        for message in messages {
            let queued = match *message {
                Message::Query(sql, params) => conn.send_query(sql, params),
                Message::Prepare(name, sql) => conn.send_prepare(name, sql),
                Message::Execute(name, params) => conn.send_prepared(name, params),
                Message::FetchMore(fetch) => self.queue_fetch(inner, fetch),
            };
            queued.then_some(())?;
            let ticket = inner.fifo.statement(level, query);
            first.get_or_insert(ticket);
        }
        let asks = !matches!(messages, [Message::FetchMore(..)])
            || inner.fetch_run.as_ref().is_none_or(|run| run.length <= FETCHES_WITH_QUESTION);
        inner.unasked = inner.xid.is_none() && !asks;
        if inner.xid.is_none() && asks {
            conn.send_prepared(PROBE_NAME, &[]).then_some(())?;
            inner.fifo.control(Control::XidProbe);
        }
        conn.send_sync().then_some(())?;
        inner.fifo.sync();
        Some(first.unwrap_or(0))
    }

    /// The server still has the statement that it parsed last, unless it was given a name.
    fn queue_fetch(&self, inner: &mut SessionState, fetch: &CStr) -> bool {
        let conn = &self.conn;
        let run = inner.fetch_run.take().filter(|run| run.parsed == conn.parsed());
        let (queued, fetch, length) = match run {
            Some(run) if *run.fetch == *fetch => {
                (conn.send_prepared(c"", &[]), run.fetch, run.length + 1)
            }
            run => {
                let length = run.map_or(1, |run| run.length + 1);
                (conn.send_query(fetch, &[]), fetch.to_owned(), length)
            }
        };
        inner.fetch_run = Some(FetchRun { fetch, parsed: conn.parsed(), length });
        queued
    }

    /// Asks whether the transaction has written if nobody has since the last statement, without waiting. A connection
    /// that is lost is found to be by whoever waits for the answer.
    pub fn ask_if_written(&self) {
        let (is_unasked, depth) = {
            let inner = self.inner.borrow();
            (inner.unasked, inner.depth)
        };
        if !is_unasked || self.is_doomed() {
            return;
        }
        // The transaction has begun: its isolation level is not told again.
        match self.queue_segment(Isolation::RepeatableRead, depth, &[], None) {
            Some(_) => self.flush(),
            None => drop(self.lose()),
        }
    }

    /// Session set-up, the session's lock and chores, each in a segment of its own.
    pub(super) fn queue_preamble(&self, inner: &mut SessionState) -> Option<()> {
        let conn = &self.conn;
        if !inner.set_up {
            inner.set_up = true;
            conn.send_query(SETUP, &[]).then_some(())?;
            inner.fifo.control(Control::Setup);
            conn.send_prepare(PROBE_NAME, PROBE).then_some(())?;
            inner.fifo.control(Control::Setup);
            conn.send_sync().then_some(())?;
            inner.fifo.sync();
        }
        if inner.lock_to_send
            && let Some(SessionLock { key, incarnation }) = inner.asked_lock
        {
            inner.lock_to_send = false;
            let sql = format!(
                "SELECT pg_catalog.pg_try_advisory_lock_shared({key}::int4, {incarnation}::int4)"
            );
            conn.send_query(&c_string(sql), &[]).then_some(())?;
            inner.fifo.control(Control::SessionLock);
            conn.send_sync().then_some(())?;
            inner.fifo.sync();
        }
        if inner.depth == 0 && !inner.chores.is_empty() {
            Self::queue_chores(conn, inner)?;
            conn.send_sync().then_some(())?;
            inner.fifo.sync();
        }
        Some(())
    }

    fn queue_chores(conn: &Conn, inner: &mut SessionState) -> Option<()> {
        for command in std::mem::take(&mut inner.chores) {
            conn.send_query(&command, &[]).then_some(())?;
            inner.fifo.control(Control::Cleanup);
        }
        Some(())
    }

    /// Sends one command outside of any statement's segment, as the protocol needs: PREPARE
    /// TRANSACTION, COMMIT, COMMIT PREPARED, ROLLBACK PREPARED, ROLLBACK, and the resolver's questions.
    /// It does not look at dooms and seals. `None` if the connection is lost.
    pub fn send_alone(&self, command: &CStr) -> Option<Ticket> {
        self.send_segment(command, |fifo| fifo.statement(0, None))
    }

    /// Sends what ends a transaction, as [`Self::send_alone`] does, for an answer that the connection takes itself.
    /// `false` if the connection is lost.
    pub fn send_ending(&self, command: &CStr, control: Control) -> bool {
        self.send_segment(command, |fifo| fifo.control(control)).is_some()
    }

    /// Sends one command as a segment of its own; `expect` notes whose the answer is. `None` if the connection is lost.
    fn send_segment<T>(
        &self,
        command: &CStr,
        expect: impl FnOnce(&mut Fifo<PgResult>) -> T,
    ) -> Option<T> {
        let sent = {
            let inner = &mut *self.inner.borrow_mut();
            (|| {
                self.queue_preamble(inner)?;
                self.conn.send_query(command, &[]).then_some(())?;
                let expected = expect(&mut inner.fifo);
                self.conn.send_sync().then_some(())?;
                inner.fifo.sync();
                Some(expected)
            })()
        };
        if sent.is_none() {
            let _ = self.lose();
        }
        self.flush();
        sent
    }

    pub(super) fn flush(&self) {
        if self.conn.flush() == Flush::Failed {
            // What the server said before it went is still to be read: `pump` finds out.
            let _ = self.conn.consume_input();
        }
    }
}
