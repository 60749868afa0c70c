//! Many rows of an INSERT or a COPY: from the second batch on they are collected and sent by COPY,
//! which costs both sides less than half of what INSERT does.
//!
//! The first batch goes as INSERT, and a [question](QUESTION) travels behind it: does COPY do the
//! same there? It takes no notice of rules, cannot be used with row security, and inserts into
//! identity columns where INSERT must not; and where triggers may drop rows, the number of rows is
//! not known until the end. The INSERT holds a lock on the table until the transaction ends, so
//! that the answer stays true.
//!
//! The rows of the last batch are *held*: their parameters are evaluated, and are collected when
//! more come. If none do and nothing else is collected, they go as INSERT, which is one wait where
//! COPY takes two. Each COPY is a command of its own, and while the server works on it, rows are
//! collected for the next one.
//!
//! When the query has delivered all rows, before any trigger fires behind it, the rest is sent and
//! the answers are waited for: the hook on `ExecutorFinish`, or else the end of the modification.

use std::cell::{Cell, RefCell};
use std::ffi::CStr;
use std::rc::Rc;

use pgrx::pg_sys::{self, EState, ModifyTableState, ResultRelInfo};

use super::{Modification, eligible, modification};
use crate::fdw::batch::MAX_PARAMETERS;
use crate::fdw::names::Table;
use crate::guc;
use crate::libpq::PgResult;
use crate::pg::backend_local::BackendLocal;
use crate::pg::error::{Error, Result, SqlState, boundary, c_string};
use crate::pg::{node, raw};
use crate::protocol::copy_text::push_row;
use crate::remote::connection::{Asked, Message};
use crate::remote::report;

/// Whether COPY does what INSERT does on a table, or partitioned table, with this name.
const QUESTION: &CStr = c"SELECT c.relkind IN ('r', 'p') AND NOT c.relhasrules AND NOT pg_catalog.row_security_active(c.oid) \
    AND NOT EXISTS (SELECT FROM pg_catalog.pg_attribute a \
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attidentity = 'a') \
    AND NOT EXISTS (SELECT FROM pg_catalog.pg_class p \
        WHERE (p.oid = c.oid OR p.oid IN (SELECT t.relid FROM pg_catalog.pg_partition_tree(c.oid) t)) \
            AND (p.relkind = 'f' OR EXISTS (SELECT FROM pg_catalog.pg_trigger t \
                WHERE t.tgrelid = p.oid AND t.tgtype & 7 = 7))) \
    FROM pg_catalog.pg_class c WHERE c.oid = pg_catalog.to_regclass($1)";

/// A COPY has a quarter of what was sent before, but no less and no more than this: so the server
/// soon has something to do, and what it has still to do at the end takes a fraction of the time.
const LEAST_BYTES: usize = 1 << 17;
const MOST_BYTES: usize = 1 << 20;

/// What all targets of this session collect together. Beyond this each sends what it has.
const MOST_BYTES_OF_ALL: usize = 16 << 20;

/// How many bytes are collected until the connection is looked after.
const BYTES_BETWEEN_LOOKS: usize = 1 << 14;

static NUMBERS: BackendLocal<Cell<u64>> = BackendLocal::new(Cell::new(0));

static COLLECTED: BackendLocal<Cell<usize>> = BackendLocal::new(Cell::new(0));

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
}

