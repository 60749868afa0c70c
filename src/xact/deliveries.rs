//! Commits that were delivered without waiting for their answer (`pg_fdw_xacts.commit_wait = off`):
//! the decision is made, `COMMIT PREPARED` is on the wire, and the answer is read when the session
//! next uses the connection, before anything else that comes on it.
//!
//! Until then the transaction's entries say `committing` and belong to this backend. They are left
//! to the resolver if the backend does not confirm them within the time that every owner has, or
//! ends before it has read the answers (`entries::reap`); at once if somebody else needs the room
//! (`entries::reserve`).

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Instant;

use pgrx::pg_sys;

use crate::guc;
use crate::pg::backend_local::BackendLocal;
use crate::pg::error::{Result, shielded};
use crate::protocol::gid::Nonce;
use crate::protocol::participant::{Event, Outcome};
use crate::protocol::pipeline::Control;
use crate::remote::cache::Cached;
use crate::shared::confirmed;
use crate::xact::branch::Member;
use crate::xact::participants::Participant;
use crate::xact::settle;

/// One answer that is still to come.
struct Delivery {
    participant: Rc<Participant>,
    transaction: Rc<Transaction>,
}

/// What the deliveries of one transaction share.
struct Transaction {
    nonce: Nonce,
    unconfirmed: Cell<usize>,
}

static PENDING: BackendLocal<RefCell<Vec<Delivery>>> = BackendLocal::new(RefCell::new(Vec::new()));

/// Whether no answer is awaited.
pub fn is_empty() -> bool {
    PENDING.get().borrow().is_empty()
}

/// Sends `COMMIT PREPARED` to participants whose commit is decided. Where it cannot be sent, the
/// participant stays as it is.
///
/// # Errors
/// A participant's state does not allow it, which is a bug.
pub fn send(prepared: &[&Rc<Participant>]) -> Result<()> {
    let Some(nonce) = prepared.first().and_then(|p| p.prepared()).map(|settle| settle.gid.nonce)
    else {
        return Ok(());
    };
    static AT_EXIT: BackendLocal<Cell<bool>> = BackendLocal::new(Cell::new(false));
    if !AT_EXIT.get().replace(true) {
        // SAFETY: the callback lives as long as the process and raises nothing.
        unsafe { pg_sys::before_shmem_exit(Some(at_exit), pg_sys::Datum::from(0)) };
    }
    let unconfirmed = Cell::new(prepared.len());
    let transaction = Rc::new(Transaction { nonce, unconfirmed });
    for p in prepared {
        let Some(settle) = p.prepared() else { continue };
        let command = settle.settling(Outcome::Commit);
        // An answer to an earlier one would be taken for the answer to this one.
        if !p.connection.has_delivery() && p.connection.send_ending(&command.sql, Control::Delivery)
        {
            p.log_step(&settle.gid, format_args!("sent {}", command.tag.to_string_lossy()));
            p.apply(Event::Unawaited)?;
            PENDING
                .get()
                .borrow_mut()
                .push(Delivery { participant: Rc::clone(p), transaction: Rc::clone(&transaction) });
        }
    }
    Ok(())
}

/// Waits for the commits that are on their way, on other connections, to the server that
/// `connection` leads to: what is sent on `connection` is not queued behind them, and would not see
/// them. A new connection may lead anywhere.
///
/// # Errors
/// A cancel.
pub fn pass(connection: &Rc<Cached>) -> Result<()> {
    let is_elsewhere = |other: &Rc<Cached>| {
        let places = (connection.fingerprint(), other.fingerprint());
        other.serverid != connection.serverid
            && matches!(places, (Some(here), Some(there)) if here != there)
    };
    let others: Vec<Rc<Cached>> = PENDING
        .get()
        .borrow()
        .iter()
        .map(|delivery| &delivery.participant.connection)
        .filter(|other| !Rc::ptr_eq(other, connection) && !is_elsewhere(other))
        .cloned()
        .collect();
    if others.is_empty() {
        return Ok(());
    }
    let deadline = Instant::now() + guc::commit_timeout();
    for other in others {
        // What is not answered by then is left to the resolver.
        other.pass_deliveries(deadline)?;
    }
    collect()
}

/// Reads the answers that have come, without waiting. What cannot be answered any more is left to
/// the resolver.
///
/// # Errors
/// A participant's state does not allow it, which is a bug.
pub fn collect() -> Result<()> {
    let count = PENDING.get().borrow().len();
    let mut result = Ok(());
    for _ in 0..count {
        // One at a time: whatever happens to one, the others stay.
        let delivery = PENDING.get().borrow_mut().remove(0);
        let Participant { connection, .. } = &*delivery.participant;
        connection.pump();
        match connection.take_delivered() {
            Some(true) => {
                result = result.and(delivery.participant.apply(Event::Confirmed));
                let left = delivery.transaction.unconfirmed.get() - 1;
                delivery.transaction.unconfirmed.set(left);
                if left == 0 {
                    confirmed::add(delivery.transaction.nonce);
                }
            }
            None if !connection.is_doomed() && connection.is_kept() => {
                PENDING.get().borrow_mut().push(delivery);
            }
            Some(false) | None => {
                result = result.and(delivery.participant.apply(Event::Unconfirmed));
            }
        }
    }
    result
}

/// The session ends: what has not been answered is left to the resolver.
unsafe extern "C-unwind" fn at_exit(_: i32, _: pg_sys::Datum) {
    shielded("at the end of the session", || {
        let collected = collect();
        let pending = PENDING.get().take();
        let left = settle::apply_to_all(pending.iter().map(|d| &d.participant), Event::Unconfirmed);
        collected.and(left)
    });
}
