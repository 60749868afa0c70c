//! `pg_fdw_xacts_snapshot(VARIADIC servers name[])`: one snapshot of several servers, from now to
//! the end of the transaction.

use std::ffi::{CStr, CString};

use pgrx::pg_sys::{self, Datum, Oid};
use pgrx::{PgLogLevel, Spi};

use super::usable_server;
use crate::fdw;
use crate::pg::error::{Error, Result, SqlState, boundary};
use crate::pg::globals::current_user;
use crate::pg::versions;
use crate::remote::options::Mapping;
use crate::xact::fix_snapshot;

/// The call convention's record of `pg_fdw_xacts_snapshot`.
#[unsafe(no_mangle)]
pub extern "C" fn pg_finfo_pg_fdw_xacts_snapshot() -> *const pg_sys::Pg_finfo_record {
    const RECORD: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
    &RECORD
}

/// Takes the snapshot, of all servers with a user mapping where none is named.
///
/// # Safety
/// Called by PostgreSQL with an array of names that is not NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn pg_fdw_xacts_snapshot(fcinfo: pg_sys::FunctionCallInfo) -> Datum {
    boundary(|| {
        crate::pg::preload::require()?;
        // SAFETY: by contract.
        let names = unsafe { names((*fcinfo).args.as_slice(1)[0].value) };
        let userid = current_user();
        let servers = match names.as_slice() {
            [] => all_servers(userid)?,
            names => names.iter().map(|name| usable_server(name, userid)).collect::<Result<_>>()?,
        };
        fix_snapshot(userid, &servers)?;
        // SAFETY: looks at the transaction's state.
        if !unsafe { pg_sys::IsTransactionBlock() } {
            Error::new(
                SqlState::NO_ACTIVE_SQL_TRANSACTION,
                "the snapshot of pg_fdw_xacts_snapshot() ends with this statement",
            )
            .hint("Call it in a transaction block.")
            .log(PgLogLevel::WARNING)?;
        }
        Ok(Datum::null())
    })
}

/// # Safety
/// An array of names.
unsafe fn names(array: Datum) -> Vec<CString> {
    let (mut elements, mut nulls, mut count) = (std::ptr::null_mut(), std::ptr::null_mut(), 0);
    // SAFETY: by contract; the layout is that of the type `name`, whose values end with a NUL.
    unsafe {
        let array = pg_sys::pg_detoast_datum(array.cast_mut_ptr());
        pg_sys::deconstruct_array(
            array.cast(),
            pg_sys::NAMEOID,
            pg_sys::NAMEDATALEN as i32,
            false,
            b'c' as std::ffi::c_char,
            &mut elements,
            &mut nulls,
            &mut count,
        );
        (0..count as usize)
            .filter(|n| !*nulls.add(*n))
            .map(|n| CStr::from_ptr((*elements.add(n)).cast_mut_ptr()).to_owned())
            .collect()
    }
}

/// All servers of ours that this user may use, and has a mapping for.
fn all_servers(userid: Oid) -> Result<Vec<Oid>> {
    let all: Vec<Oid> = Spi::connect(|client| {
        let servers = client
            .select("SELECT oid FROM pg_catalog.pg_foreign_server ORDER BY oid", None, &[])
            .expect("a query of the catalog");
        servers.filter_map(|row| row.get::<Oid>(1).ok().flatten()).collect()
    });
    // The transaction's snapshot may be older than the end of a server, so whether it is still
    // there is asked first.
    let is_usable = |server: &Oid| {
        Mapping::find(userid, *server).is_some()
            && fdw::is_ours(*server)
            // SAFETY: a look-up in the catalog.
            && unsafe { versions::foreign_server_usage(*server, userid) }
                == pg_sys::AclResult::ACLCHECK_OK
    };
    Ok(all.into_iter().filter(is_usable).collect())
}
