//! Before the local decision: readers commit, writers prepare, a sole writer commits in one phase.
//!
//! The decision row is written before the first PREPARE is sent, so that a gid found on a
//! participant without a row is one of an aborted transaction. All writers have prepared before the
//! local commit, which is the decision. A participant that commits in one phase does so after all
//! others have prepared.

use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::guc;
use crate::libpq::PgResult;
use crate::pg::error::{Error, Result, SqlState, catch};
use crate::pg::globals::{has_written, is_serializable, max_prepared_transactions};
use crate::pg::raw;
use crate::pg::wait_event::WaitEvent;
use crate::protocol::gid::Command;
use crate::protocol::participant::{Event, State};
use crate::protocol::pipeline::Control;
use crate::protocol::plan::{self, Local, Step, Work};
use crate::remote::credentials;
use crate::remote::round::{Reply, Round};
use crate::remote::wait::{Interrupts, WaitEnd};
use crate::xact::branch::Member;
use crate::xact::participants::{self, Participant};
use crate::xact::refusals::{late, lost_its_lock, lost_its_work, refused, rolled_back};
use crate::xact::write_down::write_down;
use crate::xact::{attachment, endings, one_phase};

/// Brings every participant as far as it goes without the decision. `explicit`: the transaction
/// ends with the application's PREPARE TRANSACTION.
///
/// # Errors
/// Anything that keeps a participant from following; the transaction then aborts everywhere.
pub fn phase_one(explicit: bool) -> Result<()> {
    let all = participants::all();
    settle_owed(&all)?;
    let timeout = guc::prepare_timeout();
    let deadline = Instant::now() + timeout;
    let active = hear_of_writes(&all, deadline, timeout)?;
    let works: Vec<Work> = active.iter().map(|p| p.connection.work()).collect();
    let local = Local { wrote: wrote_locally(), serializable: is_serializable(), explicit };
    let steps = plan::plan(guc::two_phase_commit(), local, &works)
        .map_err(|refusal| refused(refusal, &active))?;
    // PostgreSQL refuses below, with its own error and hint: nobody needs to prepare for that.
    if explicit && max_prepared_transactions() == 0 {
        return Ok(());
    }
    let of = |wanted: Step| -> Vec<&Participant> {
        active.iter().zip(&steps).filter(|(_, s)| **s == wanted).map(|(p, _)| *p).collect()
    };
    let (readers, writers) = (of(Step::CommitReader), of(Step::Prepare));
    // Functions and triggers of a participant may have written where nothing here could know
    // before.
    if let Some(p) = writers.iter().find(|p| p.connection.is_session_only()) {
        return Err(credentials::cannot_settle(&p.connection.server_name));
    }
    write_down(&writers, local.wrote, deadline, timeout)?;
    // A reader's commit is waited for where that takes no longer, or where the connection will not
    // be there to take the answer: a view of the participant's may have written elsewhere, and fail
    // there.
    let waits = local.serializable || !writers.is_empty();
    let (awaited, unawaited): (Vec<&Participant>, Vec<&Participant>) =
        readers.iter().partition(|p| waits || !p.connection.is_kept());
    commit_readers(&unawaited)?;
    first_round(&awaited, &writers, explicit, deadline, timeout)?;
    for p in of(Step::CommitLast) {
        one_phase::commit(p)?;
    }
    Ok(())
}

/// Waits for the answers to statements that were not waited for, as long as those would have
/// waited.
fn settle_owed(all: &[Rc<Participant>]) -> Result<()> {
    all.iter().try_for_each(|p| {
        attachment::settle_owed(&p.connection, p.userid)
            .map_err(|error| if p.connection.is_doomed() { rolled_back(p, error) } else { error })
    })
}

