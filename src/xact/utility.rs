//! `COMMIT PREPARED 'gxid'` and `ROLLBACK PREPARED 'gxid'` by the application: a shortcut to what the resolver
//! would do by itself.
//!
//! Order: ask whether this user may settle it; find its participants and connect to them, while errors are harmless;
//! let PostgreSQL settle 'gxid', which is the decision; deliver it where nothing can raise. The connections are made
//! under the mappings of those who wrote: who may not settle gets none, and where PostgreSQL fails none stays.

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, c_char};
use std::rc::Rc;
use std::time::Instant;

use pgrx::datum::DatumWithOid;
use pgrx::pg_sys::Oid;
use pgrx::{PgLogLevel, Spi, pg_sys};

use crate::guc;
use crate::pg::backend_local::BackendLocal;
use crate::pg::error::{Result, SqlState, attempt, boundary, c_string, shielded};
use crate::pg::globals::current_user;
use crate::pg::wait_event::WaitEvent;
use crate::pg::{raw, syncrep, text};
use crate::protocol::gid::{Gid, Nonce};
use crate::protocol::prepared::Prepared;
use crate::protocol::session_lock::SessionLock;
use crate::protocol::verdict::Decision;
use crate::remote::cache::{self, Cached};
use crate::remote::options::{Mapping, Server};
use crate::remote::round::{Outcome, Together};
use crate::remote::wait::Patience;
use crate::shared::entries::{self, Known};
use crate::shared::entry::Status;
use crate::shared::workers;
use crate::store::{decisions, identity, participant_list};
use crate::xact::unconfirmed::unconfirmed;
use crate::xact::{inject, session_lock};

/// What is to be delivered once PostgreSQL has settled 'gxid'.
struct Settlement {
    /// The local transaction.
    xid: pg_sys::TransactionId,
    nonce: Nonce,
    members: Vec<Member>,
    /// Every participant of the row is among the members.
    complete: bool,
}

struct Member {
    prepared: Prepared,
    /// The server's name, for messages.
    server: String,
    /// None where the participant could not be reached.
    connection: Option<Rc<Cached>>,
}

static PENDING: BackendLocal<RefCell<Option<Settlement>>> = BackendLocal::new(RefCell::new(None));
static PREVIOUS: BackendLocal<Cell<pg_sys::ProcessUtility_hook_type>> =
    BackendLocal::new(Cell::new(None));

/// Looks at a statement before it runs.
pub type Look = unsafe fn(*mut pg_sys::Node) -> Result<()>;

static BEFORE: BackendLocal<Cell<Option<Look>>> = BackendLocal::new(Cell::new(None));

/// Installs the hook; called while the server loads the library. `before` looks at each statement first.
pub fn install(before: Look) {
    BEFORE.get().set(Some(before));
    // SAFETY: single-threaded start-up.
    unsafe {
        PREVIOUS.get().set(pg_sys::ProcessUtility_hook);
        pg_sys::ProcessUtility_hook = Some(process_utility);
    }
}

unsafe extern "C-unwind" fn process_utility(
    pstmt: *mut pg_sys::PlannedStmt,
    query: *const c_char,
    read_only_tree: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    params: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
    destination: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
) {
    // SAFETY: PostgreSQL hands a valid statement; the frame owns nothing with a destructor.
    unsafe {
        boundary(|| BEFORE.get().get().map_or(Ok(()), |look| look((*pstmt).utilityStmt)));
        let settles = settled_gxid((*pstmt).utilityStmt);
        if let Some(gxid) = settles {
            boundary(|| prepare_settlement(CStr::from_ptr(gxid)));
        }
        let next = PREVIOUS.get().get().unwrap_or(raw::standard_ProcessUtility);
        next(pstmt, query, read_only_tree, context, params, environment, destination, completion);
        if settles.is_some() {
            shielded("after settling a prepared transaction", deliver);
        }
    }
}

/// The 'gxid' of COMMIT PREPARED or ROLLBACK PREPARED.
///
/// # Safety
/// `statement` is a valid node.
unsafe fn settled_gxid(statement: *mut pg_sys::Node) -> Option<*const c_char> {
    // SAFETY: by contract; the tag says which struct it is.
    unsafe {
        if (*statement).type_ != pg_sys::NodeTag::T_TransactionStmt {
            return None;
        }
        let statement = &*statement.cast::<pg_sys::TransactionStmt>();
        match statement.kind {
            pg_sys::TransactionStmtKind::TRANS_STMT_COMMIT_PREPARED
            | pg_sys::TransactionStmtKind::TRANS_STMT_ROLLBACK_PREPARED => {
                Some(statement.gid.cast_const())
            }
            _ => None,
        }
    }
}

/// Finds the participants of 'gxid' and connects to them as far as possible.
fn prepare_settlement(gxid: &CStr) -> Result<()> {
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

/// Connects to the participants as far as possible.
fn reach(members: &mut Vec<Member>, gids: Vec<Gid>, lock: SessionLock) -> Result<()> {
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
        members.push(Member { prepared: Prepared::new(gid), server, connection });
    }
    let_go_of_copied(members, lock, deadline)
}

