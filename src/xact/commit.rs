//! The commit: phase one before the decision, phase two after it.
//!
//! Order, and why: the decision row is written before the first PREPARE is sent, so that a gid found on
//! a participant without a row is an aborted one. Everybody has prepared before the local commit, which is
//! the decision. A participant that commits in one phase does so after all others have prepared.

use std::time::{Duration, Instant};

use pgrx::{PgLogLevel, pg_sys};

use crate::guc;
use crate::pg::error::{Error, Result, SqlState, attempt, catch};
use crate::pg::globals::{clear_cancel, has_written, is_serializable, max_prepared_transactions};
use crate::pg::random::random;
use crate::pg::wait_event::WaitEvent;
use crate::pg::{raw, syncrep};
use crate::protocol::gid::{Gid, Nonce};
use crate::protocol::participant::{Event, State};
use crate::protocol::pipeline::Control;
use crate::protocol::plan::{self, Local, Refusal, Step, Work};
use crate::protocol::session_lock::SessionLock;
use crate::remote::connect::check_pooler;
use crate::remote::options::{Mapping, Server};
use crate::remote::round::{Outcome, Together};
use crate::remote::wait::{Patience, Woke};
use crate::remote::{cache, credentials};
use crate::shared::entries::{self, Reserved};
use crate::shared::entry::Status;
use crate::shared::workers;
use crate::store::{decisions, trusted};
use crate::xact::participants::{self, Participant};
use crate::xact::unconfirmed::unconfirmed;
use crate::xact::{deliveries, endings, inject, one_phase, reach, session_lock};

/// Before the decision: readers commit, writers prepare, a sole writer commits. `explicit`: the application's
/// PREPARE TRANSACTION.
///
/// # Errors
/// Anything that keeps a participant from following; the transaction then aborts everywhere.
pub fn phase_one(explicit: bool) -> Result<()> {
    let all = participants::all();
    let timeout = guc::prepare_timeout();
    let deadline = Instant::now() + timeout;
    for p in &all {
        p.connection.seal();
    }
    // Who has written is among the answers that may still be on their way. One of them may be that a question for the
    // xid has failed with the statement before it: then it is asked again.
    for _ in 0..2 {
        for p in &all {
            p.connection.ask_if_written();
        }
        for p in &all {
            if !p.connection.drain(deadline, Patience::Interruptible)? && !p.connection.is_doomed()
            {
                return Err(late(p, timeout));
            }
            if p.connection.is_doomed() {
                return Err(rolled_back(p, p.connection.reason()?));
            }
        }
    }
    let active: Vec<&Participant> =
        all.iter().map(AsRef::as_ref).filter(|p| p.connection.in_transaction()).collect();
    let works: Vec<Work> = active.iter().map(|p| p.connection.work()).collect();
    let local = Local {
        // A NOTIFY that is pending has no xid yet, and can still fail.
        wrote: has_written() || notifies(),
        serializable: is_serializable(),
        explicit,
    };
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
    // Writes that were not seen coming: by functions and triggers of a participant.
    if let Some(p) = writers.iter().find(|p| p.connection.is_session_only()) {
        return Err(credentials::cannot_settle(&p.connection.server_name));
    }
    write_down(&writers, deadline, timeout)?;
    first_round(&readers, &writers, deadline, timeout)?;
    for p in of(Step::CommitLast) {
        one_phase::commit(p)?;
    }
    Ok(())
}

/// Whether the transaction has executed NOTIFY or LISTEN: PostgreSQL tells by refusing to prepare it.
fn notifies() -> bool {
    // SAFETY: only looks, and raises if there is something.
    catch(|| unsafe { raw::AtPrepare_Notify() }).is_err()
}

