//! Whether a scan may begin again while its query runs. If it has asked for more rows than one
//! batch by then, its cursor is opened again.

use pgrx::pg_sys::{self, EState, List, NodeTag, Plan};

use crate::pg::node;

/// Whether a node of the query's plan may begin again, with or without other parameters: below the
/// inner side of a nested loop, or in a subplan that is executed for many rows. For unknown kinds
/// of nodes it is assumed.
///
/// # Safety
/// A valid plan node of the statement that `estate` runs.
pub unsafe fn may_begin_again(estate: *const EState, scan: *const Plan) -> bool {
    // SAFETY: by contract; subplans are numbered from 1, and NULL where they were not needed.
    unsafe {
        let Some(statement) = (*estate).es_plannedstmt.as_ref() else { return true };
        let in_subplan = |(n, plan): (usize, *mut Plan)| {
            let plan_ref = plan.as_ref()?;
            let depends = pg_sys::bms_num_members(plan_ref.extParam) > 0;
            let is_rewound = pg_sys::bms_is_member(n as i32 + 1, statement.rewindPlanIDs);
            find(plan, scan, depends || is_rewound)
        };
        find(statement.planTree, scan, false)
            .or_else(|| node::pointers(statement.subplans).enumerate().find_map(in_subplan))
            .unwrap_or(true)
    }
}

/// Whether `scan` may begin again, if it is in this tree. `again`: the whole tree may.
unsafe fn find(plan: *const Plan, scan: *const Plan, again: bool) -> Option<bool> {
    // SAFETY: NULL or a valid plan; each tag tells the node's type.
    unsafe {
        let node = plan.as_ref()?;
        if plan == scan {
            return Some(again);
        }
        let inner_again = match node.type_ {
            NodeTag::T_NestLoop | NodeTag::T_RecursiveUnion => true,
            _ => again,
        };
        let own = match node.type_ {
            NodeTag::T_SubqueryScan => {
                find((*plan.cast::<pg_sys::SubqueryScan>()).subplan, scan, again)
            }
            NodeTag::T_Append => find_in((*plan.cast::<pg_sys::Append>()).appendplans, scan, again),
            NodeTag::T_MergeAppend => {
                find_in((*plan.cast::<pg_sys::MergeAppend>()).mergeplans, scan, again)
            }
            _ => None,
        };
        own.or_else(|| find(node.lefttree, scan, again))
            .or_else(|| find(node.righttree, scan, inner_again))
    }
}

unsafe fn find_in(plans: *const List, scan: *const Plan, again: bool) -> Option<bool> {
    // SAFETY: NIL or a list of plans.
    unsafe { node::pointers(plans).find_map(|plan: *mut Plan| find(plan, scan, again)) }
}
