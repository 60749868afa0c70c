//! EXPLAIN: what postgres_fdw prints, and with ANALYZE and VERBOSE together the server and how many
//! round trips were waited for.

use std::cell::Cell;
use std::ffi::c_int;

use pgrx::pg_sys::{
    self, ExplainState, FdwRoutine, ForeignScanState, List, ModifyTableState, ResultRelInfo,
};

use crate::fdw::direct::Direct;
use crate::fdw::modify::Modification;
use crate::fdw::scan::Scan;
use crate::fdw::state;
use crate::pg::backend_local::BackendLocal;
use crate::pg::error::boundary;
use crate::xact::Attachment;

/// postgres_fdw's callbacks.
#[derive(Clone, Copy)]
struct Stock {
    scan: pg_sys::ExplainForeignScan_function,
    modify: pg_sys::ExplainForeignModify_function,
    direct: pg_sys::ExplainDirectModify_function,
}

static STOCK: BackendLocal<Cell<Option<Stock>>> = BackendLocal::new(Cell::new(None));

/// Puts our callbacks behind those of postgres_fdw.
pub fn behind(stock: &FdwRoutine, ours: &mut FdwRoutine) {
    STOCK.get().set(Some(Stock {
        scan: stock.ExplainForeignScan,
        modify: stock.ExplainForeignModify,
        direct: stock.ExplainDirectModify,
    }));
    ours.ExplainForeignScan = Some(scan);
    ours.ExplainForeignModify = Some(modify);
    ours.ExplainDirectModify = Some(direct);
}

unsafe extern "C-unwind" fn scan(node: *mut ForeignScanState, explain: *mut ExplainState) {
    // The frame owns nothing: an ERROR may pass.
    if let Some(stock) = STOCK.get().get().and_then(|stock| stock.scan) {
        // SAFETY: postgres_fdw's callback with its own arguments.
        unsafe { stock(node, explain) };
    }
    boundary(|| {
        // SAFETY: the node's state is ours, or NULL where nothing was executed.
        unsafe { show(state::get::<Scan>((*node).fdw_state).map(|s| s.session()), explain) };
        Ok(())
    });
}

unsafe extern "C-unwind" fn modify(
    node: *mut ModifyTableState,
    target: *mut ResultRelInfo,
    private: *mut List,
    subplan: c_int,
    explain: *mut ExplainState,
) {
    // The frame owns nothing: an ERROR may pass.
    if let Some(stock) = STOCK.get().get().and_then(|stock| stock.modify) {
        // SAFETY: postgres_fdw's callback with its own arguments.
        unsafe { stock(node, target, private, subplan, explain) };
    }
    boundary(|| {
        // SAFETY: as in `scan`.
        unsafe {
            let modification = state::get::<Modification>((*target).ri_FdwState);
            show(modification.map(|m| m.session()), explain);
        }
        Ok(())
    });
}

unsafe extern "C-unwind" fn direct(node: *mut ForeignScanState, explain: *mut ExplainState) {
    // The frame owns nothing: an ERROR may pass.
    if let Some(stock) = STOCK.get().get().and_then(|stock| stock.direct) {
        // SAFETY: postgres_fdw's callback with its own arguments.
        unsafe { stock(node, explain) };
    }
    boundary(|| {
        // SAFETY: as in `scan`.
        unsafe { show(state::get::<Direct>((*node).fdw_state).map(|d| d.session()), explain) };
        Ok(())
    });
}

/// Prints what is known after the execution. Without ANALYZE and VERBOSE together, EXPLAIN stays as
/// postgres_fdw prints it.
///
/// # Safety
/// EXPLAIN's valid state.
unsafe fn show(session: Option<&Attachment>, explain: *mut ExplainState) {
    // SAFETY: by contract; labels and values are copied.
    unsafe {
        let Some(session) = session.filter(|_| (*explain).analyze && (*explain).verbose) else {
            return;
        };
        let server = &session.connection().server_name;
        pg_sys::ExplainPropertyText(c"Remote Server".as_ptr(), server.as_ptr(), explain);
        let waits = session.waits();
        let unit = std::ptr::null();
        pg_sys::ExplainPropertyUInteger(c"Remote Waits".as_ptr(), unit, waits, explain);
        if session.snapshot_rounds() > 0 {
            let rounds = session.snapshot_rounds();
            pg_sys::ExplainPropertyUInteger(c"Snapshot Rounds".as_ptr(), unit, rounds, explain);
        }
    }
}
