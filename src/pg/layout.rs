//! Layouts and numbers copied from PostgreSQL's sources, because its headers do not show them or
//! pgrx does not bind them. A new major version has to be compared with every item here; each names
//! the file that declares it and the versions it was compared with.

use std::ffi::c_void;

use pgrx::pg_sys;

/// The beginning of `WalSndCtlData` (`replication/walsender_private.h`; 15 to 19).
#[repr(C)]
pub struct WalSndCtlData {
    /// One queue per wait mode: a `SHM_QUEUE` in 15, then a `dlist_head`, both two pointers.
    queues: [[*mut c_void; 2]; pg_sys::NUM_SYNC_REP_WAIT_MODE as usize],
    /// Up to where the synchronous standbys have written, flushed and applied.
    pub lsn: [pg_sys::XLogRecPtr; pg_sys::NUM_SYNC_REP_WAIT_MODE as usize],
}

/// An element of the list of transaction callbacks, `XactCallbackItem` (`access/transam/xact.c`;
/// 15 to 18).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct XactCallbackItem {
    /// The item registered before this one.
    pub next: *const XactCallbackItem,
    /// What is called.
    pub callback: Option<XactCallback>,
    /// Its argument.
    pub argument: *mut c_void,
}

/// A callback at the end of a transaction.
pub type XactCallback = unsafe extern "C-unwind" fn(pg_sys::XactEvent::Type, *mut c_void);

/// The number of `AddinShmemInitLock` in `MainLWLockArray` (`storage/lmgr/lwlocknames.txt` in 15
/// and 16, `storage/lwlocklist.h` in 17 to 19).
const ADDIN_SHMEM_INIT_LOCK: usize = 21;

/// `AddinShmemInitLock`, held while an extension finds or makes its structures in shared memory.
///
/// # Safety
/// In a process that is attached to shared memory.
pub unsafe fn addin_shmem_init_lock() -> *mut pg_sys::LWLock {
    // SAFETY: by contract; the array has all individual locks.
    unsafe { &raw mut (*pg_sys::MainLWLockArray.add(ADDIN_SHMEM_INIT_LOCK)).lock }
}

/// `USER_TIMEOUT`, by which a timeout of one's own is asked for (`utils/timeout.h`; 15 to 19).
pub const USER_TIMEOUT: std::ffi::c_int = if cfg!(pre_pg17) { 12 } else { 13 };

#[cfg(not(pre_pg18))]
pub use port::{SCRAM_KEY, my_port};

#[cfg(not(pre_pg18))]
mod port {
    use std::ffi::{c_char, c_int, c_void};

    use pgrx::pg_sys;

    /// The length of a SCRAM key (`SCRAM_MAX_KEY_LEN` in `common/scram-common.h`; 18, 19).
    pub const SCRAM_KEY: usize = 32;

    /// The beginning of `Port` (`libpq/libpq-be.h`; 18, 19).
    #[repr(C)]
    pub struct Port {
        sock: c_int,
        noblock: bool,
        proto: u32,
        addresses: [Address; 2],
        remote_host: *const c_char,
        remote_hostname: *const c_char,
        remote_hostname_resolv: c_int,
        remote_hostname_errcode: c_int,
        remote_port: *const c_char,
        local_host: [c_char; 64],
        database_name: *const c_char,
        user_name: *const c_char,
        cmdline_options: *const c_char,
        guc_options: *const c_void,
        application_name: *const c_char,
        hba: *const c_void,
        keepalives: [c_int; 8],
        /// The client's key of its SCRAM exchange with this server.
        pub client_key: [u8; SCRAM_KEY],
        /// The server's key of that exchange.
        pub server_key: [u8; SCRAM_KEY],
        /// Whether the two keys are valid.
        pub has_keys: bool,
    }

    /// `SockAddr` (`libpq/pqcomm.h`; 18, 19).
    #[repr(C)]
    struct Address {
        storage: libc::sockaddr_storage,
        length: libc::socklen_t,
    }

    /// The connection of this session's client; `None` in workers.
    pub fn my_port() -> Option<&'static Port> {
        // SAFETY: NULL, or the session's own for as long as the process lives.
        unsafe { pg_sys::MyProcPort.cast::<Port>().as_ref() }
    }
}
