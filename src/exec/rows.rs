//! The rows of `pg_fdw_xacts_query()`: into a tuplestore, which spills to disk, as the caller's column definition list
//! says.

use std::ffi::CStr;
use std::rc::Rc;

use pgrx::pg_sys::{self, HeapTuple, MemoryContext};

use super::commands::Command;
use super::remote;
use crate::fdw::rows::RowReader;
use crate::libpq::PgResult;
use crate::pg::error::{Error, Result, SqlState};
use crate::pg::node;
use crate::remote::connection::{declare_command, fetch_command};
use crate::xact::Attachment;

/// Where rows go.
pub struct Rows {
    store: *mut pg_sys::Tuplestorestate,
    width: usize,
    reader: RowReader,
    /// All that this has beside the store; it goes with the call.
    own: MemoryContext,
    /// A batch's tuples live here until they are in the store.
    batch: MemoryContext,
    tuples: Vec<HeapTuple>,
}

impl Rows {
    /// An empty store of rows as the caller has declared them.
    ///
    /// # Safety
    /// The call of a function that returns a set of records.
    ///
    /// # Errors
    /// 0A000: the caller has declared none.
    pub unsafe fn declared(fcinfo: pg_sys::FunctionCallInfo) -> Result<Self> {
        // SAFETY: by contract; a set is asked for with a ReturnSetInfo, which is checked before it is read.
        unsafe {
            let info = (*fcinfo).resultinfo.cast::<pg_sys::ReturnSetInfo>();
            let declared = !info.is_null()
                && (*info).type_ == pg_sys::NodeTag::T_ReturnSetInfo
                && !(*info).expectedDesc.is_null();
            if !declared {
                return Err(Error::new(
                    SqlState::FEATURE_NOT_SUPPORTED,
                    "function returning record called in context that cannot accept type record",
                )
                .hint("Call it in FROM, with a list of the columns: pg_fdw_xacts_query(...) AS t (a int, b text)."));
            }
            pg_sys::InitMaterializedSRF(fcinfo, pg_sys::MAT_SRF_USE_EXPECTED_DESC);
            let context = (*(*info).econtext).ecxt_per_query_memory;
            let own = node::memory_context(context, c"pg_fdw_xacts remote query");
            let _in = node::InContext::enter(own);
            let descriptor = (*info).setDesc;
            let scratch = node::memory_context(own, c"pg_fdw_xacts temporary data");
            Ok(Self {
                store: (*info).setResult,
                width: (*descriptor).natts as usize,
                reader: RowReader::of_declared(descriptor, scratch)?,
                own,
                batch: node::memory_context(own, c"pg_fdw_xacts tuple data"),
                tuples: Vec::new(),
            })
        }
    }

    /// Fetches all rows of a query through a cursor, `fetch_size` a wait.
    ///
    /// # Errors
    /// The remote's, an input function's, 42804 where the query has other columns than declared.
    pub fn fetch(&mut self, session: &Attachment, sql: &CStr, fetch_size: usize) -> Result<()> {
        let connection = session.connection();
        let cursor = connection.new_cursor();
        let declare = declare_command(cursor, sql.to_bytes());
        let fetch = fetch_command(cursor, fetch_size);
        let query: Rc<CStr> = sql.into();
        let opening = [(&*declare, &query), (&*fetch, &query)];
        let mut results = remote::run_for(session, &opening, |result| result)?;
        connection.cursor_opened(cursor);
        loop {
            let result = results.pop().expect("a result for each statement");
            self.take(&result)?;
            if result.rows() < fetch_size {
                return connection.close_cursor(cursor);
            }
            results = remote::run_for(session, &opening[1..], |result| result)?;
        }
    }

    /// Runs a command that no cursor can run, and takes all of its rows at once.
    ///
    /// # Errors
    /// Those of [`Self::fetch`].
    pub fn run(&mut self, session: &Attachment, command: &Command) -> Result<()> {
        for result in remote::run(session, std::slice::from_ref(command), |result| result)? {
            self.take(&result)?;
        }
        Ok(())
    }

    /// Frees all but the store: a query may call the function for each of its rows. Where an error ends the query, that
    /// frees it.
    pub fn end(self) {
        // SAFETY: nothing in it is used any more; the store has copies.
        unsafe { pg_sys::MemoryContextDelete(self.own) };
    }

    fn take(&mut self, result: &PgResult) -> Result<()> {
        if result.columns() != self.width {
            return Err(self.mismatch(result.columns()));
        }
        // SAFETY: the reader's descriptor is the store's; the store copies tuples. Both contexts live as long as the
        // store.
        unsafe {
            self.reader.read(result, 0..result.rows(), self.batch, &mut self.tuples)?;
            for tuple in self.tuples.drain(..) {
                pg_sys::tuplestore_puttuple(self.store, tuple);
            }
            pg_sys::MemoryContextReset(self.batch);
        }
        Ok(())
    }

    #[cold]
    fn mismatch(&self, columns: usize) -> Error {
        let error = Error::new(
            SqlState::DATATYPE_MISMATCH,
            "the result of the remote query does not match the column definition list",
        )
        .detail(format!("It has {columns} columns, and {} are declared.", self.width));
        match columns {
            0 => error.hint("Run commands that return no rows with pg_fdw_xacts_exec()."),
            _ => error,
        }
    }
}
