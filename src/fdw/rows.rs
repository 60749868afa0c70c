//! Rows that are received: from a result's text to heap tuples.
//!
//! The error of an input function gets a line of CONTEXT that names the column, as in postgres_fdw.
//! No catalog is read for it, because the transaction has already failed by then.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ops::Range;
use std::ptr::null;

use pgrx::pg_sys::{self, Datum, HeapTuple, MemoryContext};

use crate::libpq::{PgResult, Status};
use crate::pg::error::{Error, Result, SqlState, catch};
use crate::pg::{node, raw};

/// What rows are read for; the names in CONTEXT are taken from it.
#[derive(Clone, Copy)]
pub enum Source {
    /// A scan or a direct modification: names are the query's aliases.
    Scan(*mut pg_sys::ForeignScanState),
    /// RETURNING of a modification: names are the table's own.
    Relation(pg_sys::Relation),
    /// A query whose columns the caller has declared.
    Declared(pg_sys::TupleDesc),
}

/// Converts results.
pub struct RowReader {
    source: Source,
    /// The descriptor that tuples are formed with.
    descriptor: pg_sys::TupleDesc,
    input: *mut pg_sys::AttInMetadata,
    retrieved: Vec<c_int>,
    values: Vec<Datum>,
    nulls: Vec<bool>,
    /// For memory that input functions leave behind; reset after each row.
    scratch: MemoryContext,
}

impl RowReader {
    /// For the tuples of a scan, which may be of a join or an aggregate.
    ///
    /// # Safety
    /// A valid scan state being initialised, with the executor's query context current; `scratch`
    /// outlives the reader.
    ///
    /// # Errors
    /// A column that the tuples do not have.
    pub unsafe fn of_scan(
        node: *mut pg_sys::ForeignScanState,
        retrieved: Vec<c_int>,
        scratch: MemoryContext,
    ) -> Result<Self> {
        // SAFETY: by contract.
        unsafe {
            let plan: *const pg_sys::ForeignScan = (*node).ss.ps.plan.cast();
            let (descriptor, input) = if (*plan).scan.scanrelid > 0 {
                let descriptor = (*(*node).ss.ss_currentRelation).rd_att;
                (descriptor, descriptor)
            } else {
                let slot = (*(*node).ss.ss_ScanTupleSlot).tts_tupleDescriptor;
                (slot, with_row_types(node, slot))
            };
            Self::new(Source::Scan(node), descriptor, input, retrieved, scratch)
        }
    }

    /// For RETURNING of a modification of `relation`.
    ///
    /// # Safety
    /// An open relation; the current memory context and `scratch` outlive the reader.
    ///
    /// # Errors
    /// A column that the relation does not have.
    pub unsafe fn of_relation(
        relation: pg_sys::Relation,
        retrieved: Vec<c_int>,
        scratch: MemoryContext,
    ) -> Result<Self> {
        // SAFETY: by contract.
        unsafe {
            let descriptor = (*relation).rd_att;
            Self::new(Source::Relation(relation), descriptor, descriptor, retrieved, scratch)
        }
    }

    /// For the rows of a query, all columns of `descriptor`.
    ///
    /// # Safety
    /// A valid descriptor that, as the current memory context and `scratch`, outlives the reader.
    ///
    /// # Errors
    /// None: all columns are there.
    pub unsafe fn of_declared(
        descriptor: pg_sys::TupleDesc,
        scratch: MemoryContext,
    ) -> Result<Self> {
        // SAFETY: by contract.
        unsafe {
            let retrieved = (1..=(*descriptor).natts).collect();
            Self::new(Source::Declared(descriptor), descriptor, descriptor, retrieved, scratch)
        }
    }

    unsafe fn new(
        source: Source,
        descriptor: pg_sys::TupleDesc,
        input: pg_sys::TupleDesc,
        retrieved: Vec<c_int>,
        scratch: MemoryContext,
    ) -> Result<Self> {
        // SAFETY: valid descriptors.
        let width = unsafe { (*descriptor).natts };
        if retrieved.iter().any(|&column| column > width) {
            return Err(mismatch());
        }
        Ok(Self {
            source,
            descriptor,
            // SAFETY: a valid descriptor; the function leaves out dropped columns.
            input: unsafe { pg_sys::TupleDescGetAttInMetadata(input) },
            retrieved,
            values: vec![Datum::null(); width as usize],
            // Columns that are not retrieved stay NULL.
            nulls: vec![true; width as usize],
            scratch,
        })
    }

