//! What differs between PostgreSQL 15 and 19, under the names and with the meaning of the newer
//! versions. The configuration options `pre_pg17` and `pre_pg18` (build.rs) stand for what is
//! older.

use std::ffi::c_int;

use pgrx::pg_sys::{self, Oid};

/// Whether postgres_fdw gives the command as CONTEXT when a connection is lost during a cursor's
/// command. From 17 on it gives the cursor's query, unless DECLARE or CLOSE cannot even be sent.
pub const LOSS_NAMES_COMMAND: bool = cfg!(pre_pg17);

/// `CreateWaitEventSet()` that belongs to no resource owner, so that only `FreeWaitEventSet()` ends
/// it.
///
/// # Safety
/// In a backend or background worker.
#[allow(non_snake_case)]
pub unsafe fn CreateWaitEventSet(events: c_int) -> *mut pg_sys::WaitEventSet {
    #[cfg(pre_pg17)]
    // SAFETY: the memory context is never reset.
    unsafe {
        pg_sys::CreateWaitEventSet(pg_sys::TopMemoryContext, events)
    }
    #[cfg(not(pre_pg17))]
    // SAFETY: no owner; from 17 on the set is always allocated in TopMemoryContext.
    unsafe {
        pg_sys::CreateWaitEventSet(std::ptr::null_mut(), events)
    }
}

/// `WaitEventExtensionNew()`: the number of a wait event with this name. Before 17, which has no
/// such names, the same number for all.
///
/// # Safety
/// In a process that is attached to shared memory.
#[allow(non_snake_case)]
pub unsafe fn WaitEventExtensionNew(
    #[cfg_attr(pre_pg17, allow(unused_variables))] name: &std::ffi::CStr,
) -> u32 {
    #[cfg(pre_pg17)]
    {
        pg_sys::PG_WAIT_EXTENSION
    }
    #[cfg(not(pre_pg17))]
    // SAFETY: by contract; the name is copied.
    unsafe {
        pg_sys::WaitEventExtensionNew(name.as_ptr())
    }
}

/// `TupleDescAttr()`, counted from 0.
///
/// # Safety
/// A valid descriptor with more than `n` columns.
#[allow(non_snake_case)]
pub unsafe fn TupleDescAttr(
    descriptor: pg_sys::TupleDesc,
    n: usize,
) -> *mut pg_sys::FormData_pg_attribute {
    #[cfg(pre_pg18)]
    // SAFETY: by contract.
    unsafe {
        (*descriptor).attrs.as_mut_ptr().add(n)
    }
    #[cfg(not(pre_pg18))]
    // SAFETY: by contract.
    unsafe {
        pg_sys::TupleDescAttr(descriptor, n as c_int)
    }
}

/// `checkAsUser` of a scan of the relation that `entry` stands for; invalid for the current user.
///
/// # Safety
/// Valid nodes.
#[allow(non_snake_case)]
pub unsafe fn checkAsUser(
    #[cfg_attr(feature = "pg15", allow(unused_variables))] plan: *const pg_sys::ForeignScan,
    #[cfg_attr(not(feature = "pg15"), allow(unused_variables))] entry: *const pg_sys::RangeTblEntry,
) -> Oid {
    #[cfg(feature = "pg15")]
    // SAFETY: by contract.
    unsafe {
        (*entry).checkAsUser
    }
    #[cfg(not(feature = "pg15"))]
    // SAFETY: by contract.
    unsafe {
        (*plan).checkAsUser
    }
}

/// `ExecGetResultRelCheckAsUser()`: of a modification's target, for which `entry` stands; invalid
/// for the current user.
///
/// # Safety
/// Valid nodes.
#[allow(non_snake_case)]
pub unsafe fn ExecGetResultRelCheckAsUser(
    #[cfg_attr(feature = "pg15", allow(unused_variables))] target: *mut pg_sys::ResultRelInfo,
    #[cfg_attr(not(feature = "pg15"), allow(unused_variables))] entry: *const pg_sys::RangeTblEntry,
    #[cfg_attr(feature = "pg15", allow(unused_variables))] estate: *mut pg_sys::EState,
) -> Oid {
    #[cfg(feature = "pg15")]
    // SAFETY: by contract.
    unsafe {
        (*entry).checkAsUser
    }
    #[cfg(not(feature = "pg15"))]
    // SAFETY: by contract.
    unsafe {
        pg_sys::ExecGetResultRelCheckAsUser(target, estate)
    }
}

