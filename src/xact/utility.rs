//! The hook on utility statements: looks at each before it runs, and delivers what COMMIT PREPARED
//! and ROLLBACK PREPARED have decided.

use std::cell::Cell;
use std::ffi::{CStr, c_char};

use pgrx::pg_sys;

use crate::pg::backend_local::BackendLocal;
use crate::pg::error::{Result, boundary, shielded};
use crate::pg::raw;
use crate::xact::gxid;

static PREVIOUS: BackendLocal<Cell<pg_sys::ProcessUtility_hook_type>> =
    BackendLocal::new(Cell::new(None));

/// Called with each statement before it runs.
pub type Look = unsafe fn(*mut pg_sys::Node) -> Result<()>;

static BEFORE: BackendLocal<Cell<Option<Look>>> = BackendLocal::new(Cell::new(None));

/// Installs the hook; called while the server loads the library. `before` looks at each statement
/// first.
pub fn install(before: Look) {
    BEFORE.get().set(Some(before));
    // SAFETY: single-threaded start-up.
    unsafe {
        PREVIOUS.get().set(pg_sys::ProcessUtility_hook);
        pg_sys::ProcessUtility_hook = Some(process_utility);
    }
}

unsafe extern "C-unwind" fn process_utility(
    pstmt: *mut pg_sys::PlannedStmt,
    query: *const c_char,
    read_only_tree: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    params: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
    destination: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
) {
    // SAFETY: PostgreSQL hands a valid statement; the frame owns nothing with a destructor.
    unsafe {
        boundary(|| BEFORE.get().get().map_or(Ok(()), |look| look((*pstmt).utilityStmt)));
        let settles = settled_gxid((*pstmt).utilityStmt);
        if let Some(gxid) = settles {
            boundary(|| gxid::prepare_to_settle(CStr::from_ptr(gxid)));
        }
        let next = PREVIOUS.get().get().unwrap_or(raw::standard_ProcessUtility);
        next(pstmt, query, read_only_tree, context, params, environment, destination, completion);
        if settles.is_some() {
            shielded("after settling a prepared transaction", gxid::deliver);
        }
    }
}

/// The 'gxid' of COMMIT PREPARED or ROLLBACK PREPARED.
///
/// # Safety
/// `statement` is a valid node.
unsafe fn settled_gxid(statement: *mut pg_sys::Node) -> Option<*const c_char> {
    // SAFETY: by contract; the tag says which struct it is.
    unsafe {
        if (*statement).type_ != pg_sys::NodeTag::T_TransactionStmt {
            return None;
        }
        let statement = &*statement.cast::<pg_sys::TransactionStmt>();
        match statement.kind {
            pg_sys::TransactionStmtKind::TRANS_STMT_COMMIT_PREPARED
            | pg_sys::TransactionStmtKind::TRANS_STMT_ROLLBACK_PREPARED => {
                Some(statement.gid.cast_const())
            }
            _ => None,
        }
    }
}
