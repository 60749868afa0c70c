//! What has to be on record before the first PREPARE is sent: the sessions' advisory locks, the
//! participants' numbers, an entry in shared memory for each, and the decision row.

use std::time::{Duration, Instant};

use pgrx::pg_sys;

use crate::pg::error::{Error, Result, SqlState};
use crate::pg::random::random;
use crate::pg::snapshot::full;
use crate::protocol::gid::{Gid, Nonce};
use crate::protocol::session_lock::SessionLock;
use crate::remote::connect::check_pooler;
use crate::remote::options::{Mapping, Server};
use crate::remote::wait::Interrupts;
use crate::shared::entries::{self, Reserved};
use crate::shared::incarnation::session_lock;
use crate::shared::resolvers;
use crate::store::{decisions, trusted};
use crate::xact::branch::Member;
use crate::xact::numbers::participant_number;
use crate::xact::participants::Participant;
use crate::xact::reach;
use crate::xact::refusals::{late, rolled_back};

/// Gives each writer its gid, and writes down what the resolver needs to settle it.
/// `wrote_locally`: before this, the transaction has written here, too.
///
/// # Errors
/// The resolver could not settle it; a limit; the deadline; a cancel.
pub fn write_down(
    writers: &[&Participant],
    wrote_locally: bool,
    deadline: Instant,
    timeout: Duration,
) -> Result<()> {
    if writers.is_empty() {
        return Ok(());
    }
    trusted::check_tables()?;
    reach::check(writers)?;
    let identity = resolvers::identity()?;
    hold_session_locks(writers, session_lock(identity), deadline, timeout)?;
    let nonce = Nonce::draw(random()?);
    let mut row = Vec::with_capacity(writers.len());
    let mut members = Vec::with_capacity(writers.len());
    for p in writers {
        let participant = participant_number(identity, p)?;
        let remote_xid = p.connection.xid().unwrap_or(0);
        row.push((participant, remote_xid));
        let (serverid, userid) = (p.serverid.to_u32(), p.userid.to_u32());
        members.push(Reserved {
            gid: Gid { identity, nonce, serverid, userid },
            participant,
            remote_xid,
            place: p.connection.place(serverid).unwrap_or_default(),
            remote_pid: p.connection.backend_pid(),
        });
    }
    // SAFETY: assigns the transaction its xid, which the row below would do anyway.
    let xid = unsafe { pg_sys::GetTopTransactionId() };
    entries::reserve(&members, xid, wrote_locally.then(|| full(xid)))?;
    for (p, member) in writers.iter().zip(&members) {
        p.reserve(member.gid)?;
    }
    reach::check_written_down(writers, deadline)?;
    decisions::insert(nonce, &row, deadline)?;
    for (p, member) in writers.iter().zip(&members) {
        p.log_step(&member.gid, format_args!("written down by transaction {}", xid.into_inner()));
    }
    Ok(())
}

/// Each session holds its advisory lock before PREPARE is sent: if the resolver finds no such lock,
/// it may conclude that no PREPARE can arrive any more. Usually it was taken with the first
/// statement.
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
        if !p.connection.drain(deadline, Interrupts::Raise)? && !p.connection.is_doomed() {
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
