//! Scans: a cursor on the participant, fetched batch by batch.
//!
//! DECLARE and the first FETCH travel together, so a scan that fits into one batch costs one wait; CLOSE waits
//! for the next statement. Rows are converted a batch at a time, into a memory context of their own.

use std::ffi::{CString, c_int};
use std::rc::Rc;

use pgrx::pg_sys::{self, EState, ForeignScanState, HeapTuple, MemoryContext, TupleTableSlot};

use crate::fdw::params::Params;
use crate::fdw::rows::RowReader;
use crate::fdw::{node, plan, raw, state};
use crate::libpq::PgResult;
use crate::pg::error::{Result, boundary, c_string, catch};
use crate::pg::versions;
use crate::remote::connection::Message;
use crate::xact::{Session, attach};

struct Scan {
    session: Session,
    /// The query, for CONTEXT.
    sql: CString,
    declare: CString,
    fetch: CString,
    fetch_size: usize,
    /// The cursor's number on the connection.
    cursor: u32,
    is_open: bool,
    params: Params,
    reader: RowReader,
    /// The batch at hand; its tuples live in `batch`.
    tuples: Vec<HeapTuple>,
    next: usize,
    batch: MemoryContext,
    /// The last FETCH returned fewer rows than it asked for.
    at_end: bool,
    /// More than one batch was fetched, so that the first is gone.
    moved_on: bool,
}

/// `BeginForeignScan`: attaches to the participant, which connects but sends nothing.
///
/// # Safety
/// Called by the executor.
pub unsafe extern "C-unwind" fn begin(node: *mut ForeignScanState, eflags: c_int) {
    // SAFETY: a scan state being initialised, in the executor's query context.
    boundary(|| unsafe {
        if eflags & pg_sys::EXEC_FLAG_EXPLAIN_ONLY as c_int == 0 {
            let estate: *mut EState = (*node).ss.ps.state;
            let context = (*estate).es_query_cxt;
            let _in = node::InContext::enter(context);
            (*node).fdw_state = state::put(context, Scan::begin(node, context)?);
        }
        Ok(())
    })
}

/// `IterateForeignScan`: the next row, or an empty slot.
///
/// # Safety
/// Called by the executor.
pub unsafe extern "C-unwind" fn iterate(node: *mut ForeignScanState) -> *mut TupleTableSlot {
    // SAFETY: an initialised scan state; its Scan is referred to nowhere else.
    boundary(|| unsafe {
        let scan: &mut Scan = state::get((*node).fdw_state).expect("a scan that has begun");
        let slot = (*node).ss.ss_ScanTupleSlot;
        if scan.next >= scan.tuples.len() && !scan.at_end {
            scan.fetch((*node).ss.ps.ps_ExprContext)?;
        }
        let Some(&tuple) = scan.tuples.get(scan.next) else {
            return Ok(pg_sys::ExecClearTuple(slot));
        };
        scan.next += 1;
        Ok(pg_sys::ExecStoreHeapTuple(tuple, slot, false))
    })
}

/// `ReScanForeignScan`: starts again, from memory where the first batch is still there and no parameter has
/// changed.
///
/// # Safety
/// Called by the executor.
pub unsafe extern "C-unwind" fn rescan(node: *mut ForeignScanState) {
    // SAFETY: as in `iterate`.
    boundary(|| unsafe {
        let scan: &mut Scan = state::get((*node).fdw_state).expect("a scan that has begun");
        if scan.is_open && (scan.moved_on || !(*node).ss.ps.chgParam.is_null()) {
            scan.close()?;
        }
        scan.next = 0;
        Ok(())
    })
}

/// `EndForeignScan`.
///
/// # Safety
/// Called by the executor.
pub unsafe extern "C-unwind" fn end(node: *mut ForeignScanState) {
    // SAFETY: as in `iterate`; the state is NULL in EXPLAIN.
    boundary(|| unsafe {
        if let Some(mut scan) = state::take::<Scan>((*node).fdw_state)
            && scan.is_open
        {
            scan.close()?;
        }
        Ok(())
    })
}

impl Scan {
    unsafe fn begin(node: *mut ForeignScanState, context: MemoryContext) -> Result<Self> {
        // SAFETY: as in `begin`.
        unsafe {
            let foreign: *const pg_sys::ForeignScan = (*node).ss.ps.plan.cast();
            let plan = plan::scan((*foreign).fdw_private)?;
            let (userid, relid) = node::scan_access(node);
            let session = attach(userid, pg_sys::GetForeignServerIdByRelId(relid))?;
            let cursor = session.connection().new_cursor();
            let scratch = node::memory_context(context, c"pg_fdw_xacts temporary data");
            Ok(Self {
                declare: c_string(
                    [format!("DECLARE c{cursor} CURSOR FOR\n").as_bytes(), plan.sql.as_bytes()]
                        .concat(),
                ),
                fetch: c_string(format!("FETCH {} FROM c{cursor}", plan.fetch_size)),
                sql: plan.sql,
                fetch_size: plan.fetch_size,
                cursor,
                is_open: false,
                params: Params::new((*foreign).fdw_exprs, node.cast()),
                reader: RowReader::of_scan(node, plan.retrieved, scratch)?,
                tuples: Vec::new(),
                next: 0,
                batch: node::memory_context(context, c"pg_fdw_xacts tuple data"),
                at_end: false,
                moved_on: false,
                session,
            })
        }
    }

    /// Fetches the next batch, opening the cursor if need be. Errors are reported for the query,
    /// not for the FETCH.
    unsafe fn fetch(&mut self, context: *mut pg_sys::ExprContext) -> Result<()> {
        let result = if self.is_open {
            let told = if versions::LOSS_NAMES_COMMAND { &self.fetch } else { &self.sql };
            let ticket =
                self.session.submit_for(&[Message::Query(&self.fetch, &[])], Some(told))?;
            self.moved_on = true;
            self.session.answer_to(ticket, &self.fetch, &self.sql)?
        } else {
            // SAFETY: the node's expression context.
            unsafe { self.open(context)? }
        };
        self.tuples.clear();
        self.next = 0;
        // SAFETY: no slot reads the old batch any more: the executor asks for the next row. The batch
        // context is a child of the query context, as all that the reader refers to.
        unsafe {
            let batch = self.batch;
            catch(|| raw::MemoryContextReset(batch))?;
            self.reader.read(&result, 0..result.rows(), batch, &mut self.tuples)?;
        }
        self.at_end = result.rows() < self.fetch_size;
        Ok(())
    }

    unsafe fn open(&mut self, context: *mut pg_sys::ExprContext) -> Result<Rc<PgResult>> {
        // SAFETY: by contract.
        let params = unsafe { self.params.evaluate(context)? };
        let ticket = self
            .session
            .submit(&[Message::Query(&self.declare, params), Message::Query(&self.fetch, &[])])?;
        self.is_open = true;
        self.session.connection().cursor_opened(self.cursor);
        self.session.answer_to(ticket, &self.declare, &self.sql)?;
        self.session.answer_to(ticket + 1, &self.fetch, &self.sql)
    }

    /// Forgets the cursor and its rows; CLOSE travels with the next statement.
    fn close(&mut self) -> Result<()> {
        self.is_open = false;
        self.tuples.clear();
        self.next = 0;
        self.at_end = false;
        self.moved_on = false;
        self.session.connection().close_cursor(self.cursor)
    }
}