/// PostgreSQL has not settled 'gxid': lets go of what was prepared for that.
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

/// The participants of 'gxid', if it has any. Shared memory knows them; the decision table, which is read through from
/// end to end, is asked only where it may not.
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
    let row = decisions::all()
        .into_iter()
        .find(|row| row.xid == xid && row.decision == Decision::InProgress)?;
    let identity = identity::known()?;
    let gids: Vec<Gid> = row.gids(identity, &participant_list::all()).collect();
    let complete = gids.len() == row.participants.len();
    Some(Pending { xid, gids, complete })
}

/// 'gxid' may have been copied here with the whole server, and still be pending in the original. Lets go of every
/// participant that sees sessions of another copy, or cannot say: the resolver goes on there, with the fence.
/// Ours are seen by the other copy from before we look, so that not both of us find nobody.
fn let_go_of_copied(members: &mut [Member], lock: SessionLock, deadline: Instant) -> Result<()> {
    let question = c_string(format!(
        "SELECT FROM pg_catalog.pg_locks \
         WHERE locktype = 'advisory' AND objsubid = 2 AND classid = {}::oid AND objid <> {}::oid \
         AND database = (SELECT oid FROM pg_catalog.pg_database \
                         WHERE datname = pg_catalog.current_database())",
        lock.key as u32, lock.incarnation as u32
    ));
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
        let alone = connection.drain(deadline, Patience::Interruptible)?
            && connection.holds(lock)
            && connection.answer(ticket, None).is_ok_and(|strangers| strangers.rows() == 0);
        if !alone && let Some(connection) = member.connection.take() {
            cache::put_back(&connection);
        }
    }
    Ok(())
}

/// The local transaction that is prepared under 'gxid' in this database, if this user may settle it. PostgreSQL
/// refuses others with its own error.
fn local_xid(gxid: &CStr) -> Result<Option<pg_sys::TransactionId>> {
    // SAFETY: the catalog snapshot is pushed and popped around the query.
    unsafe { pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot()) };
    let found = Spi::connect(|client| {
        // SAFETY: a text is made of its bytes, in the server's encoding, as a bytea is.
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

/// PostgreSQL has settled 'gxid': tells the participants, and leaves the rest to the resolver.
fn deliver() -> Result<()> {
    let Some(settlement) = PENDING.get().borrow_mut().take() else { return Ok(()) };
    let Settlement { xid, nonce, members, complete } = settlement;
    // Another session may have settled it, and the name have been used again, while we connected: what has become of the
    // local transaction, and so of its row, tells what is true.
    let commit = match attempt(|| Ok(decisions::of(xid)))? {
        Decision::Committed => true,
        Decision::Absent => false,
        Decision::InProgress => return Ok(()),
    };
    let (status, tag) = if commit {
        (Status::Committing, c"COMMIT PREPARED")
    } else {
        (Status::Aborting, c"ROLLBACK PREPARED")
    };
    // From here on the resolver leaves them to us, until they are handed over.
    for member in &members {
        entries::claim(&member.prepared.gid, status);
    }
    let mut confirmed = vec![false; members.len()];
    // A decision that a synchronous standby may still lose is the resolver's to deliver.
    let replicated = syncrep::last_record_is_replicated();
    let reached: Vec<(usize, &Member, &Rc<Cached>)> = members
        .iter()
        .enumerate()
        .filter(|_| replicated)
        .filter_map(|(i, m)| m.connection.as_ref().map(|c| (i, m, c)))
        .collect();
    let waited = attempt(|| {
        let mut together = Together::new(reached.iter().map(|(_, _, c)| &****c));
        for (index, (_, member, connection)) in reached.iter().enumerate() {
            let command = if commit { &member.prepared.commit } else { &member.prepared.rollback };
            together.sent(index, connection.send_alone(command));
        }
        inject::point("settle");
        let deadline = Instant::now() + guc::commit_timeout();
        together.wait(deadline, Patience::Settling, WaitEvent::Settle, |index, outcome| {
            if let Outcome::Done(result) = outcome {
                confirmed[reached[index].0] = result.command_tag() == tag;
            }
            Ok(())
        })
    });
    for (member, confirmed) in members.iter().zip(&confirmed) {
        if *confirmed {
            entries::confirmed(&member.prepared.gid);
            continue;
        }
        entries::hand_over(&member.prepared.gid, status);
        let _ = unconfirmed(&member.server, &member.prepared.gid, commit).log(PgLogLevel::WARNING);
    }
    if commit && complete && confirmed.iter().all(|c| *c) {
        workers::confirmed(nonce);
    }
    for (_, _, connection) in reached {
        cache::put_back(connection);
    }
    waited.map(|_| ())
}
