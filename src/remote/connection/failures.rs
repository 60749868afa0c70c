//! What a broken or spoilt connection is told as, in postgres_fdw's words.
//!
//! * The statement that finds it broken: 08006 with all that libpq heard last;
//! * any statement after that: "no connection to the server";
//! * after a savepoint that could not be rolled back there: "cannot be used due to abort cleanup failure". Cursors
//!   from before it may still ask, and are told the former.

use std::ffi::{CStr, CString};
use std::time::{Duration, Instant};

use pgrx::PgLogLevel;

use super::Connection;
use crate::libpq::PgResult;
use crate::pg::error::{Error, Result, SqlState, c_string};
use crate::pg::wait_event::WaitEvent;
use crate::protocol::pipeline::Control;
use crate::remote::report;
use crate::remote::session_state::{Doom, SessionState};
use crate::remote::wait::{Patience, Woke};

/// How long the end of the stream may take to follow the server's last word.
const PARTING: Duration = Duration::from_secs(5);

impl Connection {
    /// Whether nothing more can be done on this connection in this transaction.
    pub fn is_doomed(&self) -> bool {
        self.doomed.get().is_some()
    }

    /// Marks the remote transaction as one that must not commit.
    pub fn doom(&self) {
        if self.doomed.get().is_none() {
            self.doomed.set(Some(Doom::CleanupFailed));
        }
    }

    /// Refuses a new user of a connection that cannot go on, at its nesting level.
    ///
    /// # Errors
    /// 08000 after a clean-up that failed, 08006 where even a savepoint could not be made.
    pub fn check_usable(&self, level: u32) -> Result<()> {
        let depth = self.inner.borrow().depth;
        match self.doomed.get() {
            None => Ok(()),
            Some(Doom::Lost) if depth == 0 || depth >= level => Ok(()),
            Some(Doom::Lost) => Err(no_connection(&c_string(format!("SAVEPOINT s{}", depth + 1)))),
            Some(Doom::LostOpening(_) | Doom::CleanupFailed | Doom::OutOfStep) => {
                Err(self.doom_error())
            }
        }
    }

    /// The error of using a doomed connection.
    pub fn doom_error(&self) -> Error {
        match self.doomed.get() {
            Some(Doom::Lost) => report::lost(&self.message()),
            _ => {
                let error = Error::new(
                    SqlState::CONNECTION_EXCEPTION,
                    [
                        b"connection to server \"",
                        self.server_name.to_bytes(),
                        b"\" cannot be used due to abort cleanup failure",
                    ]
                    .concat(),
                );
                // The client is told what postgres_fdw tells.
                match &*self.end.borrow() {
                    Some(end) => error.detail_log(
                        [b"The connection was lost: ", end.to_bytes().trim_ascii_end()].concat(),
                    ),
                    None => error,
                }
            }
        }
    }

    /// The error of having found a connection doomed while it was waited for: with what the server said last.
    ///
    /// # Errors
    /// A cancel.
    pub fn reason(&self) -> Result<Error> {
        if self.doomed.get() == Some(Doom::Lost) {
            self.read_to_end(Patience::Interruptible)?;
            let failure = self.inner.borrow().fifo.failure().filter(|f| f.is_fatal());
            if let Some(failure) = failure {
                return Ok(self.error_of(&failure, None));
            }
        }
        Ok(self.doom_error())
    }

    /// Keeps libpq's reason for the end: whatever is tried after that has another.
    pub(super) fn note_message(&self) {
        if self.conn.is_bad() {
            let mut end = self.end.borrow_mut();
            end.get_or_insert_with(|| self.conn.error_message().to_owned());
        }
    }

    /// Why the connection is lost, as libpq told it.
    pub(super) fn message(&self) -> CString {
        self.end.borrow().clone().unwrap_or_else(|| self.conn.error_message().to_owned())
    }

    /// Warns that `command`, which would have ended a transaction or savepoint, finds the connection lost.
    ///
    /// # Errors
    /// Only out of memory and the like.
    pub fn warn_if_lost(&self, command: &CStr) -> Result<()> {
        if self.doomed.get() == Some(Doom::Lost) && self.conn.is_bad() {
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
            self.read_to_end(Patience::Stubborn)?;
        }
        self.warn(self.error_of(failure, Some(command)))
    }

    /// Warns of what a clean-up has met. The text is the server's or libpq's, and does not tell which server that is.
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
        match self.doomed.get() {
            Some(Doom::LostOpening(level)) => Some(c_string(format!("SAVEPOINT s{level}"))),
            _ => None,
        }
    }

    /// The error of sending `sql` on a doomed connection.
    pub(super) fn refusal(&self, sql: Option<&CStr>) -> Error {
        match sql {
            Some(sql) if self.conn.is_bad() => no_connection(sql),
            None if self.conn.is_bad() => report::lost(NO_CONNECTION),
            _ => self.doom_error(),
        }
    }

    pub(super) fn lose(&self) -> Error {
        self.doomed.set(Some(Doom::Lost));
        report::lost(&self.message())
    }

    /// The connection has ended, or is about to. If the answer to a ROLLBACK TO was still to come, nobody waited
    /// for that: then it is the clean-up that failed.
    pub(super) fn note_end(&self, inner: &SessionState) {
        self.note_message();
        if self.doomed.get().is_none() {
            // Where a savepoint found out, the statement's error says it all: no warning follows.
            let doom = match inner.fifo.awaited_savepoint() {
                _ if inner.fifo.awaits(Control::UndoSavepoint) => Doom::CleanupFailed,
                Some(level) => Doom::LostOpening(level),
                None => Doom::Lost,
            };
            self.doomed.set(Some(doom));
        }
    }

    /// The error that a failed answer is. After the server's last word nothing of this connection is an answer.
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

    /// What the server said last, and how the connection ended, as libpq tells both outside of a pipeline.
    fn last_words(&self, failure: &PgResult) -> Error {
        let (said, end) = (failure.error_message().to_bytes(), self.message().into_bytes());
        let text = if end.starts_with(said) { end } else { [said, &end].concat() };
        report::lost(&c_string(text))
    }

    /// Reads the end of the stream, which follows the server's last word.
    ///
    /// # Errors
    /// A cancel, under [`Patience::Interruptible`].
    pub(super) fn read_to_end(&self, patience: Patience) -> Result<()> {
        let deadline = Instant::now() + PARTING;
        while !self.conn.is_bad() {
            self.pump();
            if !self.conn.is_bad()
                && self.wait(Some(deadline), patience, WaitEvent::Result)? != Woke::Ready
            {
                break;
            }
        }
        Ok(())
    }
}

const NO_CONNECTION: &CStr = c"no connection to the server";

pub(super) fn no_connection(sql: &CStr) -> Error {
    report::with_sql(report::lost(NO_CONNECTION), Some(sql))
}
