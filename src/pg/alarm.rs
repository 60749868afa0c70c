//! An alarm for this process: when the time has come, its latch is set, whatever sleeps on that.

use std::cell::Cell;
use std::ffi::c_int;
use std::time::Duration;

use crate::pg::backend_local::BackendLocal;
use crate::pg::error::{Result, catch};
use crate::pg::{layout, raw};

static ALARM: BackendLocal<Cell<Option<c_int>>> = BackendLocal::new(Cell::new(None));

/// Has the latch set after this time, unless the alarm is set already. An error that reaches the
/// client's loop takes the alarm back.
///
/// # Errors
/// Only out of memory and the like. If other extensions have taken all ten alarms that PostgreSQL
/// gives, it ends the session.
pub fn set(after: Duration) -> Result<()> {
    let milliseconds = after.as_millis().clamp(1, 3_600_000) as c_int;
    catch(|| {
        let number = ALARM.get().get().unwrap_or_else(|| {
            // SAFETY: the handler lives as long as the process.
            unsafe { raw::RegisterTimeout(layout::USER_TIMEOUT, ring) }
        });
        ALARM.get().set(Some(number));
        // SAFETY: a number that was given.
        unsafe {
            if !raw::get_timeout_active(number) {
                raw::enable_timeout_after(number, milliseconds);
            }
        }
    })
}

/// PostgreSQL's own handler, which calls this, sets the latch.
unsafe extern "C-unwind" fn ring() {}
