//! The command that the client has sent.

use pgrx::pg_sys::{self, PlannedStmt, PortalStrategy};

use crate::pg::node;

/// Whether this statement is all that the client has sent in its transaction: a simple query of one
/// statement, outside of a transaction block, that has begun the transaction. Statements inside
/// functions, under EXPLAIN and of SQL's EXECUTE are not, nor is what comes by Parse, Bind and
/// Execute: something may have been executed before it, and something may follow. A background
/// worker may execute several statements in one transaction as if each were the whole.
///
/// # Safety
/// A statement that is being executed.
pub unsafe fn is_whole_command(statement: *const PlannedStmt) -> bool {
    // SAFETY: NULL, or the portal that runs; the rest reads the transaction's state.
    unsafe {
        let Some(portal) = pg_sys::ActivePortal.as_ref() else { return false };
        pg_sys::MyBackendType == pg_sys::BackendType::B_BACKEND
            && *portal.name == 0
            && portal.strategy == PortalStrategy::PORTAL_MULTI_QUERY
            && node::length(portal.stmts) == 1
            && node::nth::<PlannedStmt>(portal.stmts, 0).map(<*mut _>::cast_const)
                == Some(statement)
            // Several statements in a simple query are a block, too.
            && !pg_sys::IsTransactionBlock()
            && portal.cplan.is_null()
            && pg_sys::GetCurrentTransactionStartTimestamp()
                == pg_sys::GetCurrentStatementStartTimestamp()
    }
}
