//! How consistent reads have done since the start of this server, in all databases. The counters
//! take no lock.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::shared::shmem;

/// The part of shared memory that counts; all 0 at first.
#[derive(Debug)]
#[repr(C)]
pub struct Reads([AtomicU64; COUNTS]);

const COUNTS: usize = 5;

/// What is counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Count {
    /// Snapshots of several servers that were found to be a cut.
    Cuts,
    /// How often snapshots were waited for.
    Rounds,
    /// How often those who deliver were asked to wait.
    Windows,
    /// Reads that ended with 40001, because a server that was read before was too old.
    TooOld,
    /// Reads that ended with 55000, because something stayed in doubt.
    InDoubt,
}

/// Counts.
pub fn add(what: Count, number: u64) {
    shmem::reads().0[what as usize].fetch_add(number, Ordering::Relaxed);
}

/// The count since the start of this server.
pub fn get(what: Count) -> u64 {
    shmem::reads().0[what as usize].load(Ordering::Relaxed)
}
