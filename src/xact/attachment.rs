//! What executing a statement needs: to attach to a participant, and to run statements there.

use std::cell::Cell;
use std::ffi::CStr;
use std::rc::Rc;
use std::time::Instant;

use pgrx::pg_sys::Oid;

use crate::guc;
use crate::libpq::PgResult;
use crate::pg::backend_local::BackendLocal;
use crate::pg::error::{Error, Result, SqlState};
use crate::pg::globals::{deadlock_timeout, is_serializable, nest_level};
use crate::protocol::gid::Identity;
use crate::protocol::pipeline::Ticket;
use crate::protocol::plan::{Access, Mode};
use crate::protocol::session_lock::SessionLock;
use crate::remote::cache::{self, Cached};
use crate::remote::connection::{Connection, Isolation, Manner, Message, Opening};
use crate::remote::credentials;
use crate::remote::options::Mapping;
use crate::shared::workers;
use crate::xact::{callbacks, deliveries, endings, participants};

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
        if let Some(identity) = workers::identity_if_ready() {
            connection.lock_session(session_lock(identity));
        }
    }
    let session = Attachment { userid, ..Attachment::of(&connection) };
    connection.check_usable(session.level.get())?;
    Ok(session)
}

/// Called when an answer has not come within `deadlock_timeout`.
pub type LongWait = fn() -> Result<()>;

static LONG_WAIT: BackendLocal<Cell<Option<LongWait>>> = BackendLocal::new(Cell::new(None));

