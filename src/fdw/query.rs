//! What a scan has to know of the query that it belongs to.

use pgrx::pg_sys::{self, EState};

/// Whether the query of a named portal begins: a cursor, from which rows may be fetched at any
/// later time.
pub fn begins_cursor() -> bool {
    // SAFETY: NULL or the portal that runs or begins, with a name that ends with a NUL.
    unsafe {
        pg_sys::ActivePortal.as_ref().is_some_and(|portal| {
            portal.status == pg_sys::PortalStatus::PORTAL_DEFINED && *portal.name != 0
        })
    }
}

/// Whether a query only reads the foreign tables that it scans, so that it locks no rows there.
///
/// # Safety
/// The state of a query that has been planned.
pub unsafe fn only_reads(estate: *const EState) -> bool {
    // SAFETY: by contract.
    let planned = unsafe { &*(*estate).es_plannedstmt };
    planned.rowMarks.is_null()
        && !planned.hasModifyingCTE
        && matches!(planned.commandType, pg_sys::CmdType::CMD_SELECT | pg_sys::CmdType::CMD_INSERT)
}
