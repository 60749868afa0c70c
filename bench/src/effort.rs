//! How long to measure, and how contenders take turns.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::progress::say;
use crate::statistics::median;

/// How long the benchmark may take.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// About a third of the time.
    pub quick: bool,
}

impl Effort {
    /// The value for this effort.
    pub fn choose<T>(self, quick: T, full: T) -> T {
        if self.quick { quick } else { full }
    }

    /// The length of a slice: how long one contender runs before the next has its turn.
    pub fn slice(self) -> Duration {
        Duration::from_millis(self.choose(300, 700))
    }

    /// How often each contender has its turn.
    pub fn rounds(self) -> usize {
        self.choose(3, 5)
    }
}

/// Gives each of `contenders` a slice in each round, in an order that rotates, and returns what
/// `slice` measured, by contender and round. `what` is shown as progress.
pub fn alternate<C, T>(
    what: &str,
    rounds: usize,
    contenders: &mut [C],
    mut slice: impl FnMut(&mut C) -> Result<T>,
) -> Result<Vec<Vec<T>>> {
    let mut measured: Vec<Vec<T>> = contenders.iter().map(|_| Vec::new()).collect();
    for round in 0..rounds {
        if round % rounds.div_ceil(10) == 0 {
            say(&format!("{what}: round {} of {rounds}", round + 1));
        }
        for place in 0..contenders.len() {
            let index = (place + round) % contenders.len();
            measured[index].push(slice(&mut contenders[index])?);
        }
    }
    Ok(measured)
}

/// The median time, in ms, of what is done again and again for so long.
pub fn repeated(length: Duration, mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    // What the slice before has left under way does not count here.
    work()?;
    let mut times = Vec::new();
    let start = Instant::now();
    while start.elapsed() < length || times.len() < 3 {
        let start = Instant::now();
        work()?;
        times.push(start.elapsed().as_secs_f64() * 1000.0);
    }
    Ok(median(&times).expect("at least three"))
}

#[cfg(test)]
mod tests {
    use super::alternate;

    #[test]
    fn everybody_has_a_turn_in_each_round_and_nobody_is_always_first() {
        let mut order = Vec::new();
        let measured = alternate("test", 2, &mut ['a', 'b', 'c'], |contender| {
            order.push(*contender);
            Ok(order.len())
        });
        assert_eq!(order, ['a', 'b', 'c', 'b', 'c', 'a']);
        assert_eq!(measured.expect("no slice failed"), [[1, 6], [2, 4], [3, 5]]);
    }
}
