//! A statement that is all that its transaction does, and COMMIT behind it, with one wait for both.
//!
//! It is as the commit of a sole writer in one phase ([`one_phase`]), only that COMMIT is sent
//! before the statement's answer is known. If the statement fails, the remote transaction has
//! failed, and COMMIT rolls it back. When the participant has committed, the local transaction,
//! which has nothing of its own, has to follow: until it has, interrupts are held.
//!
//! The answer to COMMIT is preceded by that to the question for the xid, by which a lost answer is
//! asked for. Only if both are lost nobody knows. That would also be so where the connection had
//! been cut long before without a word, so it is not done on one that has been idle.

use std::cell::Cell;
use std::ffi::CStr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use pgrx::pg_sys;

use crate::guc;
use crate::libpq::PgResult;
use crate::pg::backend_local::BackendLocal;
use crate::pg::error::{Error, Result, SqlState, check_for_interrupts};
use crate::pg::globals::{
    clear_cancel, deadlock_timeout, hold_interrupts, is_serializable, nest_level, resume_interrupts,
};
use crate::protocol::gid::Command;
use crate::protocol::participant::{Event, State};
use crate::protocol::plan::{Access, Local, Step, Work, Xid, plan};
use crate::remote::cache::{self, Cached};
use crate::remote::connection::{Asked, Message};
use crate::remote::round::Round;
use crate::remote::wait::WaitEnd;
use crate::shared::order::UnderWay;
use crate::xact::attachment::Attachment;
use crate::xact::branch::Member;
use crate::xact::participants::{self, Participant};
use crate::xact::{cut, long_waits, one_phase, phase_one};

/// A connection on which nothing was asked and answered for longer may have ended: cut without a
/// word, or by the server because it was idle.
fn recently() -> Duration {
    const AT_MOST: Duration = Duration::from_secs(1);
    match guc::idle_connection_timeout() {
        0 => AT_MOST,
        milliseconds => AT_MOST.min(Duration::from_millis(milliseconds as u64 / 2)),
    }
}

/// A larger statement may not have left this host when it is cancelled, because the server does not
/// read. Without COMMIT behind it, it is known not to be committed.
const MOST_BYTES: usize = 8 << 10;

/// Interrupts are held until the local transaction has ended.
static HOLDS: BackendLocal<Cell<bool>> = BackendLocal::new(Cell::new(false));

impl Attachment {
    /// Runs a statement that is provably the whole transaction, and commits there. `None`, with
    /// nothing sent, if its COMMIT has to wait for the transaction's end.
    ///
    /// # Errors
    /// The statement's, or that of COMMIT: it is rolled back; 08007 if nobody knows.
    pub fn run_whole(
        &self,
        sql: &Rc<CStr>,
        params: &[Option<&CStr>],
    ) -> Result<Option<Rc<PgResult>>> {
        let values: usize = params.iter().flatten().map(|value| value.count_bytes()).sum();
        if sql.count_bytes() + values > MOST_BYTES {
            return Ok(None);
        }
        let Some(p) = self.sole_participant() else { return Ok(None) };
        let connection = &p.connection;
        // Readers would have to know the xid before COMMIT is sent.
        let place = connection.place(p.serverid.to_u32()).unwrap_or_default();
        let Some(under_way) = UnderWay::begin_unread(place) else { return Ok(None) };
        let mut round = Round::over([&***connection]);
        let manner = self.manner(sql, None)?;
        let message = Message::Query(sql, params);
        let (statement, commit) =
            connection.submit_with_end(manner, message, sql, &Command::COMMIT.sql)?;
        let asked = Asked::about(statement, sql, sql);
        p.apply(Event::SendCommit)?;
        round.was_sent((), connection, Command::COMMIT.tag, commit);
        let answer = self.wait_for_statement(connection, &asked);
        if answer.is_err() && connection.was_ended_by_server() {
            // It has not come to COMMIT.
            p.apply(Event::Confirmed)?;
            return answer.map(Some);
        }
        let is_cancelled = connection.is_due(asked.ticket()) && !connection.is_doomed();
        match (one_phase::conclude(&p, round, under_way, is_cancelled), answer) {
            (Ok(()), answer) => {
                // It may have committed before it heard of the cancel.
                let late = || connection.take(asked.ticket()).and_then(|a| a.ok()?.ok());
                let result = answer.or_else(|error| late().ok_or(error))?;
                has_committed(&p);
                Ok(Some(result))
            }
            // It has rolled back, because of that.
            (Err(error), Err(failure)) if !is_unknown(&error) => {
                check_for_interrupts()?;
                Err(failure)
            }
            (Err(error), _) => Err(error),
        }
    }

    /// The statement's answer, or why it is not waited for any longer.
    fn wait_for_statement(&self, connection: &Cached, asked: &Asked) -> Result<Rc<PgResult>> {
        self.note_wait(asked);
        let begin = Instant::now();
        let soon = begin + deadlock_timeout();
        let end = match connection.wait_or_be_terminated(asked, Some(soon), begin)? {
            WaitEnd::Deadline => {
                long_waits::act()?;
                connection.wait_or_be_terminated(asked, None, begin)?
            }
            end => end,
        };
        if end == WaitEnd::Ready
            && let Some(result) = connection.poll(asked)?
        {
            return Ok(result);
        }
        Err(if connection.is_doomed() { connection.doom_error() } else { terminated() })
    }

    /// The participant, if it is the only one and nothing but a single statement's COMMIT in one
    /// phase ends the transaction.
    fn sole_participant(&self) -> Option<Rc<Participant>> {
        let all = participants::all();
        let [p] = all.as_slice() else { return None };
        let connection = &p.connection;
        let is_free = self.uses(connection)
            && p.state() == State::Active
            && !connection.in_transaction()
            && !connection.is_tainted()
            && connection.has_answered_within(recently())
            && nest_level() == 1
            && !cut::may_be_on();
        if !is_free {
            return None;
        }
        let local = Local {
            wrote: phase_one::wrote_locally(),
            serializable: is_serializable(),
            explicit: false,
        };
        let can_prepare = connection.can_prepare;
        let work = Work { access: Access::Modifies, xid: Xid::Assigned, can_prepare };
        let steps = plan(guc::two_phase_commit(), local, &[work]);
        let is_one_phase =
            !local.wrote && !local.serializable && steps == Ok(vec![Step::CommitLast]);
        is_one_phase.then(|| Rc::clone(p))
    }
}

/// What the client is told where the end of the process does not say it.
fn terminated() -> Error {
    Error::new(SqlState::new(b"57P01"), "terminating connection due to administrator command")
}

fn is_unknown(error: &Error) -> bool {
    error.sqlstate() == SqlState::TRANSACTION_RESOLUTION_UNKNOWN
}

/// The participant has committed: it has no part in the local transaction any more, which must not
/// fail now.
fn has_committed(p: &Participant) {
    participants::take_all();
    cache::put_back(&p.connection);
    if !HOLDS.get().replace(true) {
        hold_interrupts();
    }
}

/// The local transaction has ended. An error has released interrupts already.
pub(super) fn end(event: pg_sys::XactEvent::Type) {
    if HOLDS.get().replace(false) && event == pg_sys::XactEvent::XACT_EVENT_COMMIT {
        clear_cancel();
        resume_interrupts();
    }
}
