//! SQL functions in C's calling convention, with one argument of type `text`. pgrx's macros would
//! make the argument a `str` and an error's texts `String`s, which they are not in a database whose
//! encoding is not UTF-8.

use std::ffi::{CStr, CString};

use pgrx::pg_sys;

use crate::pg::error::{Result, catch};
use crate::pg::raw;

/// Defines such a function and its record of the calling convention. The body returns what
/// [`boundary`] takes.
///
/// [`boundary`]: crate::pg::error::boundary
macro_rules! text_function {
    ($(#[$meta:meta])* $name:ident, $record:ident, |$argument:ident| $body:expr) => {
        #[doc = concat!("The calling convention's record of `", stringify!($name), "`.")]
        #[unsafe(no_mangle)]
        pub extern "C" fn $record() -> *const pgrx::pg_sys::Pg_finfo_record {
            const RECORD: pgrx::pg_sys::Pg_finfo_record =
                pgrx::pg_sys::Pg_finfo_record { api_version: 1 };
            &RECORD
        }

        $(#[$meta])*
        ///
        /// # Safety
        /// Called by PostgreSQL with a text that is not NULL.
        #[unsafe(no_mangle)]
        pub unsafe extern "C-unwind" fn $name(
            fcinfo: pgrx::pg_sys::FunctionCallInfo,
        ) -> pgrx::pg_sys::Datum {
            $crate::pg::error::boundary(|| {
                // SAFETY: by contract.
                let argument = unsafe { $crate::pg::function::argument(fcinfo) };
                let $argument: &std::ffi::CStr = &argument;
                $body
            })
        }
    };
}
pub(crate) use text_function;

/// Refuses a function on a hot standby, as PostgreSQL refuses a command there.
///
/// # Errors
/// 25006.
pub fn not_on_standby(function: &'static CStr) -> Result<()> {
    // SAFETY: looks at the server's state; the frame owns nothing.
    catch(|| unsafe { raw::PreventCommandDuringRecovery(function.as_ptr()) })
}

/// The only argument, in the server's encoding.
///
/// # Safety
/// The call of a function with a text that is not NULL.
pub unsafe fn argument(fcinfo: pg_sys::FunctionCallInfo) -> CString {
    // SAFETY: by contract; a text may be compressed, and is copied.
    unsafe {
        let text = (*fcinfo).args.as_slice(1)[0].value.cast_mut_ptr();
        CStr::from_ptr(pg_sys::text_to_cstring(text)).to_owned()
    }
}
