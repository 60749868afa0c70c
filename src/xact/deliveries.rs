//! Commits that were delivered without waiting for their answer (`pg_fdw_xacts.commit_wait = off`): the decision is
//! made, `COMMIT PREPARED` is on the wire, and the answer is read when the session has to do with the connection
//! again, before anything else that comes on it.
//!
//! Until then the transaction's entries say `committing` and belong to this backend. What it does not confirm within
//! the time that every owner has, or leaves behind when it ends, is the resolver's (`entries::reap`); at once where
//! somebody else needs the room (`entries::reserve`).

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Instant;

use pgrx::pg_sys;

use crate::guc;
use crate::pg::backend_local::BackendLocal;
use crate::pg::error::{Result, shielded};
use crate::protocol::gid::{Gid, Nonce};
use crate::protocol::participant::Event;
use crate::protocol::pipeline::Control;
use crate::remote::cache::Cached;
use crate::shared::entry::Status;
use crate::shared::{confirmed, entries};
use crate::xact::participants::Participant;

/// One answer that is still to come.
struct Delivery {
    connection: Rc<Cached>,
    gid: Gid,
    transaction: Rc<Transaction>,
}

/// What the deliveries of one transaction share.
struct Transaction {
    nonce: Nonce,
    unconfirmed: Cell<usize>,
}

static PENDING: BackendLocal<RefCell<Vec<Delivery>>> = BackendLocal::new(RefCell::new(Vec::new()));

/// Whether no answer is to come.
pub fn is_empty() -> bool {
    PENDING.get().borrow().is_empty()
}

/// Sends `COMMIT PREPARED` to participants that have been decided to commit. Those that it could be sent to are
/// taken further; the others are as they were.
///
/// # Errors
/// A participant's state does not allow it, which is a bug.
pub fn send(prepared: &[&Participant]) -> Result<()> {
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
        // An answer to an earlier one would be taken for this one's; every write has been answered behind it.
        if !p.connection.has_delivery()
            && p.connection.send_ending(&settle.commit, Control::Delivery)
        {
            p.take(Event::Unawaited)?;
            entries::unawaited(&settle.gid);
            PENDING.get().borrow_mut().push(Delivery {
                connection: Rc::clone(&p.connection),
                gid: settle.gid,
                transaction: Rc::clone(&transaction),
            });
        }
    }
    Ok(())
}

/// Waits for what is on its way, on other connections, to the place that `connection` leads to, if the session has
/// committed there: what comes on `connection` does not come behind it. A new connection may lead anywhere.
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
        .map(|delivery| &delivery.connection)
        .filter(|other| !Rc::ptr_eq(other, connection) && !is_elsewhere(other))
        .cloned()
        .collect();
    if others.is_empty() {
        return Ok(());
    }
    let deadline = Instant::now() + guc::commit_timeout();
    for other in others {
        // What it does not answer by then is the resolver's.
        other.pass_deliveries(deadline)?;
    }
    collect()
}

/// Reads the answers that have come, without waiting; what cannot be answered any more is left to the resolver.
///
/// # Errors
/// None of its own.
pub fn collect() -> Result<()> {
    let count = PENDING.get().borrow().len();
    for _ in 0..count {
        // One at a time: whatever happens to one, the others stay.
        let delivery = PENDING.get().borrow_mut().remove(0);
        delivery.connection.pump();
        match delivery.connection.take_delivered() {
            Some(true) => {
                entries::confirmed(&delivery.gid);
                let left = delivery.transaction.unconfirmed.get() - 1;
                delivery.transaction.unconfirmed.set(left);
                if left == 0 {
                    confirmed::add(delivery.transaction.nonce);
                }
            }
            Some(false) => entries::hand_over(&delivery.gid, Status::Committing),
            None if delivery.connection.is_doomed() || !delivery.connection.is_kept() => {
                entries::hand_over(&delivery.gid, Status::Committing);
            }
            None => PENDING.get().borrow_mut().push(delivery),
        }
    }
    Ok(())
}

/// The session ends: what has not been answered is the resolver's.
unsafe extern "C-unwind" fn at_exit(_: i32, _: pg_sys::Datum) {
    shielded("at the end of the session", || {
        collect()?;
        for delivery in PENDING.get().take() {
            entries::hand_over(&delivery.gid, Status::Committing);
        }
        Ok(())
    });
}
