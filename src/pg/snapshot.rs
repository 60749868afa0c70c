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

/// The next xid, in 64 bits.
pub fn next_xid() -> u64 {
    // SAFETY: reads shared memory.
    unsafe { pg_sys::ReadNextFullTransactionId() }.value
}

/// An xid of 32 bits that is not far from the next one, in 64 bits.
pub fn full(xid: TransactionId) -> u64 {
    full_near(xid, next_xid())
}

/// An xid of 32 bits that is less than 2^31 older or younger than another one, in 64 bits.
pub fn full_near(xid: TransactionId, other: u64) -> u64 {
    let ahead = xid.into_inner().wrapping_sub(other as u32) as i32;
    other.saturating_add_signed(i64::from(ahead))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_xid_has_the_epoch_in_which_it_is_nearest() {
        const EPOCH: u64 = 1 << 32;
        for other in [5, EPOCH - 1, EPOCH, EPOCH + 5, 7 * EPOCH + (1 << 31), 8 * EPOCH - 3] {
            for ahead in [i64::from(i32::MIN), -7, -1, 0, 1, 7, i64::from(i32::MAX)] {
                let Some(expected) = other.checked_add_signed(ahead) else { continue };
                assert_eq!(full_near((expected as u32).into(), other), expected);
            }
        }
    }
}
