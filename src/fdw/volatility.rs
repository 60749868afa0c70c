//! Whether the rows that a statement inserts may depend on the rows that it has already inserted.
//!
//! A volatile function in the source of an INSERT may read the target. If rows are sent one by one,
//! it finds the rows before its own there; if they are sent in batches, it does not. Unless batches
//! were asked for, such rows are sent one by one.

use std::ffi::c_void;

use pgrx::pg_sys::{self, EState, List, Node, NodeTag, Plan};

use crate::pg::{node, raw};

/// Whether a volatile function other than `nextval` is evaluated below `plan`, or may be: for
/// unknown kinds of nodes it is assumed.
///
/// # Safety
/// A valid plan of the statement that `estate` runs.
pub unsafe fn is_volatile(estate: *const EState, plan: *const Plan) -> bool {
    // SAFETY: by contract.
    unsafe {
        let statement = (*estate).es_plannedstmt;
        let subplans = statement.as_ref().map_or(std::ptr::null_mut(), |s| s.subplans);
        plan_is_volatile(plan) || node::pointers(subplans).any(|subplan| plan_is_volatile(subplan))
    }
}

unsafe fn plan_is_volatile(plan: *const Plan) -> bool {
    // SAFETY: NULL or a valid plan; each tag tells the node's type.
    unsafe {
        let Some(node) = plan.as_ref() else { return false };
        let own = match node.type_ {
            NodeTag::T_Result => {
                let result = &*plan.cast::<pg_sys::Result>();
                list_is_volatile(result.resconstantqual.cast())
            }
            NodeTag::T_FunctionScan => {
                list_is_volatile((*plan.cast::<pg_sys::FunctionScan>()).functions)
            }
            NodeTag::T_ValuesScan => {
                list_is_volatile((*plan.cast::<pg_sys::ValuesScan>()).values_lists)
            }
            NodeTag::T_SubqueryScan => {
                plan_is_volatile((*plan.cast::<pg_sys::SubqueryScan>()).subplan)
            }
            NodeTag::T_Append => any_is_volatile((*plan.cast::<pg_sys::Append>()).appendplans),
            NodeTag::T_MergeAppend => {
                any_is_volatile((*plan.cast::<pg_sys::MergeAppend>()).mergeplans)
            }
            NodeTag::T_ForeignScan => {
                let scan = &*plan.cast::<pg_sys::ForeignScan>();
                list_is_volatile(scan.fdw_exprs) || list_is_volatile(scan.fdw_recheck_quals)
            }
            NodeTag::T_NestLoop | NodeTag::T_MergeJoin | NodeTag::T_HashJoin => {
                // All three begin with the struct of a join. Their other clauses have operators
                // that indexes and hashing use, which are not volatile.
                list_is_volatile((*plan.cast::<pg_sys::Join>()).joinqual)
            }
            NodeTag::T_Limit => {
                let limit = &*plan.cast::<pg_sys::Limit>();
                list_is_volatile(limit.limitCount.cast())
                    || list_is_volatile(limit.limitOffset.cast())
            }
            // Beyond their columns and conditions, these compute nothing that may be volatile.
            NodeTag::T_SeqScan
            | NodeTag::T_IndexScan
            | NodeTag::T_IndexOnlyScan
            | NodeTag::T_BitmapHeapScan
            | NodeTag::T_BitmapIndexScan
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
            | NodeTag::T_WindowAgg
            | NodeTag::T_Unique
            | NodeTag::T_SetOp
            | NodeTag::T_Gather
            | NodeTag::T_GatherMerge => false,
            _ => true,
        };
        own || list_is_volatile(node.targetlist)
            || list_is_volatile(node.qual)
            || plan_is_volatile(node.lefttree)
            || plan_is_volatile(node.righttree)
    }
}

unsafe fn any_is_volatile(plans: *const List) -> bool {
    // SAFETY: NIL or a list of plans.
    unsafe { node::pointers(plans).any(|plan| plan_is_volatile(plan)) }
}

/// Of an expression, or a list of them.
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
