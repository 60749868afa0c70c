//! Direct modifications: an UPDATE or DELETE that runs as one remote command.

use std::ffi::{CStr, c_int};
use std::rc::Rc;

use pgrx::pg_sys::{
    self, EState, ForeignScanState, HeapTuple, MemoryContext, Relation, TupleTableSlot,
};

use crate::fdw::answer::Answer;
use crate::fdw::params::Params;
use crate::fdw::rows::{self, RowReader};
use crate::fdw::{plan, state};
use crate::libpq::PgResult;
use crate::pg::error::{Result, boundary};
use crate::pg::node;
use crate::xact::{Attachment, attach_to_write};

/// A direct modification that has begun.
pub struct Direct {
    session: Attachment,
    sql: Rc<CStr>,
    params: Params,
    counts: bool,
    answer: Answer,
    returning: Option<RowReader>,
    /// For RETURNING of a join: how to get the target's row from the joined one.
    target: Option<Target>,
    /// The command's result, once it has run.
    result: Option<Rc<PgResult>>,
    next: usize,
    tuple: Vec<HeapTuple>,
}

/// `BeginDirectModify`: attaches to the participant. EvalPlanQual does not call it.
///
/// # Safety
/// Called by the executor.
pub unsafe extern "C-unwind" fn begin(node: *mut ForeignScanState, eflags: c_int) {
    // SAFETY: a scan state being initialised.
    boundary(|| unsafe {
        if eflags & pg_sys::EXEC_FLAG_EXPLAIN_ONLY as c_int == 0 {
            let estate: *mut EState = (*node).ss.ps.state;
            let context = (*estate).es_query_cxt;
            let _in = node::InContext::enter(context);
            (*node).fdw_state = state::put(context, Direct::begin(node, eflags, context)?);
        }
        Ok(())
    })
}

/// `IterateDirectModify`: runs the command at the first call; then, with RETURNING, a row per call.
///
/// # Safety
/// Called by the executor.
pub unsafe extern "C-unwind" fn iterate(node: *mut ForeignScanState) -> *mut TupleTableSlot {
    // SAFETY: an initialised scan state; its Direct is referred to nowhere else.
    boundary(|| unsafe {
        let direct: &mut Direct =
            state::get((*node).fdw_state).expect("a direct modification that has begun");
        direct.iterate(node)
    })
}

/// `EndDirectModify`.
///
/// # Safety
/// Called by the executor.
pub unsafe extern "C-unwind" fn end(node: *mut ForeignScanState) {
    boundary(|| {
        // SAFETY: our state, or NULL in EXPLAIN.
        drop(unsafe { state::take::<Direct>((*node).fdw_state) });
        Ok(())
    })
}

impl Direct {
    /// The session that it uses.
    pub fn session(&self) -> &Attachment {
        &self.session
    }

    unsafe fn begin(
        node: *mut ForeignScanState,
        eflags: c_int,
        context: MemoryContext,
    ) -> Result<Self> {
        // SAFETY: as in `begin`.
        unsafe {
            let foreign: *const pg_sys::ForeignScan = (*node).ss.ps.plan.cast();
            let plan = plan::direct((*foreign).fdw_private)?;
            let estate = (*node).ss.ps.state;
            let target = (*node).resultRelInfo;
            let index = (*target).ri_RangeTableIndex;
            let entry = node::range_table_entry(estate, index);
            let userid = node::modification_user(target, entry, estate);
            let session =
                attach_to_write(userid, pg_sys::GetForeignServerIdByRelId((*entry).relid))?
                    .of_query(estate, true);
            let answer = Answer::needed_by_direct(estate, (*node).ss.ps.plan, target);
            let is_join = (*foreign).scan.scanrelid == 0;
            let (target, returning) = match plan.returning {
                None => (None, None),
                Some(retrieved) => {
                    let target = is_join.then(|| {
                        let relation = pg_sys::ExecOpenScanRelation(estate, index, eflags);
                        Target::new(relation, index, (*foreign).fdw_scan_tlist, &retrieved)
                    });
                    let scratch = node::memory_context(context, c"pg_fdw_xacts temporary data");
                    (target, Some(RowReader::of_scan(node, retrieved, scratch)?))
                }
            };
            Ok(Self {
                session,
                sql: plan.sql.into(),
                params: Params::new((*foreign).fdw_exprs, node.cast()),
                counts: plan.counts,
                answer,
                returning,
                target,
                result: None,
                next: 0,
                tuple: Vec::with_capacity(1),
            })
        }
    }