/// Everything that has to be on record before the first PREPARE is sent.
fn write_down(writers: &[&Participant], deadline: Instant, timeout: Duration) -> Result<()> {
    if writers.is_empty() {
        return Ok(());
    }
    trusted::check_tables()?;
    reach::check(writers)?;
    let identity = workers::identity()?;
    hold_session_locks(writers, session_lock(identity), deadline, timeout)?;
    let nonce = Nonce::draw(random()?);
    let mut row = Vec::with_capacity(writers.len());
    let mut members = Vec::with_capacity(writers.len());
    for p in writers {
        let fingerprint = p.connection.fingerprint().ok_or_else(|| p.connection.doom_error())?;
        let id = known::participant(identity, p, &fingerprint)?;
        let remote_xid = p.connection.xid().unwrap_or(0);
        row.push((id, remote_xid));
        let (serverid, userid) = (p.serverid.to_u32(), p.userid.to_u32());
        members.push(Reserved {
            gid: Gid { identity, nonce, serverid, userid },
            participant: id,
            remote_xid,
            remote_pid: p.connection.backend_pid(),
        });
    }
    // SAFETY: assigns the transaction its xid, which the row below would do anyway.
    let xid = unsafe { pg_sys::GetTopTransactionId() };
    entries::reserve(&members, xid)?;
    for (p, member) in writers.iter().zip(&members) {
        p.set_gid(member.gid);
    }
    reach::check_written_down(writers, deadline)?;
    decisions::insert(nonce, &row, deadline)
}

/// Each session holds its advisory lock before PREPARE is sent: who finds no such lock may conclude that
/// nobody can prepare any more. Usually it was taken with the first statement.
fn hold_session_locks(
    writers: &[&Participant],
    lock: SessionLock,
    deadline: Instant,
    timeout: Duration,
) -> Result<()> {
    for p in writers.iter().filter(|p| p.connection.is_pooled()) {
        check_pooler(&Server::read(p.serverid), &Mapping::read(p.userid, p.serverid)?, deadline)?;
        p.connection.owns_process();
    }
    for p in writers {
        p.connection.lock_session(lock);
        p.connection.send_lock();
    }
    for p in writers {
        if !p.connection.drain(deadline, Patience::Interruptible)? && !p.connection.is_doomed() {
            return Err(late(p, timeout));
        }
        if p.connection.is_doomed() {
            return Err(rolled_back(p, p.connection.reason()?));
        }
        if !p.connection.holds(lock) {
            return Err(Error::new(
                SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("could not take the session's advisory lock on server \"{}\"", p.server()),
            )
            .detail(format!(
                "Somebody there holds the advisory lock ({}, {}) exclusively, or waits for it.",
                lock.key, lock.incarnation
            ))
            .hint("Whoever may connect to that database can: REVOKE CONNECT on it from those who need not."));
        }
    }
    Ok(())
}

