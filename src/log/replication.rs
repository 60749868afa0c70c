//! Whether the decisions of this server are where its synchronous standbys need them.
//!
//! The wait for synchronous standbys can be cancelled, and a crash skips it: then a transaction is committed here
//! and unknown to the standby that may take over. A decision delivered before it is replicated could be
//! lost by that fail-over, with one participant committed (`SyncRepWaitForLSN` in `syncrep.c`).

use std::ffi::{c_char, c_void};

use pgrx::pg_sys;

use crate::pg::error::{Result, catch};
use crate::pg::{transaction, versions};

/// The beginning of `WalSndCtlData` (`walsender_private.h`), which pgrx does not bind; the same from 15 to 18.
#[repr(C)]
struct WalSenders {
    queues: [[*mut c_void; 2]; 3],
    lsn: [pg_sys::XLogRecPtr; 3],
}

unsafe extern "C-unwind" {
    static SyncRepStandbyNames: *const c_char;
    static WalSndCtl: *const WalSenders;
}

/// Whether synchronous standbys are configured (`SyncStandbysDefined` in `syncrep.h`).
pub fn has_synchronous_standbys() -> bool {
    // SAFETY: the setting's value, NULL or a C string.
    unsafe { !SyncRepStandbyNames.is_null() && *SyncRepStandbyNames != 0 }
}

/// Whether the synchronous standbys have everything up to a position, as far as `synchronous_commit` of this
/// process asks for it.
pub fn is_replicated(position: pg_sys::XLogRecPtr) -> bool {
    if !has_synchronous_standbys() {
        return true;
    }
    // SAFETY: shared memory that exists while the server runs. Positions only grow, and 8 aligned bytes are
    // read at once.
    unsafe {
        let mode = match pg_sys::synchronous_commit as u32 {
            pg_sys::SyncCommitLevel::SYNCHRONOUS_COMMIT_REMOTE_WRITE => pg_sys::SYNC_REP_WAIT_WRITE,
            pg_sys::SyncCommitLevel::SYNCHRONOUS_COMMIT_REMOTE_APPLY => pg_sys::SYNC_REP_WAIT_APPLY,
            _ => pg_sys::SYNC_REP_WAIT_FLUSH,
        };
        std::ptr::read_volatile(&raw const (*WalSndCtl).lsn[mode as usize]) >= position
    }
}

/// Where synchronous standbys are configured, has this transaction wait for them when it commits, whatever
/// `synchronous_commit` says.
pub fn require_synchronous_commit() {
    // SAFETY: the setting is local to the transaction that is open.
    unsafe {
        let enough = pg_sys::SyncCommitLevel::SYNCHRONOUS_COMMIT_REMOTE_FLUSH;
        if has_synchronous_standbys() && (pg_sys::synchronous_commit as u32) < enough {
            pg_sys::set_config_option(
                c"synchronous_commit".as_ptr(),
                c"on".as_ptr(),
                pg_sys::GucContext::PGC_USERSET,
                pg_sys::GucSource::PGC_S_SESSION,
                pg_sys::GucAction::GUC_ACTION_LOCAL,
                true,
                0,
                false,
            );
        }
    }
}

/// Whether the commit that this backend has just made is replicated.
pub fn own_commit_is_replicated() -> bool {
    // SAFETY: a plain global: the end of the commit record.
    is_replicated(unsafe { pg_sys::XactLastCommitEnd })
}

/// Whether the last record that this backend has written, in the transaction that is open, is replicated.
pub fn last_record_is_replicated() -> bool {
    // SAFETY: a plain global; 0 while nothing has been written.
    is_replicated(unsafe { pg_sys::XactLastRecEnd })
}

/// Commits a small transaction synchronously: what was committed before it is replicated when it is.
///
/// # Errors
/// The transaction fails. A wait that was cut short is no error: the answer is `false`.
pub fn everything_committed_is_replicated() -> Result<bool> {
    if !has_synchronous_standbys() {
        return Ok(true);
    }
    transaction::run(|| {
        require_synchronous_commit();
        // SAFETY: writes a WAL record that nobody reads, in a transaction with an xid, so that its
        // commit waits. Only the raw call is inside `catch`.
        unsafe {
            pg_sys::GetTopTransactionId();
            pg_sys::ForceSyncCommit();
            catch(|| versions::LogLogicalMessage(c"pg_fdw_xacts"))?;
        }
        Ok(())
    })?;
    Ok(own_commit_is_replicated())
}
