//! Sending: a statement travels in one segment with what must come before it: session set-up (in a
//! segment of its own, or ROLLBACK would undo it), START TRANSACTION, the CLOSE and RELEASE
//! commands that have waited for it, and savepoints up to its nesting level. Behind it travels the
//! question for the transaction's xid, until it has one; behind many FETCH commands in a row it is
//! asked once.

use std::ffi::CStr;
use std::rc::Rc;

use super::modes::{Modes, ReadOnly, SET_READ_ONLY};
use super::setup::probe_name;
use super::state::{FetchRun, Parsed, State};
use super::wire::Wire;
use super::{Connection, Opening};
use crate::libpq::{Flush, PgResult};
use crate::pg::error::{Error, Result, SqlState, c_string};
use crate::protocol::order::Opened;
use crate::protocol::pipeline::{Control, Fifo, Ticket};
use crate::protocol::plan::{Access, Xid};
use crate::remote::report;

/// A statement to send.
#[derive(Clone, Copy)]
pub enum Message<'a> {
    /// Parsed anew, with text parameters.
    Query(&'a CStr, &'a [Option<&'a CStr>]),
    /// Prepares a statement under a name.
    Prepare(&'a CStr, &'a CStr),
    /// Executes a prepared statement.
    Execute(&'a CStr, &'a [Option<&'a CStr>]),
    /// A further `FETCH` from a cursor, after the answer to the one before. Of many in a row the
    /// server parses one, and most are not followed by the question whether the transaction has
    /// written.
    FetchMore(&'a CStr),
}

/// How a remote transaction begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Isolation {
    /// Each statement there sees what is committed when it begins. Only where the local transaction
    /// is READ COMMITTED, too.
    ReadCommitted,
    /// The local transaction is REPEATABLE READ, or its statements are to have one snapshot there.
    RepeatableRead,
    /// The local transaction is SERIALIZABLE.
    Serializable,
}

/// How statements are sent.
#[derive(Clone, Copy, Debug)]
pub struct Manner<'a> {
    /// That of the transaction, if they begin it.
    pub isolation: Isolation,
    /// The modes of the local transaction.
    pub modes: Modes,
    /// If they begin it: it is to tell its snapshot, for a unit of readers that began then.
    pub opened: Option<Opened>,
    /// The nesting level of their owner, who takes their answers.
    pub owner: u32,
    /// The nesting level at which they run, to which a failure takes the transaction back.
    pub level: u32,
    /// What they may do.
    pub access: Access,
    /// The cursor that they are about, which is opened before if it has not been.
    pub opening: Option<&'a Rc<Opening>>,
    /// For statements whose answers may be taken after others have been sent: what fails because of
    /// them is reported as a failure of this query.
    pub query: Option<&'a Rc<CStr>>,
}

/// With more commands that wait for the end of the transaction, it would keep too much of the
/// server's memory.
const MOST_AFTER_TRANSACTION: usize = 8;

/// How many `FETCH` commands in a row are each followed by the question for the xid. After that,
/// one question at the end costs less, although it has to be waited for.
const FETCHES_WITH_QUESTION: u32 = 64;

impl Connection {
    /// Sends statements as one segment, without waiting. The tickets of the messages are
    /// consecutive; the first is returned. `sql` is named as CONTEXT if the connection is lost.
    ///
    /// # Errors
    /// The connection is lost or doomed, or the local transaction is ending; a cancel while a COPY
    /// is waited for.
    pub fn submit(&self, manner: Manner, messages: &[Message], sql: &CStr) -> Result<Ticket> {
        let ticket = self.queue(manner, messages, sql)?;
        self.inner.borrow_mut().note_sent(manner, messages);
        self.flush();
        Ok(ticket)
    }

    /// Sends the only statement of a transaction, and what ends that behind it, as a segment of its
    /// own: the server tells the outcome of the statement, and the xid, before it ends the
    /// transaction. The ticket of the end is `None` if the connection is lost.
    ///
    /// # Errors
    /// Those of [`Connection::submit`]: then the end was not sent.
    pub fn submit_with_end(
        &self,
        manner: Manner,
        statement: Message,
        sql: &CStr,
        end: &CStr,
    ) -> Result<(Ticket, Option<Ticket>)> {
        let ticket = self.queue(manner, &[statement], sql)?;
        // If the connection ends, the transaction may have been committed: it is not begun anew.
        self.inner.borrow_mut().transaction.unanswered = None;
        Ok((ticket, self.send_alone(end)))
    }

    fn queue(&self, manner: Manner, messages: &[Message], sql: &CStr) -> Result<Ticket> {
        self.pass_copy()?;
        self.check_open(sql)?;
        if manner.access == Access::Modifies && self.is_beginning() {
            self.pump();
        }
        self.queue_segment(manner, messages).ok_or_else(|| report::with_sql(self.lose(), Some(sql)))
    }

    /// Whether statements may be sent.
    pub(super) fn check_open(&self, sql: &CStr) -> Result<()> {
        self.judge_owed()?;
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
        Ok(())
    }

    /// Whether START TRANSACTION was sent and has not been answered.
    fn is_beginning(&self) -> bool {
        let inner = self.inner.borrow();
        inner.transaction.depth > 0 && inner.transaction.confirmed == 0
    }

    /// Queues a segment: the statements, what must come before them, and the question for the xid.
    pub(super) fn queue_segment(&self, manner: Manner, messages: &[Message]) -> Option<Ticket> {
        let conn = &self.conn;
        let is_beginning = self.is_beginning();
        let modifies = manner.access == Access::Modifies || self.is_tainted();
        let inner = &mut *self.inner.borrow_mut();
        self.queue_preamble(inner)?;
        Self::queue_begin(conn, inner, manner, is_beginning && modifies)?;
        Self::queue_before_next(conn, inner)?;
        if inner.session.after_transaction.len() > MOST_AFTER_TRANSACTION {
            Self::queue_after_transaction(conn, inner)?;
        }
        Self::queue_savepoints(conn, inner, manner)?;
        // Where each cursor has its own snapshot, those of a query are as near as they can be.
        if modifies || inner.transaction.isolation == Some(Isolation::ReadCommitted) {
            Self::queue_openings(conn, inner)?;
        }
        Self::queue_own_opening(conn, inner, manner)?;
        let first = self.queue_messages(inner, manner, messages)?;
        inner.transaction.modifies |= manner.access == Access::Modifies;
        inner.transaction.snapshot.is_used();
        match messages {
            // A query whose cursor has only been opened has done nothing yet.
            [] if manner.opening.is_some() && manner.access == Access::Reads => {}
            [Message::FetchMore(..)] if inner.transaction.has_fetched(FETCHES_WITH_QUESTION) => {
                inner.transaction.written.omit_question();
            }
            _ => Self::queue_probe(conn, inner)?,
        }
        conn.send_sync().then_some(())?;
        inner.fifo.sync();
        Some(first)
    }

    /// What has waited for the next statement.
    pub(super) fn queue_before_next(conn: &Wire, inner: &mut State) -> Option<()> {
        for (command, control) in std::mem::take(&mut inner.transaction.before_next) {
            conn.send_query(&command, &[]).then_some(())?;
            inner.fifo.control(control);
        }
        Some(())
    }

    /// START TRANSACTION. `is_checked`: it has been sent and not answered, and what follows must
    /// not run if it fails.
    pub(super) fn queue_begin(
        conn: &Wire,
        inner: &mut State,
        manner: Manner,
        is_checked: bool,
    ) -> Option<()> {
        if inner.transaction.depth == 0 {
            // In a transaction where each statement has its own it would be nobody's.
            let opened = manner.opened.filter(|_| manner.isolation != Isolation::ReadCommitted);
            if opened.is_some() {
                Self::prepare_snapshot(conn, inner)?;
            }
            inner.keep_unanswered();
            let start = match manner.isolation {
                Isolation::ReadCommitted => c"START TRANSACTION ISOLATION LEVEL READ COMMITTED",
                Isolation::RepeatableRead => c"START TRANSACTION ISOLATION LEVEL REPEATABLE READ",
                Isolation::Serializable => c"START TRANSACTION ISOLATION LEVEL SERIALIZABLE",
            };
            conn.send_query(&manner.modes.added_to(start), &[]).then_some(())?;
            inner.fifo.control(Control::Begin);
            inner.transaction.depth = 1;
            inner.transaction.isolation = Some(manner.isolation);
            inner.transaction.read_only = ReadOnly::at_start(manner.modes);
            if let Some(opened) = opened {
                Self::queue_snapshot(conn, inner, opened)?;
            }
        } else if is_checked {
            // Outside a transaction SAVEPOINT fails, and the server skips the rest of the segment.
            for command in [c"SAVEPOINT px_begun", c"RELEASE SAVEPOINT px_begun"] {
                conn.send_query(command, &[]).then_some(())?;
                inner.fifo.control(Control::Cleanup);
            }
        }
        Some(())
    }

    /// The savepoints up to the level of the statements.
    pub(super) fn queue_savepoints(conn: &Wire, inner: &mut State, manner: Manner) -> Option<()> {
        Self::queue_read_only(conn, inner, manner.modes)?;
        while inner.transaction.depth < manner.level {
            Self::queue_openings(conn, inner)?;
            Self::queue_own_opening(conn, inner, manner)?;
            let next = inner.transaction.depth + 1;
            conn.send_query(&c_string(format!("SAVEPOINT s{next}")), &[]).then_some(())?;
            inner.fifo.control(Control::Savepoint(next));
            inner.transaction.depth = next;
            Self::queue_read_only(conn, inner, manner.modes)?;
        }
        Some(())
    }

    /// READ ONLY at the depth of the transaction, if it has to be set there.
    fn queue_read_only(conn: &Wire, inner: &mut State, modes: Modes) -> Option<()> {
        let transaction = &mut inner.transaction;
        if transaction.read_only.is_to_be_set(modes, transaction.depth) {
            conn.send_query(SET_READ_ONLY, &[]).then_some(())?;
            inner.fifo.control(Control::Cleanup);
        }
        Some(())
    }

    fn queue_own_opening(conn: &Wire, inner: &mut State, manner: Manner) -> Option<()> {
        manner.opening.map_or(Some(()), |opening| Self::queue_opening(conn, inner, opening))
    }

    /// Returns the ticket of the first, 0 if there is none.
    fn queue_messages(
        &self,
        inner: &mut State,
        manner: Manner,
        messages: &[Message],
    ) -> Option<Ticket> {
        let conn = &self.conn;
        let mut first = None;
        for message in messages {
            let queued = match *message {
                Message::Query(sql, params) => self.queue_query(inner, sql, params),
                Message::Prepare(name, sql) => conn.send_prepare(name, sql),
                Message::Execute(name, params) => conn.send_prepared(name, params),
                Message::FetchMore(fetch) => self.queue_fetch(inner, fetch),
            };
            queued.then_some(())?;
            let ticket = inner.fifo.statement(manner.owner, manner.query);
            first.get_or_insert(ticket);
        }
        Some(first.unwrap_or(0))
    }

    /// The question for the transaction's xid, unless that is known.
    pub(super) fn queue_probe(conn: &Wire, inner: &mut State) -> Option<()> {
        let transaction = &mut inner.transaction;
        if transaction.written.needs_question() {
            conn.send_prepared(probe_name(transaction.modifies), &[]).then_some(())?;
            transaction.written.ask();
            inner.fifo.control(Control::XidProbe);
        }
        Some(())
    }

    /// The server still has the statement that it parsed last, unless it was given a name. If this
    /// is the same, it is not parsed again: because it was executed in this transaction, its tables
    /// are locked, and its parameters have still the types that were found then. Without parameters
    /// it may be a user's own, which may have changed what it reads.
    fn queue_query(&self, inner: &mut State, sql: &CStr, params: &[Option<&CStr>]) -> bool {
        let (conn, last) = (&self.conn, &mut inner.transaction.parsed);
        let is_last = |last: &Parsed| last.number == conn.parsed() && *last.sql == *sql;
        if !params.is_empty() && last.as_ref().is_some_and(is_last) {
            return conn.send_again(sql, params);
        }
        let queued = conn.send_query(sql, params);
        *last = (!params.is_empty()).then(|| Parsed { sql: sql.to_owned(), number: conn.parsed() });
        queued
    }

    /// The same for a FETCH. How many come in a row is counted; what they run may change a table.
    fn queue_fetch(&self, inner: &mut State, fetch: &CStr) -> bool {
        let conn = &self.conn;
        inner.transaction.parsed = None;
        let run = inner.transaction.fetch_run.take().filter(|run| run.parsed == conn.parsed());
        let (queued, fetch, length) = match run {
            Some(run) if *run.fetch == *fetch => {
                (conn.send_again(fetch, &[]), run.fetch, run.length + 1)
            }
            run => {
                let length = run.map_or(1, |run| run.length + 1);
                (conn.send_query(fetch, &[]), fetch.to_owned(), length)
            }
        };
        inner.transaction.fetch_run = Some(FetchRun { fetch, parsed: conn.parsed(), length });
        queued
    }

    /// Asks for the transaction's xid, without waiting, if nobody has since the last statement or
    /// the question has failed. If the connection is lost, whoever waits for the answer finds out.
    pub fn ask_if_written(&self) {
        let (is_unknown, level) = {
            let inner = self.inner.borrow();
            let transaction = &inner.transaction;
            let is_unknown = transaction.written.state() == Xid::Unknown;
            (transaction.depth > 0 && is_unknown, transaction.depth)
        };
        if !is_unknown || self.is_doomed() || self.is_copying() {
            return;
        }
        // The transaction has begun, so its isolation level is not sent; nor is READ ONLY, which
        // the next statement brings.
        let isolation = Isolation::RepeatableRead;
        let access = Access::Reads;
        let (opening, query, opened) = (None, None, None);
        let modes = Modes::default();
        let manner =
            Manner { isolation, modes, opened, owner: level, level, access, opening, query };
        match self.queue_segment(manner, &[]) {
            Some(_) => self.flush(),
            None => drop(self.lose()),
        }
    }

    /// Sends one command outside of any statement's segment, as the protocol needs: COMMIT, COMMIT
    /// PREPARED, ROLLBACK PREPARED, ROLLBACK, and the resolver's questions. It is sent on a doomed
    /// or sealed connection too. `None` if the connection is lost.
    pub fn send_alone(&self, command: &CStr) -> Option<Ticket> {
        self.send_commands(|_, _| Some(()), command, |fifo| fifo.statement(0, None))
    }

    /// Sends what ends a transaction, as [`Self::send_alone`] does, for an answer that the
    /// connection takes itself. `false` if the connection is lost.
    pub fn send_ending(&self, command: &CStr, control: Control) -> bool {
        self.send_commands(|_, _| Some(()), command, |fifo| fifo.control(control)).is_some()
    }

    /// Sends one command, with what must succeed `before` it, as a segment of its own; `expect`
    /// notes whose the answer is. `None` if the connection is lost.
    pub(super) fn send_commands<T>(
        &self,
        before: impl FnOnce(&Wire, &mut State) -> Option<()>,
        command: &CStr,
        expect: impl FnOnce(&mut Fifo<PgResult>) -> T,
    ) -> Option<T> {
        let sent = {
            let inner = &mut *self.inner.borrow_mut();
            (|| {
                self.queue_preamble(inner)?;
                before(&self.conn, inner)?;
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
        self.conn.log(&self.server_name);
        if self.conn.flush() == Flush::Failed {
            // The server's last message may still be there: `pump` finds out.
            let _ = self.conn.consume_input();
        }
    }
}
