//! Reading nodes of statements, plans and the executor.
//!
//! All functions here need valid nodes: of the statement or the plan that is running now. That is
//! what "valid" means under `# Safety`.

use std::ffi::{CStr, c_int};

use pgrx::pg_sys::{self, Oid};

use crate::pg::globals::current_user;
use crate::pg::versions;
pub use crate::pg::versions::TupleDescAttr as attribute;

/// `list_length()`.
///
/// # Safety
/// NIL or a valid list.
pub unsafe fn length(list: *const pg_sys::List) -> usize {
    // SAFETY: by contract.
    unsafe { list.as_ref() }.map_or(0, |list| list.length as usize)
}

/// The pointers of a list.
///
/// # Safety
/// NIL or a valid list of pointers to `T`.
pub unsafe fn pointers<'a, T>(list: *const pg_sys::List) -> impl Iterator<Item = *mut T> + 'a {
    // SAFETY: by contract; the cells are read one by one while the list is alive.
    (0..unsafe { length(list) })
        .map(move |n| unsafe { (*(*list).elements.add(n)).ptr_value.cast::<T>() })
}

/// `list_nth()`; `None` beyond the end.
///
/// # Safety
/// NIL or a valid list of pointers to `T`.
pub unsafe fn nth<T>(list: *const pg_sys::List, n: usize) -> Option<*mut T> {
    // SAFETY: by contract, inside the bounds.
    (n < unsafe { length(list) }).then(|| unsafe { (*(*list).elements.add(n)).ptr_value.cast() })
}

/// The integers of a `T_IntList`.
///
/// # Safety
/// NIL or a valid list of integers.
pub unsafe fn integers(list: *const pg_sys::List) -> Vec<c_int> {
    // SAFETY: by contract.
    (0..unsafe { length(list) }).map(|n| unsafe { (*(*list).elements.add(n)).int_value }).collect()
}

/// The OIDs of a `T_OidList`.
///
/// # Safety
/// NIL or a valid list of OIDs.
pub unsafe fn oids(list: *const pg_sys::List) -> Vec<Oid> {
    // SAFETY: by contract.
    (0..unsafe { length(list) }).map(|n| unsafe { (*(*list).elements.add(n)).oid_value }).collect()
}

/// The option of a statement that has this name.
///
/// # Safety
/// NIL or a valid list of options.
pub unsafe fn option(list: *const pg_sys::List, name: &CStr) -> Option<*mut pg_sys::DefElem> {
    // SAFETY: by contract; an option has a name.
    unsafe {
        pointers(list)
            .find(|option: &*mut pg_sys::DefElem| CStr::from_ptr((**option).defname) == name)
    }
}

/// `exec_rt_fetch()`.
///
/// # Safety
/// A valid executor state that has this entry.
pub unsafe fn range_table_entry(
    estate: *const pg_sys::EState,
    index: u32,
) -> *mut pg_sys::RangeTblEntry {
    // SAFETY: by contract.
    unsafe { nth((*estate).es_range_table, index as usize - 1) }
        .expect("an index of the range table")
}

/// `RelationGetRelationName()`.
///
/// # Safety
/// An open relation; the name lives as long as its relcache entry.
pub unsafe fn relation_name<'a>(relation: pg_sys::Relation) -> &'a CStr {
    // SAFETY: by contract; a NameData is NUL-terminated.
    unsafe { CStr::from_ptr((*(*relation).rd_rel).relname.data.as_ptr()) }
}

/// The columns of a relation that are not dropped, numbered from 1.
///
/// # Safety
/// A valid descriptor.
pub unsafe fn live_columns(
    descriptor: pg_sys::TupleDesc,
) -> impl Iterator<Item = (i16, *mut pg_sys::FormData_pg_attribute)> {
    // SAFETY: by contract.
    (0..unsafe { (*descriptor).natts } as usize)
        .map(move |n| (n as i16 + 1, unsafe { attribute(descriptor, n) }))
        .filter(|(_, attribute)| unsafe { !(**attribute).attisdropped })
}

