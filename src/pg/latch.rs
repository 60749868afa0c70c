//! Waiting for this process's latch.

use std::ffi::c_long;
use std::time::Duration;

use pgrx::pg_sys;

use crate::pg::wait_event::WaitEvent;

/// Waits until the latch is set or the time has passed, and resets it. Ends the process when the
/// postmaster dies.
pub fn wait(timeout: Duration, event: WaitEvent) {
    let milliseconds = timeout.as_millis().clamp(1, 3_600_000) as c_long;
    let events = pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
    // SAFETY: our own latch.
    unsafe {
        pg_sys::WaitLatch(pg_sys::MyLatch, events as i32, milliseconds, event.number());
        pg_sys::ResetLatch(pg_sys::MyLatch);
    }
}
