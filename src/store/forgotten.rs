//! What an operator has given up with pg_fdw_xacts_forget(): the resolver no longer delivers these
//! transactions to these participants.

use std::collections::HashSet;

use pgrx::pg_sys::{self, Datum};

use crate::pg::error::Result;
use crate::pg::transaction::make_durable;
use crate::protocol::gid::Nonce;
use crate::store::table::{See, Table};

/// Each transaction that was given up, with the number of the participant.
pub fn all() -> HashSet<(Nonce, i32)> {
    let mut found = HashSet::new();
    if let Some(table) = Table::open_if_exists(c"forgotten", pg_sys::AccessShareLock) {
        table.scan(See::Committed, |row| {
            found.extend(Nonce::new(row.int8(0) as u64).map(|nonce| (nonce, row.int4(1))));
        });
    }
    found
}

/// Gives up a transaction at a participant.
///
/// # Errors
/// 55000 if the extension is missing here.
pub fn add(nonce: Nonce, id: i32) -> Result<()> {
    let table = Table::open(c"forgotten", pg_sys::RowExclusiveLock)?;
    table.insert(&mut [Datum::from(nonce.number() as i64), Datum::from(id)]);
    make_durable();
    Ok(())
}
