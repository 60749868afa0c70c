//! `object_access_hook`: sees every drop, by CASCADE and DROP OWNED too, and every change of an
//! object.

use std::cell::Cell;
use std::ffi::c_void;

use pgrx::pg_sys::{self, Oid};

use crate::hooks::{alter, drops};
use crate::pg::backend_local::BackendLocal;
use crate::pg::error::boundary;

static PREVIOUS: BackendLocal<Cell<pg_sys::object_access_hook_type>> =
    BackendLocal::new(Cell::new(None));

/// Installs the hook; called while the server loads the library.
pub fn install() {
    // SAFETY: single-threaded start-up.
    unsafe {
        PREVIOUS.get().set(pg_sys::object_access_hook);
        pg_sys::object_access_hook = Some(on_access);
    }
}

unsafe extern "C-unwind" fn on_access(
    access: pg_sys::ObjectAccessType::Type,
    class: Oid,
    object: Oid,
    sub: i32,
    argument: *mut c_void,
) {
    if let Some(previous) = PREVIOUS.get().get() {
        // SAFETY: another extension's hook, called as PostgreSQL would.
        unsafe { previous(access, class, object, sub, argument) };
    }
    boundary(|| {
        match access {
            pg_sys::ObjectAccessType::OAT_DROP => drops::before(class, object)?,
            pg_sys::ObjectAccessType::OAT_POST_ALTER => alter::after(class),
            _ => {}
        }
        Ok(())
    });
}
