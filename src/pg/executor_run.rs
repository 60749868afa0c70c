//! The hook on the run of a query. A cursor's query is run again with each FETCH.

use std::cell::Cell;

use pgrx::pg_sys::{self, QueryDesc, ScanDirection};

use crate::pg::backend_local::BackendLocal;
use crate::pg::error::{Result, boundary};
use crate::pg::raw;

/// What is done before a run, with the number of rows that are asked for, 0 for all.
pub type Before = unsafe fn(query: *mut QueryDesc, count: u64) -> Result<()>;

static PREVIOUS: BackendLocal<Cell<pg_sys::ExecutorRun_hook_type>> =
    BackendLocal::new(Cell::new(None));
static BEFORE: BackendLocal<Cell<Option<Before>>> = BackendLocal::new(Cell::new(None));

/// Installs it; called while the server loads the library. `before` is called with a valid query
/// that has begun and was not run yet, if it is run forward.
pub fn install(before: Before) {
    BEFORE.get().set(Some(before));
    // SAFETY: single-threaded start-up.
    unsafe {
        PREVIOUS.get().set(pg_sys::ExecutorRun_hook);
        pg_sys::ExecutorRun_hook = Some(executor_run);
    }
}

unsafe extern "C-unwind" fn executor_run(
    query: *mut QueryDesc,
    direction: ScanDirection::Type,
    count: u64,
    #[cfg(pre_pg18)] once: bool,
) {
    // SAFETY: PostgreSQL hands a valid query; the frame owns nothing with a destructor.
    unsafe {
        let is_first =
            !(*query).already_executed && direction == ScanDirection::ForwardScanDirection;
        if let Some(before) = BEFORE.get().get().filter(|_| is_first) {
            boundary(|| before(query, count));
        }
        let next = PREVIOUS.get().get().unwrap_or(raw::standard_ExecutorRun);
        #[cfg(pre_pg18)]
        next(query, direction, count, once);
        #[cfg(not(pre_pg18))]
        next(query, direction, count);
    }
}
