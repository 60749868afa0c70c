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
//! A pooler in session mode also has to reset a session that its client has left. Otherwise the
//! locks by which a session of ours shows that it is alive outlive it, and the next one finds its
//! prepared statements. So a mark is left behind as well, and looked for in what comes next, which
//! is usually the same server process.
//!
//! A pooler is noticed by the process id that is announced when we connect. Poolers draw it at
//! random, and most of these numbers are larger than any that operating systems use. If the number
//! looks real, the pooler is noticed by the answer to the session's set-up, before anything is
//! prepared.

use std::borrow::Borrow;
use std::ffi::{CStr, c_int};
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::libpq::PgResult;
use crate::pg::error::{Error, Result, SqlState, c_string};
use crate::remote::connection::{Asked, Connection};
use crate::remote::report;

/// The largest process id: Linux has none above, other systems stay far below.
const LARGEST_PID: c_int = 1 << 22;

/// How long the session may be idle before it ends, at first.
const IDLE: Duration = Duration::from_millis(50);

/// How often it is tried. In transaction mode our connection may be hit by the end of a session
/// that somebody else tests with, and on an overloaded machine both messages may arrive at once.
const TRIES: u32 = 6;

/// How many connections have to prove it.
const PROOFS: u32 = 2;

/// What is left behind in one session. Nobody takes this lock otherwise.
const LEAVE_MARK: &CStr =
    c"SELECT pg_catalog.pg_try_advisory_lock_shared(1886940527, pg_catalog.pg_backend_pid())";

/// How long the session may be idle after so many tries that have shown nothing: a machine that is
/// too busy for the first moments has longer ones.
fn idle_after(misses: u32) -> Duration {
    IDLE * 2_u32.pow(misses)
}

/// How long its end is waited for.
fn heard_within(idle: Duration) -> Duration {
    idle * 5
}

/// How much later than the answer the last message has to arrive.
fn apart(idle: Duration) -> Duration {
    idle / 2
}

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
    let (mut proofs, mut misses) = (0, 0);
    let mut is_marked = false;
    for turn in 1.. {
        match try_once(connection.borrow(), idle_after(misses), deadline)? {
            Found::Own => proofs += 1,
            Found::Shared => return Err(refusal(&connection.borrow().server_name)),
            Found::Used => return Err(not_reset(&connection.borrow().server_name)),
            Found::Nothing(error) if turn >= TRIES => {
                return Err(error.unwrap_or_else(|| refusal(&connection.borrow().server_name)));
            }
            Found::Nothing(_) => misses += 1,
        }
        if proofs == PROOFS {
            break;
        }
        connection = connect()?;
        // Not before one proof: in transaction mode nobody would ever take the mark away.
        if proofs == 1 && !is_marked {
            is_marked = true;
            connection.borrow().use_for_questions();
            if ask(connection.borrow(), LEAVE_MARK, deadline)?.is_err() {
                continue;
            }
            drop(connection);
            connection = connect()?;
        }
    }
    Ok(())
}

/// What one connection has shown.
enum Found {
    /// The server process is the client's.
    Own,
    /// Another process answers.
    Shared,
    /// It has been somebody's before, and was not reset.
    Used,
    /// The session ended, but may not have been ours; an error if it could not even be asked.
    Nothing(Option<Error>),
}

/// Makes the session end after so long a moment of idleness.
fn try_once(connection: &Connection, idle: Duration, deadline: Option<Instant>) -> Result<Found> {
    connection.use_for_questions();
    let end_when_idle = c_string(format!(
        "SELECT pg_catalog.set_config('idle_session_timeout', '{}', false), \
         EXISTS (SELECT FROM pg_catalog.pg_locks WHERE locktype OPERATOR(pg_catalog.=) 'advisory' \
         AND pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid()) \
         OR EXISTS (SELECT FROM pg_catalog.pg_prepared_statements \
         WHERE pg_catalog.starts_with(name, 'px_'))",
        idle.as_millis()
    ));
    let is_used = match ask(connection, &end_when_idle, deadline)? {
        Ok(result) => result.value(0, 1).is_some_and(|value| value == c"t"),
        Err(error) => return Ok(Found::Nothing(Some(error))),
    };
    // First what has come with the answer: however late we look at it, it proves nothing.
    let answered = Instant::now();
    if connection.hears_of_idle_end(answered)? {
        return Ok(Found::Nothing(None));
    }
    if connection.hears_of_idle_end(answered + heard_within(idle))? {
        return Ok(match answered.elapsed() {
            late if late < apart(idle) => Found::Nothing(None),
            _ if is_used => Found::Used,
            _ => Found::Own,
        });
    }
    Ok(match ask(connection, c"SELECT", deadline)? {
        Ok(_) => Found::Shared,
        Err(_) => Found::Nothing(None),
    })
}

/// Runs a query. The outer error is for a cancel, or for a query that takes too long.
fn ask(
    connection: &Connection,
    sql: &CStr,
    deadline: Option<Instant>,
) -> Result<Result<Rc<PgResult>>> {
    let Some(ticket) = connection.send_alone(sql) else {
        return Ok(Err(connection.doom_error()));
    };
    match connection.wait_until(&Asked::of(ticket, sql), deadline) {
        Ok(Some(result)) => Ok(Ok(result)),
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

/// The error for a server process that was not reset after its last client.
pub fn not_reset(server: &CStr) -> Error {
    Error::new(
        SqlState::FEATURE_NOT_SUPPORTED,
        [
            b"cannot use server \"",
            server.to_bytes(),
            b"\" through a connection pooler that does not reset sessions",
        ]
        .concat(),
    )
    .detail("A new session has advisory locks or prepared statements that an earlier one has left.")
    .hint("Have the pooler reset each session that its client has left (PgBouncer: server_reset_query = DISCARD ALL).")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{IDLE, TRIES, apart, heard_within, idle_after, may_be_a_process};

    #[test]
    fn each_try_that_shows_nothing_makes_the_next_one_longer() {
        assert_eq!(idle_after(0), IDLE);
        for misses in 1..TRIES {
            let (before, now) = (idle_after(misses - 1), idle_after(misses));
            assert!(apart(now) > apart(before) && apart(now) < now && now < heard_within(now));
        }
        let last = heard_within(idle_after(TRIES - 1));
        assert!(last < Duration::from_secs(10), "the client waits for it");
    }

    #[test]
    fn what_poolers_draw_is_told_from_what_operating_systems_give() {
        assert!(may_be_a_process(1) && may_be_a_process(4_194_304));
        assert!([0, -1, 4_194_305, i32::MAX, i32::MIN].iter().all(|pid| !may_be_a_process(*pid)));
    }
}
