//! Transactions that all participants have confirmed to the backend that ran them. The resolver of
//! their database takes them from here, and deletes their decisions when `forget_delay` has passed.

use pgrx::pg_sys::Oid;

use crate::pg::globals::my_database;
use crate::protocol::gid::Nonce;
use crate::shared::{resolvers, shmem};

/// How many can wait for their resolvers. It finds the others by reading the decision table.
const CAPACITY: usize = 8192;

/// The part of shared memory that holds them.
#[repr(C)]
pub struct Confirmed {
    transactions: [Transaction; CAPACITY],
    len: usize,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Transaction {
    /// The database here.
    dbid: Oid,
    nonce: u64,
}

impl Confirmed {
    fn add(&mut self, transaction: Transaction) {
        if self.len < CAPACITY {
            self.transactions[self.len] = transaction;
            self.len += 1;
        }
    }

    fn retain(&mut self, mut keep: impl FnMut(&Transaction) -> bool) {
        let mut kept = 0;
        for n in 0..self.len {
            let transaction = self.transactions[n];
            if keep(&transaction) {
                self.transactions[kept] = transaction;
                kept += 1;
            }
        }
        self.len = kept;
    }
}

/// All participants of a transaction of this database have confirmed it to this backend.
pub fn add(nonce: Nonce) {
    let dbid = my_database();
    let wake = shmem::write(|m| {
        let confirmed = &mut m.shared.confirmed;
        confirmed.add(Transaction { dbid, nonce: nonce.number() });
        // Deleting decisions is not urgent, but the room is shared by all databases.
        confirmed.len.is_multiple_of(CAPACITY / 4)
    });
    if wake {
        resolvers::wake(dbid);
    }
}

/// Takes the confirmed transactions of this database.
pub fn take() -> Vec<Nonce> {
    let dbid = my_database();
    let mut taken = Vec::new();
    shmem::write(|m| {
        m.shared.confirmed.retain(|transaction| {
            if transaction.dbid == dbid {
                taken.extend(Nonce::new(transaction.nonce));
            }
            transaction.dbid != dbid
        });
    });
    taken
}

/// Drops those of databases that no longer exist: no resolver will take them.
pub fn keep_databases(existing: &[Oid]) {
    shmem::write(|m| m.shared.confirmed.retain(|one| existing.contains(&one.dbid)));
}
