//! The decision table: one row per distributed transaction, inserted in the local transaction before the
//! first PREPARE is sent. The row's fate is the decision.
//!
//! Invariants: a row is inserted and deleted, never updated, so that a scan cannot miss it; a row is deleted
//! only after all of its participants have confirmed and `forget_delay` has passed.

use std::collections::HashSet;
use std::time::Instant;

use pgrx::pg_sys::{self, Datum, TransactionId};

use crate::log::registered::Registered;
use crate::log::replication;
use crate::log::table::{See, Table, int8_array};
use crate::pg::error::Result;
use crate::protocol::gid::{Gid, Identity, Nonce};
use crate::protocol::verdict::Decision;

/// A row.
#[derive(Clone, Debug)]
pub struct Row {
    /// Which transaction.
    pub nonce: Nonce,
    /// Committed, or still in progress.
    pub decision: Decision,
    /// The local transaction.
    pub xid: TransactionId,
    /// Its participants' numbers in the list of participants, with their remote xids.
    pub participants: Vec<(i32, u64)>,
}

impl Row {
    /// The names of its prepared transactions on the participants that `list` still knows.
    pub fn gids<'a>(
        &'a self,
        identity: Identity,
        list: &'a [Registered],
    ) -> impl Iterator<Item = Gid> + 'a {
        let known =
            self.participants.iter().filter_map(|(id, _)| list.iter().find(|r| r.id == *id));
        known.map(move |registered| registered.gid(identity, self.nonce))
    }
}

/// Writes the row into the current transaction, and makes its commit durable whatever
/// `synchronous_commit` says: a transaction with an xid and no WAL of its own would commit unflushed.
///
/// # Errors
/// The extension is missing here, or others keep the table locked until `deadline`.
pub fn insert(nonce: Nonce, participants: &[(i32, u64)], deadline: Instant) -> Result<()> {
    let table = Table::open_by(c"decision", pg_sys::RowExclusiveLock, deadline)?;
    let numbers: Vec<i64> = participants.iter().map(|(id, _)| i64::from(*id)).collect();
    let xids: Vec<i64> = participants.iter().map(|(_, xid)| *xid as i64).collect();
    table.insert(&mut [
        Datum::from(nonce.number() as i64),
        int8_array(&numbers),
        int8_array(&xids),
    ]);
    // Not kept until the end of a transaction that may be prepared here for days.
    table.release(pg_sys::RowExclusiveLock);
    // SAFETY: sets a flag of the transaction.
    unsafe { pg_sys::ForceSyncCommit() };
    replication::require_synchronous_commit();
    Ok(())
}

/// Every row, also those of running and locally prepared transactions. What is not among them has
/// aborted, or was confirmed and forgotten. Empty where the extension is missing.
pub fn all() -> Vec<Row> {
    but(|_| false)
}

/// [`all`] but those of some transactions.
pub fn but(leave_out: impl Fn(&Nonce) -> bool) -> Vec<Row> {
    let mut rows = Vec::new();
    let Some(table) = Table::open_if_exists(c"decision", pg_sys::AccessShareLock) else {
        return rows;
    };
    table.scan(See::Dirty, |row| {
        let Some(nonce) = Nonce::new(row.int8(0) as u64).filter(|nonce| !leave_out(nonce)) else {
            return;
        };
        let numbers = row.int8_array(1);
        let xids = row.int8_array(2);
        rows.push(Row {
            nonce,
            decision: if row.in_progress { Decision::InProgress } else { Decision::Committed },
            xid: row.xid,
            participants: numbers
                .into_iter()
                .zip(xids)
                .map(|(id, xid)| (id as i32, xid as u64))
                .collect(),
        });
    });
    rows
}

/// What has become of the row that a local transaction has inserted, without reading it.
pub fn of(xid: TransactionId) -> Decision {
    // SAFETY: looks at the transactions that run or are prepared, and then at the commit log.
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

/// Deletes rows.
///
/// # Errors
/// The extension is missing here.
pub fn delete(nonces: &HashSet<Nonce>) -> Result<usize> {
    let table = Table::open(c"decision", pg_sys::RowExclusiveLock)?;
    Ok(table.delete(|row| Nonce::new(row.int8(0) as u64).is_some_and(|n| nonces.contains(&n))))
}
