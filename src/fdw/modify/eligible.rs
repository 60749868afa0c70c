//! Whether the rows of an INSERT or COPY may reach the participant later than the executor hands
//! them over. Nothing that runs in between may look for them there.

use pgrx::pg_sys::{self, CmdType, ModifyTableState, NodeTag, Oid, Relation, ResultRelInfo};

use crate::fdw::batch;
use crate::pg::error::{Result, catch};
use crate::pg::{catalog, node, raw};

/// Whether the rows for this target may be collected.
///
/// # Safety
/// Valid nodes; a node without a plan is of COPY's own making.
///
/// # Errors
/// PostgreSQL's own, when the catalog cannot be read.
pub unsafe fn may_collect(
    mtstate: *const ModifyTableState,
    target: *const ResultRelInfo,
) -> Result<bool> {
    // SAFETY: by contract.
    unsafe {
        let relation = (*target).ri_RelationDesc;
        // What a user asks for is done. Row triggers here see each row's result.
        if batch::asked_for(relation).is_some()
            || has_triggers(target, |t| t.trig_insert_before_row || t.trig_insert_after_row)
        {
            return Ok(false);
        }
        let root = (*target).ri_RootResultRelInfo;
        // Triggers of another partition may fire before all rows have been sent.
        if !root.is_null() && has_triggers_below((*(*root).ri_RelationDesc).rd_id)? {
            return Ok(false);
        }
        if (*mtstate).ps.plan.is_null() {
            return may_collect_in_copy(target);
        }
        // The rest is sent at the end of the query, and what else a query modifies may go on then.
        Ok((*mtstate).operation == CmdType::CMD_INSERT && (*mtstate).canSetTag)
    }
}

/// In COPY triggers fire before the end of the modification, and nothing tells when the last row has
/// come.
unsafe fn may_collect_in_copy(target: *const ResultRelInfo) -> Result<bool> {
    // SAFETY: by contract of `may_collect`.
    unsafe {
        if has_triggers(target, |t| t.trig_insert_after_statement) {
            return Ok(false);
        }
        if !cfg!(feature = "pg15") {
            return Ok(true);
        }
        // From 16 on COPY hands over single rows where it finds a volatile condition or default.
        let relation = match (*target).ri_RootResultRelInfo.as_ref() {
            Some(root) => root.ri_RelationDesc,
            None => (*target).ri_RelationDesc,
        };
        Ok(is_copied_without_condition(relation)
            && !has_volatile_default(relation)?
            && !has_volatile_default((*target).ri_RelationDesc)?)
    }
}

unsafe fn has_triggers(
    target: *const ResultRelInfo,
    are_meant: impl Fn(&pg_sys::TriggerDesc) -> bool,
) -> bool {
    // SAFETY: by contract of `may_collect`.
    unsafe { (*target).ri_TrigDesc.as_ref().is_some_and(are_meant) }
}

/// Whether a partitioned table or one of its partitions has a trigger, or may have.
unsafe fn has_triggers_below(root: Oid) -> Result<bool> {
    // SAFETY: the statement has locked the root; a partition that is just being detached is not
    // found in the catalog or found as it was.
    unsafe {
        let all =
            catch(|| raw::find_all_inheritors(root, pg_sys::NoLock as i32, std::ptr::null_mut()))?;
        Ok(node::oids(all).iter().any(|oid| catalog::may_have_triggers(*oid)))
    }
}

/// Whether the statement that runs is a COPY into this relation, without WHERE.
unsafe fn is_copied_without_condition(relation: Relation) -> bool {
    // SAFETY: an open relation; the tags tell the nodes' types.
    unsafe {
        let Some(portal) = pg_sys::ActivePortal.as_ref() else { return false };
        let Some(statement) = node::nth::<pg_sys::PlannedStmt>(portal.stmts, 0) else {
            return false;
        };
        let utility = (*statement).utilityStmt;
        if utility.is_null() || (*utility).type_ != NodeTag::T_CopyStmt {
            return false;
        }
        let copy = &*utility.cast::<pg_sys::CopyStmt>();
        copy.whereClause.is_null()
            && copy.relation.as_ref().is_some_and(|named| {
                std::ffi::CStr::from_ptr(named.relname) == node::relation_name(relation)
            })
    }
}

/// Whether a column's default has a volatile function other than `nextval`, which may look for rows.
unsafe fn has_volatile_default(relation: Relation) -> Result<bool> {
    // SAFETY: an open relation, whose defaults are trees in text form.
    unsafe {
        let Some(constraints) = (*(*relation).rd_att).constr.as_ref() else { return Ok(false) };
        for n in 0..usize::from(constraints.num_defval) {
            let text = (*constraints.defval.add(n)).adbin;
            if catch(|| {
                pg_sys::contain_volatile_functions_not_nextval(pg_sys::stringToNode(text).cast())
            })? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
