//! How many rows a scan asks for at once: what the option `fetch_size` says, and somewhat more in a
//! long scan, because each FETCH costs a round trip.

use std::time::Duration;

/// A scan is long after this many batches; ending it early then makes the participant read at most
/// about twice what was needed.
const LONG: u32 = 8;

/// A batch grows to at most this multiple of `fetch_size`; if later rows are much wider or slower,
/// one batch may exceed the intended bound by this factor.
const MOST: usize = 4;

/// A batch that takes longer than this gains nothing from fewer round trips.
const QUICK: Duration = Duration::from_millis(100);

/// A batch that has grown has not many more bytes than this.
const LARGE: usize = 256 * 1024;

/// The sizes of the batches of one scan.
#[derive(Debug)]
pub struct FetchSize {
    /// The option's value.
    first: usize,
    /// What the next batch is asked for.
    rows: usize,
    batches: u32,
    may_grow: bool,
}

impl FetchSize {
    /// For a scan that begins with `fetch_size` rows. Without `may_grow` all batches have that
    /// size.
    pub fn new(fetch_size: usize, may_grow: bool) -> Self {
        Self { first: fetch_size, rows: fetch_size, batches: 0, may_grow }
    }

    /// How many rows the next batch is asked for.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// How many batches were asked for.
    pub fn batches(&self) -> u32 {
        self.batches
    }

    /// A batch is asked for.
    pub fn ask(&mut self) {
        self.batches += 1;
    }

    /// A full batch of `bytes` has come, this long after it was asked for.
    pub fn came(&mut self, after: Duration, bytes: usize) {
        let fits = after < QUICK && bytes <= LARGE;
        if self.rows > self.first && !fits {
            self.rows = self.first;
            self.may_grow = false;
        } else if self.may_grow && fits && self.batches >= LONG && bytes <= LARGE / 2 {
            self.rows = self.rows.saturating_mul(2).min(self.first.saturating_mul(MOST));
        }
    }

    /// The scan begins again.
    pub fn restart(&mut self) {
        self.batches = 0;
        self.rows = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(1);

    /// The sizes of the next batches that all come like this.
    fn sizes(size: &mut FetchSize, batches: usize, after: Duration, bytes: usize) -> Vec<usize> {
        let mut next = || {
            size.ask();
            let rows = size.rows();
            size.came(after, bytes);
            rows
        };
        (0..batches).map(|_| next()).collect()
    }

    #[test]
    fn a_long_scan_grows_to_four_times_its_fetch_size() {
        let mut size = FetchSize::new(100, true);
        assert_eq!(sizes(&mut size, 8, SOON, 2000), [100; 8]);
        assert_eq!(sizes(&mut size, 4, SOON, 4000), [200, 400, 400, 400]);
        size.restart();
        assert_eq!(sizes(&mut size, 9, SOON, 2000).last(), Some(&200));
    }

    #[test]
    fn one_that_must_not_or_is_slow_or_wide_does_not_grow() {
        assert_eq!(sizes(&mut FetchSize::new(10, false), 20, SOON, 1), [10; 20]);
        assert_eq!(sizes(&mut FetchSize::new(10, true), 20, QUICK, 1), [10; 20]);
        assert_eq!(sizes(&mut FetchSize::new(10, true), 20, SOON, LARGE / 2 + 1), [10; 20]);
    }

    #[test]
    fn what_has_grown_too_large_or_slow_shrinks_and_stays_so() {
        for (after, bytes) in [(SOON, LARGE + 1), (QUICK, 1)] {
            let mut size = FetchSize::new(100, true);
            sizes(&mut size, 9, SOON, 2000);
            assert_eq!(sizes(&mut size, 3, after, bytes), [400, 100, 100]);
            assert_eq!(sizes(&mut size, 3, SOON, 2000), [100; 3]);
        }
    }

    #[test]
    fn a_slow_beginning_does_not_keep_it_from_growing() {
        let mut size = FetchSize::new(100, true);
        sizes(&mut size, 1, QUICK, 2000);
        sizes(&mut size, 7, SOON, 2000);
        assert_eq!(size.rows(), 200);
    }

    #[test]
    fn the_largest_fetch_size_does_not_overflow() {
        let mut size = FetchSize::new(usize::MAX, true);
        assert_eq!(sizes(&mut size, 10, SOON, 1), [usize::MAX; 10]);
    }
}
