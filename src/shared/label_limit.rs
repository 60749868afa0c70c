//! How many labels each role uses within `pg_fdw_xacts.track_retention`, counted from the start of
//! the server: so that no role can fill the table for all others.
//!
//! The counter of a role is found by its OID modulo the number of counters; roles with the same
//! counter share the limit.

use std::time::Duration;

use pgrx::pg_sys;

use crate::guc;
use crate::pg::error::{Error, Result, SqlState};
use crate::protocol::wall_clock::has_passed;
use crate::shared::shmem;

const COUNTERS: usize = 4096;

/// The part of shared memory that holds this.
#[repr(C)]
pub struct Counters([Counter; COUNTERS]);

#[repr(C)]
#[derive(Clone, Copy)]
struct Counter {
    /// When it was 0, in PostgreSQL's microseconds.
    since: i64,
    labels: u64,
}

impl Counter {
    /// Counts one more label; `false` if that is more than allowed.
    fn add(&mut self, now: i64, retention: Duration, limit: u64) -> bool {
        if has_passed(self.since, now, retention) {
            *self = Self { since: now, labels: 0 };
        }
        if self.labels >= limit {
            return false;
        }
        self.labels += 1;
        true
    }
}

/// Counts a label that the current role is about to use, or to take by asking for it.
///
/// # Errors
/// 53400 if the role has used as many as it may.
pub fn count() -> Result<()> {
    // SAFETY: reads the current role and the clock.
    let (role, superuser, now) =
        unsafe { (pg_sys::GetUserId(), pg_sys::superuser(), pg_sys::GetCurrentTimestamp()) };
    let Some(limit) = guc::track_limit().filter(|_| !superuser) else { return Ok(()) };
    let (counter, retention) = (role.to_u32() as usize % COUNTERS, guc::track_retention());
    if shmem::write(|m| m.shared.labels.0[counter].add(now, retention, limit)) {
        return Ok(());
    }
    Err(Error::new(SqlState::CONFIGURATION_LIMIT_EXCEEDED, "too many labels")
        .detail(format!("A role may use {limit} labels within \"pg_fdw_xacts.track_retention\"."))
        .hint("Raise \"pg_fdw_xacts.track_limit\", or lower \"pg_fdw_xacts.track_retention\"."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_holds_for_the_retention() {
        let retention = Duration::from_micros(100);
        let mut counter = Counter { since: 0, labels: 0 };
        let used: Vec<bool> = [1000, 1001, 1100, 1100, 1101, 1102, 1103]
            .map(|now| counter.add(now, retention, 2))
            .into();
        assert_eq!(used, [true, true, false, false, true, true, false]);
    }

    #[test]
    fn a_clock_that_is_set_back_does_not_make_it_longer() {
        let retention = Duration::from_micros(100);
        let mut counter = Counter { since: 1000, labels: 2 };
        assert!(!counter.add(950, retention, 2));
        assert!(counter.add(800, retention, 2));
    }
}
