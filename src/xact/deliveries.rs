//! Commits that were delivered without waiting for their answer (`pg_fdw_xacts.commit_wait = off`): the decision is
//! made, `COMMIT PREPARED` is on the wire, and the answer is read when the session has to do with the connection
//! again, before anything else that comes on it.
//!
//! Until then the transaction's entries say `committing` and belong to this backend. What it does not confirm within
//! the time that every owner has, or leaves behind when it ends, is the resolver's (`entries::reap`); at once where
//! somebody else needs the room (`entries::reserve`).

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use pgrx::pg_sys;

use crate::log::shmem::Status;
use crate::log::{entries, workers};
use crate::pg::backend_local::BackendLocal;
use crate::pg::error::{Result, shielded};
use crate::protocol::gid::{Gid, Nonce};
use crate::protocol::participant::Event;
use crate::protocol::pipeline::Control;
use crate::remote::cache::Cached;
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
                    workers::confirmed(delivery.transaction.nonce);
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
