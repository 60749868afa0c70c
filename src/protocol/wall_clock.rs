//! Times of the wall clock that processes leave each other in shared memory, in microseconds.
//!
//! Somebody may set that clock back. What then lies further ahead than it can was noted before, and
//! counts as over: otherwise it would be waited for by as much longer as the clock was set back.

use std::time::Duration;

/// Whether `limit` has passed since `since`. Where the clock was set back meanwhile, that is found
/// at the latest after twice as long again.
pub fn has_passed(since: i64, now: i64, limit: Duration) -> bool {
    u128::from(now.abs_diff(since)) > limit.as_micros()
}

/// Whether something lasts that was to end at `until`, and was to last for `longest` at most.
pub fn lasts(until: i64, now: i64, longest: Duration) -> bool {
    until > now && !has_passed(until, now, longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_micros(10);

    #[test]
    fn it_has_passed_after_the_limit() {
        assert!(!has_passed(100, 100, LIMIT) && !has_passed(100, 110, LIMIT));
        assert!(has_passed(100, 111, LIMIT) && has_passed(i64::MIN, i64::MAX, LIMIT));
        assert!(!lasts(100, 100, LIMIT) && lasts(100, 99, LIMIT) && lasts(100, 90, LIMIT));
    }

    /// By however much the clock was set back.
    #[test]
    fn a_clock_that_is_set_back_delays_nothing_for_long() {
        for back in 1..1000 {
            let noticed = (0..).find(|later| has_passed(100, 105 - back + later, LIMIT)).unwrap();
            assert!(noticed <= 21, "{back}: {noticed}");
            let ended = (0..).find(|later| !lasts(110, 105 - back + later, LIMIT)).unwrap();
            assert!(ended <= 10, "{back}: {ended}");
        }
    }
}
