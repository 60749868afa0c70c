//! How many rows a scan asks for at once: what the option `fetch_size` says, and somewhat more in a long scan, because
//! each FETCH costs a round trip.

use std::time::Duration;

/// From how many batches on a scan is long: one that is ended early then has had the participant read at most about
/// twice of what was wanted.
const LONG: u32 = 8;

/// How many times as many rows as at first a batch comes to have. Where the rows behind it are much wider or take much
/// longer, this is by how much what `fetch_size` bounds may be exceeded, once.
const MOST: usize = 4;

/// A batch that takes longer does not take longer for the round trip.
const QUICK: Duration = Duration::from_millis(100);

/// A batch that has grown has not much more than this many bytes.
const LARGE: usize = 256 * 1024;

/// The batches of one scan.
#[derive(Debug)]
pub struct Growth {
    first: usize,
    size: usize,
    batches: u32,
    may_grow: bool,
}

impl Growth {
    /// A scan that begins with `fetch_size` rows. Without `may_grow` all batches are asked for as large.
    pub fn new(fetch_size: usize, may_grow: bool) -> Self {
        Self { first: fetch_size, size: fetch_size, batches: 0, may_grow }
    }

    /// How many rows the next batch is asked for.
    pub fn size(&self) -> usize {
        self.size
    }

    /// How many batches were asked for.
    pub fn batches(&self) -> u32 {
        self.batches
    }

    /// A batch is asked for.
    pub fn ask(&mut self) {
        self.batches += 1;
    }

    /// A batch has come, with all the rows that it was asked for, so long after that, of so many bytes. Whether the next
    /// is to have another size.
    pub fn came(&mut self, after: Duration, bytes: usize) -> bool {
        let size = self.size;
        let fits = after < QUICK && bytes <= LARGE;
        if self.size > self.first && !fits {
            self.size = self.first;
            self.may_grow = false;
        } else if self.may_grow && fits && self.batches >= LONG && bytes <= LARGE / 2 {
            self.size = self.size.saturating_mul(2).min(self.first.saturating_mul(MOST));
        }
        self.size != size
    }

    /// The scan begins again. Whether the next batch is to have another size.
    pub fn restart(&mut self) -> bool {
        self.batches = 0;
        std::mem::replace(&mut self.size, self.first) != self.first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(1);

    /// The sizes of the next batches that all come like this.
    fn sizes(growth: &mut Growth, batches: usize, after: Duration, bytes: usize) -> Vec<usize> {
        let mut next = || {
            growth.ask();
            let size = growth.size();
            growth.came(after, bytes);
            size
        };
        (0..batches).map(|_| next()).collect()
    }

    #[test]
    fn a_long_scan_grows_to_four_times_its_fetch_size() {
        let mut growth = Growth::new(100, true);
        assert_eq!(sizes(&mut growth, 8, SOON, 2000), [100; 8]);
        assert_eq!(sizes(&mut growth, 4, SOON, 4000), [200, 400, 400, 400]);
        growth.restart();
        assert_eq!(sizes(&mut growth, 9, SOON, 2000).last(), Some(&200));
    }

    #[test]
    fn one_that_must_not_or_is_slow_or_wide_does_not_grow() {
        assert_eq!(sizes(&mut Growth::new(10, false), 20, SOON, 1), [10; 20]);
        assert_eq!(sizes(&mut Growth::new(10, true), 20, QUICK, 1), [10; 20]);
        assert_eq!(sizes(&mut Growth::new(10, true), 20, SOON, LARGE / 2 + 1), [10; 20]);
    }

    #[test]
    fn what_has_grown_too_large_or_slow_shrinks_and_stays_so() {
        for (after, bytes) in [(SOON, LARGE + 1), (QUICK, 1)] {
            let mut growth = Growth::new(100, true);
            sizes(&mut growth, 9, SOON, 2000);
            assert_eq!(sizes(&mut growth, 3, after, bytes), [400, 100, 100]);
            assert_eq!(sizes(&mut growth, 3, SOON, 2000), [100; 3]);
        }
    }

    #[test]
    fn a_slow_beginning_does_not_keep_it_from_growing() {
        let mut growth = Growth::new(100, true);
        sizes(&mut growth, 1, QUICK, 2000);
        sizes(&mut growth, 7, SOON, 2000);
        assert_eq!(growth.size(), 200);
    }

    #[test]
    fn the_largest_fetch_size_does_not_overflow() {
        let mut growth = Growth::new(usize::MAX, true);
        assert_eq!(sizes(&mut growth, 10, SOON, 1), [usize::MAX; 10]);
    }
}
