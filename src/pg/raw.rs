//! PostgreSQL functions as C declares them, without pgrx's guard: an ERROR raised inside jumps. They are only
//! called inside [`crate::pg::error::catch`], which keeps everything that the ERROR carries, and pays for
//! one guard per batch instead of one per value.

use std::ffi::{c_char, c_int};

use pgrx::pg_sys::{self, Datum, Oid};

#[allow(missing_docs, reason = "documented where PostgreSQL declares them")]
unsafe extern "C-unwind" {
    pub fn InputFunctionCall(
        function: *mut pg_sys::FmgrInfo,
        text: *mut c_char,
        io_param: Oid,
        typmod: i32,
    ) -> Datum;
    pub fn OutputFunctionCall(function: *mut pg_sys::FmgrInfo, value: Datum) -> *mut c_char;
    pub fn tidin(fcinfo: pg_sys::FunctionCallInfo) -> Datum;
    pub fn DirectFunctionCall1Coll(
        function: pg_sys::PGFunction,
        collation: Oid,
        first: Datum,
    ) -> Datum;
    pub fn DirectFunctionCall2Coll(
        function: pg_sys::PGFunction,
        collation: Oid,
        first: Datum,
        second: Datum,
    ) -> Datum;
    pub fn heap_form_tuple(
        descriptor: pg_sys::TupleDesc,
        values: *mut Datum,
        nulls: *mut bool,
    ) -> pg_sys::HeapTuple;
    pub fn slot_getsomeattrs_int(slot: *mut pg_sys::TupleTableSlot, attribute: c_int);
    pub fn MemoryContextReset(context: pg_sys::MemoryContext);
    pub fn NewGUCNestLevel() -> c_int;
    pub fn AtEOXact_GUC(commit: bool, level: c_int);
    pub fn set_config_option(
        name: *const c_char,
        value: *const c_char,
        context: pg_sys::GucContext::Type,
        source: pg_sys::GucSource::Type,
        action: pg_sys::GucAction::Type,
        change: bool,
        elevel: c_int,
        reload: bool,
    ) -> c_int;
    pub fn defGetBoolean(element: *mut pg_sys::DefElem) -> bool;
    pub fn ExecAsyncRequestDone(
        request: *mut pg_sys::AsyncRequest,
        result: *mut pg_sys::TupleTableSlot,
    );
    pub fn ExecAsyncRequestPending(request: *mut pg_sys::AsyncRequest);
    pub fn ExecAsyncResponse(request: *mut pg_sys::AsyncRequest);
    pub fn errcontext_msg(format: *const c_char, ...) -> c_int;
    pub fn set_errcontext_domain(domain: *const c_char) -> c_int;
}

/// `slot_getattr()`: a column of a slot, and whether it is NULL.
///
/// # Safety
/// Inside `catch`; the slot has that column, which is not a system column.
pub unsafe fn slot_getattr(slot: *mut pg_sys::TupleTableSlot, attribute: i16) -> (Datum, bool) {
    // SAFETY: by contract; after the call at least `attribute` columns are valid.
    unsafe {
        if attribute > (*slot).tts_nvalid {
            slot_getsomeattrs_int(slot, attribute.into());
        }
        let at = attribute as usize - 1;
        (*(*slot).tts_values.add(at), *(*slot).tts_isnull.add(at))
    }
}

/// `ExecEvalExpr()`.
///
/// # Safety
/// Inside `catch`; an expression that `ExecInitExpr` made.
pub unsafe fn exec_eval_expr(
    state: *mut pg_sys::ExprState,
    context: *mut pg_sys::ExprContext,
) -> (Datum, bool) {
    // SAFETY: by contract; ExecInitExpr always sets the function.
    unsafe {
        let mut null = false;
        let Some(evaluate) = (*state).evalfunc else { unreachable!("an expression not ready") };
        (evaluate(state, context, &mut null), null)
    }
}

/// `MemoryContextSwitchTo()`: returns the one that was current.
///
/// # Safety
/// The context is alive for as long as it is current.
pub unsafe fn switch_to(context: pg_sys::MemoryContext) -> pg_sys::MemoryContext {
    // SAFETY: a backend-local global.
    unsafe { (&raw mut pg_sys::CurrentMemoryContext).replace(context) }
}
