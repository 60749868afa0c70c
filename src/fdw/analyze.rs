//! ANALYZE: the size of the remote table, and a random sample of its rows.
//!
//! The rows come through a cursor and the sample is drawn here, which needs memory for the sample
//! and one batch. From 16 on, with the option `analyze_sampling`, the participant draws a sample
//! first, so that fewer rows travel; the total number of rows is then taken from its own
//! statistics.

use std::ffi::{CStr, c_int};
use std::rc::Rc;

use pgrx::PgLogLevel;
use pgrx::pg_sys::{self, AcquireSampleRowsFunc, BlockNumber, HeapTuple, Relation};

use crate::fdw::names::Table;
use crate::fdw::rows::RowReader;
use crate::libpq::PgResult;
use crate::pg::error::{Error, Result, SqlState, boundary, c_string, check_for_interrupts};
use crate::pg::node;
use crate::remote::connection::{Message, fetch_command};
use crate::remote::quoting::literal;
use crate::xact::{Attachment, attach};

/// Rows per FETCH, where no option says.
const FETCH_SIZE: c_int = 100;

/// `AnalyzeForeignTable`: how many pages the table has, counted in pages of this server, and which
/// function samples it. Access is as the table's owner, whoever runs ANALYZE.
///
/// # Safety
/// Called by ANALYZE with an open foreign table.
pub unsafe extern "C-unwind" fn size(
    relation: Relation,
    function: *mut AcquireSampleRowsFunc,
    pages: *mut BlockNumber,
) -> bool {
    // SAFETY: an open relation and room for the answers.
    boundary(|| unsafe {
        let table = Table::read(relation);
        let session = attach_as_owner(relation, &table)?;
        let sql = c_string(
            [
                b"SELECT pg_catalog.pg_relation_size(",
                &literal(&table.remote_name())[..],
                format!("::pg_catalog.regclass) / {}", pg_sys::BLCKSZ).as_bytes(),
            ]
            .concat(),
        );
        let result = session.run(sql, &[])?;
        *pages = number(result.value(0, 0)).map_or(0, |pages| pages as BlockNumber);
        *function = Some(sample);
        Ok(true)
    })
}

/// Fills `rows` with at most `target` rows of the table, which live in the current memory context,
/// and returns their number. PostgreSQL calls it for each partition, too.
unsafe extern "C-unwind" fn sample(
    relation: Relation,
    level: c_int,
    rows: *mut HeapTuple,
    target: c_int,
    total: *mut f64,
    dead: *mut f64,
) -> c_int {
    // SAFETY: an open relation, room for `target` rows and for the answers.
    boundary(|| unsafe {
        let table = Table::read(relation);
        let session = attach_as_owner(relation, &table)?;
        let method = Method::read(&table);
        let plan = method.plan(&session, &table, f64::from(target))?;
        let context = pg_sys::CurrentMemoryContext;
        let scratch = node::memory_context(context, c"pg_fdw_xacts temporary data");
        let (select, columns) = table.select_list();
        let mut sampled = Sampled {
            reader: RowReader::of_relation(relation, columns, scratch)?,
            reservoir: Reservoir::new(target),
            context,
            rows,
            tuple: Vec::with_capacity(1),
        };
        let query =
            [b"SELECT ", &select[..], b" FROM ", &table.remote_name(), plan.clause.as_bytes()]
                .concat();
        for_each_batch(&session, &table, &query, |result| sampled.add(result))?;
        let Sampled { reservoir, .. } = sampled;
        pg_sys::MemoryContextDelete(scratch);
        *total = plan.rows.unwrap_or(reservoir.seen);
        *dead = 0.0;
        report(relation, level, *total, reservoir.kept)?;
        Ok(reservoir.kept)
    })
}

/// # Safety
/// An open relation.
unsafe fn attach_as_owner(relation: Relation, table: &Table) -> Result<Attachment> {
    // SAFETY: by contract.
    attach(unsafe { (*(*relation).rd_rel).relowner }, table.options.serverid)
}

fn number(text: Option<&CStr>) -> Option<f64> {
    text?.to_str().ok()?.parse().ok()
}