/// Registers what to do when an answer takes longer than `deadlock_timeout`.
pub fn on_long_wait(what: LongWait) {
    LONG_WAIT.get().set(Some(what));
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

/// The advisory lock that the sessions of an identity hold on participants since this server's
/// start.
pub fn session_lock(identity: Identity) -> SessionLock {
    SessionLock { key: identity.session_key(), incarnation: workers::incarnation() }
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
            sent: Cell::new(0),
            waited_for: Cell::new(0),
            waits: Cell::new(0),
        }
    }

    /// The same session, for statements with this access.
    pub fn with(self, access: Access) -> Self {
        Self { access, ..self }
    }

    /// The connection, for example for cursor numbers and statement names.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// The connection, for callers that keep it longer than the attachment.
    pub fn shared_connection(&self) -> Rc<Cached> {
        Rc::clone(&self.connection)
    }

    /// Sends statements as one segment without waiting; their tickets are consecutive.
    ///
    /// # Errors
    /// The connection is lost or doomed, or the transaction is ending.
    pub fn submit(&self, messages: &[Message]) -> Result<Ticket> {
        let sql = match messages.first() {
            Some(Message::Query(sql, _) | Message::Prepare(_, sql) | Message::FetchMore(sql)) => {
                Some(*sql)
            }
            Some(Message::Execute(..)) | None => None,
        };
        self.submit_for(messages, sql)
    }

    /// Sends statements as [`Attachment::submit`] does. If the connection is lost, `sql` becomes
    /// the CONTEXT of the error and not the first statement.
    ///
    /// # Errors
    /// Those of [`Attachment::submit`].
    pub fn submit_for(&self, messages: &[Message], sql: Option<&CStr>) -> Result<Ticket> {
        self.send(messages, sql, None, None)
    }

    /// Sends statements as [`Attachment::submit_for`] does, whose answers will be asked for later.
    /// Others may be sent behind them meanwhile: if those fail because of these, that is reported
    /// as a failure of `query`.
    ///
    /// # Errors
    /// Those of [`Attachment::submit`].
    pub fn submit_ahead(
        &self,
        messages: &[Message],
        sql: &CStr,
        query: &Rc<CStr>,
    ) -> Result<Ticket> {
        self.send(messages, Some(sql), Some(query), None)
    }

    /// A cursor for `query` that this session will open.
    pub fn opening(
        &self,
        cursor: u32,
        declare: &Rc<CStr>,
        params: &[Option<&CStr>],
        query: &Rc<CStr>,
    ) -> Opening {
        Opening {
            cursor,
            declare: Rc::clone(declare),
            params: params.iter().map(|param| param.map(CStr::to_owned)).collect(),
            query: Rc::clone(query),
            level: Rc::clone(&self.level),
            access: self.access,
            sent: Cell::new(None),
        }
    }

    /// Sends statements about a cursor as [`Attachment::submit_ahead`] does, behind its DECLARE if
    /// that was not sent yet.
    ///
    /// # Errors
    /// Those of [`Attachment::submit`].
    pub fn submit_behind(
        &self,
        opening: &Rc<Opening>,
        messages: &[Message],
        sql: &CStr,
    ) -> Result<Ticket> {
        self.send(messages, Some(sql), Some(&opening.query), Some(opening))
    }

    fn send(
        &self,
        messages: &[Message],
        sql: Option<&CStr>,
        query: Option<&Rc<CStr>>,
        opening: Option<&Rc<Opening>>,
    ) -> Result<Ticket> {
        let serializable = is_serializable();
        let isolation =
            if serializable { Isolation::Serializable } else { Isolation::RepeatableRead };
        // A cursor may be fetched inside a later savepoint than its own: then a failure is rolled
        // back to that one.
        let level = self.level.get().max(nest_level());
        let (owner, access) = (self.level.get(), self.access);
        let manner = Manner { isolation, owner, level, access, opening, query };
        let submit = || self.connection.submit(manner, messages, sql);
        let first = match submit() {
            Err(_) if self.begin_anew()? => submit()?,
            sent => sent?,
        };
        if !messages.is_empty() {
            self.sent.set(first + messages.len() as Ticket - 1);
        }
        Ok(first)
    }

    /// Waits for the answer to a statement; if it fails, `sql` becomes the error's CONTEXT.
    ///
    /// # Errors
    /// The remote's error, the lost connection, a cancel.
    pub fn answer(&self, ticket: Ticket, sql: &CStr) -> Result<Rc<PgResult>> {
        self.answer_to(ticket, sql, sql)
    }

    /// Waits for the answer to `sent`, a command about a cursor for `sql`; if it fails, `sql`
    /// becomes the error's CONTEXT.
    ///
    /// # Errors
    /// Those of [`Attachment::answer`].
    pub fn answer_to(&self, ticket: Ticket, sent: &CStr, sql: &CStr) -> Result<Rc<PgResult>> {
        if self.connection.is_due(ticket) {
            self.note_wait(ticket);
        }
        let (sent, sql) = (Some(sent), Some(sql));
        let soon = Instant::now() + deadlock_timeout();
        if let Some(result) = self.answer_by(ticket, sent, sql, Some(soon))? {
            return Ok(result);
        }
        if let Some(act) = LONG_WAIT.get().get() {
            act()?;
        }
        loop {
            if let Some(result) = self.answer_by(ticket, sent, sql, None)? {
                return Ok(result);
            }
        }
    }

    fn answer_by(
        &self,
        ticket: Ticket,
        sent: Option<&CStr>,
        sql: Option<&CStr>,
        deadline: Option<Instant>,
    ) -> Result<Option<Rc<PgResult>>> {
        match self.connection.answer_by(ticket, sent, sql, deadline) {
            Err(_) if self.begin_anew()? => self.connection.answer_by(ticket, sent, sql, deadline),
            answered => answered,
        }
    }

    /// If the connection has ended and the transaction has only just begun on it, begins it anew on
    /// another; tells whether it has.
    fn begin_anew(&self) -> Result<bool> {
        if self.userid == Oid::INVALID || !self.connection.may_begin_anew() {
            return Ok(false);
        }
        cache::begin_anew(&self.connection, self.userid)
    }

    /// Counts that a statement's answer is waited for, here or together with other connections. The
    /// answers to what travelled with it come with it.
    pub fn note_wait(&self, ticket: Ticket) {
        if ticket > self.waited_for.get() {
            self.waited_for.set(self.sent.get());
            self.waits.set(self.waits.get() + 1);
        }
    }

    /// The number of round trips to the participant that were waited for.
    pub fn waits(&self) -> u64 {
        self.waits.get()
    }

    /// The answer as [`Attachment::answer_to`] gives it, if it has been read.
    ///
    /// # Errors
    /// Those of [`Attachment::answer`].
    pub fn answer_if_read(
        &self,
        ticket: Ticket,
        sent: &CStr,
        sql: &CStr,
    ) -> Result<Option<Rc<PgResult>>> {
        match self.connection.answer_if_read(ticket, Some(sent), Some(sql)) {
            Err(_) if self.begin_anew()? => Ok(None),
            answered => answered,
        }
    }

    /// Runs one statement: sends it and waits for its answer.
    ///
    /// # Errors
    /// Those of [`Attachment::submit`] and [`Attachment::answer`].
    pub fn run(&self, sql: &CStr, params: &[Option<&CStr>]) -> Result<Rc<PgResult>> {
        let ticket = self.submit(&[Message::Query(sql, params)])?;
        self.answer(ticket, sql)
    }
}
