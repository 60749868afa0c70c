//! Committing a participant in one phase: its own answer is the outcome.
//!
//! Once COMMIT is sent, only its answer or the deadline ends the wait. A cancel, a termination or a
//! limit of the statement is passed on to the participant, whose answer then says whether it had
//! committed before. When the answer is lost, a new connection asks the participant what became of
//! the transaction, by its xid.

use std::time::{Duration, Instant};

use pgrx::PgLogLevel;

use crate::guc;
use crate::pg::error::{Error, Result, SqlState, attempt};
use crate::pg::globals::clear_cancel;
use crate::pg::text;
use crate::pg::wait_event::WaitEvent;
use crate::protocol::gid::Command;
use crate::protocol::participant::Event;
use crate::remote::connect::connect;
use crate::remote::connection::{Asked, CANCEL_EFFECT};
use crate::remote::options::{Mapping, Server};
use crate::remote::report;
use crate::remote::round::{Reply, Round};
use crate::remote::wait::{Interrupts, WaitEnd};
use crate::shared::order::UnderWay;
use crate::xact::branch::Member;
use crate::xact::inject;
use crate::xact::participants::Participant;

/// How long the question after a lost answer may take.
const ASK_DEADLINE: Duration = Duration::from_secs(5);

/// Commits, and returns only when the participant has.
///
/// # Errors
/// The participant's own error, when it has definitely rolled back; 08007 when nobody knows.
pub fn commit(p: &Participant) -> Result<()> {
    let mut round = Round::over([&**p.connection]);
    let place = p.connection.place(p.serverid.to_u32()).unwrap_or_default();
    let under_way = UnderWay::begin(place, p.connection.xid().unwrap_or(0));
    p.apply(Event::SendCommit)?;
    round.send((), &p.connection, &Command::COMMIT);
    conclude(p, round, under_way, false)
}

/// Waits for the answer to COMMIT, which was sent with this round. `is_cancelled`: a cancel is to
/// be passed on at once.
///
/// # Errors
/// Those of [`commit`].
pub fn conclude(
    p: &Participant,
    mut round: Round<'_, ()>,
    mut under_way: UnderWay,
    is_cancelled: bool,
) -> Result<()> {
    let mut answered = None;
    let begin = Instant::now();
    let mut note = |(): (), reply: &Reply| {
        answered = match reply {
            Reply::Done => Some(Ok(())),
            Reply::OtherTag(result) => Some(Err(Error::new(
                SqlState::TRANSACTION_ROLLBACK,
                format!("server \"{}\" had already rolled back the transaction", p.server()),
            )
            .detail(format!("It answered with \"{}\".", result.command_tag().to_string_lossy())))),
            // What the server says as it goes away is no answer to COMMIT, nor is an error without
            // a code, which libpq gives for what it cannot read.
            Reply::Refused(failure)
                if !p.connection.is_doomed() && failure.error_field(b'C').is_some() =>
            {
                Some(Err(p.connection.error_of(failure, Some(c"COMMIT"))))
            }
            Reply::Refused(_) | Reply::Lost => None,
        };
        Ok(())
    };
    let limit = begin + guc::prepare_timeout().min(guc::commit_timeout());
    let waited = attempt(|| {
        inject::point("one phase");
        if !is_cancelled
            && round.wait(limit, Interrupts::Return, WaitEvent::Commit, &mut note)?
                == WaitEnd::Ready
        {
            return Ok(());
        }
        let soon = Instant::now() + CANCEL_EFFECT;
        let sending = p.connection.start_cancel();
        let is_taken = sending.is_some_and(|sending| sending.wait_until(soon));
        let deadline = soon.max(begin + guc::commit_timeout());
        round.wait(deadline, Interrupts::Ignore, WaitEvent::Commit, &mut note)?;
        // The cancel may still arrive, and must not hit the next transaction.
        if !is_taken {
            p.connection.doom();
        }
        Ok(())
    });
    // COMMIT is on its way: what has failed here says nothing of its outcome.
    if let Err(error) = waited {
        p.connection.doom();
        let _ = error.log(PgLogLevel::LOG);
    }
    let outcome = match answered {
        // Then COMMIT or something before it has failed.
        None if p.connection.is_incomplete() => Err(incomplete(p)),
        answered => answered.unwrap_or_else(|| ask(p)),
    };
    if outcome.is_ok() {
        under_way.is_of(p.connection.xid().unwrap_or(0));
        under_way.committed();
    }
    p.apply(Event::Confirmed)?;
    clear_cancel();
    outcome
}

/// The answer was lost: asks again.
fn ask(p: &Participant) -> Result<()> {
    match status(p) {
        Ok(status) if status == "committed" => Ok(()),
        Ok(status) if status == "aborted" => Err(Error::new(
            SqlState::TRANSACTION_ROLLBACK,
            format!("connection to server \"{}\" was lost during COMMIT", p.server()),
        )
        .detail("The transaction was rolled back there.")
        .hint("It can be tried again.")),
        Ok(status) => Err(unknown(p, format!("The server says that it is {status}."))),
        Err(error) => Err(unknown(p, text::carried(error.message()))),
    }
}

fn incomplete(p: &Participant) -> Error {
    let server = p.server();
    Error::new(
        SqlState::TRANSACTION_ROLLBACK,
        format!("server \"{server}\" has rolled back the transaction"),
    )
    .detail("The session there does not have its prepared statements any more.")
    .hint("Something there has removed them, such as DEALLOCATE ALL in a trigger.")
}

fn unknown(p: &Participant, detail: String) -> Error {
    let hint = match p.connection.xid() {
        Some(xid) => format!("Ask the server itself: SELECT pg_xact_status('{xid}')."),
        None => "See on the server itself whether what the statement does is there.".to_owned(),
    };
    Error::new(
        SqlState::TRANSACTION_RESOLUTION_UNKNOWN,
        format!(
            "the answer to COMMIT from server \"{}\" was lost and its outcome is unknown",
            p.server()
        ),
    )
    .detail(detail)
    .hint(hint)
}

/// `pg_xact_status` of the participant's transaction, on a new connection to the same server.
fn status(p: &Participant) -> Result<String> {
    let (Some(xid), Some(before)) = (p.connection.xid(), p.connection.fingerprint()) else {
        return Err(Error::new(SqlState::CONNECTION_FAILURE, "The transaction's id is not known."));
    };
    let deadline = Instant::now() + ASK_DEADLINE;
    let mapping = Mapping::read(p.userid, p.serverid)?;
    let fresh = connect(&Server::read(p.serverid), &mapping, Some(deadline))?.connection;
    let question = crate::pg::error::c_string(format!(
        "SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN 'unknown, on a standby' \
         ELSE pg_catalog.pg_xact_status('{xid}') END"
    ));
    loop {
        let ticket = fresh.send_alone(&question).ok_or_else(|| fresh.doom_error())?;
        if !fresh.drain(deadline, Interrupts::Ignore)? {
            return Err(fresh.doom_error());
        }
        if fresh.fingerprint().as_ref() != Some(&before) {
            return Err(report::lost(c"Another server answers at its address."));
        }
        let answer = fresh.wait(&Asked::of(ticket, &*question))?;
        let status = answer
            .value(0, 0)
            .map_or_else(|| "unknown".into(), |v| v.to_string_lossy().into_owned());
        // The old session may still be at work on it.
        if status != "in progress" || Instant::now() >= deadline {
            return Ok(status);
        }
        crate::pg::latch::wait(Duration::from_millis(50), WaitEvent::Commit);
    }
}
