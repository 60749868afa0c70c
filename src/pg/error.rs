//! Errors that cross between Rust and PostgreSQL without losing anything.
//!
//! pgrx turns a PostgreSQL ERROR into a panic and raises it again without CONTEXT, without the
//! names of schema, table, column and constraint, and with unknown SQLSTATEs as XX000. Here all of
//! it is kept:
//!
//! * an [`Error`] owns every field of PostgreSQL's `ErrorData`;
//! * [`frames`](crate::pg::frames) has the frames in which ERRORs and panics are caught and raised.
//!
//! Text is bytes in the server's encoding. Where `format!` builds a message, the `String` carries
//! bytes that are not UTF-8 as [`text`](crate::pg::text) says.

use std::any::Any;
use std::ffi::{CStr, CString, c_char, c_int};

use pgrx::pg_sys::errcodes::PgSqlErrorCode;
use pgrx::pg_sys::panic::{CaughtError, ErrorReport, ErrorReportWithLevel};
use pgrx::{PgLogLevel, pg_sys};

pub use crate::pg::frames::{attempt, boundary, catch, check_for_interrupts, shielded};
use crate::pg::raw;
use crate::pg::text::put_back;

/// The result of everything that can fail with a PostgreSQL error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A SQLSTATE in PostgreSQL's packed form (`MAKE_SQLSTATE` of `utils/elog.h`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SqlState(pub c_int);

impl SqlState {
    /// Packs the five characters of a SQLSTATE, six bits each.
    pub const fn new(code: &[u8; 5]) -> Self {
        let mut packed = 0;
        let mut i = 0;
        while i < 5 {
            packed |= (((code[i] - b'0') & 0x3f) as c_int) << (6 * i);
            i += 1;
        }
        Self(packed)
    }

    /// Packs what a server sent; anything malformed becomes `XX000`.
    pub fn parse(code: Option<&CStr>) -> Self {
        match code.map(CStr::to_bytes) {
            Some(&[a, b, c, d, e]) if [a, b, c, d, e].iter().all(u8::is_ascii_alphanumeric) => {
                Self::new(&[a, b, c, d, e])
            }
            _ => Self::INTERNAL_ERROR,
        }
    }

    /// The class, the first two characters, as PostgreSQL's `ERRCODE_TO_CATEGORY` gives it.
    pub const fn class(self) -> c_int {
        self.0 & 0xfff
    }

    /// 00000, of messages that are no errors.
    pub const SUCCESSFUL_COMPLETION: Self = Self::new(b"00000");
    /// XX000.
    pub const INTERNAL_ERROR: Self = Self::new(b"XX000");
    /// 08001: the connection could not be established.
    pub const UNABLE_TO_CONNECT: Self = Self::new(b"08001");
    /// 01000.
    pub const WARNING: Self = Self::new(b"01000");
    /// 08000: a connection is not what it has to be.
    pub const CONNECTION_EXCEPTION: Self = Self::new(b"08000");
    /// 08006: the connection was lost.
    pub const PROTOCOL_VIOLATION: Self = Self::new(b"08P01");
    /// 08006
    pub const CONNECTION_FAILURE: Self = Self::new(b"08006");
    /// 08007: the outcome of a transaction is unknown.
    pub const TRANSACTION_RESOLUTION_UNKNOWN: Self = Self::new(b"08007");
    /// 0A000.
    pub const FEATURE_NOT_SUPPORTED: Self = Self::new(b"0A000");
    /// 55000: something else must be done first.
    pub const OBJECT_NOT_IN_PREREQUISITE_STATE: Self = Self::new(b"55000");
    /// 40000: the whole transaction was rolled back.
    pub const TRANSACTION_ROLLBACK: Self = Self::new(b"40000");
    /// 25006: the server only reads.
    pub const ACTIVE_SQL_TRANSACTION: Self = Self::new(b"25001");
    /// `ERRCODE_NO_ACTIVE_SQL_TRANSACTION`
    pub const NO_ACTIVE_SQL_TRANSACTION: Self = Self::new(b"25P01");
    /// `ERRCODE_T_R_SERIALIZATION_FAILURE`
    pub const T_R_SERIALIZATION_FAILURE: Self = Self::new(b"40001");
    /// `ERRCODE_READ_ONLY_SQL_TRANSACTION`
    pub const READ_ONLY_SQL_TRANSACTION: Self = Self::new(b"25006");
    /// 25P02: an earlier statement has failed.
    pub const IN_FAILED_SQL_TRANSACTION: Self = Self::new(b"25P02");
    /// 40P01.
    pub const DEADLOCK_DETECTED: Self = Self::new(b"40P01");
    /// 57014: a cancel or a deadline.
    pub const QUERY_CANCELED: Self = Self::new(b"57014");
    /// 53400: a configured limit was reached.
    pub const CONFIGURATION_LIMIT_EXCEEDED: Self = Self::new(b"53400");
    /// 42704: no such object, here mostly no such prepared transaction.
    pub const UNDEFINED_OBJECT: Self = Self::new(b"42704");
    /// 42601.
    pub const SYNTAX_ERROR: Self = Self::new(b"42601");
    /// 42804: other columns or types than expected.
    pub const DATATYPE_MISMATCH: Self = Self::new(b"42804");
    /// HV000: the general foreign data wrapper error.
    pub const FDW_ERROR: Self = Self::new(b"HV000");
    /// HV00D: an option that is not known.
    pub const FDW_INVALID_OPTION_NAME: Self = Self::new(b"HV00D");
    /// HV00Q: no such schema on the server.
    pub const FDW_SCHEMA_NOT_FOUND: Self = Self::new(b"HV00Q");
    /// 2F003: a password is required.
    pub const S_R_E_PROHIBITED_SQL_STATEMENT_ATTEMPTED: Self = Self::new(b"2F003");
}

