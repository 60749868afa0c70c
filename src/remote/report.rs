//! Remote errors passed on: SQLSTATE, message, DETAIL, HINT, and the remote CONTEXT and SQL as CONTEXT.

use std::ffi::CStr;

use crate::libpq::PgResult;
use crate::pg::error::{Error, SqlState};

/// The server's error, as raised here. `connection` is libpq's own message, for a result that carries none.
pub fn remote_error(result: &PgResult, connection: &CStr, sql: Option<&CStr>) -> Error {
    let message = result.error_field(b'M').map(CStr::to_bytes).filter(|m| !m.is_empty());
    let error = match (result.error_field(b'C'), message) {
        (Some(state), Some(message)) => Error::new(SqlState::parse(Some(state)), message),
        (_, Some(message)) => Error::new(SqlState::CONNECTION_FAILURE, message),
        (Some(state), None) => Error::new(
            SqlState::parse(Some(state)),
            "could not obtain message string for remote error",
        ),
        (None, None) => lost(connection),
    };
    let error = match result.error_field(b'D') {
        Some(detail) => error.detail(detail.to_bytes()),
        None => error,
    };
    let error = match result.error_field(b'H') {
        Some(hint) => error.hint(hint.to_bytes()),
        None => error,
    };
    let error = match result.error_field(b'W') {
        Some(context) => error.context(context.to_bytes()),
        None => error,
    };
    with_sql(error, sql)
}

/// The connection broke; `message` is libpq's.
pub fn lost(message: &CStr) -> Error {
    let text = message.to_bytes().trim_ascii_end();
    let text =
        if text.is_empty() { b"could not obtain message string for remote error" } else { text };
    Error::new(SqlState::CONNECTION_FAILURE, text)
}

/// Adds the remote statement as CONTEXT.
pub fn with_sql(error: Error, sql: Option<&CStr>) -> Error {
    match sql {
        Some(sql) => error.context([b"remote SQL command: ", sql.to_bytes()].concat()),
        None => error,
    }
}
