//! Many rows of an INSERT or a COPY: from the second batch on they are collected and sent by COPY,
//! which costs both sides less than half of what INSERT does.
//!
//! The first batch goes as INSERT, and a [question](QUESTION) travels behind it: does COPY do the
//! same there? It takes no notice of rules, cannot be used with row security, and inserts into
//! identity columns where INSERT must not; and where triggers may drop rows, the number of rows is
//! not known until the end. The INSERT holds a lock on the table until the transaction ends, so
//! that the answer stays true.
//!
//! The next rows are *held*: their parameters are evaluated, and are collected for a COPY when they
//! have become more than one INSERT takes. If they do not, they go as INSERT, which is one wait
//! where COPY takes two. Rows that come while a COPY is under way go with it
//! ([`super::copying`]).
//!
//! When the query has delivered all rows, before any trigger fires behind it, the rest is sent and
//! the answers are waited for: the hook on `ExecutorFinish`, or else the end of the modification.

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, c_int};
use std::rc::Rc;

use pgrx::pg_sys::{self, EState, ModifyTableState, ResultRelInfo};

use super::copying::{Copying, check};
use super::{MESSAGE_BYTES, Modification, eligible, modification};
use crate::fdw::batch::MAX_PARAMETERS;
use crate::fdw::names::Table;
use crate::guc;
use crate::libpq::PgResult;
use crate::pg::backend_local::BackendLocal;
use crate::pg::error::{Result, boundary, c_string};
use crate::pg::{node, raw};
use crate::remote::connection::{Connection, Message};

/// Whether COPY does what INSERT does on a table, or partitioned table, with this name.
const QUESTION: &CStr = c"SELECT c.relkind IN ('r', 'p') AND NOT c.relhasrules AND NOT pg_catalog.row_security_active(c.oid) \
    AND NOT EXISTS (SELECT FROM pg_catalog.pg_attribute a \
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attidentity = 'a') \
    AND NOT EXISTS (SELECT FROM pg_catalog.pg_class p \
        WHERE (p.oid = c.oid OR p.oid IN (SELECT t.relid FROM pg_catalog.pg_partition_tree(c.oid) t)) \
            AND (p.relkind = 'f' OR EXISTS (SELECT FROM pg_catalog.pg_trigger t \
                WHERE t.tgrelid = p.oid AND t.tgtype & 7 = 7))) \
    FROM pg_catalog.pg_class c WHERE c.oid = pg_catalog.to_regclass($1)";

/// How many rows the executor hands over at a time when they go by COPY. It keeps each of them in a
/// slot of its own, most with a pin on a buffer of their table, and what it remembers of the pins
/// is fast for a few only. More rows at a time save nothing that counts.
const ROWS_AT_A_TIME: c_int = 16;

static NUMBERS: BackendLocal<Cell<u64>> = BackendLocal::new(Cell::new(0));

/// The modifications that collect.
static COLLECTING: BackendLocal<RefCell<Vec<Collecting>>> =
    BackendLocal::new(RefCell::new(Vec::new()));

static PREVIOUS: BackendLocal<Cell<pg_sys::ExecutorFinish_hook_type>> =
    BackendLocal::new(Cell::new(None));

struct Collecting {
    query: *const EState,
    modification: *mut Modification,
    /// That of its [`Bulk`].
    number: u64,
    connection: *const Connection,
    shares: Rc<Cell<bool>>,
}

/// The rows of an INSERT that may be sent by COPY.
pub struct Bulk {
    query: *const EState,
    /// No other ever has it.
    number: u64,
    /// The table's remote name.
    table: Rc<CStr>,
    stage: Stage,
    /// How many rows one INSERT takes.
    full: usize,
    /// How many rows are evaluated and neither collected nor sent.
    held: usize,
    /// The target, and how many rows at a time the executor would hand over.
    narrowed: Option<(*mut ResultRelInfo, c_int)>,
    copying: Copying,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// A batch of so many rows is worth the question.
    Asks { from: usize },
    /// COPY does the same as INSERT.
    Copies,
    /// It does not.
    Inserts,
}

