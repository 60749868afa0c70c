//! `use_remote_estimate`: postgres_fdw's planner asks servers for estimates, on connections of its
//! own. This module keeps their transactions and ours, which belong to one backend, from waiting
//! for each other for ever.
//!
//! * Before a query is planned: the planner's session would wait for a table that ours has locked
//!   exclusively. The query is refused ([`check_may_estimate`]).
//! * After it: the planner's session keeps its locks, although it only reads. Its transaction is
//!   ended before TRUNCATE and PREPARE TRANSACTION ([`end_planner_transactions`]), and when an
//!   answer takes long ([`on_long_wait`]).
//!
//! postgres_fdw itself ends it, as it does before each commit. Its callback has no name outside of
//! its library, so it is looked up in PostgreSQL's list of callbacks. If that list ever looks
//! different, or if other servers of this database still use postgres_fdw's handler (whose writes
//! would be committed), the callback is not called, and the statement is refused instead.

use std::cell::Cell;
use std::collections::HashSet;
use std::ffi::{CStr, c_void};

use pgrx::pg_sys::{self, LocalTransactionId, Oid, PlannerInfo, RelOptInfo};

use crate::fdw::stock;
use crate::pg::backend_local::BackendLocal;
use crate::pg::error::{Error, Result, SqlState, boundary, catch};
use crate::pg::layout::{XactCallback, XactCallbackItem};
use crate::pg::{catalog, globals, versions};
use crate::remote::options::{Server, TableOptions, option, parse_bool};
use crate::xact::participants;

/// Before what the planner's transactions have to end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Before {
    /// `PREPARE TRANSACTION`, which postgres_fdw would refuse.
    Prepare,
    /// A statement that locks remote tables exclusively.
    ExclusiveLock,
}

static STOCK: BackendLocal<Cell<pg_sys::GetForeignRelSize_function>> =
    BackendLocal::new(Cell::new(None));

/// The transaction in which the planner uses sessions of its own.
static ESTIMATED: BackendLocal<Cell<LocalTransactionId>> = BackendLocal::new(Cell::new(0));

/// The transaction in which a handler was changed or a server was dropped: since then the catalog
/// does not tell whose handler has written.
static SWITCHED: BackendLocal<Cell<LocalTransactionId>> = BackendLocal::new(Cell::new(0));

/// `GetForeignRelSize`, the first callback that plans a table, in front of postgres_fdw's own.
pub fn in_front_of(stock: &pg_sys::FdwRoutine) -> pg_sys::GetForeignRelSize_function {
    STOCK.get().set(stock.GetForeignRelSize);
    Some(rel_size)
}

unsafe extern "C-unwind" fn rel_size(
    root: *mut PlannerInfo,
    relation: *mut RelOptInfo,
    table: Oid,
) {
    boundary(|| check_may_estimate(table));
    // The frame owns nothing: an ERROR may pass.
    if let Some(stock) = STOCK.get().get() {
        // SAFETY: postgres_fdw's callback with its own arguments.
        unsafe { stock(root, relation, table) };
    }
}

/// Refuses to plan a foreign table with remote estimates that would wait for our own locks.
fn check_may_estimate(table: Oid) -> Result<()> {
    let options = TableOptions::read(table);
    if !options.get(c"use_remote_estimate").and_then(parse_bool).unwrap_or(false) {
        return Ok(());
    }
    let TableOptions { serverid, server, .. } = options;
    for participant in participants::all() {
        let there = participant.serverid == serverid
            || Server::find(participant.serverid)
                .is_some_and(|other| place(&other) == place(&server));
        if there && participant.connection.work().wrote() && participant.holds_exclusive_lock()? {
            return Err(refused_estimates(table, &server.name));
        }
    }
    note_own_sessions();
    Ok(())
}

/// postgres_fdw uses sessions of its own in this transaction.
pub fn note_own_sessions() {
    ESTIMATED.get().set(versions::local_transaction());
}

/// The options that lead to a server: objects that agree in them stand for the same server.
fn place(server: &Server) -> [Option<&CStr>; 4] {
    [c"host", c"hostaddr", c"port", c"dbname"].map(|name| option(&server.options, name))
}

fn refused_estimates(table: Oid, server: &CStr) -> Error {
    // SAFETY: the name of a relation that is open, in this call's memory.
    let table = unsafe { CStr::from_ptr(pg_sys::get_rel_name(table)) };
    let quote = |head: &str, name: &CStr, tail: &str| {
        [head.as_bytes(), name.to_bytes(), tail.as_bytes()].concat()
    };
    Error::new(
        SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
        quote("cannot ask for estimates of foreign table \"", table, "\" in this transaction"),
    )
    .detail(quote(
        "The transaction holds an exclusive lock on server \"",
        server,
        "\". The planner asks on another connection, which would wait for it for ever.",
    ))
    .hint(quote(
        "Plan the query in another transaction, or ALTER SERVER \"",
        server,
        "\" OPTIONS (SET use_remote_estimate 'false').",
    ))
}

/// Makes every session notice when another one changes a handler; called while the server loads the
/// library.
pub fn watch_handlers() {
    let cache = pg_sys::SysCacheIdentifier::FOREIGNDATAWRAPPEROID as i32;
    // SAFETY: the callback lives as long as the server and raises nothing.
    unsafe {
        pg_sys::CacheRegisterSyscacheCallback(cache, Some(on_change), pg_sys::Datum::from(0))
    };
}