/// `fs_base_relids`: the relations of a scan, without outer joins, which `fs_relids` has from 16
/// on.
///
/// # Safety
/// A valid plan.
pub unsafe fn fs_base_relids(plan: *const pg_sys::ForeignScan) -> *mut pg_sys::Bitmapset {
    #[cfg(feature = "pg15")]
    // SAFETY: by contract.
    unsafe {
        (*plan).fs_relids
    }
    #[cfg(not(feature = "pg15"))]
    // SAFETY: by contract.
    unsafe {
        (*plan).fs_base_relids
    }
}

/// The number of the current transaction among those of this backend; no two have the same.
pub fn local_transaction() -> pg_sys::LocalTransactionId {
    #[cfg(pre_pg17)]
    // SAFETY: this backend's own entry.
    unsafe {
        (*pg_sys::MyProc).lxid
    }
    #[cfg(not(pre_pg17))]
    // SAFETY: this backend's own entry.
    unsafe {
        (*pg_sys::MyProc).vxid.lxid
    }
}

/// The number of this process among all that can be connected to a database; below `MaxBackends`.
pub fn backend_number() -> usize {
    #[cfg(pre_pg17)]
    // SAFETY: a variable of this process; it counts from 1.
    unsafe {
        pg_sys::MyBackendId as usize - 1
    }
    #[cfg(not(pre_pg17))]
    // SAFETY: a variable of this process.
    unsafe {
        pg_sys::MyProcNumber as usize
    }
}

/// Whether a role owns a database, or is a superuser.
///
/// # Safety
/// Inside a transaction.
#[cfg(feature = "pg15")]
pub unsafe fn is_database_owner(database: pg_sys::Oid, role: pg_sys::Oid) -> bool {
    // SAFETY: by contract.
    unsafe { pg_sys::pg_database_ownercheck(database, role) }
}

/// Whether a role owns a database, or is a superuser.
///
/// # Safety
/// Inside a transaction.
#[cfg(not(feature = "pg15"))]
pub unsafe fn is_database_owner(database: pg_sys::Oid, role: pg_sys::Oid) -> bool {
    // SAFETY: by contract.
    unsafe { pg_sys::object_ownercheck(pg_sys::DatabaseRelationId, database, role) }
}

/// `object_aclcheck()` of USAGE on a foreign server.
///
/// # Safety
/// Inside a transaction.
pub unsafe fn foreign_server_usage(
    server: pg_sys::Oid,
    role: pg_sys::Oid,
) -> pg_sys::AclResult::Type {
    #[cfg(feature = "pg15")]
    // SAFETY: by contract.
    unsafe {
        pg_sys::pg_foreign_server_aclcheck(server, role, pg_sys::ACL_USAGE)
    }
    #[cfg(not(feature = "pg15"))]
    // SAFETY: by contract.
    unsafe {
        let usage = pg_sys::ACL_USAGE.into();
        pg_sys::object_aclcheck(pg_sys::ForeignServerRelationId, server, role, usage)
    }
}

/// `pqsignal()` of the server; from 18 on libpq's has the name for itself.
///
/// # Safety
/// A handler that is safe to run whenever a signal arrives.
pub unsafe fn pqsignal(signal: c_int, handler: pg_sys::pqsigfunc) {
    #[cfg(pre_pg18)]
    use pg_sys::pqsignal;
    #[cfg(not(pre_pg18))]
    use pg_sys::pqsignal_be as pqsignal;
    // SAFETY: by contract.
    unsafe {
        pqsignal(signal, handler);
    }
}

/// `ShmemInitHash()` of a table with room for `size` elements, all of which it takes at once.
///
/// # Safety
/// In the start-up hook, with `AddinShmemInitLock` held; `control` fits the flags.
#[allow(non_snake_case)]
pub unsafe fn ShmemInitHash(
    name: &std::ffi::CStr,
    size: i64,
    control: &mut pg_sys::HASHCTL,
    flags: u32,
) -> *mut pg_sys::HTAB {
    #[cfg(not(feature = "pg19"))]
    // SAFETY: by contract.
    unsafe {
        pg_sys::ShmemInitHash(name.as_ptr(), size, size, control, flags as c_int)
    }
    #[cfg(feature = "pg19")]
    // SAFETY: by contract.
    unsafe {
        pg_sys::ShmemInitHash(name.as_ptr(), size, control, flags as c_int)
    }
}
