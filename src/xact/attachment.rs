//! What executing a statement needs: to attach to a participant, and to run statements there.

use std::cell::Cell;
use std::ffi::CStr;
use std::rc::Rc;
use std::time::Instant;

use pgrx::pg_sys::{EState, Oid};

use crate::guc;
use crate::libpq::PgResult;
use crate::pg::error::{Error, Result, SqlState};
use crate::pg::globals::{deadlock_timeout, lock_timeout, nest_level};
use crate::protocol::pipeline::Ticket;
use crate::protocol::plan::{Access, Mode};
use crate::remote::cache::{self, Cached};
use crate::remote::connection::{Asked, Connection, Manner, Message, Modes, Opening, if_lost};
use crate::remote::credentials;
use crate::remote::options::Mapping;
use crate::shared::incarnation::session_lock;
use crate::shared::resolvers;
use crate::xact::cut::{self, Statement};
use crate::xact::unit::Unit;
use crate::xact::{callbacks, deliveries, endings, long_waits, participants, renewal};

mod behind;
mod copying;
mod openings;

pub(super) use behind::settle as settle_owed;
pub use behind::settle_all as settle_all_owed;
pub(super) use openings::open_all_of;

/// A participant's session as one scan or modification sees it. It remembers the nesting level at
/// which it was attached: a cursor that is first fetched inside a later savepoint must not be
/// declared inside that savepoint.
pub struct Attachment {
    connection: Rc<Cached>,
    /// The user whose mapping it was attached with; invalid if the transaction cannot have just
    /// begun there.
    userid: Oid,
    /// When its subtransaction commits, this becomes the parent's level.
    level: Rc<Cell<u32>>,
    /// Whether its statements may write.
    access: Access,
    /// What is read together with its statements.
    unit: Option<Rc<Unit>>,
    /// The last statement that was sent.
    sent: Cell<Ticket>,
    /// The last statement of the last segment that was waited for.
    waited_for: Cell<Ticket>,
    /// The number of segments that were waited for.
    waits: Cell<u64>,
}

/// Attaches to the participant that `userid`'s mapping on `serverid` names, and connects if there
/// is no connection. Nothing is sent yet: START TRANSACTION and savepoints travel with the first
/// statement.
///
/// # Errors
/// The library is not preloaded, there is no mapping, the server cannot be reached.
pub fn attach(userid: Oid, serverid: Oid) -> Result<Attachment> {
    crate::pg::preload::require()?;
    if participants::is_ending() {
        return Err(Error::new(
            SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
            "cannot use a foreign table while the transaction is ending",
        ));
    }
    let mapping = Mapping::read(userid, serverid)?;
    if !endings::is_empty() {
        endings::collect()?;
    }
    if participants::is_empty() {
        callbacks::register();
    }
    let connection = cache::connection(&mapping, None)?;
    if !connection.is_in_use() {
        if participants::has(serverid, userid) {
            return Err(Error::new(
                SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
                "a user mapping cannot be used in the transaction that has replaced it",
            )
            .hint("Use the server again in the next transaction."));
        }
        if !deliveries::is_empty() {
            deliveries::pass(&connection)?;
        }
        participants::join(&connection, serverid, userid);
        if let Some(identity) = resolvers::identity_if_ready() {
            connection.lock_session(session_lock(identity));
        }
    }
    let session = Attachment { userid, ..Attachment::of(&connection) };
    connection.check_usable(session.level.get())?;
    Ok(session)
}

/// Attaches as [`attach`] does, to write.
///
/// # Errors
/// Those of [`attach`], and 55000 if the write would need two phases that the resolver could not
/// complete.
pub fn attach_to_write(userid: Oid, serverid: Oid) -> Result<Attachment> {
    let session = attach(userid, serverid)?;
    let connection = &session.connection;
    if connection.is_session_only()
        && connection.can_prepare
        && guc::two_phase_commit() != Mode::Off
    {
        return Err(credentials::cannot_settle(&connection.server_name));
    }
    Ok(session.with(Access::Modifies))
}

impl Attachment {
    /// A participant's session at the current nesting level, for queries.
    pub fn of(connection: &Rc<Cached>) -> Self {
        let level = Rc::new(Cell::new(nest_level()));
        connection.track(&level);
        Self {
            connection: Rc::clone(connection),
            userid: Oid::INVALID,
            level,
            access: Access::Reads,
            unit: None,
            sent: Cell::new(0),
            waited_for: Cell::new(0),
            waits: Cell::new(0),
        }
    }

    /// The same session, for statements with this access.
    pub fn with(self, access: Access) -> Self {
        if access == Access::Modifies {
            self.connection.expect_modification();
        }
        Self { access, ..self }
    }

