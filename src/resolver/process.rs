//! What both kinds of background workers need: registration, signals, reloading the configuration.

use std::ffi::{CStr, c_char, c_int};

use pgrx::pg_sys;

use crate::pg::error::check_for_interrupts;
use crate::pg::{raw, versions};

/// Handles signals as a backend does: SIGTERM ends the process at its next wait, SIGHUP makes it
/// reload the configuration.
pub fn take_signals() {
    // SAFETY: PostgreSQL's own handlers.
    unsafe {
        versions::pqsignal(libc::SIGTERM, Some(raw::die));
        versions::pqsignal(libc::SIGHUP, Some(raw::SignalHandlerForConfigReload));
        pg_sys::BackgroundWorkerUnblockSignals();
        // SIGHUP was ignored until now (`StartBackgroundWorker`), so a reload may have been missed.
        pg_sys::ConfigReloadPending = 1;
    }
}

/// Sets the `application_name` of this process in `pg_stat_activity`, once it is connected.
pub fn introduce(name: &CStr) {
    // SAFETY: the name is copied into shared memory.
    unsafe { pg_sys::pgstat_report_appname(name.as_ptr()) };
}

/// Shows in `state` and `query` of `pg_stat_activity` what this process does, or waits for if it is
/// not `busy`.
pub fn show(busy: bool, what: &CStr) {
    use pg_sys::BackendState::{STATE_IDLE, STATE_RUNNING};
    // SAFETY: the text is copied into shared memory.
    unsafe {
        pg_sys::pgstat_report_activity(
            if busy { STATE_RUNNING } else { STATE_IDLE },
            what.as_ptr(),
        );
    }
}

/// Ends the process if it was asked to, and reloads the configuration if it was asked to.
///
/// # Errors
/// None: a termination does not return.
pub fn attend() -> crate::pg::error::Result<()> {
    check_for_interrupts()?;
    // SAFETY: plain flag of the process; reloading is allowed outside a transaction.
    unsafe {
        if pg_sys::ConfigReloadPending != 0 {
            pg_sys::ConfigReloadPending = 0;
            pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP);
        }
    }
    Ok(())
}

/// A background worker's description. `kind` is its `backend_type`, `restart` the number of seconds
/// after which the postmaster starts it again, or `BGW_NEVER_RESTART`.
pub fn describe(
    name: &CStr,
    kind: &CStr,
    function: &CStr,
    argument: pg_sys::Datum,
    restart: c_int,
) -> pg_sys::BackgroundWorker {
    let mut worker = pg_sys::BackgroundWorker::default();
    fill(&mut worker.bgw_name, name);
    fill(&mut worker.bgw_type, kind);
    fill(&mut worker.bgw_library_name, c"pg_fdw_xacts");
    fill(&mut worker.bgw_function_name, function);
    worker.bgw_flags =
        (pg_sys::BGWORKER_SHMEM_ACCESS | pg_sys::BGWORKER_BACKEND_DATABASE_CONNECTION) as c_int;
    worker.bgw_start_time = pg_sys::BgWorkerStartTime::BgWorkerStart_RecoveryFinished;
    worker.bgw_restart_time = restart;
    worker.bgw_main_arg = argument;
    worker
}

fn fill(field: &mut [c_char], text: &CStr) {
    let bytes = text.to_bytes();
    let len = bytes.len().min(field.len() - 1);
    for (to, from) in field.iter_mut().zip(&bytes[..len]) {
        *to = *from as c_char;
    }
}