/// A PostgreSQL error with every field that `ErrorData` has, owned by Rust.
#[derive(Debug)]
pub struct Error(Box<Fields>);

#[derive(Debug, Default)]
struct Fields {
    level: c_int,
    sqlstate: c_int,
    /// The context callbacks have run already: raise with `ReThrowError`.
    context_is_complete: bool,
    output_to_server: bool,
    output_to_client: bool,
    hide_stmt: bool,
    hide_ctx: bool,
    lineno: c_int,
    cursorpos: c_int,
    internalpos: c_int,
    filename: Option<CString>,
    funcname: Option<CString>,
    message: Option<CString>,
    detail: Option<CString>,
    detail_log: Option<CString>,
    hint: Option<CString>,
    context: Option<CString>,
    schema_name: Option<CString>,
    table_name: Option<CString>,
    column_name: Option<CString>,
    datatype_name: Option<CString>,
    constraint_name: Option<CString>,
    internalquery: Option<CString>,
}

/// Bytes to a C string; a NUL inside ends it, as it would in C.
pub fn c_string(bytes: impl Into<Vec<u8>>) -> CString {
    let mut bytes = bytes.into();
    if let Some(nul) = bytes.iter().position(|&b| b == 0) {
        bytes.truncate(nul);
    }
    CString::new(bytes).expect("truncated at the first NUL")
}

impl Error {
    /// A new ERROR with its SQLSTATE and primary message.
    #[track_caller]
    pub fn new(sqlstate: SqlState, message: impl Into<Vec<u8>>) -> Self {
        let at = std::panic::Location::caller();
        Self(Box::new(Fields {
            level: PgLogLevel::ERROR as c_int,
            sqlstate: sqlstate.0,
            message: Some(c_string(put_back(message))),
            filename: Some(c_string(at.file())),
            lineno: at.line() as c_int,
            ..Fields::default()
        }))
    }

    pub fn detail(mut self, text: impl Into<Vec<u8>>) -> Self {
        self.0.detail = Some(c_string(put_back(text)));
        self
    }

    /// Adds a DETAIL for the server's log alone.
    pub fn detail_log(mut self, text: impl Into<Vec<u8>>) -> Self {
        self.0.detail_log = Some(c_string(text));
        self
    }

    pub fn hint(mut self, text: impl Into<Vec<u8>>) -> Self {
        self.0.hint = Some(c_string(put_back(text)));
        self
    }

    /// Adds a line of CONTEXT after those that it has.
    pub fn context(mut self, line: impl Into<Vec<u8>>) -> Self {
        let line = put_back(line);
        self.0.context = Some(match self.0.context.take() {
            Some(inner) => c_string([inner.to_bytes(), b"\n", &line].concat()),
            None => c_string(line),
        });
        self
    }

