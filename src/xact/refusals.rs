//! The errors with which phase one ends a transaction. Each says that it is rolled back everywhere.

use std::ffi::CStr;
use std::time::Duration;

use crate::pg::error::{Error, SqlState};
use crate::protocol::plan::Refusal;
use crate::xact::branch::Member;
use crate::xact::participants::Participant;

/// A participant could not follow, for this cause. The transaction is definitely rolled back, so
/// the error is never of class 08, which would leave the outcome open to the client.
pub fn rolled_back(p: &Participant, cause: Error) -> Error {
    const CLASS_08: i32 = SqlState::CONNECTION_FAILURE.class();
    // Class 57: the server was shut down or terminated the session.
    const CLASS_57: i32 = SqlState::new(b"57P01").class();
    if cause.sqlstate().class() != CLASS_08 && cause.sqlstate().class() != CLASS_57 {
        return cause.context(format!("commit on server \"{}\"", p.server()));
    }
    Error::new(
        SqlState::TRANSACTION_ROLLBACK,
        format!("connection to server \"{}\" was lost before it had prepared", p.server()),
    )
    .detail(cause.message().to_bytes())
    .hint("The transaction was rolled back on all servers; it can be tried again.")
}

/// The participant had rolled back before it was asked to prepare or commit.
pub fn lost_its_work(p: &Participant, tag: &CStr) -> Error {
    Error::new(
        SqlState::TRANSACTION_ROLLBACK,
        format!("server \"{}\" had already rolled back its part of the transaction", p.server()),
    )
    .detail(format!("It answered with \"{}\".", tag.to_string_lossy()))
}

/// The participant has not executed PREPARE, because its session does not hold its advisory lock.
pub fn lost_its_lock(p: &Participant) -> Error {
    Error::new(
        SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
        format!("the session's advisory lock on server \"{}\" has been released", p.server()),
    )
    .detail("By that lock others know that the session can still prepare the transaction. The transaction is rolled back on all servers.")
    .hint("A function or trigger there has called pg_advisory_unlock_all(), or released the lock by its key. Have it release its own locks only.")
}

/// The participant has not answered within the time that phase one has.
pub fn late(p: &Participant, timeout: Duration) -> Error {
    Error::new(
        SqlState::QUERY_CANCELED,
        format!(
            "server \"{}\" has not prepared within {} ms",
            p.server(),
            timeout.as_millis()
        ),
    )
    .detail("The transaction is rolled back on all servers.")
    .hint("The limit is \"pg_fdw_xacts.prepare_timeout\"; where that is 0, the smaller of \"statement_timeout\" and \"pg_fdw_xacts.commit_timeout\".")
}

/// The transaction cannot commit atomically with the servers that it has written on.
pub fn refused(refusal: Refusal, active: &[&Participant]) -> Error {
    let server = active
        .iter()
        .find(|p| p.connection.work().wrote() && !p.connection.can_prepare)
        .map_or_else(String::new, |p| p.server());
    let message = match refusal {
        Refusal::Several => {
            "cannot commit atomically on more than one server with two_phase_commit 'off'"
                .to_owned()
        }
        Refusal::Explicit => format!(
            "cannot PREPARE a transaction that has written on server \"{server}\", which has two_phase_commit 'off'"
        ),
        Refusal::Serializable => format!(
            "cannot commit a serializable transaction atomically on server \"{server}\", which has two_phase_commit 'off'"
        ),
    };
    Error::new(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, message)
        .hint("Set the server's option two_phase_commit to 'on', or write on it in a transaction of its own.")
}
