//! Scans: a cursor on the participant, fetched batch by batch.
//!
//! DECLARE and the first FETCH travel together, so a scan that fits into one batch costs one wait;
//! CLOSE travels with the next statement. A scan shows the rows that were there when its statement
//! began: whatever writes on the participant before the first FETCH has DECLARE sent first. For a
//! user's cursor it is sent when the cursor is declared, for parameters that other nodes compute
//! with the first FETCH. Some scans are asked before the executor comes to them ([`ahead`]).
//!
//! Rows are converted a batch at a time, into a memory context of their own. At most one FETCH of a
//! scan is under way at any time, and besides it at most one batch is in memory.

use std::ffi::{CStr, c_int};
use std::rc::Rc;
use std::time::Instant;

use pgrx::pg_sys::{self, ForeignScanState, HeapTuple, MemoryContext, TupleTableSlot};

use crate::fdw::ahead::Begun;
use crate::fdw::fetch_size::FetchSize;
use crate::fdw::params::{self, Params};
use crate::fdw::query::{begins_cursor, only_reads};
use crate::fdw::rescans::may_begin_again;
use crate::fdw::rows::RowReader;
use crate::fdw::{plan, state};
use crate::libpq::PgResult;
use crate::pg::error::{Result, boundary, catch};
use crate::pg::{node, raw};
use crate::protocol::plan::Access;
use crate::remote::cache::Cached;
use crate::remote::connection::{Asked, Opening, declare_command, fetch_command};
use crate::xact::{Attachment, attach, reads_consistently};

mod ahead;
mod in_append;

/// A scan that has begun.
pub struct Scan {
    session: Attachment,
    /// The query, for CONTEXT.
    sql: Rc<CStr>,
    declare: Rc<CStr>,
    fetch_size: FetchSize,
    /// The cursor's number on the connection.
    cursor: u32,
    /// Its DECLARE, once its parameters are known. It may still have to be sent until rows are
    /// asked for.
    opening: Option<Rc<Opening>>,
    /// Rows have been asked for.
    is_open: bool,
    /// Its parameters keep their values as long as the statement runs.
    is_fixed: bool,
    params: Params,
    reader: RowReader,
    /// The current batch; its tuples live in `batch`.
    tuples: Vec<HeapTuple>,
    next: usize,
    batch: MemoryContext,
    /// The last FETCH returned fewer rows than it asked for.
    at_end: bool,
    /// The FETCH under way.
    under_way: Option<UnderWay>,
    /// The last FETCH that was sent without waiting for its answer.
    last_asked: Option<Asked>,
    /// What [`Attachment::unit_epoch`] was when rows were asked for.
    epoch: u64,
    /// An Append asks for rows and is notified when they have come, so the scan does not wait for
    /// them.
    is_async: bool,
    /// What has become of asking ahead, until the executor comes to the scan.
    ahead: Option<Result<()>>,
    _begun: Begun,
}

/// A FETCH that was sent, and the DECLARE before it, as long as that is not answered.
struct UnderWay {
    declare: Option<Asked>,
    fetch: Asked,
    /// How many rows it asks for.
    rows: usize,
    since: Instant,
}

