//! A result of libpq that frees itself.

use std::ffi::{CStr, c_int};
use std::ptr::NonNull;

/// One result of a command, or of a `Sync`.
#[derive(Debug)]
pub struct PgResult(NonNull<pq_sys::PGresult>);

/// What a [`PgResult`] is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Status {
    /// A command without rows was done; [`PgResult::command_tag`] says which.
    CommandOk,
    /// Rows.
    TuplesOk,
    /// The server answered with an error, or the connection broke.
    Error,
    /// Skipped, because an earlier command of the same segment failed.
    PipelineAborted,
    /// The answer to a `Sync`.
    PipelineSync,
    /// The server is ready to take the data of a COPY. In pipeline mode that ruins the connection,
    /// as [`Status::Copy`] does.
    CopyIn,
    /// The server started the COPY protocol otherwise.
    Copy,
    /// Anything else: an empty query, an unexpected kind.
    Other,
}

impl PgResult {
    /// Takes ownership; `None` for NULL.
    pub(super) fn from_raw(raw: *mut pq_sys::PGresult) -> Option<Self> {
        NonNull::new(raw).map(Self)
    }

    fn raw(&self) -> *const pq_sys::PGresult {
        self.0.as_ptr()
    }

    /// What this result is.
    pub fn status(&self) -> Status {
        use pq_sys::ExecStatusType as S;
        // SAFETY: the result is alive.
        match unsafe { pq_sys::PQresultStatus(self.raw()) } {
            S::PGRES_COMMAND_OK => Status::CommandOk,
            S::PGRES_TUPLES_OK | S::PGRES_SINGLE_TUPLE => Status::TuplesOk,
            S::PGRES_FATAL_ERROR | S::PGRES_BAD_RESPONSE => Status::Error,
            S::PGRES_PIPELINE_ABORTED => Status::PipelineAborted,
            S::PGRES_PIPELINE_SYNC => Status::PipelineSync,
            S::PGRES_COPY_IN => Status::CopyIn,
            S::PGRES_COPY_OUT | S::PGRES_COPY_BOTH => Status::Copy,
            _ => Status::Other,
        }
    }

    /// The command tag, as `PREPARE TRANSACTION`; empty if there is none.
    pub fn command_tag(&self) -> &CStr {
        // SAFETY: libpq returns a string inside the result; it only reads through the pointer.
        unsafe { CStr::from_ptr(pq_sys::PQcmdStatus(self.0.as_ptr())) }
    }

    /// The rows affected, by the command tag; 0 if it has none.
    pub fn rows_affected(&self) -> u64 {
        // SAFETY: as in `command_tag`.
        let text = unsafe { CStr::from_ptr(pq_sys::PQcmdTuples(self.0.as_ptr())) };
        text.to_str().ok().and_then(|t| t.parse().ok()).unwrap_or(0)
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        // SAFETY: the result is alive.
        unsafe { pq_sys::PQntuples(self.raw()) as usize }
    }

    /// The number of columns.
    pub fn columns(&self) -> usize {
        // SAFETY: the result is alive.
        unsafe { pq_sys::PQnfields(self.raw()) as usize }
    }

    /// Whether it is rows, as many or none, of so many columns.
    pub fn is_rows_of(&self, columns: usize) -> bool {
        self.status() == Status::TuplesOk && self.columns() == columns
    }

    /// Its size in memory, in bytes.
    pub fn memory(&self) -> usize {
        // SAFETY: the result is alive.
        unsafe { pq_sys::PQresultMemorySize(self.raw()) }
    }

    /// A value in text form; `None` for NULL and outside the result.
    pub fn value(&self, row: usize, column: usize) -> Option<&CStr> {
        if row >= self.rows() || column >= self.columns() {
            return None;
        }
        let (row, column) = (row as c_int, column as c_int);
        // SAFETY: inside the bounds; the value is NUL-terminated and lives as long as the result.
        unsafe {
            if pq_sys::PQgetisnull(self.raw(), row, column) != 0 {
                None
            } else {
                Some(CStr::from_ptr(pq_sys::PQgetvalue(self.raw(), row, column)))
            }
        }
    }

    /// A field of an error, by its code in the protocol (`b'C'` is the SQLSTATE).
    pub fn error_field(&self, code: u8) -> Option<&CStr> {
        // SAFETY: NULL or a string inside the result.
        unsafe {
            let text = pq_sys::PQresultErrorField(self.raw(), code as c_int);
            (!text.is_null()).then(|| CStr::from_ptr(text))
        }
    }

    /// Whether this is an error with which the server ended the session.
    pub fn is_fatal(&self) -> bool {
        self.error_field(b'V').is_some_and(|v| matches!(v.to_bytes(), b"FATAL" | b"PANIC"))
    }

    /// The whole error as libpq words it, each line ended; empty if there is none.
    pub fn error_message(&self) -> &CStr {
        // SAFETY: a string inside the result.
        unsafe { CStr::from_ptr(pq_sys::PQresultErrorMessage(self.raw())) }
    }
}

impl Drop for PgResult {
    fn drop(&mut self) {
        // SAFETY: owned, freed once.
        unsafe { pq_sys::PQclear(self.0.as_ptr()) }
    }
}