/// Runs a query through a cursor and passes its result on batch by batch. The cursor is closed
/// before the next statement, or by the end of the transaction.
fn for_each_batch(
    session: &Attachment,
    table: &Table,
    query: &[u8],
    mut take: impl FnMut(&PgResult) -> Result<()>,
) -> Result<()> {
    let size = fetch_size(table);
    let cursor = session.connection().new_cursor();
    let declare = [format!("DECLARE c{cursor} CURSOR FOR ").as_bytes(), query].concat();
    let declare: Rc<CStr> = c_string(declare).into();
    let fetch: Rc<CStr> = fetch_command(cursor, size as usize).into();
    // An error while fetching is reported for the query.
    let both = [(Message::Query(&declare, &[]), &declare), (Message::Query(&fetch, &[]), &declare)];
    let asked = session.submit_all(&both)?;
    session.connection().cursor_opened(cursor);
    session.wait(&asked[0])?;
    let mut batch: Rc<PgResult> = session.wait(&asked[1])?;
    loop {
        check_for_interrupts()?;
        take(&batch)?;
        if batch.rows() < size as usize {
            break;
        }
        batch = session.wait(&session.fetch_more(&fetch, &declare)?)?;
    }
    session.connection().close_cursor(cursor)
}

fn fetch_size(table: &Table) -> c_int {
    let mut size = FETCH_SIZE;
    if let Some(text) = table.options.get(c"fetch_size") {
        // SAFETY: a C string and room for the answer.
        unsafe { pg_sys::parse_int(text.as_ptr(), &mut size, 0, std::ptr::null_mut()) };
    }
    size.max(1)
}

/// Reports the result, at the level that ANALYZE asks for.
unsafe fn report(relation: Relation, level: c_int, total: f64, kept: c_int) -> Result<()> {
    // SAFETY: an open relation.
    let name = unsafe { node::relation_name(relation) };
    let text = format!("\": table contains {total:.0} rows, {kept} rows in sample");
    Error::new(SqlState::SUCCESSFUL_COMPLETION, [b"\"", name.to_bytes(), text.as_bytes()].concat())
        .log(PgLogLevel::from(level))
}

/// The option `analyze_sampling`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Method {
    /// All rows travel.
    Off,
    /// Whichever of the others the remote relation supports.
    Auto,
    Random,
    System,
    Bernoulli,
}

/// How rows are requested.
struct Plan {
    /// What follows the table in FROM.
    clause: String,
    /// The total number of rows, unless the rows that come are counted.
    rows: Option<f64>,
}

impl Method {
    /// PostgreSQL 15 has no such option and reads all rows.
    const DEFAULT: Self = if cfg!(feature = "pg15") { Self::Off } else { Self::Auto };

    fn read(table: &Table) -> Self {
        match table.options.get(c"analyze_sampling").map(CStr::to_bytes) {
            Some(b"off") => Self::Off,
            Some(b"auto") => Self::Auto,
            Some(b"random") => Self::Random,
            Some(b"system") => Self::System,
            Some(b"bernoulli") => Self::Bernoulli,
            // The validator lets no other value pass.
            _ => Self::DEFAULT,
        }
    }

    /// Chooses how to request `target` rows, by how many the participant says there are.
    fn plan(self, session: &Attachment, table: &Table, target: f64) -> Result<Plan> {
        let everything = Plan { clause: String::new(), rows: None };
        if self == Self::Off {
            return Ok(everything);
        }
        let sql = c_string(
            [
                b"SELECT reltuples, relkind FROM pg_catalog.pg_class WHERE oid = ",
                &literal(&table.remote_name())[..],
                b"::pg_catalog.regclass",
            ]
            .concat(),
        );
        let result = session.run(sql, &[])?;
        // -1 where it has never been analyzed.
        let rows = number(result.value(0, 0)).unwrap_or(-1.0);
        let can_sample =
            result.value(0, 1).is_some_and(|kind| matches!(kind.to_bytes(), b"r" | b"m" | b"p"));
        if rows <= 0.0 || target >= rows {
            return Ok(everything);
        }
        Ok(Plan { clause: self.clause(target / rows, can_sample), rows: Some(rows) })
    }

