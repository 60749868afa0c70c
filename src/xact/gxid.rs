//! `COMMIT PREPARED 'gxid'` and `ROLLBACK PREPARED 'gxid'` by the application: what the resolver
//! would do by itself, done at once.
//!
//! Order: ask whether this user may settle it; find its participants and connect to them, while
//! errors are harmless; let PostgreSQL settle 'gxid', which is the decision; deliver it where
//! nothing can raise. The connections are made under the mappings of those who wrote: a user who
//! may not settle it gets none, and if PostgreSQL fails, none stays.

use std::cell::RefCell;
use std::ffi::CStr;
use std::rc::Rc;
use std::time::Instant;

use pgrx::datum::DatumWithOid;
use pgrx::pg_sys::Oid;
use pgrx::{PgLogLevel, Spi, pg_sys};

use crate::guc;
use crate::libpq::Status;
use crate::pg::backend_local::BackendLocal;
use crate::pg::error::{Result, SqlState, attempt, c_string};
use crate::pg::globals::current_user;
use crate::pg::{syncrep, text};
use crate::protocol::gid::{Gid, Nonce};
use crate::protocol::participant::{Outcome, State};
use crate::protocol::session_lock::SessionLock;
use crate::protocol::verdict::Decision;
use crate::remote::cache::{self, Cached};
use crate::remote::connection::Asked;
use crate::remote::options::{Mapping, Server};
use crate::remote::wait::Interrupts;
use crate::shared::entries::{self, Known, Reserved};
use crate::shared::incarnation::session_lock;
use crate::shared::{confirmed, window};
use crate::store::{decisions, identity, participant_list};
use crate::xact::branch::{Branch, Member};
use crate::xact::settle;

/// What is to be delivered once PostgreSQL has settled 'gxid'.
struct Settlement {
    /// The local transaction.
    xid: pg_sys::TransactionId,
    nonce: Nonce,
    members: Vec<Waiting>,
    /// Every participant of the row is among the members.
    complete: bool,
}

/// A participant that waits for 'gxid'.
struct Waiting {
    branch: Branch,
    server: String,
    /// None where the participant could not be reached.
    connection: Option<Rc<Cached>>,
}

impl Member for Waiting {
    fn branch(&self) -> &Branch {
        &self.branch
    }

    fn connection(&self) -> Option<&Rc<Cached>> {
        self.connection.as_ref()
    }

    fn server(&self) -> String {
        self.server.clone()
    }
}

static PENDING: BackendLocal<RefCell<Option<Settlement>>> = BackendLocal::new(RefCell::new(None));

/// Finds the participants of 'gxid', and connects to those that can be reached.
///
/// # Errors
/// A cancel.
pub fn prepare_to_settle(gxid: &CStr) -> Result<()> {
    PENDING.get().borrow_mut().take();
    // PostgreSQL refuses it there, and the connections are in use.
    // SAFETY: reads the transaction's state.
    if unsafe { pg_sys::IsTransactionBlock() } {
        return Ok(());
    }
    let Some(Pending { xid, gids, complete }) = pending(gxid)? else { return Ok(()) };
    syncrep::require_synchronous_commit();
    let (Some(identity), Some(nonce)) = (identity::known(), gids.first().map(|gid| gid.nonce))
    else {
        return Ok(());
    };
    let mut members = Vec::new();
    let reached = reach(&mut members, gids, session_lock(identity));
    *PENDING.get().borrow_mut() = Some(Settlement { xid, nonce, members, complete });
    if reached.is_err() {
        abandon();
    }
    reached
}

/// Connects to those participants that can be reached.
fn reach(members: &mut Vec<Waiting>, gids: Vec<Gid>, lock: SessionLock) -> Result<()> {
    let deadline = Instant::now() + guc::commit_timeout();
    for gid in gids {
        let (userid, serverid) = (Oid::from_u32(gid.userid), Oid::from_u32(gid.serverid));
        let connection = match Mapping::find(userid, serverid)
            .map(|mapping| cache::connection(&mapping, Some(deadline)))
        {
            Some(Err(error)) if error.sqlstate() == SqlState::QUERY_CANCELED => return Err(error),
            found => found.and_then(Result::ok),
        };
        let server = Server::find(serverid)
            .map_or_else(|| gid.serverid.to_string(), |s| text::carried(&s.name));
        members.push(Waiting { branch: Branch::waiting(gid), server, connection });
    }
    let_go_of_copied(members, lock, deadline)
}

/// PostgreSQL has not settled 'gxid': lets go of the connections that were made for that.
pub fn abandon() {
    let Some(settlement) = PENDING.get().borrow_mut().take() else { return };
    for connection in settlement.members.into_iter().filter_map(|member| member.connection) {
        cache::discard(&connection);
    }
}

/// What is prepared under 'gxid' here.
struct Pending {
    xid: pg_sys::TransactionId,
    gids: Vec<Gid>,
    /// These are all participants.
    complete: bool,
}

/// The participants of 'gxid', if it has any. Usually shared memory knows them; otherwise the
/// decision table is read from end to end.
fn pending(gxid: &CStr) -> Result<Option<Pending>> {
    let mut found = None;
    let known = entries::prepared_here(|| {
        found = local_xid(gxid)?;
        Ok(found)
    })?;
    let Some(xid) = found else { return Ok(None) };
    Ok(match known {
        Known::Local => None,
        Known::Participants(gids) => Some(Pending { xid, gids, complete: true }),
        Known::Unknown => pending_by_row(xid),
    })
}