    /// Converts rows into tuples that live in `context`.
    ///
    /// # Safety
    /// `context` is alive, and so is what the reader was made for.
    ///
    /// # Errors
    /// A value that its type's input function refuses; a result with other columns.
    pub unsafe fn read(
        &mut self,
        result: &PgResult,
        rows: Range<usize>,
        context: MemoryContext,
        tuples: &mut Vec<HeapTuple>,
    ) -> Result<()> {
        // If no column is retrieved, the remote query has one dummy column.
        if result.status() != Status::TuplesOk
            || !self.retrieved.is_empty() && self.retrieved.len() != result.columns()
        {
            return Err(mismatch());
        }
        tuples.reserve(rows.len());
        let mut location = Location { source: self.source, column: 0 };
        let location = &raw mut location;
        let mut callback = pg_sys::ErrorContextCallback {
            previous: std::ptr::null_mut(),
            callback: Some(conversion_context),
            arg: location.cast(),
        };
        let callback = &raw mut callback;
        // SAFETY: by contract. Callback and location outlive the call, and `catch` takes the
        // callback off the stack after an ERROR. The vectors have their room, so nothing in here
        // allocates for Rust, and column numbers are inside the descriptor (checked by `new`).
        catch(|| unsafe {
            (*callback).previous = pg_sys::error_context_stack;
            pg_sys::error_context_stack = callback;
            let before = raw::switch_to(self.scratch);
            for row in rows {
                let ctid = self.convert(result, row, location);
                raw::switch_to(context);
                let tuple = raw::heap_form_tuple(
                    self.descriptor,
                    self.values.as_mut_ptr(),
                    self.nulls.as_mut_ptr(),
                );
                stamp(tuple, ctid);
                tuples.push(tuple);
                raw::switch_to(self.scratch);
                raw::MemoryContextReset(self.scratch);
            }
            raw::switch_to(before);
            pg_sys::error_context_stack = (*callback).previous;
        })
    }

    /// Fills `values` and `nulls` from one row; returns the row's `ctid`, NULL if it was not
    /// retrieved.
    ///
    /// # Safety
    /// Inside `catch`, in the scratch context.
    unsafe fn convert(
        &mut self,
        result: &PgResult,
        row: usize,
        location: *mut Location,
    ) -> *const pg_sys::ItemPointerData {
        let mut ctid = null();
        for (at, &column) in self.retrieved.iter().enumerate() {
            let text = result.value(row, at).map_or(null(), CStr::as_ptr).cast_mut();
            // SAFETY: as in `read`. The input function runs for NULL too, because a domain may
            // refuse it. System columns other than `ctid` have no meaning here.
            unsafe {
                (*location).column = column;
                if column > 0 {
                    let n = column as usize - 1;
                    let input = &*self.input;
                    *self.nulls.as_mut_ptr().add(n) = text.is_null();
                    *self.values.as_mut_ptr().add(n) = raw::InputFunctionCall(
                        input.attinfuncs.add(n),
                        text,
                        *input.attioparams.add(n),
                        *input.atttypmods.add(n),
                    );
                } else if column == pg_sys::SelfItemPointerAttributeNumber && !text.is_null() {
                    ctid = raw::DirectFunctionCall1Coll(
                        Some(raw::tidin),
                        pg_sys::InvalidOid,
                        Datum::from(text),
                    )
                    .cast_mut_ptr();
                }
                (*location).column = 0;
            }
        }
        ctid
    }
}

/// Gives a formed tuple its system columns. `ctid` is stored in both places: it is read from
/// `t_self`, but a tuple that becomes a composite value and a tuple again (EvalPlanQual) only keeps
/// `t_ctid`.
///
/// # Safety
/// A tuple that was just formed; a valid `ctid` or NULL.
unsafe fn stamp(tuple: HeapTuple, ctid: *const pg_sys::ItemPointerData) {
    // SAFETY: by contract.
    unsafe {
        if let Some(&ctid) = ctid.as_ref() {
            (*tuple).t_self = ctid;
            (*(*tuple).t_data).t_ctid = ctid;
        }
        reset_system_columns(tuple);
    }
}

/// Sets xmin, xmax and cmin to invalid values. `heap_form_tuple` leaves the fields of a composite
/// value in their place.
///
/// # Safety
/// A tuple that was formed by `heap_form_tuple` and is referred to nowhere else.
pub unsafe fn reset_system_columns(tuple: HeapTuple) {
    // SAFETY: by contract.
    unsafe {
        let header = &mut *(*tuple).t_data;
        header.t_choice.t_heap.t_xmin = pg_sys::InvalidTransactionId;
        header.t_choice.t_heap.t_xmax = pg_sys::InvalidTransactionId;
        header.t_choice.t_heap.t_field3.t_cid = 0;
        header.t_infomask &= !(pg_sys::HEAP_COMBOCID as u16);
    }
}

#[cold]
fn mismatch() -> Error {
    Error::new(SqlState::INTERNAL_ERROR, "remote query result does not match the foreign table")
}

