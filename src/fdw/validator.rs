//! `pg_fdw_xacts_validator()`: our own options are checked here, all others by postgres_fdw, whose
//! validator refuses options that it does not know.

use std::ffi::CStr;

use pgrx::pg_sys::{self, Datum, Oid};

use crate::fdw::stock;
use crate::pg::error::{Error, Result, SqlState, boundary, catch};
use crate::pg::{node, raw};
use crate::remote::options::{REMOTE_ISOLATION, TWO_PHASE_COMMIT, parse_isolation};

/// The call convention's record of `pg_fdw_xacts_validator`.
#[unsafe(no_mangle)]
pub extern "C" fn pg_finfo_pg_fdw_xacts_validator() -> *const pg_sys::Pg_finfo_record {
    const RECORD: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
    &RECORD
}

/// `pg_fdw_xacts_validator(text[], oid) returns void`: takes the options of an object and the
/// catalog that it is in.
///
/// # Safety
/// Called by PostgreSQL with these two arguments, none of them NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn pg_fdw_xacts_validator(fcinfo: pg_sys::FunctionCallInfo) -> Datum {
    boundary(|| {
        // SAFETY: two arguments, by the function's declaration.
        let (options, catalog) = unsafe {
            let args = (*fcinfo).args.as_slice(2);
            (args[0].value, Oid::from(args[1].value.value() as u32))
        };
        let others = if catalog == pg_sys::ForeignServerRelationId {
            without_ours(options)?
        } else {
            options
        };
        stock::validate(others, catalog).map_err(|error| with_hint(error, others))?;
        Ok(Datum::null())
    })
}

/// postgres_fdw's HINT names its own options only. Where one of `options` is nearly ours, or ours
/// at the wrong place, ours is named.
fn with_hint(error: Error, options: Datum) -> Error {
    if error.sqlstate() != SqlState::FDW_INVALID_OPTION_NAME {
        return error;
    }
    // SAFETY: an array of `name=value` texts gives a list of DefElem with names.
    let names = unsafe {
        node::pointers::<pg_sys::DefElem>(pg_sys::untransformRelOptions(options))
            .map(|element| CStr::from_ptr((*element).defname))
    };
    match names.filter_map(meant).next() {
        Some(ours) => error.hint(
            [b"Perhaps you meant the option \"", ours.to_bytes(), b"\" of the server."].concat(),
        ),
        None => error,
    }
}

/// The option of ours that begins like `name`, as no option of postgres_fdw or libpq does.
fn meant(name: &CStr) -> Option<&'static CStr> {
    let beginning = name.to_bytes().get(..5)?;
    [TWO_PHASE_COMMIT, REMOTE_ISOLATION]
        .into_iter()
        .find(|ours| ours.to_bytes().starts_with(beginning))
}

/// Checks our own options of a server and returns the array without them.
fn without_ours(options: Datum) -> Result<Datum> {
    // SAFETY: an array of `name=value` texts gives a list of DefElem; arrays and lists are made in
    // the memory of the call.
    unsafe {
        let mut others = std::ptr::null_mut();
        for element in node::pointers::<pg_sys::DefElem>(pg_sys::untransformRelOptions(options)) {
            let name = CStr::from_ptr((*element).defname);
            if name == TWO_PHASE_COMMIT {
                catch(|| raw::defGetBoolean(element))?;
            } else if name == REMOTE_ISOLATION {
                let value = CStr::from_ptr(pg_sys::defGetString(element));
                parse_isolation(value).ok_or_else(|| no_isolation(value))?;
            } else {
                others = pg_sys::lappend(others, element.cast());
            }
        }
        let array = pg_sys::transformRelOptions(
            Datum::null(),
            others,
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            false,
            false,
        );
        if array.is_null() {
            return Ok(Datum::from(pg_sys::construct_empty_array(pg_sys::TEXTOID)));
        }
        Ok(array)
    }
}

fn no_isolation(value: &CStr) -> Error {
    let value = value.to_bytes();
    let message = [b"invalid value for option \"remote_isolation\": ", value].concat();
    Error::new(SqlState::new(b"22023"), message)
        .hint("Valid values are \"repeatable read\" and \"match\".")
}
