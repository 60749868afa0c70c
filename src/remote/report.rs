//! Remote errors passed on: SQLSTATE, message, DETAIL, HINT, and the remote CONTEXT and SQL as
//! CONTEXT.

use std::borrow::Cow;
use std::ffi::CStr;

use crate::libpq::PgResult;
use crate::pg::error::{Error, SqlState};

/// The server's error, to be raised here. `connection` is libpq's own message, for a result without
/// one.
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

/// What came is not what a server answers to what it was asked.
pub fn unexpected_answer(server: &CStr) -> Error {
    Error::new(
        SqlState::PROTOCOL_VIOLATION,
        [b"server \"", server.to_bytes(), b"\" has answered something else than it was asked"]
            .concat(),
    )
    .hint("Check what its address leads to: a PostgreSQL server, without a program in between that changes answers.")
}

/// Adds the remote statement as CONTEXT.
pub fn with_sql(error: Error, sql: Option<&CStr>) -> Error {
    match sql {
        Some(sql) => error.context([b"remote SQL command: ", &*shown(sql.to_bytes())].concat()),
        None => error,
    }
}

/// Statements up to this length are shown as they are.
const SHORT: usize = 1000;

/// A statement as it is shown: if it has parameters of many rows, only those of the first.
fn shown(sql: &[u8]) -> Cow<'_, [u8]> {
    const NEXT_ROW: &[u8] = b"), (";
    if sql.len() <= SHORT {
        return Cow::Borrowed(sql);
    }
    // Rows consist of these characters only.
    let is_of_row = |byte: &u8| byte.is_ascii_digit() || b"$, ()DEFAULT".contains(byte);
    let begins_row = |at: &usize| {
        let row = &sql[at + NEXT_ROW.len()..];
        row.starts_with(b"$") || row.starts_with(b"DEFAULT")
    };
    let first = sql.windows(NEXT_ROW.len()).enumerate().filter(|(_, w)| *w == NEXT_ROW);
    let Some(end) = first.map(|(at, _)| at).find(begins_row).map(|at| at + 1) else {
        return Cow::Borrowed(sql);
    };
    let rows = &sql[end..];
    let rows = &rows[..rows.iter().position(|byte| !is_of_row(byte)).unwrap_or(rows.len())];
    // The text after VALUES may begin with such characters, too.
    let Some(last) = rows.iter().rposition(|byte| *byte == b')') else {
        return Cow::Borrowed(sql);
    };
    let count = rows[..=last].iter().filter(|byte| **byte == b'(').count();
    let more = format!(", ... ({count} more)");
    Cow::Owned([&sql[..end], more.as_bytes(), &sql[end + last + 1..]].concat())
}

#[cfg(test)]
mod tests {
    use super::shown;

    fn insert(rows: usize, tail: &str) -> String {
        let rows: Vec<_> =
            (0..rows).map(|r| format!("(${}, DEFAULT, ${})", 2 * r + 1, 2 * r + 2)).collect();
        format!("INSERT INTO s.t(a, b, c) VALUES {}{tail}", rows.join(", "))
    }

    #[test]
    fn of_many_rows_the_first_is_shown() {
        for tail in ["", " ON CONFLICT DO NOTHING", " RETURNING a"] {
            let shown = shown(insert(200, tail).as_bytes()).into_owned();
            let wanted =
                format!("INSERT INTO s.t(a, b, c) VALUES ($1, DEFAULT, $2), ... (199 more){tail}");
            assert_eq!(String::from_utf8(shown).unwrap(), wanted);
        }
    }

    #[test]
    fn other_statements_are_shown_as_they_are() {
        let long = format!("SELECT {}", "a, ".repeat(1000));
        for sql in [insert(3, ""), long, format!("SELECT ({}), ($1", "x".repeat(1000))] {
            assert_eq!(shown(sql.as_bytes()), sql.as_bytes());
        }
    }
}
