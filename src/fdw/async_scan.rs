//! Asynchronous scans: an Append asks many for rows at once, and takes them as they come.
//!
//! An Append asks its scans for rows (`ForeignAsyncRequest`), sleeps until one of their sockets is
//! readable, and notifies the scan whose socket it is (`ForeignAsyncNotify`). Before it sleeps,
//! each scan that owes it a row adds its socket (`ForeignAsyncConfigureWait`). The Append sleeps on
//! sockets alone and does not know what has been read already, so:
//! * A scan whose rows have been read delivers them instead of adding its socket, and sets the
//!   latch, so that the Append does not sleep on the others.
//! * Of the scans on one connection the first adds the socket and reads for all of them, because a
//!   set takes a socket only once. Whoever else reads before the Append sleeps sets the latch, too
//!   ([`crate::remote::connection::Connection::watch`]).
//! * Everything is sent before the Append sleeps, because it does not wait until a socket can be
//!   written.
//!
//! All scans on one connection are asked at once, too: their answers come one after the other.

use std::rc::Rc;

use pgrx::pg_sys::{self, AppendState, AsyncRequest, ForeignScanState, TupleTableSlot};

use crate::fdw::scan::Scan;
use crate::pg::error::{Result, boundary, catch};
use crate::pg::{latch, raw};
use crate::remote::cache::Cached;
use crate::remote::long_wait;

/// `ForeignAsyncRequest`: delivers a row if one has been read, and asks for rows otherwise.
///
/// # Safety
/// Called by the executor.
pub unsafe extern "C-unwind" fn request(request: *mut AsyncRequest) {
    long_wait::executor_wakes();
    // SAFETY: a request for a scan of ours that has begun.
    boundary(|| unsafe { produce(request) })
}

/// `ForeignAsyncConfigureWait`: delivers a row that has come meanwhile, or adds the socket to the
/// Append's set.
///
/// # Safety
/// Called by the executor.
pub unsafe extern "C-unwind" fn configure_wait(request: *mut AsyncRequest) {
    // SAFETY: a pending request for a scan of ours; the requestor has just made its set.
    boundary(|| unsafe {
        let connection = Scan::of(scan_node(request)).connection();
        let reads = !is_read_for(request);
        loop {
            if reads {
                connection.watch(false);
                connection.pump();
            }
            produce(request)?;
            if (*request).request_complete {
                return respond(request);
            }
            if !connection.flush_out()? {
                break;
            }
        }
        Scan::of(scan_node(request)).note_wait();
        let append: *mut AppendState = (*request).requestor.cast();
        // Otherwise the Append only looks whether something has come.
        if (*append).as_syncdone {
            long_wait::executor_sleeps(|| awaited(append))?;
        }
        if reads {
            pg_sys::AddWaitEventToSet(
                (*append).as_eventset,
                pg_sys::WL_SOCKET_READABLE,
                connection.interest().socket,
                std::ptr::null_mut(),
                request.cast(),
            );
            connection.watch(true);
        }
        Ok(())
    })
}

/// `ForeignAsyncNotify`: reads, and delivers a row if it has come.
///
/// # Safety
/// Called by the executor.
pub unsafe extern "C-unwind" fn notify(request: *mut AsyncRequest) {
    // SAFETY: a request for a scan of ours.
    boundary(|| unsafe {
        long_wait::executor_wakes();
        let connection = Scan::of(scan_node(request)).connection();
        connection.watch(false);
        connection.pump();
        produce(request)
    })
}

/// Completes the request with the next row or the end of the scan, or asks for the next batch and
/// leaves it pending.
unsafe fn produce(request: *mut AsyncRequest) -> Result<()> {
    // SAFETY: a request for a scan of ours. No reference to the scan lives while the node runs.
    unsafe {
        let node = scan_node(request);
        loop {
            let scan = Scan::of(node);
            if scan.has_rows() {
                // The node's filter may reject all rows of the batch.
                let slot = next_row(request)?;
                if !slot.is_null() {
                    raw::ExecAsyncRequestDone(request, slot);
                    return Ok(());
                }
            } else if scan.is_at_end() {
                raw::ExecAsyncRequestDone(request, std::ptr::null_mut());
                return Ok(());
            } else {
                scan.ask((*node).ss.ps.ps_ExprContext)?;
                if !scan.take_batch()? && scan.is_under_way() {
                    raw::ExecAsyncRequestPending(request);
                    return Ok(());
                }
            }
        }
    }
}

