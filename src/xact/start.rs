//! The hook on the start of a query. When all of its nodes have begun, it is known what it opens on
//! each server, and so what its transactions there have to show.

use std::cell::Cell;
use std::ffi::c_int;

use pgrx::pg_sys;

use crate::pg::backend_local::BackendLocal;
use crate::pg::error::boundary;
use crate::pg::raw;
use crate::xact::attachment;

static PREVIOUS: BackendLocal<Cell<pg_sys::ExecutorStart_hook_type>> =
    BackendLocal::new(Cell::new(None));

/// Installs the hook; called while the server loads the library.
pub fn install() {
    // SAFETY: single-threaded start-up.
    unsafe {
        PREVIOUS.get().set(pg_sys::ExecutorStart_hook);
        pg_sys::ExecutorStart_hook = Some(executor_start);
    }
}

unsafe extern "C-unwind" fn executor_start(query: *mut pg_sys::QueryDesc, eflags: c_int) {
    // SAFETY: PostgreSQL hands a valid query; the frame owns nothing with a destructor.
    unsafe {
        let next = PREVIOUS.get().get().unwrap_or(raw::standard_ExecutorStart);
        next(query, eflags);
        boundary(|| attachment::open_all_of((*query).estate));
    }
}