/// `BeginForeignScan`: attaches to the participant, which connects but sends nothing.
///
/// # Safety
/// Called by the executor.
pub unsafe extern "C-unwind" fn begin(node: *mut ForeignScanState, eflags: c_int) {
    // SAFETY: a scan state being initialised, in the executor's query context.
    boundary(|| unsafe {
        if eflags & pg_sys::EXEC_FLAG_EXPLAIN_ONLY as c_int == 0 {
            let context = (*(*node).ss.ps.state).es_query_cxt;
            let _in = node::InContext::enter(context);
            let scan = Scan::begin(node, context)?;
            scan.announce()?;
            (*node).fdw_state = state::put(context, scan);
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
        if !scan.is_async && !scan.has_rows() && !scan.at_end {
            scan.fetch((*node).ss.ps.ps_ExprContext)?;
        }
        let Some(&tuple) = scan.tuples.get(scan.next) else {
            return Ok(pg_sys::ExecClearTuple(slot));
        };
        scan.next += 1;
        Ok(pg_sys::ExecStoreHeapTuple(tuple, slot, false))
    })
}

/// `ReScanForeignScan`: starts again. If no parameter has changed and the first batch is in memory
/// or still to come, it is used again. Otherwise the cursor is closed, and a FETCH under way is not
/// waited for.
///
/// # Safety
/// Called by the executor.
pub unsafe extern "C-unwind" fn rescan(node: *mut ForeignScanState) {
    // SAFETY: as in `iterate`.
    boundary(|| unsafe {
        let scan: &mut Scan = state::get((*node).fdw_state).expect("a scan that has begun");
        // Whatever else may have changed is only used here.
        let changed = !(*node).ss.ps.chgParam.is_null() && !scan.is_fixed;
        if scan.is_open && (changed || scan.fetch_size.batches() > 1) {
            scan.close()?;
        }
        scan.next = 0;
        Ok(())
    })
}

/// `EndForeignScan`. A FETCH under way is waited for, however long it takes: COMMIT has little
/// time, and could not tell which statement has failed.
///
/// # Safety
/// Called by the executor.
pub unsafe extern "C-unwind" fn end(node: *mut ForeignScanState) {
    // SAFETY: as in `iterate`; the state is NULL in EXPLAIN.
    boundary(|| unsafe {
        let Some(mut scan) = state::take::<Scan>((*node).fdw_state) else { return Ok(()) };
        debug_assert!(scan.ahead.is_none(), "a scan was asked ahead and not needed");
        scan.discard();
        if let Some(asked) = &scan.last_asked {
            scan.session.connection().wait_discarded(asked)?;
        }
        scan.close()
    })
}

impl Scan {
    unsafe fn begin(node: *mut ForeignScanState, context: MemoryContext) -> Result<Self> {
        // SAFETY: as in `begin`.
        unsafe {
            let foreign: *const pg_sys::ForeignScan = (*node).ss.ps.plan.cast();
            let plan = plan::scan((*foreign).fdw_private)?;
            let (userid, relid) = node::scan_access(node);
            let session = attach(userid, pg_sys::GetForeignServerIdByRelId(relid))?
                .with(if plan.locks_rows { Access::Modifies } else { Access::Reads })
                .of_query((*node).ss.ps.state, true);
            let cursor = session.connection().new_cursor();
            let scratch = node::memory_context(context, c"pg_fdw_xacts temporary data");
            let mut params = Params::new((*foreign).fdw_exprs, node.cast());
            let is_fixed = params::are_external((*foreign).fdw_exprs);
            let is_reopened = || !is_fixed || may_begin_again((*node).ss.ps.state, foreign.cast());
            session.is_scan(is_reopened);
            let declare: Rc<CStr> = declare_command(cursor, plan.sql.as_bytes()).into();
            let sql: Rc<CStr> = plan.sql.into();
            // EvalPlanQual begins many scans that it does not execute.
            let opening = if is_fixed && (*(*node).ss.ps.state).es_epq_active.is_null() {
                let params = params.evaluate((*node).ss.ps.ps_ExprContext)?;
                Some(Rc::new(session.opening(cursor, &declare, params, &sql)))
            } else {
                None
            };
            Ok(Self {
                declare,
                sql,
                opening,
                // Rows that are fetched but never returned may be read there, but not locked.
                fetch_size: FetchSize::new(plan.fetch_size, only_reads((*node).ss.ps.state)),
                cursor,
                is_open: false,
                is_fixed,
                params,
                reader: RowReader::of_scan(node, plan.retrieved, scratch)?,
                tuples: Vec::new(),
                next: 0,
                batch: node::memory_context(context, c"pg_fdw_xacts tuple data"),
                at_end: false,
                under_way: None,
                last_asked: None,
                epoch: 0,
                // The node's flag, not the plan's: EvalPlanQual runs the same plan without an
                // asynchronous Append.
                is_async: (*node).ss.ps.async_capable,
                ahead: None,
                _begun: Begun::on(&session.shared_connection()),
                session,
            })
        }
    }

    /// Makes sure that the cursor is opened before anything is written that it must not show; that
    /// of a cursor which the user declares, when the query has begun.
    fn announce(&self) -> Result<()> {
        let Some(opening) = &self.opening else { return Ok(()) };
        // Where reads are consistent, all that the query reads is opened together.
        if begins_cursor() && !reads_consistently() {
            return self.session.open_at_start(opening);
        }
        self.session.connection().announce(opening);
        Ok(())
    }

    /// The scan of a node.
    ///
    /// # Safety
    /// A node that has begun with [`begin`] and not ended; nothing else refers to its scan.
    pub unsafe fn of<'a>(node: *mut ForeignScanState) -> &'a mut Self {
        // SAFETY: by contract.
        unsafe { state::get((*node).fdw_state) }.expect("a scan that has begun")
    }

    /// The session that it uses.
    pub fn session(&self) -> &Attachment {
        &self.session
    }

    /// The connection that the scan runs on.
    pub fn connection(&self) -> Rc<Cached> {
        self.session.shared_connection()
    }

    /// Whether the current batch has rows left.
    pub fn has_rows(&self) -> bool {
        self.next < self.tuples.len()
    }

    /// Whether there are no rows after the current batch.
    pub fn is_at_end(&self) -> bool {
        self.at_end
    }

    /// Fetches the next batch and waits for it.
    unsafe fn fetch(&mut self, context: *mut pg_sys::ExprContext) -> Result<()> {
        loop {
            // SAFETY: the node's expression context.
            unsafe { self.ask(context)? };
            let Some(under_way) = self.under_way.take() else { return Ok(()) };
            let declared = match &under_way.declare {
                Some(declare) => self.session.outcome(declare)?.map(drop),
                None => Ok(()),
            };
            let fetched = || self.session.outcome(&under_way.fetch);
            let result = declared.map_or_else(|error| Ok(Err(error)), |()| fetched())?;
            if self.session.settle_unit()? {
                self.begin_again();
                continue;
            }
            return self.load(&*result?, &under_way);
        }
    }

    /// Nothing was asked, or nothing of it is open any more.
    fn begin_again(&mut self) {
        self.discard();
        self.opening = None;
        self.is_open = false;
        self.fetch_size.restart();
    }

    /// Asks for the next batch, unless that has been done, and opens the cursor if necessary.
    ///
    /// # Safety
    /// The node's expression context.
    ///
    /// # Errors
    /// Those of the parameters and of [`Attachment::submit`].
    pub unsafe fn ask(&mut self, context: *mut pg_sys::ExprContext) -> Result<()> {
        self.ahead.take().unwrap_or(Ok(()))?;
        match &self.under_way {
            Some(_) if self.epoch == self.session.unit_epoch() => return Ok(()),
            Some(_) => self.begin_again(),
            None => {}
        }
        // SAFETY: by contract.
        unsafe { self.send(context) }
    }

    /// Sends the next FETCH.
    unsafe fn send(&mut self, context: *mut pg_sys::ExprContext) -> Result<()> {
        // Locks of a later savepoint than the scan's may be given up before it returns the rows.
        let rows = if self.session.locks_for_less() { 1 } else { self.fetch_size.rows() };
        let fetch: Rc<CStr> = fetch_command(self.cursor, rows).into();
        let (declare, fetch) = if self.is_open {
            (None, self.session.fetch_more(&fetch, &self.sql)?)
        } else {
            let opening = match self.opening.take() {
                Some(opening) => opening,
                None => {
                    // SAFETY: by contract.
                    let params = unsafe { self.params.evaluate(context)? };
                    let opening =
                        self.session.opening(self.cursor, &self.declare, params, &self.sql);
                    Rc::new(opening)
                }
            };
            let fetch = self.session.fetch_first(&opening, &fetch)?;
            let declare = opening.asked();
            self.opening = Some(opening);
            self.is_open = true;
            (declare, fetch)
        };
        if self.is_async || self.ahead.is_some() {
            self.last_asked = Some(fetch.clone());
        }
        self.fetch_size.ask();
        self.epoch = self.session.unit_epoch();
        self.under_way = Some(UnderWay { declare, fetch, rows, since: Instant::now() });
        Ok(())
    }

    /// Converts a batch, which replaces the current one.
    fn load(&mut self, result: &PgResult, asked: &UnderWay) -> Result<()> {
        let took = asked.since.elapsed();
        self.tuples.clear();
        self.next = 0;
        let batch = self.batch;
        // SAFETY: no slot reads the old batch any more: the executor asks for the next row. Its
        // context is a child of the query context, as is everything that the reader refers to.
        unsafe {
            catch(|| raw::MemoryContextReset(batch))?;
            self.reader.read(result, 0..result.rows(), batch, &mut self.tuples)?;
        }
        self.at_end = result.rows() < asked.rows;
        if !self.at_end {
            self.fetch_size.came(took, result.memory());
        }
        Ok(())
    }

    /// Nobody will ask for the answers to DECLARE and FETCH any more.
    fn discard(&mut self) {
        let connection = self.session.connection();
        if let Some(declare) = self.opening.as_ref().and_then(|opening| opening.asked()) {
            connection.discard(&declare);
        }
        if let Some(UnderWay { fetch, .. }) = self.under_way.take() {
            connection.discard(&fetch);
        }
    }

    /// Forgets the cursor, its rows and what is under way; CLOSE travels with the next statement.
    fn close(&mut self) -> Result<()> {
        let was_asked = self.is_open;
        self.begin_again();
        self.tuples.clear();
        self.next = 0;
        self.at_end = false;
        let connection = self.session.connection();
        // A scan that has asked for nothing does not report that the connection is lost.
        if was_asked || !connection.is_doomed() {
            connection.close_cursor(self.cursor)
        } else {
            Ok(())
        }
    }
}