    /// The same session, for statements of a query. `is_read`: they read the server's tables, so
    /// that all that the query reads is read as of one time, if reads are consistent.
    pub fn of_query(self, estate: *const EState, is_read: bool) -> Self {
        if !renewal::follows_statements(&self.connection) && !cut::may_be_on() {
            return self;
        }
        let unit = Unit::of_query(estate);
        if is_read {
            unit.add(&self.connection, self.userid);
        }
        if self.access == Access::Modifies {
            unit.set_eager();
        }
        Self { unit: Some(unit), ..self }
    }

    /// The statements are a scan. `is_reopened`: it may be opened again while the query runs.
    pub fn is_scan(&self, is_reopened: impl FnOnce() -> bool) {
        if let Some(unit) = &self.unit {
            unit.add_scan(&self.connection, is_reopened);
        }
    }

    /// Changes when scans that have been asked for rows have to be asked again.
    pub fn unit_epoch(&self) -> u64 {
        self.unit.as_ref().map_or(0, |unit| unit.epoch())
    }

    /// Called when a scan's answer has come, before anybody sees its rows, or its failure: whether
    /// it has to be asked again, because the servers did not show the same transactions.
    ///
    /// # Errors
    /// Those of taking a snapshot of all of them.
    pub fn settle_unit(&self) -> Result<bool> {
        self.unit.as_ref().map_or(Ok(false), |unit| unit.settle())
    }

    /// The connection, for example for cursor numbers and statement names.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// The connection, for callers that keep it longer than the attachment.
    pub fn shared_connection(&self) -> Rc<Cached> {
        Rc::clone(&self.connection)
    }

    /// Sends one statement without waiting. `sql` is named as CONTEXT of its errors.
    ///
    /// # Errors
    /// The connection is lost or doomed, or the transaction is ending.
    pub fn submit(&self, message: Message, sql: &Rc<CStr>) -> Result<Asked> {
        let ticket = self.send(&[message], sql, sql, None)?;
        Ok(Asked::about(ticket, sql, sql))
    }

    /// Sends statements as one segment without waiting, each with what is named as CONTEXT of its
    /// errors.
    ///
    /// # Errors
    /// Those of [`Attachment::submit`].
    pub fn submit_all(&self, statements: &[(Message, &Rc<CStr>)]) -> Result<Vec<Asked>> {
        let Some((_, first)) = statements.first() else { return Ok(Vec::new()) };
        let messages: Vec<Message> = statements.iter().map(|(message, _)| *message).collect();
        let ticket = self.send(&messages, first, first, None)?;
        let tickets = (ticket..).zip(statements);
        Ok(tickets.map(|(ticket, (_, sql))| Asked::about(ticket, sql, sql)).collect())
    }

    /// Sends the first FETCH from a cursor, behind its DECLARE if that was not sent. Other
    /// statements may be sent before the answer is taken: what fails because of this one is
    /// reported as a failure of the cursor's query.
    ///
    /// # Errors
    /// Those of [`Attachment::submit`].
    pub fn fetch_first(&self, opening: &Rc<Opening>, fetch: &Rc<CStr>) -> Result<Asked> {
        // If the connection is found lost, a DECLARE that was sent before is named as if it had
        // gone with this FETCH.
        let command = if opening.sent.get().is_some() { &opening.declare } else { fetch };
        let message = Message::Query(fetch, &[]);
        let ticket = self.send(&[message], &opening.declare, &opening.query, Some(opening))?;
        Ok(Asked::about(ticket, command, &opening.query))
    }

    /// Sends a further FETCH from a cursor for `query`, as [`Attachment::fetch_first`] does.
    ///
    /// # Errors
    /// Those of [`Attachment::submit`].
    pub fn fetch_more(&self, fetch: &Rc<CStr>, query: &Rc<CStr>) -> Result<Asked> {
        let message = Message::FetchMore(fetch);
        let ticket = self.send(&[message], if_lost(fetch, query), query, None)?;
        Ok(Asked::about(ticket, fetch, query))
    }

    /// Sends messages as one segment and returns the ticket of the first. `if_lost` is named as
    /// CONTEXT if the connection is lost, `query` by those that fail because these messages have
    /// failed.
    fn send(
        &self,
        messages: &[Message],
        if_lost: &CStr,
        query: &Rc<CStr>,
        opening: Option<&Rc<Opening>>,
    ) -> Result<Ticket> {
        let manner = self.manner(query, opening)?;
        let submit = || self.connection.submit(manner, messages, if_lost);
        let first = match submit() {
            Err(_) if self.begin_anew()? => submit()?,
            sent => sent?,
        };
        if !messages.is_empty() {
            self.sent.set(first + messages.len() as Ticket - 1);
        }
        Ok(first)
    }

