//! Modifications row by row: INSERT, and UPDATE and DELETE of the row with a given `ctid`.

use std::ffi::{CStr, c_int};

use pgrx::pg_sys::{
    self, CmdType, EState, List, MemoryContext, ModifyTableState, Oid, Plan, RangeTblEntry,
    ResultRelInfo, TupleTableSlot,
};

use crate::fdw::answer::Answer;
use crate::fdw::batch::{Slot, Template};
use crate::fdw::params::{Modes, Outputs, Values};
use crate::fdw::rows::RowReader;
use crate::fdw::statement::Statement;
use crate::fdw::{plan, state, targets, volatility};
use crate::pg::error::{Error, Result, SqlState, boundary, catch};
use crate::pg::{node, raw};
use crate::remote::report;
use crate::xact::{Attachment, attach_to_write};

mod bulk;
mod copying;
mod eligible;
mod sending;

pub use bulk::{consider, install};

use bulk::Bulk;

/// When the values of some rows have this many bytes, the rest of a batch is sent with another
/// message: a message of 1 GB is refused, and long before that larger ones gain nothing.
const MESSAGE_BYTES: usize = 1 << 20;

/// The execution state of one target.
pub struct Modification {
    session: Attachment,
    statement: Statement,
    /// An INSERT's text for other numbers of rows than `rows`.
    template: Option<Template>,
    rows: usize,
    /// How many rows the last execution had.
    last_rows: usize,
    /// Whether the rows of an INSERT may depend on those inserted before.
    volatile_source: bool,
    /// The column of the plan's rows that identifies the row, for UPDATE and DELETE; it is the
    /// first parameter.
    ctid: Option<i16>,
    /// The other parameters, as columns of the new row.
    columns: Vec<i16>,
    /// Who needs the server's answers.
    answer: Answer,
    outputs: Outputs,
    values: Values,
    /// How many bytes the values have together.
    bytes: usize,
    reader: Option<RowReader>,
    /// Where many rows of an INSERT may be sent by COPY.
    bulk: Option<Bulk>,
    /// Texts of parameters, and memory that converting them leaves behind; reset for each
    /// execution.
    scratch: MemoryContext,
}

/// `BeginForeignModify`: attaches to the participant.
///
/// # Safety
/// Called by the executor.
pub unsafe extern "C-unwind" fn begin(
    mtstate: *mut ModifyTableState,
    target: *mut ResultRelInfo,
    fdw_private: *mut List,
    _subplan: c_int,
    eflags: c_int,
) {
    // SAFETY: a plan node being initialised.
    boundary(|| unsafe {
        if eflags & pg_sys::EXEC_FLAG_EXPLAIN_ONLY as c_int != 0 {
            return Ok(());
        }
        let operation = (*mtstate).operation;
        let plan = plan::modify(fdw_private, operation == CmdType::CMD_INSERT)?;
        let estate = (*mtstate).ps.state;
        let entry = node::range_table_entry(estate, (*target).ri_RangeTableIndex);
        let source = (*(*mtstate).ps.lefttree).plan;
        let answer = Answer::needed_by(mtstate, target);
        Modification::start(estate, entry, target, source, operation, answer, plan)?;
        bulk::consider(mtstate, target)
    })
}

/// `EndForeignModify`.
///
/// # Safety
/// Called by the executor.
pub unsafe extern "C-unwind" fn end(_: *mut EState, target: *mut ResultRelInfo) {
    boundary(|| {
        // SAFETY: our state, or NULL in EXPLAIN; dropping deallocates the statement.
        unsafe {
            if let Some(modification) = state::get::<Modification>((*target).ri_FdwState) {
                modification.send_collected()?;
            }
            drop(state::take::<Modification>((*target).ri_FdwState));
        }
        Ok(())
    })
}

/// `ExecForeignInsert`: returns the slot, or NULL if the participant has inserted nothing.
///
/// # Safety
/// Called by the executor.
pub unsafe extern "C-unwind" fn insert(
    _: *mut EState,
    target: *mut ResultRelInfo,
    slot: *mut TupleTableSlot,
    _plan_slot: *mut TupleTableSlot,
) -> *mut TupleTableSlot {
    // SAFETY: passed on.
    boundary(|| unsafe { one(target, slot, None) })
}

/// `ExecForeignBatchInsert`: inserts many rows with one statement; `count` becomes the number that
/// the participant reports.
///
/// # Safety
/// Called by the executor.
pub unsafe extern "C-unwind" fn insert_batch(
    _: *mut EState,
    target: *mut ResultRelInfo,
    slots: *mut *mut TupleTableSlot,
    _plan_slots: *mut *mut TupleTableSlot,
    count: *mut c_int,
) -> *mut *mut TupleTableSlot {
    // SAFETY: as many slots as `count` says; our state.
    boundary(|| unsafe {
        let rows = std::slice::from_raw_parts(slots, *count as usize);
        let this = modification(target);
        let affected = this.execute(rows, None)?;
        this.narrow_batches(target);
        *count = affected as c_int;
        Ok(if affected > 0 { slots } else { std::ptr::null_mut() })
    })
}

