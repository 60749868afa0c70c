//! Errors that cross between Rust and PostgreSQL without losing anything.
//!
//! pgrx turns a PostgreSQL ERROR into a panic and raises it again without CONTEXT, without the names
//! of schema, table, column and constraint, and with unknown SQLSTATEs as XX000. This module keeps all
//! of it:
//!
//! * [`catch`] runs raw C calls and turns an ERROR into an [`Error`] that owns every field;
//! * [`boundary`] is the frame of each function that PostgreSQL calls: it raises an [`Error`] (or a
//!   panic) to PostgreSQL only after all Rust destructors have run;
//! * [`shielded`] is the frame of everything that must not raise at all (after the commit decision).
//!
//! Text is bytes in the server's encoding, never `str`.

use std::any::Any;
use std::ffi::{CStr, CString, c_char, c_int};
use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind};

use pgrx::pg_sys::errcodes::PgSqlErrorCode;
use pgrx::pg_sys::panic::{CaughtError, ErrorReport, ErrorReportWithLevel};
use pgrx::{PgLogLevel, pg_sys};

mod raw {
    use super::*;
    // Unguarded: pgrx's guarded wrappers would turn the very jump that these make into a panic.
    unsafe extern "C-unwind" {
        pub fn CopyErrorData() -> *mut pg_sys::ErrorData;
        pub fn FreeErrorData(edata: *mut pg_sys::ErrorData);
        pub fn FlushErrorState();
        pub fn ReThrowError(edata: *mut pg_sys::ErrorData) -> !;
        pub fn ThrowErrorData(edata: *mut pg_sys::ErrorData);
        pub fn MemoryContextAllocZero(
            context: pg_sys::MemoryContext,
            size: usize,
        ) -> *mut std::ffi::c_void;
        pub fn MemoryContextStrdup(
            context: pg_sys::MemoryContext,
            string: *const c_char,
        ) -> *mut c_char;
        pub fn ProcessInterrupts();
    }
}

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

    /// XX000.
    pub const INTERNAL_ERROR: Self = Self::new(b"XX000");
    /// 08001: the connection could not be established.
    pub const UNABLE_TO_CONNECT: Self = Self::new(b"08001");
    /// 08006: the connection was lost.
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
    pub const READ_ONLY_SQL_TRANSACTION: Self = Self::new(b"25006");
    /// 57014: a cancel or a deadline.
    pub const QUERY_CANCELED: Self = Self::new(b"57014");
    /// 53400: a configured limit was reached.
    pub const CONFIGURATION_LIMIT_EXCEEDED: Self = Self::new(b"53400");
    /// 42704: no such object, here mostly no such prepared transaction.
    pub const UNDEFINED_OBJECT: Self = Self::new(b"42704");
    /// HV000: the general foreign data wrapper error.
    pub const FDW_ERROR: Self = Self::new(b"HV000");
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
            message: Some(c_string(message)),
            filename: Some(c_string(at.file())),
            lineno: at.line() as c_int,
            ..Fields::default()
        }))
    }

    /// Adds DETAIL.
    pub fn detail(mut self, text: impl Into<Vec<u8>>) -> Self {
        self.0.detail = Some(c_string(text));
        self
    }

    /// Adds HINT.
    pub fn hint(mut self, text: impl Into<Vec<u8>>) -> Self {
        self.0.hint = Some(c_string(text));
        self
    }

    /// Adds a line of CONTEXT outside of those it has.
    pub fn context(mut self, line: impl Into<Vec<u8>>) -> Self {
        let line = line.into();
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

    /// Takes everything out of an `ErrorData`.
    ///
    /// # Safety
    /// `edata` points to a valid `ErrorData`.
    unsafe fn from_error_data(edata: &pg_sys::ErrorData) -> Self {
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

    /// What a panic carries: one of ours, one of pgrx's, or a plain Rust panic.
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

    /// Builds the `ErrorData` in PostgreSQL's ErrorContext and lets go of everything Rust owns.
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

    /// Raises out of a function that pgrx wraps: as a panic that its wrapper reports.
    pub fn raise_in_pgrx(self) -> ! {
        let text = |s: &Option<CString>| s.as_ref().map(|s| s.to_string_lossy().into_owned());
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
    fn raise(self) -> ! {
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

/// The frame of a function that PostgreSQL calls: runs `f`, and raises its error, or its panic, as a
/// PostgreSQL ERROR after all destructors inside have run.
///
/// It must be the whole body of the `extern "C-unwind"` function.
pub fn boundary<T>(f: impl FnOnce() -> Result<T>) -> T {
    let error = match catch_unwind(AssertUnwindSafe(f)) {
        Ok(Ok(value)) => return value,
        Ok(Err(error)) => error,
        Err(payload) => Error::from_panic(payload),
    };
    error.raise()
}

/// Runs raw C calls and catches the ERROR that they may raise, with everything it carries.
///
/// `f` must not own anything with a destructor while it is inside a call that can raise: the jump
/// skips it. Its captures are borrowed or plain data.
///
/// # Errors
/// The ERROR that was raised, its CONTEXT complete. The interrupt hold-off counts, which raising sets
/// to zero, are as they were (`errfinish` in `elog.c`).
pub fn catch<T>(f: impl FnOnce() -> T) -> Result<T> {
    let mut value = MaybeUninit::<T>::uninit();
    let target = value.as_mut_ptr();
    // SAFETY: this is PG_TRY: the globals are saved, the jump buffer outlives the call, and they are
    // restored on both ways out.
    unsafe {
        let memory_context = pg_sys::CurrentMemoryContext;
        let exception_stack = pg_sys::PG_exception_stack;
        let context_stack = pg_sys::error_context_stack;
        let interrupt_holdoff = pg_sys::InterruptHoldoffCount;
        let cancel_holdoff = pg_sys::QueryCancelHoldoffCount;
        let jumped = cee_scape::call_with_sigsetjmp(false, |buffer| {
            pg_sys::PG_exception_stack = std::ptr::from_ref(buffer).cast_mut().cast();
            target.write(f());
            0
        });
        pg_sys::PG_exception_stack = exception_stack;
        pg_sys::error_context_stack = context_stack;
        if jumped == 0 {
            return Ok(value.assume_init());
        }
        pg_sys::InterruptHoldoffCount = interrupt_holdoff;
        pg_sys::QueryCancelHoldoffCount = cancel_holdoff;
        pg_sys::CurrentMemoryContext = memory_context;
        let edata = raw::CopyErrorData();
        let error = Error::from_error_data(&*edata);
        raw::FreeErrorData(edata);
        raw::FlushErrorState();
        Err(error)
    }
}

/// Runs `f` and returns what it returned or, as an error, what it raised or panicked with. For steps that must be
/// followed by others whatever happens, under [`shielded`]; the interrupt hold-off counts are as they were.
///
/// # Errors
/// Those of `f`.
pub fn attempt<T>(f: impl FnOnce() -> Result<T>) -> Result<T> {
    // SAFETY: plain reads of backend-local globals.
    let (holdoff, cancel_holdoff, context) = unsafe {
        (
            pg_sys::InterruptHoldoffCount,
            pg_sys::QueryCancelHoldoffCount,
            pg_sys::CurrentMemoryContext,
        )
    };
    let outcome = catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|p| Err(Error::from_panic(p)));
    if outcome.is_err() {
        // SAFETY: puts back what was read above.
        unsafe {
            pg_sys::InterruptHoldoffCount = holdoff;
            pg_sys::QueryCancelHoldoffCount = cancel_holdoff;
            pg_sys::CurrentMemoryContext = context;
        }
    }
    outcome
}

/// Runs `f` where nothing may raise: after the commit decision, in abort, in `XACT_EVENT_PREPARE`.
///
/// Whatever happens inside (an [`Error`], an ERROR of PostgreSQL, a panic) becomes a WARNING that
/// begins with `what`, and the WARNING's own failure is swallowed. The interrupt hold-off counts, the memory
/// context and the resource owner are afterwards what they were: without that the backend could never
/// be cancelled or terminated again.
pub fn shielded(what: &str, f: impl FnOnce() -> Result<()>) {
    let guarded = || {
        // SAFETY: plain reads of backend-local globals.
        let (holdoff, cancel_holdoff, context, owner) = unsafe {
            (
                pg_sys::InterruptHoldoffCount,
                pg_sys::QueryCancelHoldoffCount,
                pg_sys::CurrentMemoryContext,
                pg_sys::CurrentResourceOwner,
            )
        };
        let outcome =
            catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|p| Err(Error::from_panic(p)));
        // SAFETY: puts back what was read above; nothing inside may change them for good.
        unsafe {
            pg_sys::InterruptHoldoffCount = holdoff;
            pg_sys::QueryCancelHoldoffCount = cancel_holdoff;
            pg_sys::CurrentMemoryContext = context;
            pg_sys::CurrentResourceOwner = owner;
        }
        if let Err(error) = outcome {
            // Only ASCII may go out: text that does not convert to the client's encoding raises.
            let text: Vec<u8> = error
                .message()
                .to_bytes()
                .iter()
                .map(|b| if b.is_ascii() { *b } else { b'?' })
                .collect();
            let warning = Error::new(error.sqlstate(), [what.as_bytes(), b": ", &text].concat());
            let _ = warning.log(PgLogLevel::WARNING);
        }
    };
    // The second net is for the code just above; a payload's own Drop must not panic either.
    if let Err(payload) = catch_unwind(AssertUnwindSafe(guarded)) {
        std::mem::forget(payload);
    }
}

/// `CHECK_FOR_INTERRUPTS()`: raises a pending cancel or termination as an [`Error`].
///
/// # Errors
/// The cancel. A termination does not come back: PostgreSQL exits inside, through its own callbacks.
pub fn check_for_interrupts() -> Result<()> {
    // SAFETY: plain read of a flag that signal handlers set.
    if unsafe { pg_sys::InterruptPending } == 0 {
        return Ok(());
    }
    // SAFETY: the frame owns nothing.
    catch(|| unsafe { raw::ProcessInterrupts() })
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
