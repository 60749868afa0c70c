//! Slips: some transfers leave hundreds of rows beside each of their ledger entries, by one
//! `INSERT … SELECT`, most of which go to a shard by COPY. All of them are there or none.

use std::collections::HashMap;

use anyhow::{Result, ensure};
use postgres::Client;

use super::clients::{Transfer, first_of_phase};
use super::places::{Bank, Place};

/// The columns of their tables.
pub(super) const SLIP: &str = "(transfer bigint, number int, text text)";

/// So many for each ledger entry: more rows than go by INSERT, and more bytes than a COPY begins
/// with.
const COUNT: i64 = 500;

/// Makes the slips of a transfer.
pub(super) fn statement(table: &str, transfer: i64) -> String {
    format!(
        "INSERT INTO {table} SELECT {transfer}, i, repeat('slip ', 60) FROM generate_series(1, {COUNT}) i"
    )
}

/// How many slips each transfer has at a place.
pub(super) fn count(session: &mut Client, table: &str) -> Result<HashMap<i64, i64>> {
    let rows = session
        .query(&format!("SELECT transfer, count(DISTINCT number) FROM {table} GROUP BY 1"), &[])?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Compares the slips at all places with the transfers, of which those of `phase` have left some;
/// `is_there` tells whether one is noted in the ledgers. Returns how many transfers have all.
pub(super) fn audit(
    mut slips: HashMap<Place, HashMap<i64, i64>>,
    transfers: &[Transfer],
    phase: u64,
    is_there: impl Fn(&Transfer) -> bool,
) -> Result<u64> {
    let mut complete = 0;
    for transfer in transfers.iter().filter(|t| t.id >= first_of_phase(phase) && t.has_slips) {
        let expected = if is_there(transfer) { COUNT } else { 0 };
        for place in transfer.places() {
            let found = slips.entry(place).or_default().remove(&transfer.id).unwrap_or_default();
            ensure!(found == expected, "{found} slips of {expected} at {place:?}: {transfer:?}");
        }
        complete += u64::from(expected > 0);
    }
    slips.retain(|_, left| !left.is_empty());
    ensure!(slips.is_empty(), "slips of no transfer: {slips:?}");
    Ok(complete)
}

/// Throws away the slips of the phases before.
pub(super) fn clear(bank: &Bank) -> Result<()> {
    for (place, mut session) in bank.books()? {
        session.batch_execute(&format!("TRUNCATE {}", place.real_table("slip")))?;
    }
    Ok(())
}
