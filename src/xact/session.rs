//! What execution uses of a transaction: attach to a participant, and run statements on it.

use std::cell::Cell;
use std::ffi::CStr;
use std::rc::Rc;

use pgrx::pg_sys::{self, Oid};

use crate::libpq::PgResult;
use crate::log::workers;
use crate::pg::error::{Error, Result, SqlState};
use crate::protocol::gid::Identity;
use crate::protocol::pipeline::Ticket;
use crate::remote::SessionLock;
use crate::remote::cache::{self, Cached};
use crate::remote::connection::{Connection, Isolation, Message};
use crate::remote::options::Mapping;
use crate::xact::{callbacks, participants};

/// A participant's session as one scan or modification sees it. It remembers the nesting level it was
/// attached at: a cursor that is first fetched inside a later savepoint must not be declared inside it.
pub struct Session {
    connection: Rc<Cached>,
    /// It becomes the parent's level when its subtransaction commits.
    level: Rc<Cell<u32>>,
}

/// Attaches to the participant that `userid`'s mapping on `serverid` names, connecting if need be. Nothing
/// is sent yet: START TRANSACTION and savepoints travel with the first statement.
///
/// # Errors
/// The library is not preloaded, there is no mapping, the server cannot be reached.
pub fn attach(userid: Oid, serverid: Oid) -> Result<Session> {
    crate::require_preload()?;
    if participants::is_ending() {
        return Err(Error::new(
            SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
            "cannot use a foreign table while the transaction is ending",
        ));
    }
    let mapping = Mapping::read(userid, serverid);
    let connection = cache::connection(&mapping, participants::uses, None)?;
    if !participants::uses(&connection) {
        if participants::is_empty() {
            callbacks::register();
        }
        if let Some(identity) = workers::identity_if_ready() {
            connection.lock_session(session_lock(identity));
        }
        participants::join(&connection, serverid, userid);
    }
    // SAFETY: reads the transaction state.
    let level = unsafe { pg_sys::GetCurrentTransactionNestLevel() } as u32;
    let level = Rc::new(Cell::new(level));
    connection.track(&level);
    Ok(Session { connection, level })
}

/// The advisory lock that this server's sessions of an identity hold on participants.
pub fn session_lock(identity: Identity) -> SessionLock {
    SessionLock { key: identity.session_key(), incarnation: workers::incarnation() }
}

impl Session {
    /// The connection, for cursor numbers, statement names and the like.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// The same, for those who keep it longer than they may refer to the session.
    pub fn shared_connection(&self) -> Rc<Cached> {
        Rc::clone(&self.connection)
    }

    /// Sends statements as one segment without waiting; their tickets are consecutive.
    ///
    /// # Errors
    /// The connection is lost or doomed, or the transaction is ending.
    pub fn submit(&self, messages: &[Message]) -> Result<Ticket> {
        self.submit_for(None, messages)
    }

    /// The same for statements that others may be sent behind before they are answered: what fails because
    /// of them is reported as the failure of `sql`.
    ///
    /// # Errors
    /// Those of [`Session::submit`].
    pub fn submit_for(&self, sql: Option<&Rc<CStr>>, messages: &[Message]) -> Result<Ticket> {
        // SAFETY: a plain global of the transaction.
        let serializable = unsafe { pg_sys::XactIsoLevel } == pg_sys::XACT_SERIALIZABLE as i32;
        let isolation =
            if serializable { Isolation::Serializable } else { Isolation::RepeatableRead };
        self.connection.submit(isolation, self.level.get(), sql, messages)
    }

    /// Waits for the answer to a statement; `sql` becomes CONTEXT of its failure.
    ///
    /// # Errors
    /// The remote's error, the lost connection, a cancel.
    pub fn answer(&self, ticket: Ticket, sql: &CStr) -> Result<Rc<PgResult>> {
        self.connection.answer(ticket, Some(sql))
    }

    /// The answer to a statement if it has been read; otherwise as [`Session::answer`].
    ///
    /// # Errors
    /// The remote's error, the lost connection.
    pub fn answer_if_read(&self, ticket: Ticket, sql: &CStr) -> Result<Option<Rc<PgResult>>> {
        self.connection.answer_if_read(ticket, Some(sql))
    }

    /// Runs one statement: sends it and waits for its answer.
    ///
    /// # Errors
    /// Those of [`Session::submit`] and [`Session::answer`].
    pub fn run(&self, sql: &CStr, params: &[Option<&CStr>]) -> Result<Rc<PgResult>> {
        let ticket = self.submit(&[Message::Query(sql, params)])?;
        self.answer(ticket, sql)
    }
}
