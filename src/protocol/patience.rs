//! How long the resolver waits for a server that has much to answer: not for all of it, but for the
//! next answer. A server that works off thousands of COMMIT PREPARED is slow, not silent.

use std::time::{Duration, Instant};

/// A wait for answers, with the deadline of the next one.
#[derive(Debug)]
pub struct Patience {
    step: Duration,
    until: Instant,
    /// How many answers were still to come at the last look.
    unanswered: usize,
}

impl Patience {
    /// Each answer may take `step`.
    pub fn new(step: Duration, now: Instant) -> Self {
        Self { step, until: now + step, unanswered: 0 }
    }

    /// Something else begins, which may take as long again.
    pub fn renew(&mut self, now: Instant) {
        self.until = now + self.step;
    }

    /// When it ends if nothing is heard until then.
    pub fn until(&self) -> Instant {
        self.until
    }

    /// Whether it has ended. So many answers are still to come: if they were more at the last look,
    /// the next may take as long again.
    pub fn is_over(&mut self, unanswered: usize, now: Instant) -> bool {
        if unanswered < self.unanswered {
            self.renew(now);
        }
        self.unanswered = unanswered;
        now >= self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_secs(10);

    #[test]
    fn a_server_that_goes_on_answering_is_waited_for() {
        let begin = Instant::now();
        let mut patience = Patience::new(STEP, begin);
        for answered in 0..100 {
            assert!(!patience.is_over(100 - answered, begin + STEP * answered as u32 * 9 / 10));
        }
    }

    #[test]
    fn a_server_that_has_fallen_silent_is_not() {
        let begin = Instant::now();
        let mut patience = Patience::new(STEP, begin);
        assert!(!patience.is_over(3, begin));
        assert!(!patience.is_over(2, begin + STEP / 2));
        assert!(!patience.is_over(2, begin + STEP));
        assert!(patience.is_over(2, begin + STEP * 3 / 2));
        assert_eq!(patience.until(), begin + STEP * 3 / 2);
    }

    #[test]
    fn new_questions_are_no_answer() {
        let begin = Instant::now();
        let mut patience = Patience::new(STEP, begin);
        assert!(!patience.is_over(1, begin));
        assert!(patience.is_over(2, begin + STEP));
        patience.renew(begin + STEP);
        assert!(!patience.is_over(2, begin + STEP));
    }
}