    /// The packed SQLSTATE.
    pub fn sqlstate(&self) -> SqlState {
        SqlState(self.0.sqlstate)
    }

    /// The primary message, empty if there is none.
    pub fn message(&self) -> &CStr {
        self.0.message.as_deref().unwrap_or(c"")
    }

    /// The primary message and the detail in one line, for a reader who is shown nothing else.
    pub fn summary(&self) -> Vec<u8> {
        let mut text = self.message().to_bytes().to_vec();
        if let Some(detail) = &self.0.detail {
            text.extend_from_slice(b": ");
            text.extend(
                detail.to_bytes().iter().map(|b| if b.is_ascii_whitespace() { b' ' } else { *b }),
            );
        }
        text
    }

    /// Copies everything out of an `ErrorData`.
    ///
    /// # Safety
    /// `edata` points to a valid `ErrorData`.
    pub(super) unsafe fn from_error_data(edata: &pg_sys::ErrorData) -> Self {
        // SAFETY: PostgreSQL's strings are NULL or NUL-terminated.
        let text =
            |p: *const c_char| (!p.is_null()).then(|| unsafe { CStr::from_ptr(p) }.to_owned());
        Self(Box::new(Fields {
            level: edata.elevel,
            sqlstate: edata.sqlerrcode,
            context_is_complete: true,
            output_to_server: edata.output_to_server,
            output_to_client: edata.output_to_client,
            hide_stmt: edata.hide_stmt,
            hide_ctx: edata.hide_ctx,
            lineno: edata.lineno,
            cursorpos: edata.cursorpos,
            internalpos: edata.internalpos,
            filename: text(edata.filename),
            funcname: text(edata.funcname),
            message: text(edata.message),
            detail: text(edata.detail),
            detail_log: text(edata.detail_log),
            hint: text(edata.hint),
            context: text(edata.context),
            schema_name: text(edata.schema_name),
            table_name: text(edata.table_name),
            column_name: text(edata.column_name),
            datatype_name: text(edata.datatype_name),
            constraint_name: text(edata.constraint_name),
            internalquery: text(edata.internalquery),
        }))
    }

    /// The error that a panic carries: one of ours, one of pgrx's, or a plain Rust panic.
    pub fn from_panic(payload: Box<dyn Any + Send>) -> Self {
        fn report(
            sqlstate: c_int,
            message: &str,
            detail: Option<&str>,
            hint: Option<&str>,
        ) -> Error {
            let mut error = Error::new(SqlState(sqlstate), message);
            error.0.detail = detail.map(c_string);
            error.0.hint = hint.map(c_string);
            error
        }
        fn with_level(r: &ErrorReportWithLevel) -> Error {
            report(r.sql_error_code() as c_int, r.message(), r.detail(), r.hint())
        }
        if let Some(caught) = payload.downcast_ref::<CaughtError>() {
            match caught {
                CaughtError::PostgresError(r) | CaughtError::ErrorReport(r) => with_level(r),
                CaughtError::RustPanic { ereport, .. } => with_level(ereport),
            }
        } else if let Some(r) = payload.downcast_ref::<ErrorReportWithLevel>() {
            with_level(r)
        } else if let Some(r) = payload.downcast_ref::<ErrorReport>() {
            report(SqlState::INTERNAL_ERROR.0, r.message(), r.detail(), r.hint())
        } else if let Some(text) = payload.downcast_ref::<&str>() {
            report(SqlState::INTERNAL_ERROR.0, text, None, None)
        } else if let Some(text) = payload.downcast_ref::<String>() {
            report(SqlState::INTERNAL_ERROR.0, text, None, None)
        } else {
            report(SqlState::INTERNAL_ERROR.0, "a panic of an unknown kind", None, None)
        }
    }

