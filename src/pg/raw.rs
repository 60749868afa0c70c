//! PostgreSQL's functions and variables as C declares them: all that pgrx does not bind, or binds
//! only behind its guard.
//!
//! An ERROR raised in one of these functions jumps. They are called
//!
//! * inside [`catch`](crate::pg::error::catch), which keeps everything the ERROR carries, in
//!   whatever encoding, and costs one guard per batch instead of one per value; or
//! * where they raise nothing, or raise on purpose: the heading of each block says which.

use std::ffi::{c_char, c_int, c_void};

use pgrx::pg_sys::{self, Datum, Oid};

use crate::pg::layout;

/// What [`raw_expression_tree_walker`] and [`expression_tree_walker`] call for each node.
pub type TreeWalker = unsafe extern "C-unwind" fn(*mut pg_sys::Node, *mut c_void) -> bool;

// Values and tuples. Inside `catch`.
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
    pub fn pg_blocking_pids(fcinfo: pg_sys::FunctionCallInfo) -> Datum;
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
    pub fn index_insert(
        index: pg_sys::Relation,
        values: *mut Datum,
        nulls: *mut bool,
        place: pg_sys::ItemPointer,
        heap: pg_sys::Relation,
        check: pg_sys::IndexUniqueCheck::Type,
        unchanged: bool,
        info: *mut pg_sys::IndexInfo,
    ) -> bool;
    pub fn MemoryContextReset(context: pg_sys::MemoryContext);
}

// Parser, catalog and options. Inside `catch`.
#[allow(missing_docs, reason = "documented where PostgreSQL declares them")]
unsafe extern "C-unwind" {
    pub fn find_all_inheritors(
        parent: Oid,
        lock: pg_sys::LOCKMODE,
        parents: *mut *mut pg_sys::List,
    ) -> *mut pg_sys::List;
    pub fn raw_parser(text: *const c_char, mode: pg_sys::RawParseMode::Type) -> *mut pg_sys::List;
    #[cfg_attr(not(feature = "pg15"), link_name = "raw_expression_tree_walker_impl")]
    pub fn raw_expression_tree_walker(
        node: *mut pg_sys::Node,
        walker: TreeWalker,
        context: *mut c_void,
    ) -> bool;
    #[cfg_attr(not(feature = "pg15"), link_name = "expression_tree_walker_impl")]
    pub fn expression_tree_walker(
        node: *mut pg_sys::Node,
        walker: TreeWalker,
        context: *mut c_void,
    ) -> bool;
    pub fn defGetBoolean(element: *mut pg_sys::DefElem) -> bool;
    pub fn GetForeignServerByName(
        name: *const c_char,
        missing_ok: bool,
    ) -> *mut pg_sys::ForeignServer;
    pub fn GetUserMapping(user: Oid, server: Oid) -> *mut pg_sys::UserMapping;
    pub fn aclcheck_error(
        result: pg_sys::AclResult::Type,
        kind: pg_sys::ObjectType::Type,
        name: *const c_char,
    );
    pub fn PreventCommandDuringRecovery(name: *const c_char);
}

// Timeouts. Inside `catch`: there may be no room for another kind.
#[allow(missing_docs, reason = "documented where PostgreSQL declares them")]
unsafe extern "C-unwind" {
    pub fn RegisterTimeout(id: c_int, handler: unsafe extern "C-unwind" fn()) -> c_int;
    pub fn enable_timeout_after(id: c_int, milliseconds: c_int);
    pub fn get_timeout_active(id: c_int) -> bool;
}

// Settings. Inside `catch`.
#[allow(missing_docs, reason = "documented where PostgreSQL declares them")]
unsafe extern "C-unwind" {
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
}

// Asynchronous execution. Inside `catch`.
#[allow(missing_docs, reason = "documented where PostgreSQL declares them")]
unsafe extern "C-unwind" {
    pub fn ExecAsyncRequestDone(
        request: *mut pg_sys::AsyncRequest,
        result: *mut pg_sys::TupleTableSlot,
    );
    pub fn ExecAsyncRequestPending(request: *mut pg_sys::AsyncRequest);
    pub fn ExecAsyncResponse(request: *mut pg_sys::AsyncRequest);
}

// The end of a transaction. Inside `catch`.
#[allow(missing_docs, reason = "documented where PostgreSQL declares them")]
unsafe extern "C-unwind" {
    pub fn AtPrepare_Notify();
}

// Errors, and the interrupts that become errors. The frames in which an ERROR meets Rust call them:
// pgrx's guard would turn the very jump that they make into a panic.
#[allow(missing_docs, reason = "documented where PostgreSQL declares them")]
unsafe extern "C-unwind" {
    pub fn CopyErrorData() -> *mut pg_sys::ErrorData;
    pub fn FreeErrorData(edata: *mut pg_sys::ErrorData);
    pub fn FlushErrorState();
    pub fn ReThrowError(edata: *mut pg_sys::ErrorData) -> !;
    pub fn ThrowErrorData(edata: *mut pg_sys::ErrorData);
    pub fn MemoryContextAllocZero(context: pg_sys::MemoryContext, size: usize) -> *mut c_void;
    pub fn MemoryContextStrdup(
        context: pg_sys::MemoryContext,
        string: *const c_char,
    ) -> *mut c_char;
    pub fn ProcessInterrupts();
    pub fn errcontext_msg(format: *const c_char, ...) -> c_int;
    pub fn set_errcontext_domain(domain: *const c_char) -> c_int;
}

