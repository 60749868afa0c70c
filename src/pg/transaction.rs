//! A transaction of a background worker's own, with an abort path.

use pgrx::pg_sys;

use crate::pg::error::{Result, attempt};
use crate::pg::syncrep;

/// Runs `f` in a transaction of its own with a snapshot: commits after `Ok`, aborts after anything
/// else. Not for backends that run a client's statements.
///
/// # Errors
/// What `f` returned or raised, or what committing raised.
pub fn run<T>(f: impl FnOnce() -> Result<T>) -> Result<T> {
    let body = || {
        // SAFETY: no transaction is open: the workers open one here alone.
        unsafe {
            pg_sys::SetCurrentStatementStartTimestamp();
            pg_sys::StartTransactionCommand();
            // Not the database's defaults: a serializable transaction here would make users' fail.
            pg_sys::XactIsoLevel = pg_sys::XACT_READ_COMMITTED as i32;
            pg_sys::XactReadOnly = false;
            pg_sys::XactDeferrable = false;
            pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
        }
        let value = f()?;
        // SAFETY: pushed and started above.
        unsafe {
            pg_sys::PopActiveSnapshot();
            pg_sys::CommitTransactionCommand();
        }
        Ok(value)
    };
    let outcome = attempt(body);
    if outcome.is_err() {
        // SAFETY: ends whatever is left of the transaction, or does nothing.
        unsafe { pg_sys::AbortCurrentTransaction() };
    }
    // Only processes with a client do this by themselves. Without it autovacuum would not learn
    // which rows were deleted.
    // SAFETY: outside of a transaction.
    unsafe { pg_sys::pgstat_report_stat(true) };
    outcome
}

/// Makes the commit of this transaction durable: what it writes outlives a crash, and a fail-over
/// to a synchronous standby, whatever `synchronous_commit` says.
pub fn make_durable() {
    // SAFETY: sets a flag of the transaction.
    unsafe { pg_sys::ForceSyncCommit() };
    syncrep::require_synchronous_commit();
}
