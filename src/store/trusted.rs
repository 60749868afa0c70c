//! Which tables are the extension's: those of schema `fdw_xacts` that belong to it and to its
//! owner, and have the columns that it gave them. A role that may create a schema could make tables
//! of the same names: those are never read.

use std::cell::{Cell, RefCell};
use std::ffi::CStr;

use pgrx::pg_sys::{self, Oid};

use crate::pg::backend_local::BackendLocal;
use crate::pg::error::{Error, Result, SqlState};
use crate::pg::versions;

const EXTENSION: &CStr = c"pg_fdw_xacts";
const SCHEMA: &CStr = c"fdw_xacts";

/// The types of a table's columns. Columns that somebody has added behind them are neither read nor
/// written.
fn columns(name: &CStr) -> &'static [Oid] {
    use pg_sys::{BOOLOID, INT4OID, INT8ARRAYOID, INT8OID, OIDOID, TEXTOID, TIMESTAMPTZOID};
    match name.to_bytes() {
        b"identity" => &[OIDOID, INT8OID],
        b"participant" => &[INT4OID, OIDOID, OIDOID, INT8OID, TEXTOID],
        b"decision" => &[INT8OID, INT8ARRAYOID, INT8ARRAYOID],
        b"forgotten" => &[INT8OID, INT4OID],
        b"label" => &[TEXTOID, TIMESTAMPTZOID, BOOLOID],
        b"expired" => &[INT8OID, TIMESTAMPTZOID],
        _ => &[],
    }
}

/// The extension, if it exists in this database.
pub fn extension() -> Option<Oid> {
    // SAFETY: a catalog look-up that may find nothing.
    let oid = unsafe { pg_sys::get_extension_oid(EXTENSION.as_ptr(), true) };
    (oid != Oid::INVALID).then_some(oid)
}

/// Whether an object belongs to the extension.
pub fn is_member(class: Oid, object: Oid) -> bool {
    // SAFETY: a scan of a catalog, in a transaction.
    extension().is_some_and(|extension| unsafe {
        pg_sys::getExtensionOfObject(class, object) == extension
    })
}

/// The table or index of that name in a schema `fdw_xacts`, whoever has made it.
fn named(name: &CStr) -> Option<Oid> {
    // SAFETY: catalog look-ups.
    let oid = unsafe {
        let schema = pg_sys::get_namespace_oid(SCHEMA.as_ptr(), true);
        if schema == Oid::INVALID {
            return None;
        }
        pg_sys::get_relname_relid(name.as_ptr(), schema)
    };
    (oid != Oid::INVALID).then_some(oid)
}

/// Whether a table of that name exists: DROP EXTENSION removes the tables one by one.
pub fn has(name: &CStr) -> bool {
    named(name).is_some()
}

/// Whether a table is the one of that name in schema `fdw_xacts`.
pub fn is_named(table: Oid, name: &CStr) -> bool {
    named(name) == Some(table)
}

/// The tables that were checked and are the extension's; one that changes is removed.
static FOUND: BackendLocal<RefCell<Vec<Oid>>> = BackendLocal::new(RefCell::new(Vec::new()));

/// One of the extension's tables; `None` if the extension does not exist.
///
/// # Errors
/// 55000 if the extension exists and the table is missing, or is not the extension's.
pub fn oid(name: &CStr) -> Result<Option<Oid>> {
    let found = named(name);
    if let Some(oid) = found
        && FOUND.get().borrow().contains(&oid)
    {
        return Ok(Some(oid));
    }
    let Some(extension) = extension() else { return Ok(None) };
    let Some(oid) = found else { return Err(tampered(name, "There is no such table.")) };
    // Added before the check, so that a change during the check removes it again.
    forget_changed();
    FOUND.get().borrow_mut().push(oid);
    let checked = check_owner(name, oid, extension);
    if checked.is_err() {
        FOUND.get().borrow_mut().retain(|found| *found != oid);
    }
    checked.map(|()| Some(oid))
}

fn check_owner(name: &CStr, table: Oid, extension: Oid) -> Result<()> {
    // SAFETY: catalog look-ups, in a transaction.
    let (member, owner) = unsafe {
        let class = pg_sys::RelationRelationId;
        (pg_sys::getExtensionOfObject(class, table) == extension, owner_of(table))
    };
    if !member {
        return Err(tampered(name, "It does not belong to the extension."));
    }
    let is_trusted = owner.is_some_and(|owner| {
        // SAFETY: a look-up of a role.
        owner == extension_owner(extension) || unsafe { pg_sys::superuser_arg(owner) }
    });
    if is_trusted {
        Ok(())
    } else {
        Err(tampered(name, "It is not owned by the extension's owner."))
    }
}

/// The owner of a table.
///
/// # Safety
/// In a transaction.
unsafe fn owner_of(table: Oid) -> Option<Oid> {
    // SAFETY: a catalog cache with one OID key; the row is read before it is released.
    unsafe {
        let cache = pg_sys::SysCacheIdentifier::RELOID as i32;
        let tuple = pg_sys::SearchSysCache(cache, table.into(), 0.into(), 0.into(), 0.into());
        if tuple.is_null() {
            return None;
        }
        let owner = (*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_class>()).relowner;
        pg_sys::ReleaseSysCache(tuple);
        Some(owner)
    }
}

