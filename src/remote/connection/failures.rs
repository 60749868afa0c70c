//! How a broken or unusable connection is reported, in postgres_fdw's words.
//!
//! * The statement that finds it broken: 08006 with all that libpq heard last;
//! * any statement after that: "no connection to the server";
//! * after a savepoint that could not be rolled back there: "cannot be used due to abort cleanup
//!   failure". A cursor from before it may still be used, and gets the errors above;
//! * where the server has refused the session's set-up: what it says of that.

use std::ffi::{CStr, CString};

use pgrx::PgLogLevel;

use super::Connection;
use super::state::{Broken, State};
use crate::libpq::PgResult;
use crate::pg::error::{Error, Result, SqlState, c_string};
use crate::protocol::pipeline::Control;
use crate::remote::wait::Interrupts;
use crate::remote::{pooler, report};

impl Connection {
    /// Whether nothing more can be done on this connection in this transaction.
    pub fn is_doomed(&self) -> bool {
        self.broken.get().is_some()
    }

    /// Marks the remote transaction as one that must not commit.
    pub fn doom(&self) {
        if self.broken.get().is_none() {
            self.broken.set(Some(Broken::CleanupFailed));
        }
    }

    /// Refuses a new user, at this nesting level, if the connection cannot go on.
    ///
    /// # Errors
    /// 08000 after a clean-up that failed, 08006 where even a savepoint could not be made.
    pub fn check_usable(&self, level: u32) -> Result<()> {
        let depth = self.inner.borrow().transaction.depth;
        match self.broken.get() {
            None => Ok(()),
            Some(Broken::Lost) if depth == 0 || depth >= level => Ok(()),
            Some(Broken::Lost) => {
                Err(no_connection(&c_string(format!("SAVEPOINT s{}", depth + 1))))
            }
            Some(Broken::LostOpening(_) | Broken::CleanupFailed | Broken::OutOfStep) => {
                Err(self.doom_error())
            }
        }
    }

    /// Whether the server itself has said that it ends the session, instead of doing what it was
    /// asked next. What a pooler says of a connection that it has lost is no such thing.
    pub fn was_ended_by_server(&self) -> bool {
        let failure = self.inner.borrow().fifo.failure();
        failure.filter(|failure| failure.is_fatal()).is_some_and(|failure| {
            let state = SqlState::parse(failure.error_field(b'C'));
            state.class() != SqlState::CONNECTION_FAILURE.class()
        })
    }

    /// The error of using a doomed connection.
    pub fn doom_error(&self) -> Error {
        match self.broken.get() {
            Some(Broken::Lost) => report::lost(&self.message()),
            Some(Broken::OutOfStep) => report::unexpected_answer(&self.server_name),
            _ => {
                if let Some(refusal) = &self.inner.borrow().session.refusal {
                    return refused(&self.server_name, refusal);
                }
                let error = Error::new(
                    SqlState::CONNECTION_EXCEPTION,
                    [
                        b"connection to server \"",
                        self.server_name.to_bytes(),
                        b"\" cannot be used due to abort cleanup failure",
                    ]
                    .concat(),
                );
                // For the client it is what postgres_fdw says.
                match &*self.end.borrow() {
                    Some(end) => error.detail_log(
                        [b"The connection was lost: ", end.to_bytes().trim_ascii_end()].concat(),
                    ),
                    None => error,
                }
            }
        }
    }

    /// The error for a connection that was found doomed while it was waited for, with the server's
    /// last message.
    ///
    /// # Errors
    /// A cancel.
    pub fn reason(&self) -> Result<Error> {
        if self.broken.get() == Some(Broken::Lost) {
            self.read_to_end(Interrupts::Raise)?;
            let failure = self.inner.borrow().fifo.failure().filter(|f| f.is_fatal());
            if let Some(failure) = failure {
                return Ok(self.error_of(&failure, None));
            }
        }
        Ok(self.doom_error())
    }

    /// Keeps libpq's reason for the end, because whatever is tried afterwards has another.
    pub(super) fn note_message(&self) {
        if self.conn.is_bad() {
            let mut end = self.end.borrow_mut();
            end.get_or_insert_with(|| self.conn.error_message().to_owned());
        }
    }

    /// Why the connection is lost, in libpq's words.
    pub(super) fn message(&self) -> CString {
        self.end.borrow().clone().unwrap_or_else(|| self.conn.error_message().to_owned())
    }