unsafe extern "C-unwind" fn on_change(_: pg_sys::Datum, _: i32, _: u32) {
    // Without an entry a process has no transactions.
    if globals::is_attached() {
        note_changed_handler();
    }
}

/// A handler was changed or a server was dropped in this transaction, or while it runs.
pub fn note_changed_handler() {
    SWITCHED.get().set(versions::local_transaction());
}

/// Ends the planner's transactions, if there are any, before something that they would block.
///
/// # Errors
/// 55000: they cannot be ended on their own. The remote's error in ending them.
pub fn end_planner_transactions(before: Before) -> Result<()> {
    if try_end()? {
        return Ok(());
    }
    let what = match before {
        Before::Prepare => {
            "cannot PREPARE a transaction in which a query was planned with use_remote_estimate"
        }
        Before::ExclusiveLock => {
            "cannot lock remote tables exclusively after a query was planned with use_remote_estimate"
        }
    };
    Err(Error::new(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, what)
        .detail("The planner's own connection keeps a transaction open, which cannot be ended alone while servers of this database use postgres_fdw's handler.")
        .hint("Switch postgres_fdw to pg_fdw_xacts_handler, or set use_remote_estimate to false."))
}

/// Ends the planner's transactions because an answer takes long, which may be waiting for their
/// locks.
///
/// # Errors
/// The remote's error in ending the planner's transactions.
pub fn on_long_wait() -> Result<()> {
    try_end().map(|_| ())
}

/// Ends the planner's transactions; `false` if that is not possible.
fn try_end() -> Result<bool> {
    if ESTIMATED.get().get() != versions::local_transaction() {
        return Ok(true);
    }
    // The catalog is read first, because reading it takes note of handlers that other sessions have
    // changed.
    if is_stock_in_use()? || SWITCHED.get().get() == versions::local_transaction() {
        return Ok(false);
    }
    let Some((callback, argument)) = stock_callback()? else { return Ok(false) };
    // SAFETY: postgres_fdw's callback of transactions with its argument. Before commit it commits
    // its remote transactions, which have only read, and forgets that there were any.
    catch(|| unsafe { callback(pg_sys::XactEvent::XACT_EVENT_PRE_COMMIT, argument) })?;
    ESTIMATED.get().set(0);
    Ok(true)
}

/// Whether a server of this database has postgres_fdw's own handler: it may have written in this
/// transaction.
fn is_stock_in_use() -> Result<bool> {
    let stock = stock::routine()?;
    let wrappers: HashSet<Oid> =
        catalog::foreign_servers().into_iter().map(|(_, wrapper)| wrapper).collect();
    // SAFETY: look-ups in catalogs; the wrappers exist.
    unsafe {
        Ok(wrappers.into_iter().any(|wrapper| {
            let handler = (*pg_sys::GetForeignDataWrapper(wrapper)).fdwhandler;
            handler != Oid::INVALID && {
                let routine = &*pg_sys::GetFdwRoutine(handler);
                // Function pointers within one process: the same code has the same address.
                routine.BeginForeignScan.map(|f| f as usize)
                    == (*stock).BeginForeignScan.map(|f| f as usize)
            }
        }))
    }
}

/// postgres_fdw's callback of transactions, `None` where the list does not look as expected.
///
/// Registering a callback puts an element at the head of the list, allocated in `TopMemoryContext`.
/// The allocator reuses memory of that size that was freed just before, so the element's address is
/// known; that it is there is checked.
fn stock_callback() -> Result<Option<(XactCallback, *mut c_void)>> {
    static FOUND: BackendLocal<Cell<Option<(XactCallback, *mut c_void)>>> =
        BackendLocal::new(Cell::new(None));
    if let Some(found) = FOUND.get().get() {
        return Ok(Some(found));
    }
    unsafe extern "C-unwind" fn marker(_: pg_sys::XactEvent::Type, _: *mut c_void) {}
    let library = library_of(STOCK.get().get().map(|f| f as *const c_void));
    let argument = (&raw const FOUND).cast_mut().cast::<c_void>();
    // SAFETY: memory of TopMemoryContext stays mapped when it is freed; every element is looked at
    // only after the first has been found to be ours, and the list only changes on this thread.
    unsafe {
        let place: *const XactCallbackItem =
            pg_sys::MemoryContextAlloc(pg_sys::TopMemoryContext, size_of::<XactCallbackItem>())
                .cast();
        pg_sys::pfree(place.cast_mut().cast());
        pg_sys::RegisterXactCallback(Some(marker), argument);
        let first = place.read_volatile();
        let ours = first.callback.map(|f| f as usize) == Some(marker as *const () as usize)
            && first.argument == argument;
        let mut candidates = Vec::new();
        let mut next = if ours { first.next } else { std::ptr::null() };
        while let Some(item) = next.as_ref() {
            if let Some(callback) = item.callback
                && library.is_some()
                && library_of(Some(callback as *const c_void)) == library
            {
                candidates.push((callback, item.argument));
            }
            next = item.next;
        }
        pg_sys::UnregisterXactCallback(Some(marker), argument);
        if let [found] = candidates[..] {
            FOUND.get().set(Some(found));
        }
    }
    Ok(FOUND.get().get())
}

/// The address at which the library that contains `address` is loaded.
fn library_of(address: Option<*const c_void>) -> Option<*mut c_void> {
    let mut info = std::mem::MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: looks up an address; the answer is read only if there is one.
    unsafe {
        (libc::dladdr(address?, info.as_mut_ptr()) != 0).then(|| info.assume_init().dli_fbase)
    }
}
