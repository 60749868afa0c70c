//! What the functions that a statement calls may do besides computing a value.
//!
//! A volatile function in the source of an INSERT may read the target. If rows are sent one by one,
//! it finds the rows before its own there; if they are sent in batches, it does not. Unless batches
//! were asked for, such rows are sent one by one.
//!
//! A stable function may run queries, which must find the servers as if no scan had been asked
//! before its turn.

use std::ffi::c_void;

use pgrx::pg_sys::{self, EState, List, Node, NodeTag, Oid, Plan};

use crate::pg::{node, raw};

/// Something that an expression, or a list of them, may have in it. It may raise.
type Test = unsafe fn(*mut List) -> bool;

/// Whether a volatile function other than `nextval` is evaluated below `plan`, or may be: for
/// unknown kinds of nodes it is assumed.
///
/// # Safety
/// A valid plan of the statement that `estate` runs.
pub unsafe fn is_volatile(estate: *const EState, plan: *const Plan) -> bool {
    // SAFETY: by contract.
    unsafe { any_has(estate, plan, list_is_volatile) }
}

/// Whether a function that may run queries is evaluated below `plan`, or may be: one that is not
/// PostgreSQL's own and is not immutable, an aggregate that is not its own, whose functions are not
/// looked at, or one of its few that query tables.
///
/// # Safety
/// As for [`is_volatile`].
pub unsafe fn may_run_queries(estate: *const EState, plan: *const Plan) -> bool {
    // SAFETY: by contract.
    unsafe { any_has(estate, plan, list_may_run_queries) }
}

unsafe fn any_has(estate: *const EState, plan: *const Plan, test: Test) -> bool {
    // SAFETY: by contract.
    unsafe {
        let statement = (*estate).es_plannedstmt;
        let subplans = statement.as_ref().map_or(std::ptr::null_mut(), |s| s.subplans);
        plan_has(plan, test) || node::pointers(subplans).any(|subplan| plan_has(subplan, test))
    }
}

unsafe fn plan_has(plan: *const Plan, test: Test) -> bool {
    // SAFETY: NULL or a valid plan; each tag tells the node's type.
    unsafe {
        let Some(node) = plan.as_ref() else { return false };
        let own = match node.type_ {
            NodeTag::T_Result => {
                let result = &*plan.cast::<pg_sys::Result>();
                test(result.resconstantqual.cast())
            }
            NodeTag::T_FunctionScan => test((*plan.cast::<pg_sys::FunctionScan>()).functions),
            NodeTag::T_ValuesScan => test((*plan.cast::<pg_sys::ValuesScan>()).values_lists),
            NodeTag::T_SubqueryScan => {
                plan_has((*plan.cast::<pg_sys::SubqueryScan>()).subplan, test)
            }
            NodeTag::T_Append => list_has((*plan.cast::<pg_sys::Append>()).appendplans, test),
            NodeTag::T_MergeAppend => {
                list_has((*plan.cast::<pg_sys::MergeAppend>()).mergeplans, test)
            }
            NodeTag::T_ForeignScan => {
                let scan = &*plan.cast::<pg_sys::ForeignScan>();
                test(scan.fdw_exprs) || test(scan.fdw_recheck_quals)
            }
            NodeTag::T_NestLoop => test((*plan.cast::<pg_sys::Join>()).joinqual),
            NodeTag::T_MergeJoin => {
                let join = &*plan.cast::<pg_sys::MergeJoin>();
                test(join.join.joinqual) || test(join.mergeclauses)
            }
            NodeTag::T_HashJoin => {
                let join = &*plan.cast::<pg_sys::HashJoin>();
                test(join.join.joinqual) || test(join.hashclauses)
            }
            NodeTag::T_IndexScan => {
                let scan = &*plan.cast::<pg_sys::IndexScan>();
                test(scan.indexqual) || test(scan.indexorderby)
            }
            NodeTag::T_IndexOnlyScan => {
                let scan = &*plan.cast::<pg_sys::IndexOnlyScan>();
                test(scan.indexqual) || test(scan.indexorderby)
            }
            NodeTag::T_BitmapIndexScan => test((*plan.cast::<pg_sys::BitmapIndexScan>()).indexqual),
            NodeTag::T_WindowAgg => {
                let window = &*plan.cast::<pg_sys::WindowAgg>();
                test(window.startOffset.cast()) || test(window.endOffset.cast())
            }
            NodeTag::T_Limit => {
                let limit = &*plan.cast::<pg_sys::Limit>();
                test(limit.limitCount.cast()) || test(limit.limitOffset.cast())
            }
            // Beyond their columns and conditions, these compute nothing that may be volatile.
            NodeTag::T_SeqScan
            | NodeTag::T_BitmapHeapScan
            | NodeTag::T_BitmapAnd
            | NodeTag::T_BitmapOr
            | NodeTag::T_CteScan
            | NodeTag::T_ProjectSet
            | NodeTag::T_Hash
            | NodeTag::T_Material
            | NodeTag::T_Sort
            | NodeTag::T_IncrementalSort
            | NodeTag::T_Group
            | NodeTag::T_Agg
            | NodeTag::T_Unique
            | NodeTag::T_SetOp
            | NodeTag::T_Gather
            | NodeTag::T_GatherMerge => false,
            _ => true,
        };
        own || test(node.targetlist)
            || test(node.qual)
            || plan_has(node.lefttree, test)
            || plan_has(node.righttree, test)
    }
}