    /// How statements are sent now, after what has to come before them.
    pub(super) fn manner<'a>(
        &self,
        query: &'a Rc<CStr>,
        opening: Option<&'a Rc<Opening>>,
    ) -> Result<Manner<'a>> {
        let (connection, userid, unit) = (&self.connection, self.userid, self.unit.as_ref());
        // What is owed to an outer level has to be known before a savepoint follows it: the
        // savepoint could not be gone back to.
        let level = self.level.get().max(nest_level());
        if connection.owes_from(0) {
            connection.pump();
            if connection.needs_savepoint(level) {
                behind::settle(connection, userid)?;
            }
        }
        let scan = opening.filter(|_| self.access == Access::Reads);
        let opened = cut::before_statement(&Statement { connection, userid, unit, scan })?;
        let (isolation, modes) = (renewal::isolation(connection, unit), Modes::current());
        // A cursor may be fetched inside a later savepoint than its own: then a failure is rolled
        // back to that one.
        let (owner, access) = (self.level.get(), self.access);
        self.connection.set_lock_timeout(lock_timeout());
        self.connection.set_idle_timeout();
        let query = Some(query);
        Ok(Manner { isolation, modes, opened, owner, level, access, opening, query })
    }

    /// Whether it is a session on this connection.
    pub(super) fn uses(&self, connection: &Rc<Cached>) -> bool {
        Rc::ptr_eq(&self.connection, connection)
    }

    /// A statement's answer if it has been read.
    ///
    /// # Errors
    /// The remote's error, the lost connection, a cancel.
    pub fn poll(&self, asked: &Asked) -> Result<Option<Rc<PgResult>>> {
        let polled = match self.connection.poll(asked) {
            Err(_) if self.begin_anew()? => Ok(None),
            polled => polled,
        }?;
        if polled.is_some() {
            cut::after_answer(&self.connection)?;
        }
        Ok(polled)
    }

    /// Waits for a statement's answer.
    ///
    /// # Errors
    /// Those of [`Attachment::poll`].
    pub fn wait(&self, asked: &Asked) -> Result<Rc<PgResult>> {
        if self.connection.is_due(asked.ticket()) {
            self.note_wait(asked);
        }
        let begin = Instant::now();
        let soon = begin + deadlock_timeout();
        if let Some(result) = self.wait_since(asked, Some(soon), begin)? {
            return Ok(result);
        }
        long_waits::act()?;
        loop {
            if let Some(result) = self.wait_since(asked, None, begin)? {
                return Ok(result);
            }
        }
    }

    /// Waits until the server has done with a statement; the result may be its failure.
    ///
    /// # Errors
    /// Of those of [`Attachment::poll`] what has ended the wait and not the statement, as a cancel
    /// does.
    pub fn outcome(&self, asked: &Asked) -> Result<Result<Rc<PgResult>>> {
        match self.wait(asked) {
            Err(error) if self.connection.is_due(asked.ticket()) => Err(error),
            answer => Ok(answer),
        }
    }

    fn wait_since(
        &self,
        asked: &Asked,
        deadline: Option<Instant>,
        begin: Instant,
    ) -> Result<Option<Rc<PgResult>>> {
        let answered = match self.connection.wait_since(asked, deadline, begin) {
            Err(_) if self.begin_anew()? => self.connection.wait_since(asked, deadline, begin),
            answered => answered,
        }?;
        if answered.is_some() {
            cut::after_answer(&self.connection)?;
        }
        Ok(answered)
    }

    /// If the connection has ended and the transaction has only just begun on it, begins it anew on
    /// another; tells whether it has.
    fn begin_anew(&self) -> Result<bool> {
        if self.userid == Oid::INVALID || !self.connection.may_begin_anew() {
            return Ok(false);
        }
        cache::begin_anew(&self.connection, self.userid)
    }

    /// A statement's answer is waited for, here or together with other connections. The answers to
    /// everything in its segment come with it.
    pub fn note_wait(&self, asked: &Asked) {
        if asked.ticket() > self.waited_for.get() {
            self.waited_for.set(self.sent.get());
            self.waits.set(self.waits.get() + 1);
        }
    }

    /// The number of round trips to the participant that were waited for.
    pub fn waits(&self) -> u64 {
        self.waits.get() + self.unit.as_ref().map_or(0, |unit| unit.waits())
    }

    /// How often snapshots were taken until they showed the same transactions.
    pub fn snapshot_rounds(&self) -> u64 {
        self.unit.as_ref().map_or(0, |unit| unit.rounds())
    }

    /// Runs one statement: sends it and waits for its answer.
    ///
    /// # Errors
    /// Those of [`Attachment::submit`] and [`Attachment::wait`].
    pub fn run(&self, sql: impl Into<Rc<CStr>>, params: &[Option<&CStr>]) -> Result<Rc<PgResult>> {
        let sql = sql.into();
        self.wait(&self.submit(Message::Query(&sql, params), &sql)?)
    }
}
