//! The window: readers of several servers may ask those who deliver decisions to wait a moment, so
//! that what is under way reaches all servers.
//!
//! It is a lease and no lock: it ends by itself, so nothing is left behind by a process that dies,
//! and who delivers waits for at most [`PATIENCE`]. Correctness never depends on it: whoever does
//! not wait is found by the check of the snapshots. After it was closed it stays open for as long,
//! so that those who write keep half of the time.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use crate::pg::globals::now;
use crate::pg::latch;
use crate::pg::wait_event::WaitEvent;
use crate::protocol::wall_clock::lasts;
use crate::shared::shmem;

/// How long those who deliver wait for it.
const PATIENCE: Duration = Duration::from_millis(50);

/// How long it is closed at most.
const LONGEST: Duration = Duration::from_millis(100);

/// The part of shared memory that tells, in PostgreSQL's microseconds; all 0 at first.
#[derive(Debug)]
#[repr(C)]
pub struct Window {
    closed_until: AtomicI64,
    open_until: AtomicI64,
}

impl Window {
    /// Closes it for so long, if it may be closed now; returns until when it is.
    fn close(&self, now: i64, duration: Duration) -> Option<i64> {
        let closed_until = self.closed_until.load(Ordering::SeqCst);
        let open_until = self.open_until.load(Ordering::SeqCst);
        if lasts(open_until, now, LONGEST) || lasts(closed_until, now, LONGEST) {
            return None;
        }
        let until = now + duration.as_micros() as i64;
        let was = self.closed_until.compare_exchange(
            closed_until,
            until,
            Ordering::SeqCst,
            Ordering::SeqCst,
        );
        was.is_ok().then_some(until)
    }

    /// Opens it again, after it was closed at `since` and would have been until `until`, unless
    /// somebody else has closed it since then.
    fn open(&self, now: i64, since: i64, until: i64) {
        let was = self.closed_until.compare_exchange(until, 0, Ordering::SeqCst, Ordering::SeqCst);
        if was.is_ok() {
            let closed = now.min(until);
            self.open_until.store(closed + (closed - since), Ordering::SeqCst);
        }
    }

    fn is_closed(&self, now: i64) -> bool {
        lasts(self.closed_until.load(Ordering::SeqCst), now, LONGEST)
    }
}

/// The window, closed by this process; dropping it opens it.
pub struct Closed {
    since: i64,
    until: i64,
}

impl Closed {
    /// Closes it for so long, and at most for [`LONGEST`]; `None` if somebody else has closed it,
    /// or it was closed just before.
    pub fn close(duration: Duration) -> Option<Self> {
        let since = now();
        let until = shmem::window().close(since, duration.min(LONGEST))?;
        Some(Self { since, until })
    }
}

impl Drop for Closed {
    fn drop(&mut self) {
        shmem::window().open(now(), self.since, self.until);
    }
}

/// Waits until it is open, but not for long. Called where nothing may raise, before a decision gets
/// its number: later, a reader would need the transaction while that waits for the reader.
pub fn pass() {
    let give_up = Instant::now() + PATIENCE;
    while shmem::window().is_closed(now()) && Instant::now() < give_up {
        latch::wait(Duration::from_millis(1), WaitEvent::Settle);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIVE: Duration = Duration::from_micros(5);

    fn new() -> Window {
        Window { closed_until: AtomicI64::new(0), open_until: AtomicI64::new(0) }
    }

    #[test]
    fn it_ends_by_itself() {
        let window = new();
        assert!(!window.is_closed(10));
        assert_eq!(window.close(10, FIVE), Some(15));
        assert!(window.is_closed(14) && !window.is_closed(15));
        assert_eq!(window.close(14, FIVE), None, "somebody else has closed it");
        assert_eq!(window.close(15, FIVE), Some(20), "whoever had closed it has died");
        window.open(16, 10, 15);
        assert!(window.is_closed(16), "it is not the first one's any more");
    }

    /// The clock is set back, while it is closed or open for those who write.
    #[test]
    fn a_clock_that_is_set_back_does_not_keep_it_as_it_was() {
        const BACK: i64 = 3_600_000_000;
        let window = new();
        let until = window.close(BACK, FIVE).unwrap();
        assert!(!window.is_closed(0));
        assert!(window.close(0, FIVE).is_some());
        window.open(BACK, BACK, until);
        assert!(window.is_closed(4), "it is not the first one's any more");
        let window = new();
        let until = window.close(BACK, FIVE).unwrap();
        window.open(BACK + 3, BACK, until);
        assert!(window.close(0, FIVE).is_some());
    }

    #[test]
    fn writers_keep_half_of_the_time() {
        let window = new();
        assert_eq!(window.close(10, 10 * FIVE), Some(60));
        window.open(30, 10, 60);
        assert!(!window.is_closed(30));
        assert_eq!(window.close(49, FIVE), None);
        assert_eq!(window.close(50, FIVE), Some(55));
        window.open(99, 50, 55);
        assert_eq!(window.close(60, FIVE), Some(65), "what came after its end does not count");
    }
}