/// Runs the scan's node, which filters and projects; NULL at the end of the batch. The executor
/// counts the rows of asynchronous nodes itself, so the node is run without its instrumentation.
unsafe fn next_row(request: *mut AsyncRequest) -> Result<*mut TupleTableSlot> {
    // SAFETY: an initialised node.
    unsafe {
        let node = (*request).requestee;
        let run = (*node).ExecProcNodeReal.expect("a node that can run");
        let slot = catch(|| run(node))?;
        let is_empty = slot.is_null() || u32::from((*slot).tts_flags) & pg_sys::TTS_FLAG_EMPTY != 0;
        Ok(if is_empty { std::ptr::null_mut() } else { slot })
    }
}

/// Delivers a completed request from a callback after which the executor does not.
unsafe fn respond(request: *mut AsyncRequest) -> Result<()> {
    // SAFETY: a complete request; its response allocates in the executor's memory context, which is
    // current.
    unsafe {
        (*request).callback_pending = false;
        catch(|| raw::ExecAsyncResponse(request))?;
        let instrument = (*(*request).requestee).instrument;
        if !instrument.is_null() {
            let rows = if (*request).result.is_null() { 0.0 } else { 1.0 };
            pg_sys::InstrUpdateTupleCount(instrument, rows);
        }
        latch::set();
    }
    Ok(())
}

/// Whether an earlier scan of the same Append waits on the same connection: that one has added the
/// socket.
unsafe fn is_read_for(this: *mut AsyncRequest) -> bool {
    // SAFETY: the array has an entry for each child, NULL for those that are not asynchronous. The
    // state of another wrapper's scan is not looked at.
    unsafe {
        let append: *const AppendState = (*this).requestor.cast();
        let connection = Scan::of(scan_node(this)).connection();
        (0..(*this).request_index as usize).any(|n| {
            let other = *(*append).as_asyncrequests.add(n);
            !other.is_null()
                && (*other).callback_pending
                && is_ours(other)
                && Rc::ptr_eq(&connection, &Scan::of(scan_node(other)).connection())
        })
    }
}

/// The connections of all scans that an Append waits for; `None` if some are of another wrapper.
unsafe fn awaited(append: *const AppendState) -> Option<Vec<Rc<Cached>>> {
    // SAFETY: as in `is_read_for`.
    unsafe {
        let mut all: Vec<Rc<Cached>> = Vec::new();
        for n in 0..(*append).as_nplans as usize {
            let other = *(*append).as_asyncrequests.add(n);
            if other.is_null() || !(*other).callback_pending {
                continue;
            }
            if !is_ours(other) {
                return None;
            }
            let connection = Scan::of(scan_node(other)).connection();
            if !all.iter().any(|known| Rc::ptr_eq(known, &connection)) {
                all.push(connection);
            }
        }
        Some(all)
    }
}

unsafe fn is_ours(other: *mut AsyncRequest) -> bool {
    // SAFETY: asynchronous nodes are foreign scans, which the tag says.
    unsafe {
        (*(*other).requestee).type_ == pg_sys::NodeTag::T_ForeignScanState
            && (*(*scan_node(other)).fdwroutine).ForeignAsyncRequest.is_some_and(|callback| {
                std::ptr::fn_addr_eq(callback, request as unsafe extern "C-unwind" fn(_))
            })
    }
}

unsafe fn scan_node(request: *mut AsyncRequest) -> *mut ForeignScanState {
    // SAFETY: by contract of the callers.
    unsafe { (*request).requestee.cast() }
}
