//! This server's WAL.

use pgrx::datum::DatumWithOid;
use pgrx::{Spi, pg_sys};

use crate::pg::error::{Error, Result, SqlState, attempt};

/// Runs a query that has one row with columns of type text, with the privileges of the current
/// user. `argument` is `$1`.
///
/// # Errors
/// PostgreSQL's own; the query has no row, or a NULL in it.
pub fn ask<const COLUMNS: usize>(query: &str, argument: Option<&str>) -> Result<[String; COLUMNS]> {
    let nothing = |error: String| Error::new(SqlState::INTERNAL_ERROR, error);
    attempt(|| {
        Spi::connect(|client| {
            let arguments: Vec<DatumWithOid> =
                argument.map(DatumWithOid::from).into_iter().collect();
            let table = client.select(query, Some(1), &arguments)?.first();
            let mut row = Vec::with_capacity(COLUMNS);
            for column in 1..=COLUMNS {
                row.extend(table.get::<String>(column)?);
            }
            Ok::<_, pgrx::spi::Error>(row)
        })
        .map_err(|error| nothing(error.to_string()))?
        .try_into()
        .map_err(|_| nothing(format!("a NULL in the answer to {query}")))
    })
}

/// Waits until everything up to a position is on disk.
///
/// # Errors
/// PostgreSQL's own.
pub fn flush(position: pg_sys::XLogRecPtr) -> Result<()> {
    attempt(|| {
        // SAFETY: a position that this server has written; pgrx guards the call.
        unsafe { pg_sys::XLogFlush(position) };
        Ok(())
    })
}