fn pending_by_row(xid: pg_sys::TransactionId) -> Option<Pending> {
    let mut rows = decisions::of_xid(xid).into_iter();
    let row = rows.find(|row| row.decision == Decision::InProgress)?;
    let identity = identity::known()?;
    let list = participant_list::all();
    let gids: Vec<Gid> = row.gids(identity, &list).collect();
    let complete = gids.len() == row.participants.len();
    // The resolver has not come to it yet, or there was no room. Once it is decided, readers have
    // to know what is not delivered.
    let members = row.participants.iter();
    for (id, remote_xid) in members.filter(|_| decisions::of(xid) == Decision::InProgress) {
        let Some(registered) = list.iter().find(|r| r.id == *id) else { continue };
        let (gid, participant) = (registered.gid(identity, row.nonce), registered.id);
        let (remote_xid, place) = (*remote_xid, registered.place());
        let reserved = Reserved { gid, participant, remote_xid, place, remote_pid: 0 };
        entries::adopt(&reserved, xid, if complete { gids.len() } else { 0 });
    }
    Some(Pending { xid, gids, complete })
}

/// 'gxid' may have been copied here with the whole server, and still be pending in the original.
/// Lets go of every participant where sessions of another copy are found, or which does not answer:
/// the resolver goes on there, under its fence. Our own session takes its lock before it looks, so
/// that of two copies at least one finds the other.
fn let_go_of_copied(members: &mut [Waiting], lock: SessionLock, deadline: Instant) -> Result<()> {
    let question = c_string(lock.other_incarnations());
    let asked: Vec<_> = members
        .iter()
        .map(|member| {
            let connection = member.connection.as_ref()?;
            connection.lock_session(lock);
            connection.send_alone(&question)
        })
        .collect();
    for (member, ticket) in members.iter_mut().zip(asked) {
        let (Some(connection), Some(ticket)) = (&member.connection, ticket) else {
            member.connection = None;
            continue;
        };
        let alone = connection.drain(deadline, Interrupts::Raise)?
            && connection.holds(lock)
            && connection
                .wait(&Asked::of(ticket, &*question))
                .is_ok_and(|others| others.status() == Status::TuplesOk && others.rows() == 0);
        if !alone && let Some(connection) = member.connection.take() {
            cache::put_back(&connection);
        }
    }
    Ok(())
}

/// The local transaction that is prepared under 'gxid' in this database, if this user may settle
/// it. PostgreSQL refuses other users with its own error.
fn local_xid(gxid: &CStr) -> Result<Option<pg_sys::TransactionId>> {
    // SAFETY: the catalog snapshot is pushed and popped around the query.
    unsafe { pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot()) };
    let found = Spi::connect(|client| {
        // SAFETY: a text consists of its bytes, in the server's encoding, as a bytea does.
        let arguments = [unsafe { DatumWithOid::new(gxid.to_bytes(), pg_sys::TEXTOID) }];
        let mut table = client
            .select(
                "SELECT p.transaction, p.ownerid FROM pg_catalog.pg_prepared_xact() p \
                 JOIN pg_catalog.pg_database d ON d.oid OPERATOR(pg_catalog.=) p.dbid \
                 WHERE p.gid OPERATOR(pg_catalog.=) $1 \
                 AND d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()",
                Some(1),
                &arguments,
            )
            .ok()?;
        let row = table.next()?;
        let owner = row.get::<Oid>(2).ok().flatten()?;
        // SAFETY: a look-up of the current role.
        let may_settle = owner == current_user() || unsafe { pg_sys::superuser() };
        may_settle.then(|| row.get::<pg_sys::TransactionId>(1).ok().flatten()).flatten()
    });
    // SAFETY: pushed above.
    unsafe { pg_sys::PopActiveSnapshot() };
    Ok(found)
}

/// PostgreSQL has settled 'gxid': tells the participants, and leaves to the resolver those that do
/// not confirm it.
///
/// # Errors
/// A bug of ours, or what was raised in delivering; everything is done all the same.
pub fn deliver() -> Result<()> {
    let Some(settlement) = PENDING.get().borrow_mut().take() else { return Ok(()) };
    let Settlement { xid, nonce, members, complete } = settlement;
    // While we connected, another session may have settled it, and the name may have been used
    // again. So what has become of the local transaction, and with it of its row, tells what is
    // true.
    let outcome = match attempt(|| Ok(decisions::of(xid)))? {
        Decision::Committed => Outcome::Commit,
        Decision::Absent => Outcome::Abort,
        Decision::InProgress => return Ok(()),
    };
    // From here on the resolver leaves them to us, until they are handed over.
    // A decision that a synchronous standby may still lose is the resolver's to deliver.
    let is_delivered = syncrep::last_record_is_replicated();
    let decided = match outcome {
        Outcome::Commit => {
            window::pass();
            settle::decide(&members, is_delivered)
        }
        Outcome::Abort => settle::apply_to_all(&members, outcome.event()),
    };
    let told = if is_delivered {
        let reached: Vec<&Waiting> = members.iter().filter(|m| m.connection.is_some()).collect();
        attempt(|| settle::deliver(&reached, outcome, "settle"))
    } else {
        Ok(())
    };
    let left = settle::leave_unconfirmed(&members, PgLogLevel::WARNING);
    let is_settled = complete && members.iter().all(|m| m.state() == State::Settled);
    if outcome == Outcome::Commit && is_settled {
        confirmed::add(nonce);
    }
    for connection in members.iter().filter_map(|m| m.connection.as_ref()) {
        cache::put_back(connection);
    }
    decided.and(told).and(left)
}