/// Readers commit and writers prepare, all at once. Who has only read is waited for where that costs nothing, or where
/// its connection does not live to tell later: what a view of its own does may be elsewhere, and fail there.
fn first_round(
    readers: &[&Participant],
    writers: &[&Participant],
    deadline: Instant,
    timeout: Duration,
) -> Result<()> {
    // With the isolation level SERIALIZABLE a reader's commit may find that what it read never was.
    let serializable = is_serializable();
    let waits = serializable || !writers.is_empty();
    let (awaited, unawaited): (Vec<&Participant>, Vec<&Participant>) =
        readers.iter().partition(|p| waits || !p.connection.is_kept());
    for p in unawaited {
        p.take(Event::SendCommit)?;
        // Where the connection is lost, nothing is left of it either.
        if p.connection.send_ending(c"COMMIT", Control::Ending) {
            endings::sent(&p.connection);
        }
        p.take(Event::Unawaited)?;
    }
    let everyone: Vec<&Participant> = awaited.iter().chain(writers).copied().collect();
    if everyone.is_empty() {
        return Ok(());
    }
    let mut together = Together::new(everyone.iter().map(|p| &**p.connection));
    for (index, p) in everyone.iter().enumerate() {
        let ticket = match p.prepared() {
            Some(prepared) => {
                p.take(Event::SendPrepare)?;
                p.connection.send_prepare(&prepared.prepare)
            }
            None => {
                p.take(Event::SendCommit)?;
                p.connection.send_alone(c"COMMIT")
            }
        };
        together.sent(index, ticket);
        if ticket.is_none() {
            return Err(rolled_back(p, p.connection.doom_error()));
        }
    }
    let note = |index: usize, outcome: &Outcome| {
        let p = everyone[index];
        match (outcome, p.prepared()) {
            (Outcome::Done(result), Some(prepared)) => {
                // A failed remote transaction answers PREPARE with the tag ROLLBACK and no error.
                if result.command_tag() != c"PREPARE TRANSACTION" {
                    p.take(Event::PrepareRefused)?;
                    entries::remove(&prepared.gid);
                    return Err(lost_its_work(p, result.command_tag()));
                }
                p.take(Event::PrepareConfirmed)?;
                entries::set_status(&prepared.gid, Status::Prepared);
                Ok(())
            }
            (Outcome::Done(result), None) => {
                p.take(Event::Confirmed)?;
                match result.command_tag() {
                    tag if tag == c"COMMIT" => Ok(()),
                    tag => Err(lost_its_work(p, tag)),
                }
            }
            (Outcome::Failed(failure), Some(prepared)) if p.connection.has_skipped_prepare() => {
                p.take(Event::PrepareSkipped)?;
                entries::remove(&prepared.gid);
                Err(if p.connection.has_lost_its_lock() {
                    lost_its_lock(p)
                } else {
                    let error = p.connection.error_of(failure, Some(&prepared.prepare));
                    match error.sqlstate() {
                        SqlState::IN_FAILED_SQL_TRANSACTION => lost_its_work(p, c"ROLLBACK"),
                        _ => rolled_back(p, error),
                    }
                })
            }
            (Outcome::Failed(failure), prepared) => {
                let sql = prepared.map_or(c"COMMIT", |prepared| &prepared.prepare);
                let error = p.connection.error_of(failure, Some(sql));
                // What the server says as it goes away is no answer to PREPARE, nor is an error of libpq's.
                if !p.connection.is_doomed() && failure.error_field(b'C').is_some() {
                    p.take(if prepared.is_some() {
                        Event::PrepareRefused
                    } else {
                        Event::Confirmed
                    })?;
                    if let Some(prepared) = prepared {
                        entries::remove(&prepared.gid);
                    }
                }
                Err(rolled_back(p, error))
            }
            _ => Err(rolled_back(p, p.connection.doom_error())),
        }
    };
    match together.wait(deadline, Patience::Interruptible, WaitEvent::Prepare, note)? {
        Woke::Ready => Ok(()),
        _ => {
            let slow = everyone
                .iter()
                .find(|p| matches!(p.state(), State::Preparing | State::CommittingOnePhase));
            Err(late(slow.unwrap_or(&everyone[0]), timeout))
        }
    }
}

/// After the decision: delivers it. Whoever does not confirm in time is the resolver's.
pub fn phase_two() -> Result<()> {
    let all = participants::take_all();
    let mut prepared: Vec<&Participant> = Vec::with_capacity(all.len());
    for p in &all {
        // Refused by one that was never used in this transaction: it has nothing to commit.
        let _ = p.take(Event::DecidedCommit);
        if let (State::Committing, Some(settle)) = (p.state(), p.prepared()) {
            entries::set_status(&settle.gid, Status::Committing);
            prepared.push(p);
        }
    }
    let wait = guc::commit_wait() || !prepared.iter().all(|p| p.connection.is_kept());
    let outcome = attempt(|| deliver_commit(&prepared, wait));
    for p in &prepared {
        let (State::Committing, Some(settle)) = (p.state(), p.prepared()) else { continue };
        let _ = p.take(Event::Unconfirmed);
        cache::discard(&p.connection);
        entries::hand_over(&settle.gid, Status::Committing);
        let _ = unconfirmed(&p.server(), &settle.gid, true).log(PgLogLevel::WARNING);
    }
    let all_settled = prepared.iter().all(|p| p.state() == State::Settled);
    if let (true, Some(settle)) = (all_settled, prepared.first().and_then(|p| p.prepared())) {
        workers::confirmed(settle.gid.nonce);
    }
    for p in &all {
        cache::put_back(&p.connection);
    }
    clear_cancel();
    outcome
}

fn deliver_commit(prepared: &[&Participant], wait: bool) -> Result<()> {
    // Where the wait for synchronous standbys was cut short, the resolver delivers when they have it.
    if prepared.is_empty() || !syncrep::own_commit_is_replicated() {
        return Ok(());
    }
    if !wait {
        deliveries::send(prepared)?;
        inject::point("commit");
        return Ok(());
    }
    let mut together = Together::new(prepared.iter().map(|p| &**p.connection));
    for (index, p) in prepared.iter().enumerate() {
        let ticket = p.prepared().and_then(|settle| p.connection.send_alone(&settle.commit));
        together.sent(index, ticket);
    }
    inject::point("commit");
    let deadline = Instant::now() + guc::commit_timeout();
    together.wait(deadline, Patience::Settling, WaitEvent::Settle, |index, outcome| {
        let p = prepared[index];
        if let (Outcome::Done(result), Some(settle)) = (outcome, p.prepared())
            && result.command_tag() == c"COMMIT PREPARED"
        {
            p.take(Event::Confirmed)?;
            entries::confirmed(&settle.gid);
        }
        Ok(())
    })?;
    Ok(())
}