/// The owner of the extension. `pg_extension` has no catalog cache before PostgreSQL 18.
fn extension_owner(extension: Oid) -> Oid {
    // SAFETY: a scan of a catalog by its index, in a transaction; the row is read before the scan
    // ends.
    unsafe {
        let lock = pg_sys::AccessShareLock as i32;
        let relation = pg_sys::table_open(pg_sys::ExtensionRelationId, lock);
        let mut key = pg_sys::ScanKeyData::default();
        pg_sys::ScanKeyInit(
            &mut key,
            pg_sys::Anum_pg_extension_oid as pg_sys::AttrNumber,
            pg_sys::BTEqualStrategyNumber as u16,
            pg_sys::F_OIDEQ.into(),
            extension.into(),
        );
        let index = pg_sys::ExtensionOidIndexId.into();
        let newest = std::ptr::null_mut();
        let scan = pg_sys::systable_beginscan(relation, index, true, newest, 1, &mut key);
        let tuple = pg_sys::systable_getnext(scan);
        let owner = if tuple.is_null() {
            Oid::INVALID
        } else {
            (*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_extension>()).extowner
        };
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(relation, lock);
        owner
    }
}

/// Has PostgreSQL tell of tables that change: these are checked again.
fn forget_changed() {
    static REGISTERED: BackendLocal<Cell<bool>> = BackendLocal::new(Cell::new(false));
    if !REGISTERED.get().replace(true) {
        // SAFETY: the callback lives as long as the process and raises nothing.
        unsafe { pg_sys::CacheRegisterRelcacheCallback(Some(changed), 0.into()) };
    }
}

/// Called inside any catalog access. An invalid OID means that any table may have changed.
unsafe extern "C-unwind" fn changed(_: pg_sys::Datum, table: Oid) {
    // No borrow is held across a catalog access.
    if let Ok(mut found) = FOUND.get().try_borrow_mut() {
        found.retain(|other| table != Oid::INVALID && *other != table);
    }
}

/// Checks that an open table has the columns that the extension gave it.
///
/// # Safety
/// An open relation.
///
/// # Errors
/// 55000 if it has not.
pub unsafe fn check_columns(name: &CStr, relation: pg_sys::Relation) -> Result<()> {
    // SAFETY: an open relation has a catalog row.
    let form = unsafe { &*(*relation).rd_rel };
    if form.relkind != pg_sys::RELKIND_RELATION as i8
        || form.relam != pg_sys::HEAP_TABLE_AM_OID
        || form.relpersistence != pg_sys::RELPERSISTENCE_PERMANENT as i8
    {
        return Err(tampered(name, "It is no permanent heap table."));
    }
    let types = columns(name);
    // SAFETY: an open relation has a descriptor, of which no more columns are read than it has.
    let fits = unsafe {
        let descriptor = (*relation).rd_att;
        (*descriptor).natts as usize >= types.len()
            && types.iter().enumerate().all(|(n, of)| {
                let column = &*versions::TupleDescAttr(descriptor, n);
                column.atttypid == *of && !column.attisdropped
            })
    };
    if fits { Ok(()) } else { Err(tampered(name, "Its columns are others.")) }
}

/// The unique index of that name on the first column of an open table.
///
/// # Errors
/// 55000 if there is none.
pub fn unique_index(name: &CStr, table: pg_sys::Relation) -> Result<Oid> {
    index_of(name, table, true)
}

/// The index of that name on the first column of an open table, unique or not.
///
/// # Errors
/// 55000 if there is none.
pub fn index(name: &CStr, table: pg_sys::Relation) -> Result<Oid> {
    index_of(name, table, false)
}

fn index_of(name: &CStr, table: pg_sys::Relation, unique: bool) -> Result<Oid> {
    let found = named(name);
    let fits = found.is_some_and(|oid| {
        // SAFETY: an open table; the index's catalog row is read before it is closed.
        unsafe {
            let lock = pg_sys::AccessShareLock as i32;
            if pg_sys::get_rel_relkind(oid) != pg_sys::RELKIND_INDEX as i8 {
                return false;
            }
            let index = pg_sys::index_open(oid, lock);
            let form = &*(*index).rd_index;
            let fits = form.indrelid == (*table).rd_id
                && (form.indisunique || !unique)
                && form.indisvalid
                && form.indnatts == 1
                && form.indkey.values.as_slice(1)[0] == 1
                && pg_sys::RelationGetIndexPredicate(index).is_null()
                && (*(*index).rd_rel).relam == pg_sys::BTREE_AM_OID;
            pg_sys::index_close(index, lock);
            fits
        }
    });
    match found {
        Some(oid) if fits => Ok(oid),
        _ => Err(tampered(name, "There is no such index on its table's first column.")),
    }
}

fn tampered(name: &CStr, why: &str) -> Error {
    Error::new(
        SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
        format!("\"fdw_xacts.{}\" is not what pg_fdw_xacts has made", name.to_string_lossy()),
    )
    .detail(why)
    .hint("Nothing is prepared, and nothing settled, until a superuser has put it back as it was.")
}

/// Whether the extension exists in this database.
pub fn extension_exists() -> bool {
    extension().is_some()
}

/// Checks that the tables that a commit rests on are the extension's, if it exists.
///
/// # Errors
/// 55000 if one is not.
pub fn check_tables() -> Result<()> {
    [c"identity", c"participant", c"decision", c"forgotten"]
        .into_iter()
        .try_for_each(|name| oid(name).map(|_| ()))
}
