//! INSERT without a plan: COPY, and rows routed to a foreign partition.
//!
//! PostgreSQL plans nothing for these, so the remote command is made when they begin:
//! postgres_fdw's `PlanForeignModify` is called with a planner state that has the few fields it
//! reads for an INSERT (the range table entry, ON CONFLICT, check options and RETURNING). So no
//! deparser of our own is needed, and the text is what postgres_fdw would execute.

use std::ffi::c_int;

use pgrx::pg_sys::{
    self, CmdType, EState, List, ModifyTable, ModifyTableState, OnConflictAction, PlannerInfo,
    RangeTblEntry, ResultRelInfo,
};

use crate::fdw::modify::{self, Modification};
use crate::fdw::plan;
use crate::pg::error::{Error, Result, SqlState, boundary, catch};
use crate::pg::node;

/// `BeginForeignInsert`.
///
/// # Safety
/// Called by the executor or by COPY.
pub unsafe extern "C-unwind" fn begin(mtstate: *mut ModifyTableState, target: *mut ResultRelInfo) {
    // SAFETY: valid nodes.
    boundary(|| unsafe {
        let estate = (*mtstate).ps.state;
        let plan: *const ModifyTable = (*mtstate).ps.plan.cast();
        refuse_own_target(plan, target)?;
        let _in = node::InContext::enter((*estate).es_query_cxt);
        let (index, entry) = range_table_entry(mtstate, plan, target);
        let list = plan_insert(plan, target, index, entry)?;
        let insert = plan::modify(list, true)?;
        let source = plan.as_ref().map_or(std::ptr::null(), |plan| plan.plan.lefttree.cast_const());
        Modification::start(estate, entry, target, CmdType::CMD_INSERT, source, insert)?;
        modify::consider(mtstate, target)
    })
}

/// `EndForeignInsert`.
///
/// # Safety
/// Called by the executor or by COPY.
pub unsafe extern "C-unwind" fn end(estate: *mut EState, target: *mut ResultRelInfo) {
    // SAFETY: the state is the same as a planned modification's.
    unsafe { modify::end(estate, target) }
}

/// Refuses to route rows into a foreign table that the UPDATE has still to scan: it would update
/// them again.
unsafe fn refuse_own_target(plan: *const ModifyTable, target: *mut ResultRelInfo) -> Result<()> {
    // SAFETY: a valid plan or NULL (COPY), a valid target.
    unsafe {
        let is_update = plan.as_ref().is_some_and(|plan| plan.operation == CmdType::CMD_UPDATE);
        if is_update && ((*target).ri_usesFdwDirectModify || !(*target).ri_FdwState.is_null()) {
            let name = node::relation_name((*target).ri_RelationDesc).to_bytes();
            return Err(Error::new(
                SqlState::FEATURE_NOT_SUPPORTED,
                [b"cannot route tuples into foreign table to be updated \"", name, b"\""].concat(),
            ));
        }
    }
    Ok(())
}

/// The entry that stands for the target. A partition without one uses a copy of its root's; for an
/// UPDATE the expressions were built with the index of the first target.
unsafe fn range_table_entry(
    mtstate: *mut ModifyTableState,
    plan: *const ModifyTable,
    target: *mut ResultRelInfo,
) -> (u32, *mut RangeTblEntry) {
    // SAFETY: valid nodes; only the first element of the array of targets may be looked at, because
    // the struct's size differs between minor versions.
    unsafe {
        let estate = (*mtstate).ps.state;
        let own = (*target).ri_RangeTableIndex;
        if own != 0 {
            return (own, node::range_table_entry(estate, own));
        }
        let root = (*(*target).ri_RootResultRelInfo).ri_RangeTableIndex;
        let entry: *mut RangeTblEntry =
            pg_sys::copyObjectImpl(node::range_table_entry(estate, root).cast()).cast();
        (*entry).relid = (*(*target).ri_RelationDesc).rd_id;
        (*entry).relkind = pg_sys::RELKIND_FOREIGN_TABLE as _;
        let index = match plan.as_ref() {
            Some(plan) if plan.operation == CmdType::CMD_UPDATE && root == plan.rootRelation => {
                (*(*mtstate).resultRelInfo).ri_RangeTableIndex
            }
            _ => root,
        };
        (index, entry)
    }
}

/// Makes postgres_fdw plan the INSERT.
unsafe fn plan_insert(
    plan: *const ModifyTable,
    target: *mut ResultRelInfo,
    index: u32,
    entry: *mut RangeTblEntry,
) -> Result<*mut List> {
    // SAFETY: valid nodes; the planner state has what `PlanForeignModify` reads for an INSERT.
    unsafe {
        let mut entries = vec![std::ptr::null_mut(); index as usize + 1];
        entries[index as usize] = entry;
        let mut root = PlannerInfo {
            type_: pg_sys::NodeTag::T_PlannerInfo,
            simple_rte_array: entries.as_mut_ptr(),
            simple_rel_array_size: entries.len() as c_int,
            ..PlannerInfo::default()
        };
        let mut command = ModifyTable {
            operation: CmdType::CMD_INSERT,
            onConflictAction: plan
                .as_ref()
                .map_or(OnConflictAction::ONCONFLICT_NONE, |plan| plan.onConflictAction),
            withCheckOptionLists: list_of((*target).ri_WithCheckOptions),
            returningLists: list_of((*target).ri_returningList),
            ..ModifyTable::default()
        };
        command.plan.type_ = pg_sys::NodeTag::T_ModifyTable;
        let plan_modify = (*(*target).ri_FdwRoutine)
            .PlanForeignModify
            .expect("the handler copies it from postgres_fdw");
        let (root, command) = (&raw mut root, &raw mut command);
        catch(|| plan_modify(root, command, index, 0))
    }
}

/// A list of one list; NIL for NIL.
unsafe fn list_of(list: *mut List) -> *mut List {
    if list.is_null() {
        return list;
    }
    // SAFETY: a valid list.
    unsafe { pg_sys::lappend(std::ptr::null_mut(), list.cast()) }
}
