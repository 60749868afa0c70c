//! PostgreSQL's transaction and subtransaction callbacks: one of each in the whole extension.

use std::cell::Cell;

use pgrx::pg_sys;

use crate::pg::backend_local::BackendLocal;
use crate::pg::error::{attempt, boundary, shielded};
use crate::pg::globals::nest_level;
use crate::remote::long_wait;
use crate::xact::attachment::settle_all_owed;
use crate::xact::{
    abort, at_once, cut, deliveries, endings, gxid, participants, phase_one, phase_two, replayed,
};

static SUBTRANSACTIONS: BackendLocal<Cell<bool>> = BackendLocal::new(Cell::new(false));

/// Registers the transaction callback while the server loads the library, so that every session has
/// it before its first transaction ends.
pub fn install() {
    // SAFETY: the callback lives as long as the server.
    unsafe { pg_sys::RegisterXactCallback(Some(on_transaction), std::ptr::null_mut()) };
}

/// Registers the callbacks, at the first remote statement of each transaction.
///
/// The transaction callback is registered anew each time: the last one registered runs first, and
/// ours has to run before that of stock postgres_fdw, which commits its own remote transactions in
/// it.
pub fn register() {
    // SAFETY: the callbacks live as long as the backend. Registering is not done inside a callback.
    unsafe {
        pg_sys::UnregisterXactCallback(Some(on_transaction), std::ptr::null_mut());
        pg_sys::RegisterXactCallback(Some(on_transaction), std::ptr::null_mut());
        if !SUBTRANSACTIONS.get().replace(true) {
            pg_sys::RegisterSubXactCallback(Some(on_subtransaction), std::ptr::null_mut());
        }
    }
}

/// Reads the answers that earlier transactions did not wait for, as far as they have come.
pub fn collect_deliveries() {
    if !deliveries::is_empty() {
        shielded("in reading what became of earlier transactions", deliveries::collect);
    }
    if !endings::is_empty() {
        shielded("in reading what became of earlier transactions", endings::collect);
    }
}

unsafe extern "C-unwind" fn on_transaction(
    event: pg_sys::XactEvent::Type,
    _arg: *mut std::ffi::c_void,
) {
    use pg_sys::XactEvent as E;
    // Callbacks of other extensions that run after ours must not begin anything new.
    participants::set_ending(matches!(event, E::XACT_EVENT_PRE_COMMIT | E::XACT_EVENT_PRE_PREPARE));
    let ends =
        matches!(event, E::XACT_EVENT_PRE_COMMIT | E::XACT_EVENT_PRE_PREPARE | E::XACT_EVENT_ABORT);
    if ends {
        long_wait::executor_wakes();
        collect_deliveries();
    }
    if event == E::XACT_EVENT_ABORT {
        shielded("after a prepared transaction was not settled", || {
            gxid::abandon();
            Ok(())
        });
    }
    let has_ended = matches!(
        event,
        E::XACT_EVENT_COMMIT
            | E::XACT_EVENT_PREPARE
            | E::XACT_EVENT_ABORT
            | E::XACT_EVENT_PARALLEL_COMMIT
            | E::XACT_EVENT_PARALLEL_ABORT
    );
    if has_ended {
        cut::end();
        at_once::end(event);
    }
    if participants::is_empty() {
        if event == E::XACT_EVENT_COMMIT {
            shielded("after a replayed transaction", replayed::hand_over);
        }
        return;
    }
    match event {
        // An ERROR here is an ordinary abort.
        E::XACT_EVENT_PRE_COMMIT => boundary(|| phase_one::phase_one(false)),
        E::XACT_EVENT_PRE_PREPARE => boundary(|| phase_one::phase_one(true)),
        // An ERROR here would be a PANIC, with the transaction committed.
        E::XACT_EVENT_COMMIT => shielded("after the commit decision", phase_two::phase_two),
        // An ERROR here would mark a validly prepared transaction aborted.
        E::XACT_EVENT_PREPARE => shielded("after PREPARE TRANSACTION", phase_two::detach),
        // An ERROR here would come back here.
        E::XACT_EVENT_ABORT => {
            shielded("in abort", abort::roll_back);
            // Such an answer may have been read while waiting for another.
            collect_deliveries();
        }
        // Parallel workers take no part.
        _ => {}
    }
}

unsafe extern "C-unwind" fn on_subtransaction(
    event: pg_sys::SubXactEvent::Type,
    _sub: pg_sys::SubTransactionId,
    _parent: pg_sys::SubTransactionId,
    _arg: *mut std::ffi::c_void,
) {
    use pg_sys::SubXactEvent as E;
    if participants::is_empty() {
        return;
    }
    let level = nest_level();
    long_wait::executor_wakes();
    match event {
        E::SUBXACT_EVENT_PRE_COMMIT_SUB => boundary(|| {
            settle_all_owed(level)?;
            for p in participants::all() {
                p.connection.release(level)?;
            }
            Ok(())
        }),
        E::SUBXACT_EVENT_ABORT_SUB => shielded("in the abort of a subtransaction", || {
            let mut outcome = Ok(());
            for p in participants::all() {
                // If one cannot roll back to its savepoint, it must not commit, and the others must
                // still roll back.
                if let Err(error) = attempt(|| p.connection.rollback_to(level)) {
                    p.connection.doom();
                    outcome = Err(error);
                }
            }
            outcome
        }),
        _ => {}
    }
}
