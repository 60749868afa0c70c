//! Look-ups in the catalog. A name that is not there gives the invalid OID.

use std::ffi::CStr;

use pgrx::pg_sys::{self, Oid};

use crate::pg::globals::current_user;

/// An extension.
pub fn extension(name: &CStr) -> Oid {
    // SAFETY: a look-up that may find nothing.
    unsafe { pg_sys::get_extension_oid(name.as_ptr(), true) }
}

/// A foreign server.
pub fn foreign_server(name: &CStr) -> Oid {
    // SAFETY: a look-up that may find nothing.
    unsafe { pg_sys::get_foreign_server_oid(name.as_ptr(), true) }
}

/// All foreign servers of this database, each with its wrapper.
pub fn foreign_servers() -> Vec<(Oid, Oid)> {
    let mut found = Vec::new();
    // SAFETY: a scan of a catalog in the order of the heap; tuples are read while the scan stands.
    unsafe {
        let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
        let catalog = pg_sys::table_open(pg_sys::ForeignServerRelationId, lock);
        let none = std::ptr::null_mut();
        let scan = pg_sys::systable_beginscan(catalog, Oid::INVALID, false, none, 0, none.cast());
        loop {
            let tuple = pg_sys::systable_getnext(scan);
            if tuple.is_null() {
                break;
            }
            let server = &*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_foreign_server>();
            found.push((server.oid, server.srvfdw));
        }
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(catalog, lock);
    }
    found
}

/// A database.
pub fn database(name: &CStr) -> Oid {
    // SAFETY: a look-up that may find nothing.
    unsafe { pg_sys::get_database_oid(name.as_ptr(), true) }
}

/// Whether a database is a template.
pub fn is_template(database: Oid) -> bool {
    let cache = pg_sys::SysCacheIdentifier::DATABASEOID;
    // SAFETY: the row of that cache.
    unsafe { row(cache, database, |row: &pg_sys::FormData_pg_database| row.datistemplate) }
        .unwrap_or(false)
}

/// Whether the current user may create databases. PostgreSQL's own function for that is not
/// exported by all releases of 15: a library that names it is not loaded by them.
pub fn may_create_databases() -> bool {
    let cache = pg_sys::SysCacheIdentifier::AUTHOID;
    // SAFETY: a look-up of the current role; the row of that cache.
    unsafe {
        pg_sys::superuser()
            || row(cache, current_user(), |row: &pg_sys::FormData_pg_authid| row.rolcreatedb)
                .unwrap_or(false)
    }
}

/// The user and the server of a user mapping. A PUBLIC mapping's user is the invalid OID.
pub fn user_mapping(mapping: Oid) -> Option<(Oid, Oid)> {
    let cache = pg_sys::SysCacheIdentifier::USERMAPPINGOID;
    // SAFETY: the row of that cache.
    unsafe {
        row(cache, mapping, |row: &pg_sys::FormData_pg_user_mapping| (row.umuser, row.umserver))
    }
}

/// Whether a table has triggers, or has had some lately; `true` if it is not there.
pub fn may_have_triggers(table: Oid) -> bool {
    let cache = pg_sys::SysCacheIdentifier::RELOID;
    // SAFETY: the row of that cache.
    unsafe { row(cache, table, |row: &pg_sys::FormData_pg_class| row.relhastriggers) }
        .unwrap_or(true)
}

/// What `read` takes of the row with this OID, if there is one.
///
/// # Safety
/// A cache with one OID as its key, and rows of type `Row`.
unsafe fn row<Row, T>(
    cache: pg_sys::SysCacheIdentifier::Type,
    oid: Oid,
    read: impl FnOnce(&Row) -> T,
) -> Option<T> {
    // SAFETY: by contract; the row is read before it is released.
    unsafe {
        let tuple = pg_sys::SearchSysCache1(cache as i32, oid.into());
        if tuple.is_null() {
            return None;
        }
        let value = read(&*pg_sys::GETSTRUCT(tuple).cast::<Row>());
        pg_sys::ReleaseSysCache(tuple);
        Some(value)
    }
}