/// Has the rows of an INSERT or COPY collected, where nobody notices.
///
/// # Safety
/// A target whose modification has just been made, of a valid node, which is of COPY's own making
/// if it has no plan.
///
/// # Errors
/// PostgreSQL's own, when an entry of the catalog is missing.
pub unsafe fn consider(mtstate: *mut ModifyTableState, target: *mut ResultRelInfo) -> Result<()> {
    // SAFETY: by contract; nothing else refers to the state.
    unsafe {
        let this = modification(target);
        if !guc::chooses_batch_size()
            || !this.only_inserts()
            || !eligible::may_collect(mtstate, target)?
        {
            return Ok(());
        }
        let relation = (*target).ri_RelationDesc;
        let table = Table::read(relation);
        let columns: Vec<Vec<u8>> = this
            .columns
            .iter()
            .map(|&number| {
                table.column(number, node::attribute((*relation).rd_att, number as usize - 1))
            })
            .collect();
        let name = table.remote_name();
        let copy = [b"COPY ", &name[..], b"(", &columns.join(&b", "[..]), b") FROM STDIN"].concat();
        let full = guc::batch_size().min(MAX_PARAMETERS / this.outputs.len());
        this.bulk = Some(Bulk {
            query: (*mtstate).ps.state,
            number: {
                let numbers = NUMBERS.get();
                numbers.set(numbers.get() + 1);
                numbers.get()
            },
            table: c_string(name).into(),
            // Before 16 COPY hands the rows over one by one.
            stage: Stage::Asks {
                from: if (*mtstate).ps.plan.is_null() && cfg!(feature = "pg15") { 1 } else { full },
            },
            full,
            held: 0,
            narrowed: None,
            copying: Copying::new(c_string(copy)),
        });
    }
    Ok(())
}

/// Installs the hook on the end of a query; called while the server loads the library.
pub fn install() {
    // SAFETY: single-threaded start-up.
    unsafe {
        PREVIOUS.get().set(pg_sys::ExecutorFinish_hook);
        pg_sys::ExecutorFinish_hook = Some(executor_finish);
    }
}

unsafe extern "C-unwind" fn executor_finish(query: *mut pg_sys::QueryDesc) {
    // SAFETY: PostgreSQL hands a valid query; the frame owns nothing with a destructor.
    unsafe {
        boundary(|| send_all_of((*query).estate));
        let next = PREVIOUS.get().get().unwrap_or(raw::standard_ExecutorFinish);
        next(query);
    }
}

fn send_all_of(query: *const EState) -> Result<()> {
    let all = COLLECTING.get().borrow();
    if all.is_empty() {
        return Ok(());
    }
    let own: Vec<_> = all.iter().filter(|c| c.query == query).map(|c| c.modification).collect();
    drop(all);
    for this in own {
        // SAFETY: a modification is in the list as long as it lives, at the same address; the
        // query still has all of its own, and no callback of the executor runs that refers to one.
        unsafe { (*this).send_collected()? };
    }
    Ok(())
}

impl Modification {
    /// Whether it is an INSERT of which nothing comes back.
    fn only_inserts(&self) -> bool {
        self.ctid.is_none()
            && self.reader.is_none()
            && !self.volatile_source
            && !self.columns.is_empty()
            && self.template.as_ref().is_some_and(|template| !template.has_tail())
    }

    /// Whether the question whether COPY does the same goes with such a batch.
    pub(super) fn asks_with(&self, batch: usize) -> bool {
        let stage = self.bulk.as_ref().map(|bulk| bulk.stage);
        matches!(stage, Some(Stage::Asks { from }) if batch >= from)
    }