/// `ExecForeignUpdate`: as [`insert`], for the row that `plan_slot` identifies.
///
/// # Safety
/// Called by the executor.
pub unsafe extern "C-unwind" fn update(
    _: *mut EState,
    target: *mut ResultRelInfo,
    slot: *mut TupleTableSlot,
    plan_slot: *mut TupleTableSlot,
) -> *mut TupleTableSlot {
    // SAFETY: passed on.
    boundary(|| unsafe { one(target, slot, Some(plan_slot)) })
}

/// `ExecForeignDelete`: as [`update`]; the slot is only for RETURNING.
///
/// # Safety
/// Called by the executor.
pub unsafe extern "C-unwind" fn delete(
    _: *mut EState,
    target: *mut ResultRelInfo,
    slot: *mut TupleTableSlot,
    plan_slot: *mut TupleTableSlot,
) -> *mut TupleTableSlot {
    // SAFETY: passed on.
    boundary(|| unsafe { one(target, slot, Some(plan_slot)) })
}

unsafe fn one(
    target: *mut ResultRelInfo,
    slot: *mut TupleTableSlot,
    plan_slot: Option<*mut TupleTableSlot>,
) -> Result<*mut TupleTableSlot> {
    // SAFETY: by contract of the callbacks.
    let affected = unsafe { modification(target).execute(&[slot], plan_slot)? };
    Ok(if affected > 0 { slot } else { std::ptr::null_mut() })
}

unsafe fn modification<'a>(target: *mut ResultRelInfo) -> &'a mut Modification {
    // SAFETY: by contract of the callbacks; nothing else refers to the state.
    unsafe { state::get((*target).ri_FdwState) }.expect("a modification that has begun")
}

impl Modification {
    /// The session that it uses.
    pub fn session(&self) -> &Attachment {
        &self.session
    }

    /// Makes the state of a target and puts it there. `entry` stands for the target in the range
    /// table, `source` is the plan that the rows come from, NULL in COPY.
    ///
    /// # Safety
    /// Valid nodes of a running executor.
    ///
    /// # Errors
    /// The participant cannot be attached to, or the plan does not fit the table.
    pub unsafe fn start(
        estate: *mut EState,
        entry: *const RangeTblEntry,
        target: *mut ResultRelInfo,
        source: *const Plan,
        operation: CmdType::Type,
        answer: Answer,
        plan: plan::Modify,
    ) -> Result<()> {
        // SAFETY: by contract; what is made here lives in the query's context.
        unsafe {
            let context = (*estate).es_query_cxt;
            let _in = node::InContext::enter(context);
            let relation = (*target).ri_RelationDesc;
            let userid = node::modification_user(target, entry, estate);
            let serverid = pg_sys::GetForeignServerIdByRelId((*relation).rd_id);
            let session = attach_to_write(userid, serverid)?.of_query(estate, false);

            let ctid = match operation {
                CmdType::CMD_INSERT => None,
                _ => Some(targets::row_identifier(source)?),
            };
            let targets = targets::columns(relation, &plan.targets)?;
            let parameters: Vec<&(i16, Oid, Slot)> =
                targets.iter().filter(|(_, _, slot)| *slot == Slot::Parameter).collect();
            let types = ctid.map(|_| pg_sys::TIDOID).into_iter();
            let types = types.chain(parameters.iter().map(|(_, oid, _)| *oid));
            let answer = if plan.returning.is_some() { Answer::Statement } else { answer };
            let scratch = node::memory_context(context, c"pg_fdw_xacts temporary data");
            let this = Self {
                outputs: Outputs::new(types, context),
                bulk: None,
                columns: parameters.iter().map(|(column, _, _)| *column).collect(),
                reader: match plan.returning {
                    Some(retrieved) => Some(RowReader::of_relation(relation, retrieved, scratch)?),
                    None => None,
                },
                template: plan.values_end.map(|end| {
                    let slots = targets.iter().map(|(_, _, slot)| *slot).collect();
                    Template::new(plan.sql.clone(), end, slots)
                }),
                statement: Statement::new(plan.sql),
                rows: 1,
                last_rows: 0,
                volatile_source: operation == CmdType::CMD_INSERT
                    && volatility::is_volatile(estate, source),
                ctid,
                answer,
                values: Values::new(),
                bytes: 0,
                scratch,
                session,
            };
            (*target).ri_FdwState = state::put(context, this);
            Ok(())
        }
    }

