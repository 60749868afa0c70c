//! The functions of postgres_fdw's library that are called. Its connections are not used.

use std::cell::Cell;
use std::ffi::CStr;

use pgrx::pg_sys::{self, Datum, Oid};

use crate::pg::backend_local::BackendLocal;
use crate::pg::error::{Error, Result, SqlState, catch};
use crate::pg::raw;

type Found = BackendLocal<Cell<Option<pg_sys::PGFunction>>>;

/// A function of postgres_fdw's library, which is never unloaded. It is looked up once, because
/// that takes system calls.
fn function(name: &CStr, found: &Found) -> pg_sys::PGFunction {
    if let Some(function) = found.get().get() {
        return function;
    }
    let mut handle = std::ptr::null_mut();
    // SAFETY: C strings; it raises when the library or the function is missing.
    let function = unsafe {
        pg_sys::load_external_function(
            c"$libdir/postgres_fdw".as_ptr(),
            name.as_ptr(),
            true,
            &mut handle,
        )
    };
    // SAFETY: every function of the SQL call convention has this type.
    let function = unsafe {
        std::mem::transmute::<*mut std::ffi::c_void, pg_sys::PGFunction>(function.cast())
    };
    found.get().set(Some(function));
    function
}

/// postgres_fdw's callbacks, in the current memory context.
///
/// # Errors
/// Its library cannot be loaded.
pub fn routine() -> Result<*const pg_sys::FdwRoutine> {
    static HANDLER: Found = BackendLocal::new(Cell::new(None));
    let handler = function(c"postgres_fdw_handler", &HANDLER);
    // SAFETY: a handler uses none of its arguments.
    let routine: *const pg_sys::FdwRoutine =
        catch(|| unsafe { raw::DirectFunctionCall1Coll(handler, Oid::INVALID, Datum::null()) })?
            .cast_mut_ptr();
    // SAFETY: a handler returns a node.
    if routine.is_null() || unsafe { (*routine).type_ } != pg_sys::NodeTag::T_FdwRoutine {
        return Err(Error::new(
            SqlState::FDW_ERROR,
            "postgres_fdw_handler did not return an FdwRoutine struct",
        ));
    }
    Ok(routine)
}

/// Runs postgres_fdw's validator.
///
/// # Errors
/// Its error for an option that it does not know or a value that it refuses.
pub fn validate(options: Datum, catalog: Oid) -> Result<()> {
    static VALIDATOR: Found = BackendLocal::new(Cell::new(None));
    let validator = function(c"postgres_fdw_validator", &VALIDATOR);
    // SAFETY: a text array and an OID, as its declaration says.
    catch(|| unsafe {
        raw::DirectFunctionCall2Coll(validator, Oid::INVALID, options, Datum::from(catalog));
    })
}
