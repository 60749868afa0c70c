//! When to try an unreachable participant again: exponential back-off with jitter.

use std::time::Duration;

/// The wait before the next attempt after so many failures: `min`, doubled with each failure up to
/// `max`, less a random part of up to a quarter, so that many coordinators do not try in step.
/// `jitter` is any random number.
pub fn delay(failures: u32, min: Duration, max: Duration, jitter: u32) -> Duration {
    let full = min.saturating_mul(1u32.checked_shl(failures.min(31)).unwrap_or(u32::MAX)).min(max);
    full - full.mul_f64(f64::from(jitter) / f64::from(u32::MAX) / 4.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_the_limit() {
        let (min, max) = (Duration::from_millis(100), Duration::from_secs(5));
        let without_jitter: Vec<u128> = (0..8).map(|n| delay(n, min, max, 0).as_millis()).collect();
        assert_eq!(without_jitter, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(delay(u32::MAX, min, max, 0), max);
    }

    #[test]
    fn jitter_takes_a_quarter_at_most() {
        let (min, max) = (Duration::from_millis(100), Duration::from_secs(5));
        assert_eq!(delay(0, min, max, u32::MAX), Duration::from_millis(75));
    }
}
