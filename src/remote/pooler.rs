//! Connection poolers between us and a server.
//!
//! A session is more than its connection: it has settings that values depend on, prepared
//! statements, and advisory locks that show others whether it is alive. A pooler in *session* mode
//! leaves a server process to its client until the client disconnects. A pooler in *transaction*
//! mode gives it to the next client after each transaction, with everything that we have left
//! there, and nobody notices when we are gone. The former does no harm, the latter is refused
//! before anything is left.
//!
//! No query tells the two apart: in transaction mode, too, the same server process may answer each
//! time. They differ when a server process ends between two transactions: only a client that owns
//! the process is told, unasked. So one connection is spent on a test. Its session is made to end
//! after a moment of idleness (`idle_session_timeout`), and to receive that session's last message
//! is the proof. In transaction mode nobody receives it, and another process answers the next
//! query. A pooler that has no processor for longer than that moment finds both the answer and the
//! last message waiting and passes both on, in either mode. So the last message counts only if it
//! arrives well after the answer.
//!
//! A pooler is noticed by the process id that is announced when we connect. Poolers draw it at
//! random, and most of these numbers are larger than any that operating systems use. If the number
//! looks real, the pooler is noticed by the answer to the session's set-up, before anything is
//! prepared.

use std::borrow::Borrow;
use std::ffi::{CStr, c_int};
use std::time::{Duration, Instant};

use crate::pg::error::{Error, Result, SqlState, c_string};
use crate::remote::connection::{Asked, Connection};
use crate::remote::report;

/// The largest process id: Linux has none above, other systems stay far below.
const LARGEST_PID: c_int = 1 << 22;

/// How long the session may be idle before it ends.
const IDLE: Duration = Duration::from_millis(50);

/// How long its end is waited for.
const HEARD_WITHIN: Duration = Duration::from_millis(250);

/// How much later than the answer the last message has to arrive.
const APART: Duration = IDLE.checked_div(2).unwrap();

/// How often it is tried. In transaction mode our connection may be hit by the end of a session
/// that somebody else tests with, and on an overloaded machine both messages may arrive at once.
const TRIES: u32 = 6;

/// How many connections have to prove it.
const PROOFS: u32 = 2;

/// Whether an announced process id may be that of a real process.
pub fn may_be_a_process(pid: c_int) -> bool {
    (1..=LARGEST_PID).contains(&pid)
}

/// Finds out whether the server process is ours as long as we are connected. The test spends
/// `connection`, and further ones that `connect` makes.
///
/// # Errors
/// 0A000 if it is not; the server's error, a cancel.
pub fn check<C: Borrow<Connection>>(
    mut connection: C,
    connect: impl Fn() -> Result<C>,
    deadline: Option<Instant>,
) -> Result<()> {
    let mut proofs = 0;
    for turn in 1.. {
        match try_once(connection.borrow(), deadline)? {
            Found::Own => proofs += 1,
            Found::Shared => return Err(refusal(&connection.borrow().server_name)),
            Found::Nothing(error) if turn >= TRIES => {
                return Err(error.unwrap_or_else(|| refusal(&connection.borrow().server_name)));
            }
            Found::Nothing(_) => {}
        }
        if proofs == PROOFS {
            break;
        }
        connection = connect()?;
    }
    Ok(())
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
    // First what has come with the answer: however late we look at it, it proves nothing.
    let answered = Instant::now();
    if connection.hears_of_idle_end(answered)? {
        return Ok(Found::Nothing(None));
    }
    if connection.hears_of_idle_end(answered + HEARD_WITHIN)? {
        return Ok(if answered.elapsed() < APART { Found::Nothing(None) } else { Found::Own });
    }
    Ok(match ask(connection, c"SELECT", deadline)? {
        Ok(()) => Found::Shared,
        Err(_) => Found::Nothing(None),
    })
}

/// Runs a query. The outer error is for a cancel, or for a query that takes too long.
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