unsafe fn list_has(plans: *const List, test: Test) -> bool {
    // SAFETY: NIL or a list of plans.
    unsafe { node::pointers(plans).any(|plan| plan_has(plan, test)) }
}

unsafe fn list_is_volatile(expressions: *mut List) -> bool {
    // SAFETY: NULL or a valid expression tree, which a list is, too.
    unsafe {
        pg_sys::contain_volatile_functions_not_nextval(expressions.cast())
            || coerces_to_domain(expressions.cast(), std::ptr::null_mut())
    }
}

/// Whether a value becomes one of a domain, whose conditions may call anything. The frame owns
/// nothing, because the walker may raise.
unsafe extern "C-unwind" fn coerces_to_domain(node: *mut Node, context: *mut c_void) -> bool {
    // SAFETY: NULL or a node of a valid expression tree.
    unsafe {
        !node.is_null()
            && ((*node).type_ == NodeTag::T_CoerceToDomain
                || raw::expression_tree_walker(node, coerces_to_domain, context))
    }
}

unsafe fn list_may_run_queries(expressions: *mut List) -> bool {
    // SAFETY: NULL or a valid expression tree, which a list is, too.
    unsafe { calls_such(expressions.cast(), std::ptr::null_mut()) }
}

/// The frame owns nothing, because the walker may raise.
unsafe extern "C-unwind" fn calls_such(node: *mut Node, context: *mut c_void) -> bool {
    // SAFETY: NULL or a node of a valid expression tree.
    unsafe {
        !node.is_null()
            && (pg_sys::check_functions_in_node(node, Some(is_such), node.cast())
                || raw::expression_tree_walker(node, calls_such, context))
    }
}

/// `caller`: the node that calls the function.
unsafe extern "C-unwind" fn is_such(function: Oid, caller: *mut c_void) -> bool {
    let number = function.to_u32();
    if number < pg_sys::FirstUnpinnedObjectId {
        // PostgreSQL's own that query tables, such as `table_to_xml`.
        let xml_of_tables = pg_sys::F_TABLE_TO_XML..=pg_sys::F_DATABASE_TO_XML_AND_XMLSCHEMA;
        return xml_of_tables.contains(&number);
    }
    // SAFETY: a node of the expression; the function exists, because the plan depends on it.
    unsafe {
        let is_of_rows =
            matches!((*caller.cast::<Node>()).type_, NodeTag::T_Aggref | NodeTag::T_WindowFunc);
        is_of_rows || pg_sys::func_volatile(function) as u8 != pg_sys::PROVOLATILE_IMMUTABLE
    }
}
