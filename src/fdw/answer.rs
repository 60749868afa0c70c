//! Who needs what a server answers to a modification: the statement itself, or only the end of the
//! transaction, or nobody before that.

use pgrx::pg_sys::{
    CmdType, EState, ModifyTable, ModifyTableState, NodeTag, OnConflictAction, Plan, ResultRelInfo,
};

use crate::fdw::volatility;
use crate::guc;
use crate::pg::node;
use crate::pg::portal::is_whole_command;

/// Who needs it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// The statement, for its rows or their number.
    Statement,
    /// The statement, which is provably all that its transaction does: nothing of it is still to be
    /// done when the server has answered. So COMMIT may be sent to the server behind it; the
    /// session knows the rest of the conditions.
    Transaction,
    /// Nobody before the end of the transaction (`pg_fdw_xacts.write_behind`).
    Nobody,
}

impl Answer {
    /// Who needs the answers of a modification row by row.
    ///
    /// # Safety
    /// Valid nodes of an executor that begins; COPY has no plan.
    pub unsafe fn needed_by(
        mtstate: *const ModifyTableState,
        target: *const ResultRelInfo,
    ) -> Self {
        // SAFETY: by contract; a plan node has a source.
        unsafe {
            let Some(plan) = (*mtstate).ps.plan.cast::<ModifyTable>().as_ref() else {
                return Self::Statement;
            };
            let (estate, source) = ((*mtstate).ps.state, &*plan.plan.lefttree);
            let is_insert = plan.operation == CmdType::CMD_INSERT;
            let is_one_row = source.type_ == NodeTag::T_Result && source.lefttree.is_null();
            if is_insert && is_one_row && is_whole(estate, plan, target) {
                return Self::Transaction;
            }
            // INSERT ... SELECT sends full batches, and is long enough to have its errors at once.
            let is_values = is_one_row || source.type_ == NodeTag::T_ValuesScan;
            let has_after_trigger = (*target)
                .ri_TrigDesc
                .as_ref()
                .is_some_and(|triggers| triggers.trig_insert_after_row);
            // EXPLAIN ANALYZE is to tell how long it takes.
            let is_measured = (*estate).es_instrument != 0;
            let is_needed = !guc::write_behind()
                || !is_insert
                || !is_values
                || plan.onConflictAction != OnConflictAction::ONCONFLICT_NONE
                || returns(plan)
                || has_after_trigger
                || is_measured;
            if is_needed { Self::Statement } else { Self::Nobody }
        }
    }

    /// Who needs that of a direct modification.
    ///
    /// # Safety
    /// Valid nodes of an executor that begins.
    pub unsafe fn needed_by_direct(
        estate: *const EState,
        node: *const Plan,
        target: *const ResultRelInfo,
    ) -> Self {
        // SAFETY: by contract; the tag says which struct it is.
        unsafe {
            let top = (*(*estate).es_plannedstmt).planTree;
            let is_below = (*top).type_ == NodeTag::T_ModifyTable
                && std::ptr::eq((*top).lefttree.cast_const(), node);
            if is_below && is_whole(estate, &*top.cast::<ModifyTable>(), target) {
                Self::Transaction
            } else {
                Self::Statement
            }
        }
    }
}

/// Whether rows come back: for RETURNING, or to be checked.
fn returns(plan: &ModifyTable) -> bool {
    !plan.returningLists.is_null() || !plan.withCheckOptionLists.is_null()
}

/// Nothing reads what the server returns, no trigger follows, and the query does nothing else.
unsafe fn is_whole(
    estate: *const EState,
    plan: &ModifyTable,
    target: *const ResultRelInfo,
) -> bool {
    // SAFETY: by contract of the callers.
    unsafe {
        let planned = (*estate).es_plannedstmt;
        let has_triggers = |target: *const ResultRelInfo| {
            target.as_ref().is_some_and(|target| !target.ri_TrigDesc.is_null())
        };
        std::ptr::from_ref(plan).cast() == (*planned).planTree.cast_const()
            && !(*planned).hasModifyingCTE
            && node::length(plan.resultRelations) == 1
            && !returns(plan)
            && !has_triggers(target)
            && !has_triggers((*target).ri_RootResultRelInfo)
            // It may do anything, and leave something to be done at the end.
            && !volatility::is_volatile(estate, plan.plan.lefttree)
            && is_whole_command(planned)
    }
}