    unsafe fn iterate(&mut self, node: *mut ForeignScanState) -> Result<*mut TupleTableSlot> {
        // SAFETY: as in `iterate`.
        unsafe {
            let first = self.result.is_none();
            let result = match &self.result {
                Some(result) => Rc::clone(result),
                None => self.run((*node).ss.ps.ps_ExprContext)?,
            };
            let slot = (*node).ss.ss_ScanTupleSlot;
            let estate = (*node).ss.ps.state;
            let info = (*node).resultRelInfo;
            let affected = match self.returning {
                Some(_) => result.rows(),
                None => result.rows_affected() as usize,
            };
            if (*info).ri_projectReturning.is_null() {
                if first {
                    if self.counts {
                        (*estate).es_processed += affected as u64;
                    }
                    if let Some(instrument) = (*node).ss.ps.instrument.as_mut() {
                        instrument.tuplecount += affected as f64;
                    }
                }
                return Ok(pg_sys::ExecClearTuple(slot));
            }
            if self.next >= affected {
                return Ok(pg_sys::ExecClearTuple(slot));
            }
            if self.counts {
                (*estate).es_processed += 1;
            }
            let returned = match &mut self.returning {
                // The RETURNING list uses no column of the remote rows.
                None => pg_sys::ExecStoreAllNullTuple(slot),
                Some(reader) => {
                    self.tuple.clear();
                    let row = self.next..self.next + 1;
                    let context = pg_sys::CurrentMemoryContext;
                    reader.read(&result, row, context, &mut self.tuple)?;
                    pg_sys::ExecStoreHeapTuple(self.tuple[0], slot, false);
                    match &self.target {
                        None => slot,
                        Some(target) => {
                            target.extract(slot, pg_sys::ExecGetReturningSlot(estate, info))
                        }
                    }
                }
            };
            self.next += 1;
            (*(*(*info).ri_projectReturning).pi_exprContext).ecxt_scantuple = returned;
            Ok(slot)
        }
    }

    unsafe fn run(&mut self, context: *mut pg_sys::ExprContext) -> Result<Rc<PgResult>> {
        // SAFETY: the node's expression context.
        let params = unsafe { self.params.evaluate(context)? };
        let whole = match self.answer {
            Answer::Transaction => self.session.run_whole(&self.sql, params)?,
            _ => None,
        };
        let result = match whole {
            Some(result) => result,
            None => self.session.run(Rc::clone(&self.sql), params)?,
        };
        self.result = Some(Rc::clone(&result));
        Ok(result)
    }
}

/// Where the target's row is inside a joined row.
struct Target {
    /// For each column of the target, its position in the joined row.
    columns: Vec<Option<usize>>,
    ctid: Option<usize>,
}

impl Target {
    /// # Safety
    /// An open relation, and the target list that the joined rows have.
    unsafe fn new(
        relation: Relation,
        index: u32,
        list: *const pg_sys::List,
        retrieved: &[c_int],
    ) -> Self {
        // SAFETY: by contract.
        unsafe {
            let mut columns = vec![None; (*(*relation).rd_att).natts as usize];
            let mut ctid = None;
            for at in 0..node::length(list) {
                let Some((varno, column)) = rows::variable(list, at) else { continue };
                if varno != index || !retrieved.contains(&(at as c_int + 1)) {
                    continue;
                }
                match column {
                    n if n > 0 => columns[n as usize - 1] = Some(at),
                    n if c_int::from(n) == pg_sys::SelfItemPointerAttributeNumber => {
                        ctid = Some(at);
                    }
                    // postgres_fdw retrieves no other system column and no whole row here.
                    _ => {}
                }
            }
            Self { columns, ctid }
        }
    }

    /// Puts the target's row into `into`, which reads from `joined`.
    ///
    /// # Safety
    /// A slot of joined rows with a row in it, and one of the target's rows.
    unsafe fn extract(
        &self,
        joined: *mut TupleTableSlot,
        into: *mut TupleTableSlot,
    ) -> *mut TupleTableSlot {
        // SAFETY: by contract; both slots have as many columns as their descriptors.
        unsafe {
            pg_sys::slot_getallattrs(joined);
            pg_sys::ExecClearTuple(into);
            for (n, &from) in self.columns.iter().enumerate() {
                let null = from.is_none_or(|at| *(*joined).tts_isnull.add(at));
                *(*into).tts_isnull.add(n) = null;
                *(*into).tts_values.add(n) = match from {
                    Some(at) if !null => *(*joined).tts_values.add(at),
                    _ => pg_sys::Datum::null(),
                };
            }
            pg_sys::ExecStoreVirtualTuple(into);
            if let Some(at) = self.ctid {
                let tuple = pg_sys::ExecFetchSlotHeapTuple(into, true, std::ptr::null_mut());
                let ctid: *const pg_sys::ItemPointerData =
                    (*(*joined).tts_values.add(at)).cast_mut_ptr();
                (*tuple).t_self = *ctid;
                rows::reset_system_columns(tuple);
            }
            into
        }
    }
}
