//! Which INSERTs may go on without the server's answer (`pg_fdw_xacts.write_behind`): those whose
//! answer nobody looks at before the transaction's end.

use pgrx::pg_sys::{
    CmdType, ModifyTable, ModifyTableState, NodeTag, OnConflictAction, ResultRelInfo,
};

use crate::guc;

/// Whether nothing depends on what the server answers to the rows of an INSERT.
///
/// # Safety
/// Valid nodes of an executor that begins; COPY has no plan.
pub unsafe fn needs_no_answer(
    mtstate: *const ModifyTableState,
    target: *const ResultRelInfo,
) -> bool {
    if !guc::write_behind() {
        return false;
    }
    // SAFETY: by contract.
    unsafe {
        let Some(plan) = (*mtstate).ps.plan.cast::<ModifyTable>().as_ref() else { return false };
        let has_after_trigger =
            (*target).ri_TrigDesc.as_ref().is_some_and(|triggers| triggers.trig_insert_after_row);
        // INSERT ... SELECT sends full batches, and is long enough to have its errors at once.
        let is_values =
            matches!((*plan.plan.lefttree).type_, NodeTag::T_Result | NodeTag::T_ValuesScan);
        // EXPLAIN ANALYZE is to tell how long it takes.
        let is_measured = (*(*mtstate).ps.state).es_instrument != 0;
        plan.operation == CmdType::CMD_INSERT
            && is_values
            && plan.onConflictAction == OnConflictAction::ONCONFLICT_NONE
            && plan.returningLists.is_null()
            && plan.withCheckOptionLists.is_null()
            && !has_after_trigger
            && !is_measured
    }
}