/// After the application's PREPARE TRANSACTION: this session has nothing more to do with it.
pub fn detach() -> Result<()> {
    let all = participants::take_all();
    for p in &all {
        // Refused by one that was never used in this transaction.
        let _ = p.take(Event::DecidedLater);
        if let Some(prepared) = p.prepared() {
            entries::hand_over(&prepared.gid, Status::Prepared);
        }
    }
    for p in &all {
        cache::put_back(&p.connection);
    }
    inject::point("prepare");
    Ok(())
}

/// Why a participant could not follow, as the error of a transaction that was definitely rolled back:
/// never of class 08, which leaves the outcome open to the client.
fn rolled_back(p: &Participant, cause: Error) -> Error {
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

fn lost_its_work(p: &Participant, tag: &std::ffi::CStr) -> Error {
    Error::new(
        SqlState::TRANSACTION_ROLLBACK,
        format!("server \"{}\" had already rolled back its part of the transaction", p.server()),
    )
    .detail(format!("It answered with \"{}\".", tag.to_string_lossy()))
}

fn lost_its_lock(p: &Participant) -> Error {
    Error::new(
        SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
        format!("the session's advisory lock on server \"{}\" has been released", p.server()),
    )
    .detail("By that lock others know that the session can still prepare the transaction. The transaction is rolled back on all servers.")
    .hint("A function or trigger there has called pg_advisory_unlock_all(), or released the lock by its key. Have it release its own locks only.")
}

fn late(p: &Participant, timeout: Duration) -> Error {
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

fn refused(refusal: Refusal, active: &[&Participant]) -> Error {
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

mod known {
    //! Which participants this backend knows to be on the durable list.

    use crate::protocol::fingerprint::Fingerprint;
    use std::cell::RefCell;

    use pgrx::pg_sys::Oid;

    use crate::pg::backend_local::BackendLocal;
    use crate::pg::error::{Error, Result, SqlState};
    use crate::protocol::gid::Identity;
    use crate::remote::basis::Basis;
    use crate::shared::{requests, workers};
    use crate::xact::participants::Participant;

    /// The numbers belong to an identity, which an extension that was created anew does not keep, and to a
    /// generation of the list. The resolver notes where the server is said to be, which is what the connection was made
    /// from.
    type Key = (Identity, u64, Oid, Oid, Fingerprint, Basis);

    static KNOWN: BackendLocal<RefCell<Vec<(Key, i32)>>> =
        BackendLocal::new(RefCell::new(Vec::new()));

    /// A participant's number on the list; has it added if it is not there.
    pub fn participant(
        identity: Identity,
        p: &Participant,
        fingerprint: &Fingerprint,
    ) -> Result<i32> {
        let (serverid, userid) = (p.serverid, p.userid);
        let generation = workers::generation();
        let known = KNOWN.get().borrow().iter().find_map(|((i, g, s, u, f, basis), id)| {
            let is_it = (*i, *g, *s, *u) == (identity, generation, serverid, userid)
                && f == fingerprint
                && *basis == p.connection.basis;
            is_it.then_some(*id)
        });
        if let Some(id) = known {
            return Ok(id);
        }
        let id = requests::register(serverid, userid, fingerprint)?;
        if id < 1 {
            return Err(Error::new(
                SqlState::INTERNAL_ERROR,
                "the resolver gave a participant no number",
            ));
        }
        let basis = p.connection.basis.clone();
        // Older ones of the same are not asked for again.
        let mut known = KNOWN.get().borrow_mut();
        known.retain(|((i, g, s, u, ..), _)| {
            (*i, *g) == (identity, generation) && (*s, *u) != (serverid, userid)
        });
        known.push(((identity, generation, serverid, userid, fingerprint.clone(), basis), id));
        Ok(id)
    }
}
