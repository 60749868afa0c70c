//! Why nothing was settled on a participant.

use std::ffi::CStr;

use super::Fenced;
use crate::pg::error::{Error, SqlState};
use crate::pg::text;
use crate::protocol::gid::Identity;
use crate::protocol::verdict::Reason;
use crate::remote::Connection;
use crate::store::participant_list::ParticipantRecord;

/// A sweep that has failed.
#[derive(Debug)]
pub struct Failure {
    /// Why each transaction that is left there stays in doubt.
    pub reason: Reason,
    /// What the log and `last_error` say.
    pub error: Error,
}

impl From<Error> for Failure {
    /// Of an error without a reason of its own: the participant was not reached.
    fn from(error: Error) -> Self {
        Self { reason: Reason::Unreached, error }
    }
}

/// The server or the user mapping does not exist any more.
pub(super) fn gone(participant: &ParticipantRecord) -> Failure {
    let error = Error::new(
        SqlState::UNDEFINED_OBJECT,
        format!(
            "transactions may be in doubt on foreign server {}, but the server or its user mapping for user {} has gone",
            participant.serverid, participant.userid
        ),
    );
    Failure { reason: Reason::Gone, error }
}

/// The server's wrapper is not one of ours any more.
pub(super) fn other_wrapper(server: &CStr) -> Failure {
    let error = Error::new(
        SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
        format!("server \"{}\" does not use pg_fdw_xacts", text::carried(server)),
    )
    .hint("Give its wrapper the handler pg_fdw_xacts_handler until nothing is in doubt there.");
    Failure { reason: Reason::Gone, error }
}

/// The server is in recovery.
pub(super) fn standby(connection: &Connection) -> Failure {
    let server = text::carried(&connection.server_name);
    let error = Error::new(
        SqlState::READ_ONLY_SQL_TRANSACTION,
        format!("server \"{server}\" is a standby"),
    );
    Failure { reason: Reason::Standby, error }
}

/// Another process holds the fence; `holder` is what the server tells of it.
pub(super) fn fence_held(
    connection: &Connection,
    identity: Identity,
    holder: Option<&CStr>,
) -> Failure {
    let error = Error::new(
        SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
        format!(
            "another process settles transactions of this coordinator on server \"{}\"",
            text::carried(&connection.server_name)
        ),
    )
    .detail(format!(
        "The advisory lock {} is held there by {}.",
        identity.number(),
        holder.map_or_else(
            || "a session that has just ended".into(),
            |holder| format!("process {}", text::carried(holder))
        )
    ))
    .hint("A physical copy of this coordinator must not run beside it. Whoever may connect to that database can take the lock: REVOKE CONNECT on it from those who need not.");
    Failure { reason: Reason::Fence, error }
}

/// The server is not the recorded one, or may not be.
pub(super) fn other_server(fenced: &Fenced, participant: &ParticipantRecord) -> Failure {
    let connection = fenced.connection();
    let name = text::carried(&connection.server_name);
    let place = format!(
        "database \"{}\" of the server with system identifier {}",
        text::carried(&participant.database),
        participant.system_identifier
    );
    let error = |message: String| Error::new(SqlState::CONNECTION_FAILURE, message);
    let is_same = connection.fingerprint().is_some_and(|f| participant.is_at(&f));
    let error = match &participant.address {
        // A copy of the recorded server has the same fingerprint.
        Some(known) if is_same => error(format!("server \"{name}\" is not where it was when it was used"))
            .detail(format!(
                "Transactions may be in doubt in {place} at \"{}\"; the address is now \"{}\". What is not prepared here may be there.",
                text::carried(known),
                text::carried(&fenced.address)
            ))
            .hint("Point the foreign server's options back at it, so that they can be settled. If it is the same server, or has been replaced by its standby, pg_fdw_xacts_forget() gives up what cannot be told."),
        _ => error(format!("server \"{name}\" is not the one that was used before"))
            .detail(format!("Transactions may be in doubt in {place}."))
            .hint("Point the foreign server's options back at it, so that they can be settled."),
    };
    Failure { reason: Reason::OtherServer, error }
}
