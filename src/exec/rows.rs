//! The rows of `pg_fdw_xacts_query()`, of the columns that the caller has declared, in a
//! tuplestore, which spills to disk.

use std::ffi::CStr;

use pgrx::pg_sys::{self, HeapTuple, MemoryContext};

use crate::exec::commands::Command;
use crate::exec::remote;
use crate::fdw::rows::RowReader;
use crate::libpq::PgResult;
use crate::pg::error::{Error, Result, SqlState};
use crate::pg::node;
use crate::remote::connection::{declare_command, fetch_command};
use crate::xact::Attachment;

/// The rows so far.
pub struct Rows {
    store: *mut pg_sys::Tuplestorestate,
    width: usize,
    reader: RowReader,
    /// Holds everything but the store; freed with the call.
    own: MemoryContext,
    /// A batch's tuples live here until they are in the store.
    batch: MemoryContext,
    tuples: Vec<HeapTuple>,
}

impl Rows {
    /// An empty store for rows of the columns that the caller has declared.
    ///
    /// # Safety
    /// The call of a function that returns a set of records.
    ///
    /// # Errors
    /// 0A000: the caller has declared no columns.
    pub unsafe fn declared(fcinfo: pg_sys::FunctionCallInfo) -> Result<Self> {
        // SAFETY: by contract; a set is asked for with a ReturnSetInfo, which is checked before it
        // is read.
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
                .hint("Call the function in FROM and declare the columns: pg_fdw_xacts_query(...) AS t (a int, b text)."));
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

    /// Fetches all rows of a query through a cursor, `fetch_size` in each round trip.
    ///
    /// # Errors
    /// The remote's error, an input function's, 42804 if the query has other columns than declared.
    pub fn fetch(&mut self, session: &Attachment, sql: &CStr, fetch_size: usize) -> Result<()> {
        let connection = session.connection();
        let cursor = connection.new_cursor();
        let declare = declare_command(cursor, sql.to_bytes());
        let fetch = fetch_command(cursor, fetch_size);
        let opening = [(&*declare, sql), (&*fetch, sql)];
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

    /// Frees everything but the store, because a query may call the function for each of its rows.
    /// After an error PostgreSQL frees it with the query.
    pub fn end(self) {
        // SAFETY: nothing in it is used any more: the store has copies.
        unsafe { pg_sys::MemoryContextDelete(self.own) };
    }

    fn take(&mut self, result: &PgResult) -> Result<()> {
        if result.columns() != self.width {
            return Err(self.mismatch(result.columns()));
        }
        // SAFETY: the reader's descriptor is the store's, which copies tuples and lives no longer
        // than the contexts.
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
        .detail(format!(
            "The number of columns is {columns} in the result and {} in the list.",
            self.width
        ));
        match columns {
            0 => error.hint("Run commands that return no rows with pg_fdw_xacts_exec()."),
            _ => error,
        }
    }
}