/// Waits for the last answers of the transaction, which tell who has written; returns the
/// participants on which a remote transaction is open.
fn hear_of_writes(
    all: &[Rc<Participant>],
    deadline: Instant,
    timeout: Duration,
) -> Result<Vec<&Participant>> {
    for p in all {
        p.connection.seal();
    }
    // The question for the xid may have failed with the statement before it: then it is asked
    // again.
    for _ in 0..2 {
        for p in all {
            p.connection.ask_if_written();
        }
        for p in all {
            if !p.connection.drain(deadline, Interrupts::Raise)? && !p.connection.is_doomed() {
                return Err(late(p, timeout));
            }
            if p.connection.is_doomed() {
                return Err(rolled_back(p, p.connection.reason()?));
            }
        }
    }
    let mut active = Vec::with_capacity(all.len());
    for p in all {
        if p.connection.in_transaction() {
            active.push(&**p);
        } else {
            p.apply(Event::NotBegun)?;
        }
    }
    Ok(active)
}

/// Whether the local transaction has changed something. A pending NOTIFY has no xid yet, and can
/// still fail.
pub(super) fn wrote_locally() -> bool {
    has_written() || notifies()
}

/// Whether the transaction has executed NOTIFY or LISTEN: PostgreSQL tells by refusing to prepare
/// it.
fn notifies() -> bool {
    // SAFETY: only looks, and raises if there is something.
    catch(|| unsafe { raw::AtPrepare_Notify() }).is_err()
}

/// Commits readers without waiting for their answers.
fn commit_readers(readers: &[&Participant]) -> Result<()> {
    for p in readers {
        p.apply(Event::SendCommit)?;
        // If the connection is lost, what was only read there is over as well.
        if p.connection.send_ending(&Command::COMMIT.sql, Control::Ending) {
            endings::sent(&p.connection);
        }
        p.apply(Event::Unawaited)?;
    }
    Ok(())
}

/// Readers commit and writers prepare, all at once.
fn first_round(
    readers: &[&Participant],
    writers: &[&Participant],
    explicit: bool,
    deadline: Instant,
    timeout: Duration,
) -> Result<()> {
    let everyone: Vec<&Participant> = readers.iter().chain(writers).copied().collect();
    let mut round = Round::over(everyone.iter().map(|p| &**p.connection));
    for p in &everyone {
        let sent = match p.prepared() {
            Some(prepared) => {
                p.apply(Event::SendPrepare)?;
                round.send_prepare(*p, &p.connection, &prepared.prepare, !explicit)
            }
            None => {
                p.apply(Event::SendCommit)?;
                round.send(*p, &p.connection, &Command::COMMIT)
            }
        };
        if !sent {
            return Err(rolled_back(p, p.connection.doom_error()));
        }
    }
    match round.wait(deadline, Interrupts::Raise, WaitEvent::Prepare, note)? {
        WaitEnd::Ready => Ok(()),
        _ => {
            let is_slow = |p: &&&Participant| {
                matches!(p.state(), State::Preparing | State::CommittingOnePhase)
            };
            Err(late(everyone.iter().find(is_slow).unwrap_or(&everyone[0]), timeout))
        }
    }
}

/// What a participant's answer to PREPARE or COMMIT means for it, and for the transaction.
fn note(p: &Participant, reply: &Reply) -> Result<()> {
    if let Some(event) = reply.heard(&p.connection).in_phase_one(p.state()) {
        p.apply(event)?;
    }
    match reply {
        Reply::Done => Ok(()),
        Reply::OtherTag(result) => Err(lost_its_work(p, result.command_tag())),
        Reply::Refused(failure) if p.connection.has_skipped_prepare() => Err(skipped(p, failure)),
        Reply::Refused(failure) => Err(rolled_back(p, error_of(p, failure))),
        Reply::Lost => Err(rolled_back(p, p.connection.doom_error())),
    }
}

/// Why PREPARE was not executed: its own check has failed, or the transaction had failed before it.
fn skipped(p: &Participant, failure: &PgResult) -> Error {
    if p.connection.has_lost_its_lock() {
        return lost_its_lock(p);
    }
    let error = error_of(p, failure);
    match error.sqlstate() {
        SqlState::IN_FAILED_SQL_TRANSACTION => lost_its_work(p, c"ROLLBACK"),
        _ => rolled_back(p, error),
    }
}

/// The participant's error, with the command that it answers.
fn error_of(p: &Participant, failure: &PgResult) -> Error {
    let sql = p.prepared().map_or(&*Command::COMMIT.sql, |prepared| &*prepared.prepare.sql);
    p.connection.error_of(failure, Some(sql))
}
