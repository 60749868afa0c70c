//! The snapshot of this transaction on this server, and what xids mean in it.

use pgrx::pg_sys::{self, TransactionId};

/// A snapshot, in xids of 64 bits.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LocalSnapshot {
    /// All from here on are not seen.
    pub xmax: u64,
    /// Those between that are in progress, in ascending order: top-level ones.
    pub in_progress: Vec<u64>,
}

/// An xid of 32 bits that is not far from the next one, in 64 bits.
pub fn full(xid: TransactionId) -> u64 {
    const EPOCH: u64 = 1 << 32;
    // SAFETY: reads shared memory.
    let next = unsafe { pg_sys::ReadNextFullTransactionId() }.value;
    let same_epoch = next / EPOCH * EPOCH + u64::from(xid.into_inner());
    // The next one itself is the xmax of a snapshot that was just taken.
    if same_epoch <= next { same_epoch } else { same_epoch.saturating_sub(EPOCH) }
}

/// The one snapshot of a transaction under REPEATABLE READ or SERIALIZABLE.
pub fn of_transaction() -> LocalSnapshot {
    // SAFETY: inside a transaction that has its snapshot; there the function returns it again, and
    // it stays as long as the transaction.
    unsafe {
        let snapshot = &*pg_sys::GetTransactionSnapshot();
        let xids = match snapshot.xcnt {
            0 => &[][..],
            count => std::slice::from_raw_parts(snapshot.xip, count as usize),
        };
        let mut in_progress: Vec<u64> = xids.iter().map(|xid| full(*xid)).collect();
        in_progress.sort_unstable();
        LocalSnapshot { xmax: full(snapshot.xmax), in_progress }
    }
}
