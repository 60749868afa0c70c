//! PostgreSQL's variables and flags behind safe functions: those that exist in every process, and
//! can be read at any time.

use std::ffi::{CStr, CString};
use std::time::Duration;

use pgrx::pg_sys::{self, Oid};

use crate::pg::error::{Result, catch};
use crate::pg::raw;

/// Reads variables of PostgreSQL. The server keeps each in every process from its start on, and
/// only this thread and its signal handlers write them; a flag set meanwhile is seen at the next
/// read.
macro_rules! read {
    ($variable:expr) => {
        // SAFETY: a variable of this process, initialized, and written by this thread alone.
        unsafe { $variable }
    };
}

/// The database of this process; invalid in one that is connected to none.
pub fn my_database() -> Oid {
    read!(pg_sys::MyDatabaseId)
}

/// The process number of this process.
pub fn my_pid() -> i32 {
    read!(pg_sys::MyProcPid)
}

/// Whether this process has an entry in shared memory, without which it runs no transactions.
pub fn is_attached() -> bool {
    read!(!pg_sys::MyProc.is_null())
}

/// Whether this process is a background worker.
pub fn is_background_worker() -> bool {
    read!(!pg_sys::MyBgworkerEntry.is_null())
}

/// Whether this server runs in single-user mode: one process, without a postmaster.
pub fn is_single_user() -> bool {
    read!(!pg_sys::IsUnderPostmaster)
}

/// Whether `pg_upgrade` runs this server.
pub fn is_in_pg_upgrade() -> bool {
    read!(pg_sys::IsBinaryUpgrade)
}

/// Whether the server is loading `shared_preload_libraries`.
pub fn is_preloading() -> bool {
    read!(pg_sys::process_shared_preload_libraries_in_progress)
}

/// How many processes can run transactions at a time; known once the libraries are loaded.
pub fn max_backends() -> usize {
    read!(pg_sys::MaxBackends) as usize
}

/// The setting `max_worker_processes`.
pub fn max_worker_processes() -> usize {
    read!(pg_sys::max_worker_processes) as usize
}

/// The setting `max_prepared_transactions`.
pub fn max_prepared_transactions() -> i32 {
    read!(raw::max_prepared_xacts)
}

/// The setting `statement_timeout`; `None` for none.
pub fn statement_timeout() -> Option<Duration> {
    let milliseconds = read!(pg_sys::StatementTimeout);
    (milliseconds > 0).then(|| Duration::from_millis(milliseconds as u64))
}

/// The setting `deadlock_timeout`.
pub fn deadlock_timeout() -> Duration {
    Duration::from_millis(read!(pg_sys::DeadlockTimeout) as u64)
}

/// The setting `lock_timeout` in milliseconds; 0 for none.
pub fn lock_timeout() -> i32 {
    read!(pg_sys::LockTimeout)
}

/// The time, in PostgreSQL's microseconds.
pub fn now() -> pg_sys::TimestampTz {
    // SAFETY: reads the clock.
    unsafe { pg_sys::GetCurrentTimestamp() }
}

/// When the postmaster started, in PostgreSQL's microseconds.
pub fn server_start() -> pg_sys::TimestampTz {
    read!(pg_sys::PgStartTime)
}

/// The same in microseconds since 1970.
pub fn server_start_since_1970() -> i64 {
    const FROM_1970_TO_2000: i64 = 946_684_800_000_000;
    server_start() + FROM_1970_TO_2000
}

/// `system_identifier` of `pg_control_system()`.
pub fn system_identifier() -> u64 {
    // SAFETY: reads what the server has read from its control file at its start.
    unsafe { pg_sys::GetSystemIdentifier() }
}

/// The name of this database.
///
/// # Errors
/// Those of a look-up in the catalog.
pub fn database_name() -> Result<CString> {
    catch(|| {
        // SAFETY: a session is connected to a database that exists; its name ends with a NUL, and
        // is copied. The frame owns nothing when the look-up raises.
        unsafe { CStr::from_ptr(pg_sys::get_database_name(my_database())).to_owned() }
    })
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
    read!(pg_sys::XactIsoLevel) == pg_sys::XACT_SERIALIZABLE as i32
}