/// The descriptor of a join's slot, with the row type of its table for each whole-row reference.
/// The slot has it as an anonymous record, whose text could not be read.
unsafe fn with_row_types(
    node: *mut pg_sys::ForeignScanState,
    descriptor: pg_sys::TupleDesc,
) -> pg_sys::TupleDesc {
    // SAFETY: a valid scan state with the descriptor that was made from `fdw_scan_tlist`.
    unsafe {
        let plan: *const pg_sys::ForeignScan = (*node).ss.ps.plan.cast();
        let descriptor = pg_sys::CreateTupleDescCopy(descriptor);
        for n in 0..(*descriptor).natts as usize {
            let attribute = &mut *node::attribute(descriptor, n);
            if attribute.atttypid != pg_sys::RECORDOID || attribute.atttypmod >= 0 {
                continue;
            }
            let Some((index, 0)) = variable((*plan).fdw_scan_tlist, n) else { continue };
            let entry = node::range_table_entry((*node).ss.ps.state, index);
            if (*entry).rtekind == pg_sys::RTEKind::RTE_RELATION {
                let row_type = pg_sys::get_rel_type_id((*entry).relid);
                if row_type != pg_sys::InvalidOid {
                    attribute.atttypid = row_type;
                }
            }
        }
        descriptor
    }
}

/// The relation and column of an entry of a target list (counted from 0); `None` if the entry is
/// another expression. It reads nodes only.
///
/// # Safety
/// A valid list of `TargetEntry`.
pub unsafe fn variable(list: *const pg_sys::List, n: usize) -> Option<(u32, i16)> {
    // SAFETY: by contract; the cast follows the tag.
    unsafe {
        let entry: *mut pg_sys::TargetEntry = node::nth(list, n)?;
        let expression = (*entry).expr;
        if (*expression.cast::<pg_sys::Node>()).type_ != pg_sys::NodeTag::T_Var {
            return None;
        }
        let var = &*expression.cast::<pg_sys::Var>();
        Some((var.varno as u32, var.varattno))
    }
}

struct Location {
    source: Source,
    /// The column that is being converted, 0 between columns.
    column: c_int,
}

/// The callback that adds the line of CONTEXT. It owns nothing, so an out-of-memory ERROR may jump
/// over it.
unsafe extern "C-unwind" fn conversion_context(location: *mut c_void) {
    // SAFETY: the location that was pushed with the callback; formats fit their arguments.
    unsafe {
        let location = &*location.cast::<Location>();
        raw::set_errcontext_domain(null());
        match names(location) {
            (Some(relation), Name::Column(column)) => raw::errcontext_msg(
                c"column \"%s\" of foreign table \"%s\"".as_ptr(),
                column,
                relation,
            ),
            (Some(relation), Name::WholeRow) => raw::errcontext_msg(
                c"whole-row reference to foreign table \"%s\"".as_ptr(),
                relation,
            ),
            (None, Name::Column(column)) => {
                raw::errcontext_msg(c"column \"%s\" of the remote query".as_ptr(), column)
            }
            _ => raw::errcontext_msg(
                c"processing expression at position %d in select list".as_ptr(),
                location.column,
            ),
        };
    }
}

enum Name {
    Column(*const c_char),
    WholeRow,
    Unknown,
}

unsafe fn names(location: &Location) -> (Option<*const c_char>, Name) {
    let system = |column: c_int| match column {
        pg_sys::SelfItemPointerAttributeNumber => Name::Column(c"ctid".as_ptr()),
        _ => Name::Unknown,
    };
    // SAFETY: what the reader was made for is alive.
    unsafe {
        match location.source {
            Source::Relation(relation) => {
                let name = node::relation_name(relation).as_ptr();
                let descriptor = (*relation).rd_att;
                let column = match location.column {
                    n if n > 0 => Name::Column(
                        (*node::attribute(descriptor, n as usize - 1)).attname.data.as_ptr(),
                    ),
                    n => system(n),
                };
                (Some(name), column)
            }
            Source::Declared(descriptor) => {
                let attribute = node::attribute(descriptor, location.column as usize - 1);
                (None, Name::Column((*attribute).attname.data.as_ptr()))
            }
            Source::Scan(node) => {
                let plan: *const pg_sys::ForeignScan = (*node).ss.ps.plan.cast();
                let variable = match (*plan).scan.scanrelid {
                    0 if location.column > 0 => {
                        variable((*plan).fdw_scan_tlist, location.column as usize - 1)
                    }
                    0 => None,
                    index => Some((index, location.column as i16)),
                };
                let Some((index, column)) = variable else { return (None, Name::Unknown) };
                let alias = (*node::range_table_entry((*node).ss.ps.state, index)).eref;
                let name = match column {
                    0 => Name::WholeRow,
                    n if n > 0 => {
                        match node::nth::<pg_sys::String>((*alias).colnames, n as usize - 1) {
                            Some(name) => Name::Column((*name).sval),
                            None => Name::Unknown,
                        }
                    }
                    n => system(n.into()),
                };
                (Some((*alias).aliasname.cast_const()), name)
            }
        }
    }
}
