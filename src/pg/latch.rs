//! This process's latch.

use std::ffi::c_long;
use std::time::Duration;

use pgrx::pg_sys;

use crate::pg::wait_event::WaitEvent;

/// Waits until the latch is set or the time has passed, and resets it. Ends the process when the
/// postmaster dies.
pub fn wait(timeout: Duration, event: WaitEvent) {
    let milliseconds = timeout.as_millis().clamp(1, 3_600_000) as c_long;
    let events = pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
    // SAFETY: a process that waits has a latch.
    unsafe { pg_sys::WaitLatch(pg_sys::MyLatch, events as i32, milliseconds, event.number()) };
    reset();
}

/// Sets it: the next wait returns at once.
pub fn set() {
    // SAFETY: a process that waits has a latch.
    unsafe { pg_sys::SetLatch(pg_sys::MyLatch) };
}

/// Resets it. What it announces is looked at afterwards.
pub fn reset() {
    // SAFETY: a process that waits has a latch.
    unsafe { pg_sys::ResetLatch(pg_sys::MyLatch) };
}