/// Whether the transaction has one snapshot for all its statements: REPEATABLE READ and
/// SERIALIZABLE.
pub fn uses_one_snapshot() -> bool {
    read!(pg_sys::XactIsoLevel) >= pg_sys::XACT_REPEATABLE_READ as i32
}

/// Whether the transaction, or its current subtransaction, is READ ONLY.
pub fn is_read_only() -> bool {
    read!(pg_sys::XactReadOnly)
}

/// The outermost nesting level that is READ ONLY; 0 if the current one is not.
#[cfg(feature = "pg19")]
pub fn top_read_only_level() -> u32 {
    // SAFETY: reads the transaction's state.
    unsafe { pg_sys::GetTopReadOnlyTransactionNestLevel() as u32 }
}

/// Whether the transaction is DEFERRABLE.
#[cfg(feature = "pg19")]
pub fn is_deferrable() -> bool {
    read!(pg_sys::XactDeferrable)
}

/// The nesting level of the current subtransaction: 1 in a transaction without savepoints.
pub fn nest_level() -> u32 {
    // SAFETY: reads the transaction's state.
    unsafe { pg_sys::GetCurrentTransactionNestLevel() as u32 }
}

/// The setting `enable_async_append`.
pub fn async_append_is_enabled() -> bool {
    // SAFETY: a variable of this process.
    unsafe { pg_sys::enable_async_append }
}

/// Whether the transaction has a transaction ID, as everything that writes here has.
pub fn has_written() -> bool {
    // SAFETY: reads the transaction's state.
    unsafe { pg_sys::GetTopTransactionIdIfAny() != pg_sys::InvalidTransactionId }
}

/// Whether a statement is running: its portal is active.
pub fn is_in_statement() -> bool {
    read!(!pg_sys::ActivePortal.is_null())
}

/// The end of this process's last commit record; 0 while there was none.
pub fn last_commit_end() -> pg_sys::XLogRecPtr {
    read!(pg_sys::XactLastCommitEnd)
}

/// The end of the last record that the current transaction has written; 0 while there is none.
pub fn last_record_end() -> pg_sys::XLogRecPtr {
    read!(pg_sys::XactLastRecEnd)
}

/// The setting `synchronous_commit`, a value of `SyncCommitLevel`.
pub fn synchronous_commit() -> u32 {
    read!(pg_sys::synchronous_commit) as u32
}

/// Whether any interrupt is pending.
pub fn is_interrupted() -> bool {
    read!(pg_sys::InterruptPending) != 0
}

/// Whether a request to cancel the statement is pending.
pub fn is_cancel_pending() -> bool {
    read!(pg_sys::QueryCancelPending) != 0
}

/// Forgets a request to cancel that has already done its work: it must not hit the client's next
/// statement.
pub fn clear_cancel() {
    // SAFETY: a flag of this process; a signal handler may set it again.
    unsafe { pg_sys::QueryCancelPending = 0 };
}

/// From now on, until [`resume_interrupts`] or an ERROR, requests to cancel or terminate stay
/// pending.
pub fn hold_interrupts() {
    // SAFETY: a counter that only this process changes.
    unsafe { pg_sys::InterruptHoldoffCount += 1 };
}

/// The end of [`hold_interrupts`].
pub fn resume_interrupts() {
    // SAFETY: as above.
    unsafe { pg_sys::InterruptHoldoffCount = pg_sys::InterruptHoldoffCount.saturating_sub(1) };
}

/// Whether a request to terminate this process is pending.
pub fn is_termination_pending() -> bool {
    read!(pg_sys::ProcDiePending) != 0
}

/// Whether this process is exiting.
pub fn is_exiting() -> bool {
    read!(pg_sys::proc_exit_inprogress)
}
