//! PostgreSQL's global variables and flags, read in safe functions.

use pgrx::pg_sys::{self, Oid};

/// The database of this process.
pub fn my_database() -> Oid {
    // SAFETY: a plain global, set when the process connects to its database.
    unsafe { pg_sys::MyDatabaseId }
}

/// The process number of this process.
pub fn my_pid() -> i32 {
    // SAFETY: a plain global, set when the process starts.
    unsafe { pg_sys::MyProcPid }
}

/// The time, in PostgreSQL's microseconds.
pub fn now() -> pg_sys::TimestampTz {
    // SAFETY: reads the clock.
    unsafe { pg_sys::GetCurrentTimestamp() }
}

/// When the postmaster started, in PostgreSQL's microseconds.
pub fn server_start() -> pg_sys::TimestampTz {
    // SAFETY: a plain global, set by the postmaster before it starts any process.
    unsafe { pg_sys::PgStartTime }
}

/// Whether this server is a standby, or replays WAL after a crash.
pub fn in_recovery() -> bool {
    // SAFETY: reads a flag in shared memory.
    unsafe { pg_sys::RecoveryInProgress() }
}

/// The role that statements run as now.
pub fn current_user() -> Oid {
    // SAFETY: called in a process that has a session user, as everything that runs statements has.
    unsafe { pg_sys::GetUserId() }
}

/// Whether the transaction's isolation level is SERIALIZABLE.
pub fn is_serializable() -> bool {
    // SAFETY: a plain global of the transaction.
    unsafe { pg_sys::XactIsoLevel == pg_sys::XACT_SERIALIZABLE as i32 }
}

/// The nesting level of the current subtransaction: 1 in a transaction without savepoints.
pub fn nest_level() -> u32 {
    // SAFETY: reads the transaction's state.
    unsafe { pg_sys::GetCurrentTransactionNestLevel() as u32 }
}

/// Forgets a request to cancel that has already done its work: it must not hit the client's next statement.
pub fn clear_cancel() {
    // SAFETY: a plain flag, which a signal handler may set again.
    unsafe { pg_sys::QueryCancelPending = 0 };
}