    /// Whether the rows of an INSERT may depend on those inserted before.
    pub fn has_volatile_source(&self) -> bool {
        self.volatile_source
    }

    /// How many parameters one row has.
    pub fn parameters(&self) -> usize {
        self.outputs.len()
    }

    /// Executes the statement for these rows and returns how many were affected. With RETURNING
    /// there is one row at a time, and the returned row goes into its slot.
    ///
    /// # Safety
    /// Valid slots; `plan_slot` for UPDATE and DELETE.
    unsafe fn execute(
        &mut self,
        slots: &[*mut TupleTableSlot],
        plan_slot: Option<*mut TupleTableSlot>,
    ) -> Result<usize> {
        let mut affected = 0;
        let mut rest = slots;
        while !rest.is_empty() {
            self.make_room(rest.len())?;
            // SAFETY: by contract.
            let (rows, later) = rest.split_at(unsafe { self.evaluate(rest, plan_slot)? });
            affected += match self.keep(rows.len())? {
                true => rows.len(),
                // SAFETY: by contract.
                false => unsafe { self.execute_evaluated(rows, slots.len())? },
            };
            rest = later;
        }
        Ok(affected)
    }

    /// Executes the statement for the rows whose parameters are in `values`, which are all or some
    /// of those in a `batch` of the executor's.
    ///
    /// # Safety
    /// As for [`Self::execute`].
    unsafe fn execute_evaluated(
        &mut self,
        slots: &[*mut TupleTableSlot],
        batch: usize,
    ) -> Result<usize> {
        let result = match self.answer {
            Answer::Nobody => {
                self.leave_behind(slots.len())?;
                return Ok(slots.len());
            }
            Answer::Transaction => self.session.run_whole(&self.statement.sql(), &self.values)?,
            Answer::Statement => None,
        };
        let result = match result {
            Some(result) => result,
            None if self.asks_with(batch) => self.run_and_ask(slots.len())?,
            None => self.run(slots.len())?,
        };
        let affected = match self.reader {
            Some(_) => result.rows(),
            None => result.rows_affected() as usize,
        };
        // The executor would look for so many slots.
        if affected > slots.len() {
            let server = &self.session.connection().server_name;
            return Err(match self.ctid {
                Some(_) => targets::ambiguous(server, affected),
                None => report::unexpected_answer(server),
            });
        }
        if affected > 0
            && let Some(reader) = &mut self.reader
        {
            let mut tuples = Vec::new();
            // SAFETY: the slot frees the tuple, which may therefore live in the caller's memory.
            unsafe {
                reader.read(&result, 0..1, pg_sys::CurrentMemoryContext, &mut tuples)?;
                pg_sys::ExecForceStoreHeapTuple(tuples[0], slots[0], true);
            }
        }
        Ok(affected)
    }

    /// Fills `values` with the parameters of as many of the first rows as fit into a message,
    /// behind those of rows that are held, and returns their number.
    unsafe fn evaluate(
        &mut self,
        slots: &[*mut TupleTableSlot],
        plan_slot: Option<*mut TupleTableSlot>,
    ) -> Result<usize> {
        let holds = self.holds();
        if !holds {
            self.values.clear();
            self.bytes = 0;
        }
        self.values.reserve(self.outputs.len() * slots.len());
        let first_column = usize::from(self.ctid.is_some());
        // SAFETY: valid slots with these columns, checked at the start; `values` has room for all,
        // so nothing in here allocates for Rust. The texts stay until the next execution resets
        // them.
        let evaluated = catch(|| unsafe {
            if !holds {
                raw::MemoryContextReset(self.scratch);
            }
            let before = raw::switch_to(self.scratch);
            if let (Some(ctid), Some(plan_slot)) = (self.ctid, plan_slot) {
                let (value, null) = raw::slot_getattr(plan_slot, ctid);
                if null {
                    raw::switch_to(before);
                    return None;
                }
                self.values.push(Some(self.outputs.text(0, value)));
            }
            let level = self.outputs.modes().enter();
            let mut rows = 0;
            while rows < slots.len() && self.bytes < MESSAGE_BYTES {
                for (n, &column) in self.columns.iter().enumerate() {
                    let (value, null) = raw::slot_getattr(slots[rows], column);
                    let text =
                        if null { None } else { Some(self.outputs.text(first_column + n, value)) };
                    self.bytes += text.map_or(0, CStr::count_bytes);
                    self.values.push(text);
                }
                rows += 1;
            }
            Modes::leave(level);
            raw::switch_to(before);
            Some(rows)
        })?;
        evaluated.ok_or_else(|| Error::new(SqlState::INTERNAL_ERROR, "ctid is NULL"))
    }
}

impl Drop for Modification {
    fn drop(&mut self) {
        self.statement.deallocate(self.session.connection());
    }
}
