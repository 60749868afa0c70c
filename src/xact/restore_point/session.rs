//! A session of its own on a foreign server: restore points are made outside of any transaction of
//! the user's.

use std::ffi::CString;
use std::time::Instant;

use pgrx::pg_sys::Oid;

use super::STEP;
use crate::pg::error::{Error, Result, SqlState, c_string};
use crate::pg::globals::is_interrupted;
use crate::pg::text;
use crate::remote::connect::{Established, connect};
use crate::remote::connection::Asked;
use crate::remote::options::{Mapping, Server};
use crate::remote::wait::Interrupts;

/// A session on a foreign server.
pub(super) struct Session {
    server: String,
    established: Established,
}

/// A question, as every session asks it first.
pub(super) fn question(sql: &str) -> CString {
    c_string(sql)
}

/// Makes a restore point, and tells what [`super::CREATE`] tells. It is on disk when the
/// transaction has ended: that has an xid, so its commit waits for all it has written, unless
/// `synchronous_commit` is off. Nor does it wait for standbys, which may be away.
pub(super) fn create(name: &str) -> CString {
    c_string(format!(
        "SELECT CAST(p AS pg_catalog.text), pg_catalog.pg_walfile_name(p), \
            pg_catalog.pg_current_xact_id() FROM pg_catalog.pg_create_restore_point('{name}') p"
    ))
}

impl Session {
    pub(super) fn open(userid: Oid, serverid: Oid) -> Result<Self> {
        let (server, mapping) = (Server::read(serverid), Mapping::read(userid, serverid)?);
        let established = connect(&server, &mapping, Some(Instant::now() + STEP))?;
        let session = Self { server: text::carried(&server.name), established };
        session.established.connection.send_alone(c"SET synchronous_commit = local");
        Ok(session)
    }

    /// The foreign server's name.
    pub(super) fn server(&self) -> &str {
        &self.server
    }

    /// Sends a query; `None` if the connection is lost.
    pub(super) fn ask(&self, sql: &CString) -> Option<Asked> {
        let ticket = self.established.connection.send_alone(sql)?;
        Some(Asked::of(ticket, sql.clone()))
    }

    /// The first columns of the only row that answers a query, once its transaction has ended.
    ///
    /// # Errors
    /// The server's own, a lost connection, no answer in time; a cancel, under
    /// [`Interrupts::Raise`].
    pub(super) fn answer<const COLUMNS: usize>(
        &self,
        asked: &Option<Asked>,
        deadline: Instant,
        interrupts: Interrupts,
    ) -> Result<[String; COLUMNS]> {
        let connection = &self.established.connection;
        let Some(asked) = asked else { return Err(connection.doom_error()) };
        let has_ended = connection.drain(deadline, interrupts)?;
        if !has_ended && !connection.is_doomed() {
            return Err(self.silent());
        }
        let result = connection.poll(asked)?.ok_or_else(|| self.silent())?;
        let value = |column| Some(result.value(0, column)?.to_string_lossy().into_owned());
        let row: Option<Vec<String>> = (0..COLUMNS).map(value).collect();
        row.and_then(|row| row.try_into().ok()).ok_or_else(|| self.silent())
    }

    fn silent(&self) -> Error {
        let why = if is_interrupted() { "before the cancel" } else { "in time" };
        Error::new(
            SqlState::CONNECTION_FAILURE,
            format!("server \"{}\" has not answered {why}", self.server),
        )
    }
}
