//! The hooks in which an extension asks for shared memory and initializes it.

use std::cell::Cell;

use pgrx::pg_sys;

use crate::pg::backend_local::BackendLocal;

type Hook = Option<unsafe extern "C-unwind" fn()>;

/// What this extension does in each of the two.
type Own = (fn(), fn());

static PREVIOUS_REQUEST: BackendLocal<Cell<Hook>> = BackendLocal::new(Cell::new(None));
static PREVIOUS_STARTUP: BackendLocal<Cell<Hook>> = BackendLocal::new(Cell::new(None));
static OWN: BackendLocal<Cell<Option<Own>>> = BackendLocal::new(Cell::new(None));

/// Installs both; called while the server loads the library.
pub fn install(request: fn(), start_up: fn()) {
    OWN.get().set(Some((request, start_up)));
    // SAFETY: single-threaded start-up.
    unsafe {
        PREVIOUS_REQUEST.get().set(pg_sys::shmem_request_hook);
        pg_sys::shmem_request_hook = Some(on_request);
        PREVIOUS_STARTUP.get().set(pg_sys::shmem_startup_hook);
        pg_sys::shmem_startup_hook = Some(on_startup);
    }
}

unsafe extern "C-unwind" fn on_request() {
    if let Some(previous) = PREVIOUS_REQUEST.get().get() {
        // SAFETY: another extension's hook, called as PostgreSQL would.
        unsafe { previous() };
    }
    crate::pg::error::boundary(|| {
        if let Some((request, _)) = OWN.get().get() {
            request();
        }
        Ok(())
    });
}

unsafe extern "C-unwind" fn on_startup() {
    if let Some(previous) = PREVIOUS_STARTUP.get().get() {
        // SAFETY: another extension's hook, called as PostgreSQL would.
        unsafe { previous() };
    }
    crate::pg::error::boundary(|| {
        if let Some((_, start_up)) = OWN.get().get() {
            start_up();
        }
        Ok(())
    });
}