/// The user that a scan accesses its relation as, which must be the one whose permissions were
/// checked, and the relation. Of a join it is the relation with the lowest number; all have the
/// same user.
///
/// # Safety
/// A valid scan state.
pub unsafe fn scan_access(node: *const pg_sys::ForeignScanState) -> (Oid, Oid) {
    // SAFETY: by contract; a join names its members.
    unsafe {
        let plan: *const pg_sys::ForeignScan = (*node).ss.ps.plan.cast();
        let estate = (*node).ss.ps.state;
        let index = match (*plan).scan.scanrelid {
            0 => pg_sys::bms_next_member(versions::fs_base_relids(plan), -1) as u32,
            index => index,
        };
        let entry = range_table_entry(estate, index);
        (or_current(versions::checkAsUser(plan, entry)), (*entry).relid)
    }
}

/// The tables that a foreign scan reads.
///
/// # Safety
/// A valid state of a scan of foreign tables.
pub unsafe fn scanned_tables(node: *const pg_sys::ForeignScanState) -> Vec<Oid> {
    // SAFETY: by contract; a join names its members.
    unsafe {
        let plan: *const pg_sys::ForeignScan = (*node).ss.ps.plan.cast();
        let estate = (*node).ss.ps.state;
        let table = |index| (*range_table_entry(estate, index)).relid;
        match (*plan).scan.scanrelid {
            0 => members(versions::fs_base_relids(plan)).map(|index| table(index as u32)).collect(),
            index => vec![table(index)],
        }
    }
}

/// The members of a set, in their order.
///
/// # Safety
/// NULL, which is the empty set, or a valid set that stays while the iterator lives.
pub unsafe fn members(set: *const pg_sys::Bitmapset) -> impl Iterator<Item = c_int> {
    let mut last = -1;
    std::iter::from_fn(move || {
        // SAFETY: by contract.
        last = unsafe { pg_sys::bms_next_member(set, last) };
        (last >= 0).then_some(last)
    })
}

/// The user that a modification accesses its target as. `entry` is the range table entry of the
/// target; a partition that rows are routed to shares that of its root.
///
/// # Safety
/// Valid nodes.
pub unsafe fn modification_user(
    target: *mut pg_sys::ResultRelInfo,
    entry: *const pg_sys::RangeTblEntry,
    estate: *mut pg_sys::EState,
) -> Oid {
    // SAFETY: by contract.
    unsafe { or_current(versions::ExecGetResultRelCheckAsUser(target, entry, estate)) }
}

fn or_current(user: Oid) -> Oid {
    if user == Oid::INVALID { current_user() } else { user }
}

/// A new memory context below `parent`.
///
/// # Safety
/// A valid parent; the name is static because the context keeps the pointer.
pub unsafe fn memory_context(
    parent: pg_sys::MemoryContext,
    name: &'static CStr,
) -> pg_sys::MemoryContext {
    // SAFETY: by contract.
    unsafe {
        pg_sys::AllocSetContextCreateInternal(
            parent,
            name.as_ptr(),
            pg_sys::ALLOCSET_DEFAULT_MINSIZE as usize,
            pg_sys::ALLOCSET_SMALL_INITSIZE as usize,
            pg_sys::ALLOCSET_DEFAULT_MAXSIZE as usize,
        )
    }
}

/// Makes a memory context the current one until dropped.
pub struct InContext(pg_sys::MemoryContext);

impl InContext {
    /// # Safety
    /// The context lives longer than the value.
    pub unsafe fn enter(context: pg_sys::MemoryContext) -> Self {
        // SAFETY: by contract.
        Self(unsafe { crate::pg::raw::switch_to(context) })
    }
}

impl Drop for InContext {
    fn drop(&mut self) {
        // SAFETY: it was current before, so it is alive.
        unsafe { crate::pg::raw::switch_to(self.0) };
    }
}
