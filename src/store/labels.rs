//! The table of labels, by which clients that lost the answer to COMMIT find out what became of
//! their transactions.
//!
//! A label's row is inserted by the transaction that it names, and commits or aborts with it. If a
//! client asks for a label that no transaction has used, the resolver inserts a row that says
//! "taken"; the unique index lets only one of the two in. Rows are inserted and deleted, never
//! updated.

use std::ffi::CStr;
use std::time::Duration;

use pgrx::pg_sys::{self, Datum, TransactionId};

use crate::pg::error::{Error, Result, SqlState};
use crate::pg::globals::now;
use crate::protocol::label::trace;
use crate::store::table::{Key, See, Table, text};

const INDEX: &CStr = c"label_key";
const TRACE_INDEX: &CStr = c"expired_trace";

/// An expired label leaves a trace, which is kept for this many times `track_retention`.
const TRACES_LAST: i64 = 30;

/// A row of the table of labels.
pub struct Label {
    /// The transaction that inserted it.
    pub xid: TransactionId,
    /// It was so long ago that its xid may be another transaction's by now.
    pub is_frozen: bool,
    /// That transaction has not ended.
    pub in_progress: bool,
    /// The label was taken.
    pub taken: bool,
}

/// The row of a label, also if its transaction has not ended.
///
/// # Errors
/// 55000 if the extension is missing here.
pub fn find(label: &CStr) -> Result<Option<Label>> {
    let mut found = None;
    Table::open(c"label", pg_sys::AccessShareLock)?.find(
        INDEX,
        See::Dirty,
        &Key::Text(label),
        |row| {
            found = Some(Label {
                xid: row.xid,
                is_frozen: row.is_frozen,
                in_progress: row.in_progress,
                taken: row.boolean(2),
            });
        },
    )?;
    Ok(found)
}

/// Whether a label has been used or taken, and has expired.
pub fn has_expired(label: &CStr) -> bool {
    let trace = trace(label.to_bytes());
    let mut found = false;
    if let Some(table) = Table::open_if_exists(c"expired", pg_sys::AccessShareLock) {
        let key = Key::Number(trace);
        // The objects of 0.2.0 have no index.
        if table.find(TRACE_INDEX, See::Committed, &key, |_| found = true).is_err() {
            table.scan(See::Committed, |row| found |= row.int8(0) == trace);
        }
    }
    found
}

/// Inserts a row in the current transaction.
///
/// # Errors
/// 42710 if the label is or was in use, or is taken.
pub fn insert(label: &CStr, taken: bool) -> Result<()> {
    let used = || {
        Error::new(
            SqlState::new(b"42710"),
            [b"label \"", label.to_bytes(), b"\" cannot be used"].concat(),
        )
        .detail("It has been used by another transaction, or somebody has asked for its outcome.")
        .hint("Use a new label, for example a random UUID, for each transaction.")
    };
    if has_expired(label) {
        return Err(used());
    }
    let table = Table::open(c"label", pg_sys::RowExclusiveLock)?;
    let unique_violation = SqlState::new(b"23505");
    table
        .insert_unique(&mut [text(label), Datum::from(now()), Datum::from(taken)], INDEX)
        .map_err(|error| if error.sqlstate() == unique_violation { used() } else { error })
}

/// Deletes labels that are older than `retention` in the part of the table that begins at a block,
/// and writes a trace of each; returns where the next part begins.
///
/// # Errors
/// 55000 if the extension is missing here.
pub fn expire_part(first: u32, retention: Duration) -> Result<Option<u32>> {
    let keep = retention.as_micros() as i64;
    let now = now();
    let mut traces = Vec::new();
    let next = Table::open(c"label", pg_sys::RowExclusiveLock)?.delete_part(first, |row| {
        let expired = row.int8(1) < now - keep;
        if expired {
            traces.push(trace(row.text(0).to_bytes()));
        }
        expired
    });
    let table = Table::open(c"expired", pg_sys::RowExclusiveLock)?;
    for trace in traces {
        table.insert_indexed(&mut [Datum::from(trace), Datum::from(now)], TRACE_INDEX)?;
    }
    Ok(next)
}

/// Deletes traces that have been kept for long enough in the part of their table that begins at a
/// block; returns where the next part begins.
///
/// # Errors
/// 55000 if the extension is missing here.
pub fn expire_traces_part(first: u32, retention: Duration) -> Result<Option<u32>> {
    let keep = (retention.as_micros() as i64).saturating_mul(TRACES_LAST);
    let now = now();
    let table = Table::open(c"expired", pg_sys::RowExclusiveLock)?;
    Ok(table.delete_part(first, |row| row.int8(1) < now.saturating_sub(keep)))
}