    /// Builds the `ErrorData` in PostgreSQL's ErrorContext and drops everything that Rust owns.
    fn into_error_data(self) -> *mut pg_sys::ErrorData {
        let f = self.0;
        // SAFETY: ErrorContext always exists and keeps a reserve for this; the strings are copied.
        unsafe {
            let context = pg_sys::ErrorContext;
            let text = |s: &Option<CString>| match s {
                Some(s) => raw::MemoryContextStrdup(context, s.as_ptr()),
                None => std::ptr::null_mut(),
            };
            let edata: *mut pg_sys::ErrorData =
                raw::MemoryContextAllocZero(context, size_of::<pg_sys::ErrorData>()).cast();
            let e = &mut *edata;
            e.elevel = f.level;
            e.sqlerrcode = f.sqlstate;
            e.output_to_server = f.output_to_server;
            e.output_to_client = f.output_to_client;
            e.hide_stmt = f.hide_stmt;
            e.hide_ctx = f.hide_ctx;
            e.lineno = f.lineno;
            e.cursorpos = f.cursorpos;
            e.internalpos = f.internalpos;
            e.filename = text(&f.filename);
            e.funcname = text(&f.funcname);
            e.message = text(&f.message);
            e.detail = text(&f.detail);
            e.detail_log = text(&f.detail_log);
            e.hint = text(&f.hint);
            e.context = text(&f.context);
            e.schema_name = text(&f.schema_name);
            e.table_name = text(&f.table_name);
            e.column_name = text(&f.column_name);
            e.datatype_name = text(&f.datatype_name);
            e.constraint_name = text(&f.constraint_name);
            e.internalquery = text(&f.internalquery);
            e.assoc_context = context;
            edata
        }
    }

    /// Reports at a level below ERROR, with the message, DETAIL and HINT it has.
    ///
    /// # Errors
    /// Reporting itself can fail: the text may not convert to the client's encoding.
    pub fn log(mut self, level: PgLogLevel) -> Result<()> {
        self.0.level = level as c_int;
        self.0.context_is_complete = false;
        catch(move || {
            let edata = self.into_error_data();
            // SAFETY: a complete ErrorData; an ERROR raised in it is caught around us, and this
            // frame has nothing left to drop.
            unsafe { raw::ThrowErrorData(edata) }
        })
    }

    /// Raises from a function that pgrx wraps, as a panic that the wrapper reports. The wrapper
    /// keeps texts as `String`: of a text that is not UTF-8, only the ASCII characters are left.
    pub fn raise_in_pgrx(self) -> ! {
        let ascii = |b: &u8| if b.is_ascii() { char::from(*b) } else { '?' };
        let text = |s: &Option<CString>| {
            let s = s.as_ref()?;
            Some(
                s.to_str().map_or_else(|_| s.to_bytes().iter().map(ascii).collect(), str::to_owned),
            )
        };
        let code = PgSqlErrorCode::from(self.0.sqlstate as isize);
        let mut report = ErrorReport::new(code, text(&self.0.message).unwrap_or_default(), "");
        if let Some(detail) = text(&self.0.detail) {
            report = report.set_detail(detail);
        }
        if let Some(hint) = text(&self.0.hint) {
            report = report.set_hint(hint);
        }
        report.report(PgLogLevel::ERROR);
        unreachable!("reporting an ERROR returned")
    }

    /// Raises to PostgreSQL. Only [`boundary`] may: its frame has nothing left to drop.
    pub(super) fn raise(self) -> ! {
        let complete = self.0.context_is_complete;
        let edata = self.into_error_data();
        // SAFETY: a complete ErrorData of level ERROR; the frames above hold no destructors.
        unsafe {
            if complete {
                raw::ReThrowError(edata)
            } else {
                raw::ThrowErrorData(edata);
                unreachable!("ThrowErrorData returned from an ERROR")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sqlstate_packs_as_postgresql_does() {
        assert_eq!(SqlState::new(b"00000").0, 0);
        assert_eq!(
            SqlState::new(b"42704").0,
            pg_sys::errcodes::PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT as c_int
        );
        assert_eq!(SqlState::parse(Some(c"08007")), SqlState::TRANSACTION_RESOLUTION_UNKNOWN);
        assert_eq!(SqlState::parse(Some(c"zz")), SqlState::INTERNAL_ERROR);
        assert_eq!(SqlState::parse(None), SqlState::INTERNAL_ERROR);
    }

    #[test]
    fn a_nul_ends_a_text() {
        assert_eq!(c_string(&b"ab\0cd"[..]).to_bytes(), b"ab");
    }
}
