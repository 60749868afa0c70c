//! The frames in which ERRORs of PostgreSQL and panics of Rust meet.
//!
//! * [`catch`] runs raw C calls and turns an ERROR into an [`Error`];
//! * [`boundary`] is the frame of each function that PostgreSQL calls: it raises an [`Error`] (or a
//!   panic) to PostgreSQL only after all Rust destructors have run;
//! * [`attempt`] is for a step that others have to follow whatever happens;
//! * [`shielded`] is the frame of everything that must not raise at all (after the commit
//!   decision).

use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind};

use pgrx::{PgLogLevel, pg_sys};

use crate::pg::error::{Error, Result};
use crate::pg::{globals, raw};

/// The frame of a function that PostgreSQL calls: runs `f`, and raises its error, or its panic, as
/// a PostgreSQL ERROR after all destructors inside have run.
///
/// It must be the whole body of the `extern "C-unwind"` function.
pub fn boundary<T>(f: impl FnOnce() -> Result<T>) -> T {
    let error = match catch_unwind(AssertUnwindSafe(f)) {
        Ok(Ok(value)) => return value,
        Ok(Err(error)) => error,
        Err(payload) => Error::from_panic(payload),
    };
    error.raise()
}

/// Runs raw C calls and catches the ERROR that they may raise, with everything it carries.
///
/// `f` must not own anything with a destructor while it is inside a call that can raise: the jump
/// skips it. Its captures are borrowed or plain data.
///
/// # Errors
/// The ERROR that was raised, its CONTEXT complete. The interrupt hold-off counts, which raising
/// sets to zero, are as they were (`errfinish` in `elog.c`).
pub fn catch<T>(f: impl FnOnce() -> T) -> Result<T> {
    let mut value = MaybeUninit::<T>::uninit();
    let target = value.as_mut_ptr();
    // SAFETY: this is PG_TRY: the globals are saved, the jump buffer outlives the call, and they
    // are restored on both ways out.
    unsafe {
        let memory_context = pg_sys::CurrentMemoryContext;
        let exception_stack = pg_sys::PG_exception_stack;
        let context_stack = pg_sys::error_context_stack;
        let interrupt_holdoff = pg_sys::InterruptHoldoffCount;
        let cancel_holdoff = pg_sys::QueryCancelHoldoffCount;
        let jumped = cee_scape::call_with_sigsetjmp(false, |buffer| {
            pg_sys::PG_exception_stack = std::ptr::from_ref(buffer).cast_mut().cast();
            target.write(f());
            0
        });
        pg_sys::PG_exception_stack = exception_stack;
        pg_sys::error_context_stack = context_stack;
        if jumped == 0 {
            return Ok(value.assume_init());
        }
        pg_sys::InterruptHoldoffCount = interrupt_holdoff;
        pg_sys::QueryCancelHoldoffCount = cancel_holdoff;
        pg_sys::CurrentMemoryContext = memory_context;
        let edata = raw::CopyErrorData();
        let error = Error::from_error_data(&*edata);
        raw::FreeErrorData(edata);
        raw::FlushErrorState();
        Err(error)
    }
}

/// Runs `f` and returns what it returned or, as an error, what it raised or panicked with. For
/// steps after which others have to follow whatever happens, under [`shielded`]. Afterwards the
/// interrupt hold-off counts are as they were.
///
/// # Errors
/// Those of `f`.
pub fn attempt<T>(f: impl FnOnce() -> Result<T>) -> Result<T> {
    // SAFETY: variables of this process, which only this thread writes.
    let (holdoff, cancel_holdoff, context) = unsafe {
        (
            pg_sys::InterruptHoldoffCount,
            pg_sys::QueryCancelHoldoffCount,
            pg_sys::CurrentMemoryContext,
        )
    };
    let outcome = catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|p| Err(Error::from_panic(p)));
    if outcome.is_err() {
        // SAFETY: puts back what was read above.
        unsafe {
            pg_sys::InterruptHoldoffCount = holdoff;
            pg_sys::QueryCancelHoldoffCount = cancel_holdoff;
            pg_sys::CurrentMemoryContext = context;
        }
    }
    outcome
}

/// Runs `f` where nothing may raise: after the commit decision, in abort, in `XACT_EVENT_PREPARE`.
///
/// Whatever happens inside (an [`Error`], an ERROR of PostgreSQL, a panic) becomes a WARNING that
/// begins with `what`, and a failure of the WARNING itself is ignored. Afterwards the interrupt
/// hold-off counts, the memory context and the resource owner are as they were: otherwise the
/// backend could never be cancelled or terminated again.
pub fn shielded(what: &str, f: impl FnOnce() -> Result<()>) {
    let guarded = || {
        // SAFETY: variables of this process, which only this thread writes.
        let (holdoff, cancel_holdoff, context, owner) = unsafe {
            (
                pg_sys::InterruptHoldoffCount,
                pg_sys::QueryCancelHoldoffCount,
                pg_sys::CurrentMemoryContext,
                pg_sys::CurrentResourceOwner,
            )
        };
        let outcome =
            catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|p| Err(Error::from_panic(p)));
        // SAFETY: puts back what was read above; nothing inside may change them for good.
        unsafe {
            pg_sys::InterruptHoldoffCount = holdoff;
            pg_sys::QueryCancelHoldoffCount = cancel_holdoff;
            pg_sys::CurrentMemoryContext = context;
            pg_sys::CurrentResourceOwner = owner;
        }
        if let Err(error) = outcome {
            // Only ASCII may go out: text that does not convert to the client's encoding raises.
            let text: Vec<u8> = error
                .message()
                .to_bytes()
                .iter()
                .map(|b| if b.is_ascii() { *b } else { b'?' })
                .collect();
            let warning = Error::new(error.sqlstate(), [what.as_bytes(), b": ", &text].concat());
            let _ = warning.log(PgLogLevel::WARNING);
        }
    };
    // The second net is for the code just above; a payload's own Drop must not panic either.
    if let Err(payload) = catch_unwind(AssertUnwindSafe(guarded)) {
        std::mem::forget(payload);
    }
}

/// `CHECK_FOR_INTERRUPTS()`: raises a pending cancel or termination as an [`Error`].
///
/// # Errors
/// The cancel. A termination does not come back: PostgreSQL exits inside, through its own
/// callbacks.
pub fn check_for_interrupts() -> Result<()> {
    if !globals::is_interrupted() {
        return Ok(());
    }
    // SAFETY: the frame owns nothing.
    catch(|| unsafe { raw::ProcessInterrupts() })
}
