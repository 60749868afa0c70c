//! Waiting for a condition with a deadline, the only way anything waits in this crate.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::valgrind;

/// How long a test waits for something that should happen soon. Generous, because the machine may
/// be busy: only a failing test ever waits this long.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// How long to wait before asking again, at first and in the end.
const FIRST_POLL: Duration = Duration::from_millis(5);
const LAST_POLL: Duration = Duration::from_millis(60);

/// Polls `condition` every few milliseconds until it is true; `what` names it in the error when
/// `deadline` has passed first.
pub fn wait_until(
    what: &str,
    deadline: Duration,
    mut condition: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let deadline = valgrind::deadline(deadline);
    let start = Instant::now();
    loop {
        if condition()? {
            return Ok(());
        }
        if start.elapsed() >= deadline {
            bail!("waited {deadline:?} in vain: {what}");
        }
        // What is waited for longer is asked for less often: asking takes processor time.
        std::thread::sleep((start.elapsed() / 8).clamp(FIRST_POLL, LAST_POLL));
    }
}

/// `usual`; longer where more than four processes want each processor, in proportion, either now or
/// during the last minute. For promises of how soon something happens: they cannot be judged on a
/// machine that is busy with other work.
pub fn lengthened_by_load(usual: Duration) -> Duration {
    let processors = std::thread::available_parallelism().map_or(1, usize::from) as f64;
    let load = std::fs::read_to_string("/proc/loadavg").map_or(0.0, |text| load(&text));
    usual.mul_f64((load / (4.0 * processors)).max(1.0))
}

/// How many processes want a processor, as `/proc/loadavg` has it: the mean over a minute, over five
/// and fifteen, and those that run now, before a slash.
fn load(text: &str) -> f64 {
    let mut words = text.split([' ', '/']).map(|word| word.parse().unwrap_or(0.0));
    words.next().unwrap_or(0.0_f64).max(words.nth(2).unwrap_or(0.0))
}

#[cfg(test)]
mod tests {
    use super::load;

    #[test]
    fn a_machine_is_busy_that_was_or_is_now() {
        assert_eq!(load("24.50 3.00 2.00 3/812 4711\n"), 24.5);
        assert_eq!(load("0.50 3.00 2.00 30/812 4711\n"), 30.0);
        assert_eq!(load(""), 0.0);
    }
}
