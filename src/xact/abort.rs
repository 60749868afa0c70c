//! The abort of the local transaction: everybody rolls back. Runs where nothing may raise.
//!
//! Where PREPARE was sent, `ROLLBACK PREPARED` follows it on the same connection, so that its
//! answer is definite even if the answer to PREPARE has not come. A PREPARE that takes long is
//! cancelled first, and waited for only as long as a cancel takes. What cannot be confirmed is left
//! to the resolver.

use std::ffi::CStr;
use std::time::Instant;

use pgrx::PgLogLevel;

use crate::guc;
use crate::libpq::Sending;
use crate::pg::error::{Result, attempt};
use crate::pg::globals;
use crate::pg::wait_event::WaitEvent;
use crate::protocol::gid::Command;
use crate::protocol::participant::{Event, Outcome, State};
use crate::remote::cache;
use crate::remote::connection::{CANCEL_EFFECT, CLEANUP_TIMEOUT};
use crate::remote::round::{Reply, Round};
use crate::remote::wait::Interrupts;
use crate::xact::branch::Member;
use crate::xact::participants::{self, Participant};
use crate::xact::{inject, settle};

/// What postgres_fdw's warnings call the command.
const ABORT: &CStr = c"ABORT TRANSACTION";

/// Rolls back every participant.
///
/// # Errors
/// A bug of ours, or what was raised in between; everything is done all the same.
pub fn roll_back() -> Result<()> {
    let all = participants::take_all();
    // First of all: whatever happens below, the resolver knows of everything that may be prepared.
    let mut decided = Ok(());
    for p in &all {
        let is_unused = p.state() == State::Active && !p.connection.in_transaction();
        let event = if is_unused { Event::NotBegun } else { Event::DecidedAbort };
        decided = decided.and(p.apply(event));
    }
    let ending: Vec<&Participant> =
        all.iter().map(AsRef::as_ref).filter(|p| is_ending(p)).collect();
    let told = attempt(|| tell(&ending));
    for p in ending.iter().filter(|p| is_ending(p)) {
        cache::discard(&p.connection);
    }
    // The client is told why its transaction aborted; this is for the log.
    let left = settle::leave_unconfirmed(ending.iter().copied(), PgLogLevel::LOG);
    let still = all.iter().filter(|p| p.state() == State::RollingBack);
    let closed = settle::apply_to_all(still, Event::Unconfirmed);
    for p in &all {
        cache::put_back(&p.connection);
    }
    decided.and(told).and(left).and(closed)
}

/// Whether a rollback has to be confirmed.
fn is_ending(p: &Participant) -> bool {
    matches!(p.state(), State::Aborting | State::RollingBack)
}

/// Tells them to roll back, and moves those that have.
fn tell(ending: &[&Participant]) -> Result<()> {
    if ending.is_empty() {
        return Ok(());
    }
    // A backend that is being terminated sends and does not wait. The request is pending, or has
    // been taken up by the FATAL error that ends the process and so aborts.
    let dying = globals::is_termination_pending() || globals::is_exiting();
    let is_preparing = |p: &Participant| {
        p.connection.pump();
        p.state() == State::Aborting && p.connection.is_at_work()
    };
    let (preparing, others): (Vec<&Participant>, Vec<&Participant>) =
        ending.iter().partition(|p| !dying && is_preparing(p));
    let stopping = Stopping::start(&preparing);
    let mut round = Round::new();
    for p in others {
        match p.state() {
            State::Aborting => settle::send(&mut round, p, Outcome::Abort),
            _ => send_rollback(&mut round, p)?,
        }
    }
    let mut unawaited = Round::new();
    for (p, has_answered) in stopping.wait()? {
        // To one that goes on preparing it is sent as well, and arrives behind that.
        settle::send(if has_answered { &mut round } else { &mut unawaited }, p, Outcome::Abort);
    }
    inject::point("abort");
    if dying {
        return Ok(());
    }
    let has_prepared = ending.iter().any(|p| p.state() == State::Aborting);
    let timeout = if has_prepared { guc::commit_timeout() } else { CLEANUP_TIMEOUT };
    settle::gather(round, timeout, WaitEvent::Rollback, is_gone)
}

/// Sends ROLLBACK, after a cancel if a statement is running.
fn send_rollback<'a>(round: &mut Round<'a, &'a Participant>, p: &'a Participant) -> Result<()> {
    if !p.connection.is_drained() {
        p.connection.pump();
    }
    let is_waited_for = p.connection.is_at_work() || p.connection.awaits_snapshot();
    if is_waited_for && !p.connection.is_doomed() {
        p.connection.cancel();
    }
    p.connection.warn_if_lost(ABORT)?;
    // One that does not even take a cancel is not waited for.
    if !p.connection.is_doomed() {
        round.send(p, &p.connection, &Command::ROLLBACK);
    }
    Ok(())
}

/// Whether the reply says that nothing is left there.
fn is_gone(p: &Participant, reply: &Reply) -> Result<bool> {
    if let (Reply::Refused(failure), State::RollingBack) = (reply, p.state()) {
        // The connection is not used again; what it had open ends with it.
        p.connection.warn_of(failure, ABORT)?;
    }
    Ok(reply.heard(&p.connection).is_rolled_back(p.state()))
}

/// Participants that are told to stop preparing.
struct Stopping<'a> {
    asked: Vec<(&'a Participant, Option<Sending>)>,
    deadline: Instant,
}

impl<'a> Stopping<'a> {
    /// Sends a cancel to all of them at once.
    fn start(preparing: &[&'a Participant]) -> Self {
        Self {
            asked: preparing.iter().map(|p| (*p, p.connection.start_cancel())).collect(),
            deadline: Instant::now() + CANCEL_EFFECT,
        }
    }

    /// Waits for the effect: which of them have answered PREPARE, one way or the other.
    fn wait(self) -> Result<Vec<(&'a Participant, bool)>> {
        let taken: Vec<(&Participant, bool)> = self
            .asked
            .into_iter()
            .map(|(p, sending)| (p, sending.is_some_and(|s| s.wait_until(self.deadline))))
            .collect();
        let mut answered = Vec::with_capacity(taken.len());
        for (p, is_taken) in taken {
            answered.push((p, p.connection.drain(self.deadline, Interrupts::Return)?));
            // The cancel may still arrive, and hit something else.
            if !is_taken {
                p.connection.doom();
            }
        }
        Ok(answered)
    }
}