    /// The clause that selects each row with probability `fraction`. A method that was requested by
    /// name is used even where it will be refused.
    fn clause(self, fraction: f64, can_sample: bool) -> String {
        let percent = 100.0 * fraction;
        match self {
            Self::Off => String::new(),
            Self::Auto if can_sample => Self::Bernoulli.clause(fraction, can_sample),
            Self::Auto | Self::Random => format!(" WHERE pg_catalog.random() < {fraction:.6}"),
            Self::System => format!(" TABLESAMPLE SYSTEM({percent:.6})"),
            Self::Bernoulli => format!(" TABLESAMPLE BERNOULLI({percent:.6})"),
        }
    }
}

/// The sample as it is being drawn.
struct Sampled {
    reader: RowReader,
    reservoir: Reservoir,
    /// Where its rows live.
    context: pg_sys::MemoryContext,
    /// Its rows, as many as the reservoir keeps.
    rows: *mut HeapTuple,
    tuple: Vec<HeapTuple>,
}

impl Sampled {
    /// Adds rows that have come. Those that are not kept are not converted.
    fn add(&mut self, result: &PgResult) -> Result<()> {
        for row in 0..result.rows() {
            let Some(place) = self.reservoir.next() else { continue };
            self.tuple.clear();
            // SAFETY: the relation, the context and `rows` outlive the sample, and a place lies
            // inside of `rows`. Each place that was given before holds a row of ours.
            unsafe {
                self.reader.read(result, row..row + 1, self.context, &mut self.tuple)?;
                let at = self.rows.add(place.index);
                if place.is_taken {
                    pg_sys::heap_freetuple(*at);
                }
                *at = self.tuple[0];
            }
        }
        Ok(())
    }
}

/// Chooses which of an unknown number of rows are kept, so that each has the same chance: all of
/// the first ones, then now and then one in place of a random other (Vitter's algorithm, as in
/// ANALYZE of a local table).
struct Reservoir {
    state: pg_sys::ReservoirStateData,
    target: c_int,
    kept: c_int,
    /// How many rows have come.
    seen: f64,
    /// How many rows to skip before the next is kept; negative when that has to be drawn.
    skip: f64,
}

/// Where a row is kept.
struct Place {
    index: usize,
    /// Another row was there.
    is_taken: bool,
}

impl Reservoir {
    fn new(target: c_int) -> Self {
        let mut state = pg_sys::ReservoirStateData::default();
        // SAFETY: a state to be filled.
        unsafe { pg_sys::reservoir_init_selection_state(&mut state, target) };
        Self { state, target, kept: 0, seen: 0.0, skip: -1.0 }
    }

    /// The place of the next row; `None` if it is not kept.
    fn next(&mut self) -> Option<Place> {
        self.seen += 1.0;
        if self.kept < self.target {
            self.kept += 1;
            return Some(Place { index: self.kept as usize - 1, is_taken: false });
        }
        if self.skip < 0.0 {
            // SAFETY: an initialised state.
            self.skip =
                unsafe { pg_sys::reservoir_get_next_S(&mut self.state, self.seen, self.target) };
        }
        let passed_over = self.skip > 0.0;
        self.skip -= 1.0;
        if passed_over {
            return None;
        }
        // SAFETY: as above; the fraction is below 1.
        let fraction = unsafe { pg_sys::sampler_random_fract(&mut self.state.randstate) };
        Some(Place { index: (f64::from(self.target) * fraction) as usize, is_taken: true })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_samples_tables_and_filters_what_cannot_be_sampled() {
        assert_eq!(Method::Auto.clause(0.25, true), " TABLESAMPLE BERNOULLI(25.000000)");
        assert_eq!(Method::Auto.clause(0.25, false), " WHERE pg_catalog.random() < 0.250000");
        // A method that is requested by name is used, or is the participant's error.
        assert_eq!(Method::System.clause(1.0 / 3.0, false), " TABLESAMPLE SYSTEM(33.333333)");
        assert_eq!(Method::Off.clause(0.25, true), "");
    }
}