/// The rows of an INSERT that may be sent by COPY.
pub struct Bulk {
    query: *const EState,
    /// No other ever has it.
    number: u64,
    /// The table's remote name.
    table: Rc<CStr>,
    copy: Rc<CStr>,
    stage: Stage,
    /// How many rows are evaluated and neither collected nor sent.
    held: usize,
    collected: Vec<u8>,
    rows: usize,
    /// How much was collected when the connection was looked after.
    looked_at: usize,
    /// How many bytes were sent.
    sent: usize,
    /// The last COPY and its number of rows, until its answer is taken.
    under_way: Option<(Asked, usize)>,
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
/// A target whose modification has just been made, of a valid node, which is of COPY's own making if
/// it has no plan.
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
            copy: c_string(copy).into(),
            // Before 16 COPY hands the rows over one by one.
            stage: Stage::Asks {
                from: if (*mtstate).ps.plan.is_null() && cfg!(feature = "pg15") { 1 } else { full },
            },
            held: 0,
            collected: Vec::new(),
            rows: 0,
            looked_at: 0,
            sent: 0,
            under_way: None,
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
            let modification = std::ptr::from_mut(self);
            COLLECTING.get().borrow_mut().push(Collecting { query, modification, number });
        }
        Ok(inserted)
    }

    /// Holds the rows that were evaluated, if more of them would be sent by COPY.
    pub(super) fn hold(&mut self, rows: usize) -> bool {
        match &mut self.bulk {
            Some(bulk) if bulk.stage == Stage::Copies => {
                bulk.held = rows;
                true
            }
            _ => false,
        }
    }

    /// More rows come: those that are held are collected, and what is collected is sent if it is
    /// enough.
    pub(super) fn collect_held(&mut self) -> Result<()> {
        let Some(bulk) = &mut self.bulk else { return Ok(()) };
        if bulk.held == 0 {
            return Ok(());
        }
        bulk.collect(&self.values);
        if bulk.collected.len() >= bulk.enough() {
            return self.copy();
        }
        if bulk.looks_again() {
            self.session.connection().pump();
        }
        Ok(())
    }

    /// Sends all rows that are held or collected, and waits for all answers.
    pub(super) fn send_collected(&mut self) -> Result<()> {
        let Some(bulk) = &mut self.bulk else { return Ok(()) };
        if bulk.held > 0 && bulk.rows > 0 {
            bulk.collect(&self.values);
        }
        match (bulk.held, bulk.rows) {
            (0, 0) => {}
            (0, _) => self.copy()?,
            (held, _) => {
                bulk.held = 0;
                let result = self.run(held)?;
                self.check(held, &result)?;
            }
        }
        self.take_answer()
    }

    /// Sends what is collected, when the COPY before has been answered.
    fn copy(&mut self) -> Result<()> {
        self.take_answer()?;
        let Some(bulk) = &mut self.bulk else { return Ok(()) };
        let data = bulk.take();
        let asked = self.session.copy(&bulk.copy, data)?;
        bulk.under_way = Some((asked, std::mem::take(&mut bulk.rows)));
        Ok(())
    }

    fn take_answer(&mut self) -> Result<()> {
        let Some((asked, rows)) = self.bulk.as_mut().and_then(|bulk| bulk.under_way.take()) else {
            return Ok(());
        };
        let result = self.session.wait(&asked)?;
        if !result.command_tag().to_bytes().starts_with(b"COPY ") {
            return Err(report::unexpected_answer(&self.session.connection().server_name));
        }
        self.check(rows, &result)
    }

    /// The executor has been told that all of them were inserted.
    fn check(&self, rows: usize, result: &PgResult) -> Result<()> {
        let inserted = result.rows_affected();
        if inserted == rows as u64 {
            return Ok(());
        }
        let server = self.session.connection().server_name.to_bytes();
        Err(Error::new(
            SqlState::FDW_ERROR,
            [b"server \"", server, format!("\" has inserted {inserted} rows of {rows}").as_bytes()]
                .concat(),
        )
        .detail("When the statement began, nothing there could drop rows.")
        .hint("Try again, or set batch_size for the foreign table."))
    }
}

impl Bulk {
    /// Collects the rows that are held, which have these values.
    fn collect(&mut self, values: &[Option<&CStr>]) {
        let before = self.collected.len();
        if self.collected.capacity() == 0 {
            self.collected.reserve(self.enough() + BYTES_BETWEEN_LOOKS);
        }
        for row in values.chunks(values.len() / self.held) {
            push_row(&mut self.collected, row.iter().map(|value| value.map(CStr::to_bytes)));
        }
        self.rows += std::mem::take(&mut self.held);
        let of_all = COLLECTED.get();
        of_all.set(of_all.get() + self.collected.len() - before);
    }

    /// How much is enough for a COPY.
    fn enough(&self) -> usize {
        match COLLECTED.get().get() >= MOST_BYTES_OF_ALL {
            true => 0,
            false => (self.sent / 4).clamp(LEAST_BYTES, MOST_BYTES),
        }
    }

    /// Whether it is time to look after the connection, which hands on what the server takes of the
    /// last COPY.
    fn looks_again(&mut self) -> bool {
        let is_time = self.under_way.is_some()
            && self.collected.len() >= self.looked_at + BYTES_BETWEEN_LOOKS;
        if is_time {
            self.looked_at = self.collected.len();
        }
        is_time
    }

    fn take(&mut self) -> Vec<u8> {
        let data = std::mem::take(&mut self.collected);
        let of_all = COLLECTED.get();
        of_all.set(of_all.get() - data.len());
        self.sent += data.len();
        self.looked_at = 0;
        data
    }
}

impl Drop for Bulk {
    fn drop(&mut self) {
        self.take();
        COLLECTING.get().borrow_mut().retain(|collecting| collecting.number != self.number);
    }
}
