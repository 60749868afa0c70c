//! Registers as lists. Each value is written once, over one that its transaction has read, so a
//! value tells all that were there before it: whoever reads the register has read them all. Two
//! values written over the same one are two orders of one list, which is what a lost update is.

use std::collections::HashMap;

use super::{Act, Key, Transaction};

/// A transaction's dealings with one list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Append(Key, i64),
    Read(Key, Vec<i64>),
}

/// What each value of a register was written over.
pub(super) struct Versions(HashMap<(Key, i64), Option<i64>>);

impl Versions {
    pub(super) fn of(transactions: &[Transaction]) -> Self {
        let mut over = HashMap::new();
        for transaction in transactions {
            let mut seen: HashMap<Key, i64> = HashMap::new();
            for act in &transaction.acts {
                match act {
                    Act::Write(key, value) => {
                        over.insert((*key, *value), seen.insert(*key, *value));
                    }
                    Act::Value(key, Some(value)) => {
                        seen.insert(*key, *value);
                    }
                    Act::Value(_, None) | Act::Append(..) | Act::Elements(..) => {}
                }
            }
        }
        Self(over)
    }

    /// All values up to this one.
    fn up_to(&self, key: Key, value: Option<i64>) -> Vec<i64> {
        let before = |value: &i64| self.0.get(&(key, *value)).copied().flatten();
        // Values that go round in a circle are written by nobody who could be believed.
        let mut values: Vec<i64> =
            std::iter::successors(value, before).take(self.0.len() + 1).collect();
        values.reverse();
        values
    }

    pub(super) fn steps(&self, acts: &[Act]) -> Vec<Step> {
        let step = |act: &Act| match act {
            Act::Append(key, element) => Step::Append(*key, *element),
            Act::Elements(key, elements) => Step::Read(*key, elements.clone()),
            Act::Write(key, value) => Step::Append(*key, *value),
            Act::Value(key, value) => Step::Read(*key, self.up_to(*key, *value)),
        };
        acts.iter().map(step).collect()
    }
}
