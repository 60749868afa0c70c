//! Whether the decisions of this server are where its synchronous standbys need them.
//!
//! The wait for synchronous standbys can be cancelled, and a crash skips it: then a transaction is
//! committed here and unknown to the standby that may take over. A decision delivered before it is
//! replicated could be lost by that fail-over, with one participant committed (`SyncRepWaitForLSN`
//! in `syncrep.c`).

use std::ffi::CStr;

use pgrx::pg_sys;

use crate::pg::error::Result;
use crate::pg::globals::{last_commit_end, last_record_end, synchronous_commit};
use crate::pg::{raw, transaction};

const LOCAL: u32 = pg_sys::SyncCommitLevel::SYNCHRONOUS_COMMIT_LOCAL_FLUSH;

/// Whether synchronous standbys are configured (`SyncStandbysDefined` in `syncrep.h`).
pub fn has_synchronous_standbys() -> bool {
    // SAFETY: the setting's value, NULL or a C string.
    unsafe { !raw::SyncRepStandbyNames.is_null() && *raw::SyncRepStandbyNames != 0 }
}

/// Whether the synchronous standbys have everything up to a position, to the degree that
/// `synchronous_commit` of this process asks for.
pub fn is_replicated(position: pg_sys::XLogRecPtr) -> bool {
    let mode = match synchronous_commit() {
        pg_sys::SyncCommitLevel::SYNCHRONOUS_COMMIT_REMOTE_WRITE => pg_sys::SYNC_REP_WAIT_WRITE,
        pg_sys::SyncCommitLevel::SYNCHRONOUS_COMMIT_REMOTE_APPLY => pg_sys::SYNC_REP_WAIT_APPLY,
        _ => pg_sys::SYNC_REP_WAIT_FLUSH,
    };
    has_up_to(mode, position)
}

fn has_up_to(mode: u32, position: pg_sys::XLogRecPtr) -> bool {
    if !has_synchronous_standbys() {
        return true;
    }
    // SAFETY: shared memory that exists while the server runs. Positions only grow, and 8 aligned
    // bytes are read at once.
    unsafe { std::ptr::read_volatile(&raw const (*raw::WalSndCtl).lsn[mode as usize]) >= position }
}

/// Where synchronous standbys are configured, has this transaction wait for them when it commits,
/// whatever `synchronous_commit` says.
pub fn require_synchronous_commit() {
    let enough = pg_sys::SyncCommitLevel::SYNCHRONOUS_COMMIT_REMOTE_FLUSH;
    if has_synchronous_standbys() && synchronous_commit() < enough {
        set_synchronous_commit(c"on");
    }
}

/// Sets `synchronous_commit` until the open transaction ends.
fn set_synchronous_commit(value: &CStr) {
    // SAFETY: the setting is local to the transaction.
    unsafe {
        pg_sys::set_config_option(
            c"synchronous_commit".as_ptr(),
            value.as_ptr(),
            pg_sys::GucContext::PGC_USERSET,
            pg_sys::GucSource::PGC_S_SESSION,
            pg_sys::GucAction::GUC_ACTION_LOCAL,
            true,
            0,
            false,
        );
    }
}

/// Whether the commit that this backend has just made is replicated.
pub fn own_commit_is_replicated() -> bool {
    is_replicated(last_commit_end())
}

/// Whether the last record that this backend has written in the open transaction is replicated.
pub fn last_record_is_replicated() -> bool {
    is_replicated(last_record_end())
}

/// The position up to which this server's WAL is on disk. Whatever can be seen as committed, and
/// was flushed by its commit, lies before it.
pub fn written_so_far() -> pg_sys::XLogRecPtr {
    // SAFETY: this server is not in recovery; the timeline is not asked for.
    unsafe { pg_sys::GetFlushRecPtr(std::ptr::null_mut()) }
}

/// Whether a fail-over to a synchronous standby would keep everything written up to a position.
/// Whether a standby has applied it does not matter for that.
pub fn outlives_a_failover(position: pg_sys::XLogRecPtr) -> bool {
    let mode = match synchronous_commit() {
        pg_sys::SyncCommitLevel::SYNCHRONOUS_COMMIT_REMOTE_WRITE => pg_sys::SYNC_REP_WAIT_WRITE,
        _ => pg_sys::SYNC_REP_WAIT_FLUSH,
    };
    has_up_to(mode, position)
}

/// Runs `f` in a background worker's own transaction, whose commit waits for no standby, and
/// returns the end of the commit record too. A process that many wait for must not itself wait for
/// as long as a standby may be away.
///
/// # Errors
/// Those of [`transaction::run`].
pub fn run_here<T>(f: impl FnOnce() -> Result<T>) -> Result<(T, pg_sys::XLogRecPtr)> {
    let value = transaction::run(|| {
        let value = f()?;
        if synchronous_commit() > LOCAL {
            set_synchronous_commit(c"local");
        }
        Ok(value)
    })?;
    Ok((value, last_commit_end()))
}