    /// Warns that `command`, which would have ended a transaction or savepoint, finds the
    /// connection lost.
    ///
    /// # Errors
    /// Only out of memory and the like.
    pub fn warn_if_lost(&self, command: &CStr) -> Result<()> {
        if self.broken.get() == Some(Broken::Lost) && self.conn.is_bad() {
            return self.warn(no_connection(command));
        }
        Ok(())
    }

    /// Warns that `command`, which was to end a transaction or savepoint, has failed.
    ///
    /// # Errors
    /// Only out of memory and the like.
    pub fn warn_of(&self, failure: &PgResult, command: &CStr) -> Result<()> {
        if failure.is_fatal() {
            self.read_to_end(Interrupts::Ignore)?;
        }
        self.warn(self.error_of(failure, Some(command)))
    }

    /// Warns of an error in a clean-up, whose text, the server's or libpq's, does not name the
    /// server.
    ///
    /// # Errors
    /// Only out of memory and the like.
    pub(super) fn warn(&self, error: Error) -> Result<()> {
        let error =
            error.context([b"abort on server \"", self.server_name.to_bytes(), b"\""].concat());
        error.log(PgLogLevel::WARNING)
    }

    /// The command that found the connection broken, if not the statement.
    pub(super) fn lost_command(&self) -> Option<CString> {
        match self.broken.get() {
            Some(Broken::LostOpening(level)) => Some(c_string(format!("SAVEPOINT s{level}"))),
            _ => None,
        }
    }

    /// The error of sending `sql` on a doomed connection.
    pub(super) fn refusal(&self, sql: &CStr) -> Error {
        if self.conn.is_bad() { no_connection(sql) } else { self.doom_error() }
    }

    pub(super) fn lose(&self) -> Error {
        self.broken.set(Some(Broken::Lost));
        report::lost(&self.message())
    }

    /// The connection has ended, or is about to. Nobody waits for the answer to a ROLLBACK TO: if
    /// it was still to come, the clean-up has failed.
    pub(super) fn note_end(&self, inner: &State) {
        self.note_message();
        if self.broken.get().is_none() {
            // If a savepoint finds out, the statement's error says it all, and no warning follows.
            let broken = match inner.fifo.awaited_savepoint() {
                _ if inner.fifo.awaits(Control::UndoSavepoint) => Broken::CleanupFailed,
                Some(level) => Broken::LostOpening(level),
                None => Broken::Lost,
            };
            self.broken.set(Some(broken));
        }
    }

    /// The error that a failed answer stands for. After a FATAL one nothing else that comes is an
    /// answer.
    pub fn error_of(&self, failure: &PgResult, sql: Option<&CStr>) -> Error {
        if failure.is_fatal() {
            return report::with_sql(self.last_words(failure), sql);
        }
        let error = report::remote_error(failure, self.conn.error_message(), sql);
        let standby = self.fingerprint().is_some_and(|f| f.in_recovery);
        if !standby || error.sqlstate() != SqlState::READ_ONLY_SQL_TRANSACTION {
            return error;
        }
        error.hint(
            [
                b"Server \"",
                self.server_name.to_bytes(),
                b"\" is a standby, which only reads; point its options at the primary.",
            ]
            .concat(),
        )
    }

    /// The server's last message and how the connection ended, as libpq reports both outside of a
    /// pipeline.
    fn last_words(&self, failure: &PgResult) -> Error {
        let (said, end) = (failure.error_message().to_bytes(), self.message().into_bytes());
        let text = if end.starts_with(said) { end } else { [said, &end].concat() };
        report::lost(&c_string(text))
    }
}

/// The error of a session whose set-up has failed there.
fn refused(server: &CStr, failure: &PgResult) -> Error {
    // Its statements are there already.
    const DUPLICATE_PREPARED_STATEMENT: &CStr = c"42P05";
    let state = failure.error_field(b'C');
    if state == Some(DUPLICATE_PREPARED_STATEMENT) {
        return pooler::not_reset(server);
    }
    let error = Error::new(
        SqlState::parse(state),
        [b"could not set up a session on server \"", server.to_bytes(), b"\""].concat(),
    );
    match failure.error_field(b'M') {
        Some(message) => error.detail(message.to_bytes()),
        None => error,
    }
}

const NO_CONNECTION: &CStr = c"no connection to the server";

pub(super) fn no_connection(sql: &CStr) -> Error {
    report::with_sql(report::lost(NO_CONNECTION), Some(sql))
}
