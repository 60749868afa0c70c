//! The decision table: one row per distributed transaction, inserted by the local transaction
//! before the first PREPARE is sent. The row is the decision: if it is committed, every participant
//! commits, and if it is not, every participant rolls back.
//!
//! Invariants: a row is inserted and deleted, never updated, so that a scan cannot miss it; a row
//! is deleted only after all of its participants have confirmed and `forget_delay` has passed.

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use pgrx::pg_sys::{self, Datum, TransactionId};

use crate::pg::error::Result;
use crate::pg::syncrep;
use crate::protocol::gid::{Gid, Identity, Nonce};
use crate::protocol::verdict::Decision;
use crate::store::participant_list::ParticipantRecord;
use crate::store::table::{self, See, Table, int8_array};

/// A row of the decision table.
#[derive(Clone, Debug)]
pub struct Row {
    /// The transaction.
    pub nonce: Nonce,
    /// Committed, or still in progress.
    pub decision: Decision,
    /// The local transaction.
    pub xid: TransactionId,
    /// It was so long ago that its xid may be another transaction's by now.
    pub is_frozen: bool,
    /// The numbers of its participants on the list of participants, each with the transaction's xid
    /// there; 0 where it is not known.
    pub participants: Vec<(i32, u64)>,
}

impl Row {
    /// The gids of its prepared transactions on those participants that are still on the list.
    pub fn gids<'a>(
        &'a self,
        identity: Identity,
        list: &'a [ParticipantRecord],
    ) -> impl Iterator<Item = Gid> + 'a {
        let known =
            self.participants.iter().filter_map(|(id, _)| list.iter().find(|r| r.id == *id));
        known.map(move |registered| registered.gid(identity, self.nonce))
    }
}

/// Inserts a row in the current transaction, and makes its commit durable whatever
/// `synchronous_commit` says: a transaction with an xid and no WAL of its own would commit
/// unflushed.
///
/// # Errors
/// 55000 if the extension is missing here; 55P03 if others keep the table locked until `deadline`.
pub fn insert(nonce: Nonce, participants: &[(i32, u64)], deadline: Instant) -> Result<()> {
    let table = Table::open_by(c"decision", pg_sys::RowExclusiveLock, deadline)?;
    let numbers: Vec<i64> = participants.iter().map(|(id, _)| i64::from(*id)).collect();
    let xids: Vec<i64> = participants.iter().map(|(_, xid)| *xid as i64).collect();
    table.insert(&mut [
        Datum::from(nonce.number() as i64),
        int8_array(&numbers),
        int8_array(&xids),
    ]);
    // Released early: the transaction may stay prepared here for days.
    table.release(pg_sys::RowExclusiveLock);
    // SAFETY: sets a flag of the transaction.
    unsafe { pg_sys::ForceSyncCommit() };
    syncrep::require_synchronous_commit();
    Ok(())
}

/// Calls `f` for every row, also those of transactions that still run or are prepared here. A
/// transaction without a row has aborted, or all participants have confirmed it and its row was
/// deleted. There are none if the extension is missing.
pub fn for_each(f: impl FnMut(Row)) {
    which(|_, _| true, f);
}

/// The row of a transaction.
pub fn of_nonce(nonce: Nonce) -> Option<Row> {
    let mut found = None;
    which(|_, other| other == nonce, |row| found = Some(row));
    found
}

/// The row of a local transaction. Rows that are kept for ever may have the same xid, from before a
/// wraparound.
pub fn of_xid(xid: TransactionId) -> Vec<Row> {
    let mut rows = Vec::new();
    which(|row, _| row.xid == xid, |row| rows.push(row));
    rows
}

/// Calls `f` for the rows that `wanted` picks; the others are not read as a whole.
fn which(wanted: impl Fn(&table::Row, Nonce) -> bool, mut f: impl FnMut(Row)) {
    if let Some(table) = Table::open_if_exists(c"decision", pg_sys::AccessShareLock) {
        table.scan(See::Dirty, |row| {
            if let Some(nonce) = nonce(row).filter(|nonce| wanted(row, *nonce)) {
                f(read(row, nonce));
            }
        });
    }
}

/// The rows of [`for_each`] in the part of the table that begins at a block, except those that
/// `leave_out` picks; and where the next part begins.
pub fn part(first: u32, leave_out: impl Fn(&Nonce) -> bool) -> (Vec<Row>, Option<u32>) {
    let mut rows = Vec::new();
    let Some(table) = Table::open_if_exists(c"decision", pg_sys::AccessShareLock) else {
        return (rows, None);
    };
    let next = table.scan_part(See::Dirty, first, |row| {
        rows.extend(nonce(row).filter(|n| !leave_out(n)).map(|nonce| read(row, nonce)));
    });
    (rows, next)
}

/// The rows of the `wanted` transactions; those without a row are not in the map.
pub fn of_all(wanted: &HashSet<Nonce>) -> HashMap<Nonce, Row> {
    let mut found = HashMap::new();
    if let Some(table) = Table::open_if_exists(c"decision", pg_sys::AccessShareLock) {
        table.scan(See::Dirty, |row| {
            let nonce = nonce(row).filter(|nonce| wanted.contains(nonce));
            found.extend(nonce.map(|nonce| (nonce, read(row, nonce))));
        });
    }
    found
}

fn nonce(row: &table::Row) -> Option<Nonce> {
    Nonce::new(row.int8(0) as u64)
}

fn decision(row: &table::Row) -> Decision {
    if row.in_progress { Decision::InProgress } else { Decision::Committed }
}

fn read(row: &table::Row, nonce: Nonce) -> Row {
    let numbers = row.int8_array(1).into_iter().map(|id| id as i32);
    let xids = row.int8_array(2).into_iter().map(|xid| xid as u64);
    Row {
        nonce,
        decision: decision(row),
        xid: row.xid,
        is_frozen: row.is_frozen,
        participants: numbers.zip(xids).collect(),
    }
}

/// What is decided of a local transaction that has inserted a row, without reading the row.
pub fn of(xid: TransactionId) -> Decision {
    // SAFETY: reads which transactions run or are prepared, and then the commit log.
    unsafe {
        if pg_sys::TransactionIdIsInProgress(xid) {
            Decision::InProgress
        } else if pg_sys::TransactionIdDidCommit(xid) {
            Decision::Committed
        } else {
            Decision::Absent
        }
    }
}

/// Deletes the rows of some transactions in the part of the table that begins at a block; returns
/// where the next part begins.
///
/// # Errors
/// 55000 if the extension is missing here.
pub fn delete_part(first: u32, nonces: &HashSet<Nonce>) -> Result<Option<u32>> {
    let table = Table::open(c"decision", pg_sys::RowExclusiveLock)?;
    Ok(table.delete_part(first, |row| nonce(row).is_some_and(|n| nonces.contains(&n))))
}
