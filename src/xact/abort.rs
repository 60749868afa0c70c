//! The abort of the local transaction: everybody rolls back.
//!
//! Where PREPARE was sent, `ROLLBACK PREPARED` goes behind it on the same connection, so that its answer
//! is definite even when the answer to PREPARE has not come. A PREPARE that takes long is cancelled before that, and
//! waited for only as long as a cancel takes. What cannot be confirmed is the resolver's.

use std::ffi::CStr;
use std::time::Instant;

use pgrx::PgLogLevel;

use crate::guc;
use crate::libpq::Sending;
use crate::pg::error::{Result, SqlState, attempt};
use crate::pg::globals;
use crate::pg::wait_event::WaitEvent;
use crate::protocol::participant::{Event, State};
use crate::protocol::prepared::Prepared;
use crate::remote::cache;
use crate::remote::connection::{CANCEL_EFFECT, CLEANUP_TIMEOUT};
use crate::remote::round::{Outcome, Together};
use crate::remote::wait::Patience;
use crate::shared::entries;
use crate::shared::entry::Status;
use crate::xact::inject;
use crate::xact::participants::{self, Participant};
use crate::xact::unconfirmed::unconfirmed;

/// What postgres_fdw's warnings call the command.
const ABORT: &CStr = c"ABORT TRANSACTION";

/// A participant that has something to roll back.
struct Ending<'a> {
    participant: &'a Participant,
    /// PREPARE was sent: `ROLLBACK PREPARED` ends it, and must be confirmed.
    prepared: Option<&'a Prepared>,
}

/// Rolls back every participant; runs where nothing may raise.
pub fn roll_back() -> Result<()> {
    let all = participants::take_all();
    let mut endings = Vec::with_capacity(all.len());
    // Whatever happens below, nothing prepared is forgotten: from here the resolver knows of it.
    for p in &all {
        let sent = matches!(p.state(), State::Preparing | State::Prepared);
        if let Some(prepared) = p.prepared() {
            entries::set_status(&prepared.gid, if sent { Status::Aborting } else { Status::Free });
        }
        if p.take(Event::DecidedAbort).is_ok()
            && p.state() == State::Aborting
            && p.connection.in_transaction()
        {
            endings.push(Ending { participant: p, prepared: p.prepared().filter(|_| sent) });
        }
    }
    let outcome = attempt(|| deliver(&endings));
    for Ending { participant: p, prepared } in &endings {
        if p.state() != State::Aborting {
            continue;
        }
        let _ = p.take(Event::Unconfirmed);
        cache::discard(&p.connection);
        // Where nothing was prepared, the end of the connection rolls back.
        if let Some(prepared) = prepared {
            entries::hand_over(&prepared.gid, Status::Aborting);
            // The client is told why its transaction aborted; this is for the log.
            let _ = unconfirmed(&p.server(), &prepared.gid, false).log(PgLogLevel::LOG);
        }
    }
    for p in &all {
        cache::put_back(&p.connection);
    }
    outcome
}

fn deliver(endings: &[Ending]) -> Result<()> {
    if endings.is_empty() {
        return Ok(());
    }
    // When this backend is being terminated it sends and does not wait. The request is pending, or has been taken
    // up by the FATAL error that ends the process and so aborts.
    let dying = globals::is_termination_pending() || globals::is_exiting();
    let mut together = Together::new(endings.iter().map(|e| &**e.participant.connection));
    let is_preparing = |e: &Ending| {
        e.participant.connection.pump();
        e.prepared.is_some() && e.participant.connection.is_at_work()
    };
    let (preparing, others): (Vec<_>, Vec<_>) = if dying {
        (Vec::new(), endings.iter().enumerate().collect())
    } else {
        endings.iter().enumerate().partition(|(_, e)| is_preparing(e))
    };
    let stopping = Stopping::start(&preparing);
    for (index, Ending { participant: p, prepared }) in others {
        let ticket = match prepared {
            Some(prepared) => p.connection.send_alone(&prepared.rollback),
            None => {
                if !p.connection.is_drained() {
                    p.connection.pump();
                }
                if p.connection.is_at_work() && !p.connection.is_doomed() {
                    p.connection.cancel();
                }
                p.connection.warn_if_lost(ABORT)?;
                // One that does not even take a cancel is not waited for.
                if p.connection.is_doomed() { None } else { p.connection.send_alone(c"ROLLBACK") }
            }
        };
        together.sent(index, ticket);
    }
    for (index, has_prepared) in stopping.wait()? {
        let Ending { participant: p, prepared } = &endings[index];
        let ticket = prepared.and_then(|prepared| p.connection.send_alone(&prepared.rollback));
        // It arrives behind a PREPARE that goes on; nobody waits for that.
        together.sent(index, ticket.filter(|_| has_prepared));
    }
    inject::point("abort");
    let timeout = match (dying, endings.iter().any(|e| e.prepared.is_some())) {
        (true, _) => return Ok(()),
        (_, true) => guc::commit_timeout(),
        (_, false) => CLEANUP_TIMEOUT,
    };
    let deadline = Instant::now() + timeout;
    together.wait(deadline, Patience::Settling, WaitEvent::Rollback, |index, outcome| {
        let Ending { participant: p, prepared } = endings[index];
        let gone = match (outcome, prepared) {
            (Outcome::Done(_), None) => true,
            (Outcome::Done(result), Some(_)) => result.command_tag() == c"ROLLBACK PREPARED",
            // The answer to PREPARE came before it on this connection: there is nothing to roll back.
            (Outcome::Failed(failure), Some(_)) => {
                SqlState::parse(failure.error_field(b'C')) == SqlState::UNDEFINED_OBJECT
                    // The transaction that is still open there ends with the connection, which is not used again.
                    || p.connection.has_skipped_prepare()
            }
            // The connection is not used again; what it had open ends with it.
            (Outcome::Failed(failure), None) => {
                p.connection.warn_of(failure, ABORT)?;
                false
            }
            (Outcome::Lost | Outcome::Pending, _) => false,
        };
        if gone {
            p.take(Event::Confirmed)?;
            if let Some(prepared) = prepared {
                entries::confirmed(&prepared.gid);
            }
        }
        Ok(())
    })?;
    Ok(())
}

/// Participants that are told to stop preparing.
struct Stopping<'a> {
    participants: Vec<(usize, &'a Participant, Option<Sending>)>,
    deadline: Instant,
}

impl<'a> Stopping<'a> {
    /// Asks them, all at once.
    fn start(preparing: &[(usize, &Ending<'a>)]) -> Self {
        let ask = |(index, ending): &(usize, &Ending<'a>)| {
            let participant = ending.participant;
            (*index, participant, participant.connection.start_cancel())
        };
        Self {
            participants: preparing.iter().map(ask).collect(),
            deadline: Instant::now() + CANCEL_EFFECT,
        }
    }

    /// Waits for the effect: which of them have answered PREPARE, one way or the other.
    fn wait(self) -> Result<Vec<(usize, bool)>> {
        let mut answered = Vec::with_capacity(self.participants.len());
        let mut asked = Vec::with_capacity(self.participants.len());
        for (index, p, sending) in self.participants {
            let taken = sending.is_some_and(|sending| sending.wait_until(self.deadline));
            asked.push((index, p, taken));
        }
        for (index, p, taken) in asked {
            let has_answered = p.connection.drain(self.deadline, Patience::Settling)?;
            // It may still arrive, and hit what is none of its business.
            if !taken {
                p.connection.doom();
            }
            answered.push((index, has_answered));
        }
        Ok(answered)
    }
}
