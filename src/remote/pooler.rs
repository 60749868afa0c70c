//! Connection poolers between us and a server.
//!
//! A session is more than its connection: settings that values depend on, prepared statements, advisory locks by which
//! others know whether it lives. A pooler in *session* mode leaves a server process to its client until the client goes;
//! one in transaction mode hands it to the next after each transaction, with all that we have left there, and lets nobody
//! know when we have gone. The former is as good as none, the latter is refused before anything is left.
//!
//! No question tells the two apart: also in transaction mode the same server process may answer each time. What does is
//! the end of a server process between two transactions: only a client to whom the process belongs is told of it, unasked.
//! So a connection is sacrificed. Its session is made to end when it has been idle for a moment (`idle_session_timeout`),
//! and the last word of that session is the proof. In transaction mode nobody hears it, and the next question is answered
//! by another. (The pooler would have to stand still for [`IDLE`] between two messages of the server to pass both on.)
//!
//! That there is a pooler is seen by the number of the server process that was told at the start, which poolers draw at
//! random: far larger ones than operating systems give. One that looks like an operating system's is found out by the
//! answer to the session's set-up, before something is prepared.

use std::borrow::Borrow;
use std::ffi::{CStr, c_int};
use std::time::{Duration, Instant};

use crate::pg::error::{Error, Result, SqlState, c_string};
use crate::remote::connection::{Asked, Connection};
use crate::remote::report;

/// The largest number of a process: Linux gives none above, other systems stay far below.
const LARGEST_PID: c_int = 1 << 22;

/// How long the session may be idle.
const IDLE: Duration = Duration::from_millis(50);

/// How long its end is waited for.
const HEARD_WITHIN: Duration = Duration::from_millis(250);

/// How often it is tried. In transaction mode the end of a session that somebody else has sacrificed may hit ours.
const TRIES: u32 = 4;

/// Whether the process that a server told of at the start may be one of an operating system's.
pub fn may_be_a_process(pid: c_int) -> bool {
    (1..=LARGEST_PID).contains(&pid)
}

/// Finds out whether the server process is ours as long as we are connected. `connect` makes the connections that are
/// spent on it, the first of them is `connection`.
///
/// # Errors
/// 0A000 if the process is not; the server's, a cancel.
pub fn check<C: Borrow<Connection>>(
    mut connection: C,
    connect: impl Fn() -> Result<C>,
    deadline: Option<Instant>,
) -> Result<()> {
    for _ in 1..TRIES {
        match try_once(connection.borrow(), deadline)? {
            Found::Own => return Ok(()),
            Found::Shared => return Err(refusal(&connection.borrow().server_name)),
            Found::Nothing(_) => connection = connect()?,
        }
    }
    match try_once(connection.borrow(), deadline)? {
        Found::Own => Ok(()),
        Found::Shared | Found::Nothing(None) => Err(refusal(&connection.borrow().server_name)),
        Found::Nothing(Some(error)) => Err(error),
    }
}

/// What one connection has shown.
enum Found {
    /// The server process is the client's.
    Own,
    /// Another process answers.
    Shared,
    /// The session ended, but may not have been ours; an error if it could not even be asked.
    Nothing(Option<Error>),
}

fn try_once(connection: &Connection, deadline: Option<Instant>) -> Result<Found> {
    connection.use_for_questions();
    let end_when_idle = c_string(format!(
        "SELECT pg_catalog.set_config('idle_session_timeout', '{}', false)",
        IDLE.as_millis()
    ));
    if let Err(error) = ask(connection, &end_when_idle, deadline)? {
        return Ok(Found::Nothing(Some(error)));
    }
    if connection.hears_of_idle_end(Instant::now() + HEARD_WITHIN)? {
        return Ok(Found::Own);
    }
    Ok(match ask(connection, c"SELECT", deadline)? {
        Ok(()) => Found::Shared,
        Err(_) => Found::Nothing(None),
    })
}

/// Asks, and tells how that went, unless it was cancelled or takes too long.
fn ask(connection: &Connection, sql: &CStr, deadline: Option<Instant>) -> Result<Result<()>> {
    let Some(ticket) = connection.send_alone(sql) else {
        return Ok(Err(connection.doom_error()));
    };
    match connection.wait_until(&Asked::of(ticket, sql), deadline) {
        Ok(Some(_)) => Ok(Ok(())),
        Ok(None) => Err(report::lost(c"the server did not answer in time")),
        Err(error) if error.sqlstate() == SqlState::QUERY_CANCELED => Err(error),
        Err(error) => Ok(Err(error)),
    }
}

fn refusal(server: &CStr) -> Error {
    Error::new(
        SqlState::FEATURE_NOT_SUPPORTED,
        [
            b"cannot use server \"",
            server.to_bytes(),
            b"\" through a connection pooler that hands sessions around",
        ]
        .concat(),
    )
    .detail("After each transaction the pooler gives the server process to somebody else, with the settings and locks of this session.")
    .hint("Have the foreign server's options point at PostgreSQL itself, or set the pooler to session mode (PgBouncer: pool_mode = session).")
}

#[cfg(test)]
mod tests {
    use super::may_be_a_process;

    #[test]
    fn what_poolers_draw_is_told_from_what_operating_systems_give() {
        assert!(may_be_a_process(1) && may_be_a_process(4_194_304));
        assert!([0, -1, 4_194_305, i32::MAX, i32::MIN].iter().all(|pid| !may_be_a_process(*pid)));
    }
}
