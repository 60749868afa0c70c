//! The command that the client has sent.

use std::ffi::c_int;

use pgrx::pg_sys::{self, PlannedStmt, PortalStrategy};

use crate::pg::{node, raw};

/// Whether this statement is all that the client has sent in its transaction, as far as that can be
/// told: outside of a transaction block, by itself as a simple query, or by messages of which the
/// next one is Sync. Statements inside functions, under EXPLAIN and of SQL's EXECUTE are not.
///
/// # Safety
/// A statement that is being executed.
pub unsafe fn is_whole_command(statement: *const PlannedStmt) -> bool {
    // SAFETY: NULL, or the portal that runs. The message loop has read the whole of a message, and
    // what is peeked at is in its buffer.
    unsafe {
        let Some(portal) = pg_sys::ActivePortal.as_ref() else { return false };
        *portal.name == 0
            && portal.strategy == PortalStrategy::PORTAL_MULTI_QUERY
            && node::length(portal.stmts) == 1
            && node::nth::<PlannedStmt>(portal.stmts, 0).map(<*mut _>::cast_const)
                == Some(statement)
            // Several statements in a simple query are a block, too.
            && !pg_sys::IsTransactionBlock()
            && (portal.cplan.is_null() || next_message() == Some(b'S'))
    }
}

/// The type of the client's next message, if it has come already.
unsafe fn next_message() -> Option<u8> {
    // SAFETY: by contract of the caller; looking at what is there raises nothing.
    unsafe {
        if !raw::pq_buffer_has_data() {
            return None;
        }
        raw::pq_startmsgread();
        let next: c_int = raw::pq_peekbyte();
        raw::pq_endmsgread();
        u8::try_from(next).ok()
    }
}