    /// Executes the statement for this many rows, with that question.
    pub(super) fn run_and_ask(&mut self, rows: usize) -> Result<Rc<PgResult>> {
        let (Some(bulk), Some(template)) = (&mut self.bulk, &self.template) else {
            return self.run(rows);
        };
        self.last_rows = rows;
        let insert: Rc<CStr> = template.text(rows).into();
        let question = Rc::from(QUESTION);
        let table = [Some(&*bulk.table)];
        let asked = self.session.submit_all(&[
            (Message::Query(&insert, &self.values), &insert),
            (Message::Query(&question, &table), &question),
        ])?;
        let inserted = self.session.wait(&asked[0])?;
        let answer = self.session.wait(&asked[1])?;
        let does_the_same = answer.value(0, 0).is_some_and(|value| value.to_bytes() == b"t");
        bulk.stage = if does_the_same { Stage::Copies } else { Stage::Inserts };
        if does_the_same {
            let (query, number) = (bulk.query, bulk.number);
            let shares = Rc::clone(bulk.copying.shares());
            let connection = std::ptr::from_ref(self.session.connection());
            let modification = std::ptr::from_mut(self);
            let mut all = COLLECTING.get().borrow_mut();
            for other in all.iter().filter(|other| other.connection == connection) {
                other.shares.set(true);
                shares.set(true);
            }
            all.push(Collecting { query, modification, number, connection, shares });
        }
        Ok(inserted)
    }

    /// Has the executor hand over fewer rows at a time if they go by COPY.
    ///
    /// # Safety
    /// This is the target's modification, and the executor is about to forget all rows that it has
    /// in slots for it.
    pub(super) unsafe fn narrow_batches(&mut self, target: *mut ResultRelInfo) {
        if let Some(bulk) = &mut self.bulk
            && bulk.stage == Stage::Copies
            && bulk.narrowed.is_none()
        {
            // SAFETY: by contract: it has slots for more rows than that, and none in use.
            let batch = unsafe { &mut (*target).ri_BatchSize };
            bulk.narrowed = Some((target, *batch));
            *batch = ROWS_AT_A_TIME.min(*batch);
        }
    }

    /// More rows come. Those that are held are collected if they have become too many for one
    /// INSERT.
    pub(super) fn make_room(&mut self, rows: usize) -> Result<()> {
        match &self.bulk {
            Some(bulk) if bulk.held > 0 => {
                let is_full = bulk.held + rows > bulk.full || self.bytes >= MESSAGE_BYTES;
                if is_full { self.collect() } else { Ok(()) }
            }
            _ => Ok(()),
        }
    }

    /// Keeps the rows that were evaluated last, if rows go by COPY: with those that are held, or
    /// with what is collected.
    pub(super) fn keep(&mut self, rows: usize) -> Result<bool> {
        match &mut self.bulk {
            Some(bulk) if bulk.stage == Stage::Copies => {
                bulk.held += rows;
                if bulk.copying.is_under_way() {
                    self.collect()?;
                }
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Whether rows are held, whose values have to stay.
    pub(super) fn holds(&self) -> bool {
        self.bulk.as_ref().is_some_and(|bulk| bulk.held > 0)
    }

    /// Collects the rows that are held.
    fn collect(&mut self) -> Result<()> {
        let Some(bulk) = &mut self.bulk else { return Ok(()) };
        let columns = self.values.len() / bulk.held;
        bulk.copying.collect(&self.values, columns);
        bulk.held = 0;
        bulk.copying.go_on(&self.session)
    }

    /// Sends all rows that are held or collected, and waits for all answers.
    pub(super) fn send_collected(&mut self) -> Result<()> {
        let Some(bulk) = &mut self.bulk else { return Ok(()) };
        if let Some((target, batch)) = bulk.narrowed.take() {
            // EXPLAIN shows it.
            // SAFETY: the target of this modification, which has not ended. No rows come any more.
            unsafe { (*target).ri_BatchSize = batch };
        }
        let held = std::mem::take(&mut bulk.held);
        if held > 0 {
            let result = self.run(held)?;
            check(&self.session, held, &result)?;
        }
        match &mut self.bulk {
            Some(bulk) => bulk.copying.finish(&self.session),
            None => Ok(()),
        }
    }
}

impl Drop for Bulk {
    fn drop(&mut self) {
        COLLECTING.get().borrow_mut().retain(|collecting| collecting.number != self.number);
    }
}