// Called in the frame of our hook, which owns nothing: the statement's ERROR passes through it.
#[allow(missing_docs, reason = "documented where PostgreSQL declares them")]
unsafe extern "C-unwind" {
    pub fn standard_ProcessUtility(
        pstmt: *mut pg_sys::PlannedStmt,
        query: *const c_char,
        read_only_tree: bool,
        context: pg_sys::ProcessUtilityContext::Type,
        params: pg_sys::ParamListInfo,
        environment: *mut pg_sys::QueryEnvironment,
        destination: *mut pg_sys::DestReceiver,
        completion: *mut pg_sys::QueryCompletion,
    );
    pub fn standard_ExecutorStart(query: *mut pg_sys::QueryDesc, eflags: c_int);
    pub fn standard_ExecutorRun(
        query: *mut pg_sys::QueryDesc,
        direction: pg_sys::ScanDirection::Type,
        count: u64,
        #[cfg(pre_pg18)] once: bool,
    );
    pub fn standard_ExecutorFinish(query: *mut pg_sys::QueryDesc);
}

// Raises nothing with HASH_FIND, HASH_REMOVE and HASH_ENTER_NULL (`hash_search_with_hash_value`).
#[allow(missing_docs, reason = "documented where PostgreSQL declares them")]
unsafe extern "C-unwind" {
    pub fn hash_search(
        table: *mut pg_sys::HTAB,
        key: *const c_void,
        action: pg_sys::HASHACTION::Type,
        found: *mut bool,
    ) -> *mut c_void;
}

// Signal handlers: they set flags and the latch. `die` has the next check for interrupts end the
// process.
#[allow(missing_docs, reason = "documented where PostgreSQL declares them")]
unsafe extern "C-unwind" {
    pub fn die(signal: c_int, #[cfg(feature = "pg19")] from: *const pg_sys::pg_signal_info);
    pub fn SignalHandlerForConfigReload(
        signal: c_int,
        #[cfg(feature = "pg19")] from: *const pg_sys::pg_signal_info,
    );
}

// Raises nothing.
#[cfg(not(pre_pg18))]
#[allow(missing_docs, reason = "documented where PostgreSQL declares them")]
unsafe extern "C-unwind" {
    pub fn pg_b64_encode(from: *const u8, len: c_int, to: *mut c_char, room: c_int) -> c_int;
}

// Variables.
unsafe extern "C-unwind" {
    /// The setting `max_prepared_transactions` (`twophase.c`).
    pub static max_prepared_xacts: c_int;
    /// The setting `synchronous_standby_names`: NULL or a C string (`syncrep.c`).
    pub static SyncRepStandbyNames: *const c_char;
    /// What WAL senders share (`walsender.c`).
    pub static WalSndCtl: *const layout::WalSndCtlData;
}

/// The address of a function that not every build of PostgreSQL has.
///
/// # Safety
/// `T` is the type of that function.
#[cfg(not(feature = "pg15"))]
unsafe fn optional<T>(name: &std::ffi::CStr) -> Option<T> {
    const { assert!(size_of::<T>() == size_of::<*mut c_void>()) };
    // SAFETY: a look-up among the loaded symbols; the type is right by contract.
    unsafe {
        let found = libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr());
        (!found.is_null()).then(|| std::mem::transmute_copy(&found))
    }
}

/// `be_gssapi_get_delegation()`: whether the client has delegated a GSSAPI ticket to this session.
/// Never where the server is built without GSSAPI.
#[cfg(not(feature = "pg15"))]
pub fn has_gss_delegation() -> bool {
    type Delegation = unsafe extern "C-unwind" fn(*mut pg_sys::Port) -> bool;
    // SAFETY: the function's own type; the port is NULL in workers, else the session's own.
    unsafe {
        optional::<Delegation>(c"be_gssapi_get_delegation").is_some_and(|delegation| {
            !pg_sys::MyProcPort.is_null() && delegation(pg_sys::MyProcPort)
        })
    }
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

/// `ExecEvalExpr()`: the expression's value, and whether it is NULL.
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

/// `MemoryContextSwitchTo()`: returns the context that was current.
///
/// # Safety
/// The context is alive for as long as it is current.
pub unsafe fn switch_to(context: pg_sys::MemoryContext) -> pg_sys::MemoryContext {
    // SAFETY: by contract; only this thread uses the variable.
    unsafe { (&raw mut pg_sys::CurrentMemoryContext).replace(context) }
}
