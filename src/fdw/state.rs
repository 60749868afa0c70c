//! Execution state that a memory context owns.
//!
//! After an ERROR no End callback runs: the executor's query context is just freed. So the state is
//! kept in that context with a reset callback that runs its destructor. The context is freed before
//! or after the transaction callbacks, so a destructor must not depend on the order.

use std::ffi::c_void;

use pgrx::pg_sys::{self, MemoryContext};

use crate::pg::error::shielded;

struct Owned<T> {
    callback: pg_sys::MemoryContextCallback,
    value: Option<T>,
}

/// Moves a value into a memory context, and returns what to keep in `fdw_state` or `ri_FdwState`.
///
/// # Safety
/// The context is alive.
pub unsafe fn put<T>(context: MemoryContext, value: T) -> *mut c_void {
    const { assert!(align_of::<Owned<T>>() <= 8, "palloc aligns to 8 bytes") };
    // SAFETY: fresh memory of the right size and alignment, which lives exactly as long as the
    // callback in it.
    unsafe {
        let owned: *mut Owned<T> =
            pg_sys::MemoryContextAlloc(context, size_of::<Owned<T>>()).cast();
        owned.write(Owned {
            callback: pg_sys::MemoryContextCallback {
                func: Some(reset::<T>),
                arg: owned.cast(),
                next: std::ptr::null_mut(),
            },
            value: Some(value),
        });
        pg_sys::MemoryContextRegisterResetCallback(context, &mut (*owned).callback);
        owned.cast()
    }
}

/// The value, unless it has been taken or never was (EXPLAIN).
///
/// # Safety
/// `state` is NULL or came from [`put`] with the same type, its context is alive, and no other
/// reference to the value is.
pub unsafe fn get<'a, T>(state: *mut c_void) -> Option<&'a mut T> {
    // SAFETY: by contract.
    unsafe { state.cast::<Owned<T>>().as_mut() }.and_then(|owned| owned.value.as_mut())
}

/// Takes the value out; what stays in the context is empty.
///
/// # Safety
/// As for [`get`].
pub unsafe fn take<T>(state: *mut c_void) -> Option<T> {
    // SAFETY: by contract.
    unsafe { state.cast::<Owned<T>>().as_mut() }.and_then(|owned| owned.value.take())
}

unsafe extern "C-unwind" fn reset<T>(owned: *mut c_void) {
    shielded("could not free the state of a foreign scan or modification", || {
        // SAFETY: the callback is called once, with the memory still there.
        drop(unsafe { take::<T>(owned) });
        Ok(())
    });
}
