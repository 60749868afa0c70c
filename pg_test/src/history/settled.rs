//! All or nothing in the end: what the servers hold when everything is settled, against what the
//! clients were told.

use std::collections::{HashMap, HashSet};

use super::lists::{Step, Versions};
use super::{Act, Key, Outcome, Transaction};

/// Compares the transactions with the last state, which somebody has read after all of them. From
/// then on no outcome is unknown. Returns what must not be.
pub fn settle(transactions: &mut [Transaction], last: &[Act]) -> Vec<String> {
    let versions = Versions::of(transactions);
    let mut wrong = Vec::new();
    let mut left: HashSet<(Key, i64)> = HashSet::new();
    for step in versions.steps(last) {
        if let Step::Read(key, elements) = step {
            for element in elements {
                if !left.insert((key, element)) {
                    wrong.push(format!("{element} is twice in {key}"));
                }
            }
        }
    }
    let mut writers: HashMap<(Key, i64), usize> = HashMap::new();
    for (index, transaction) in transactions.iter_mut().enumerate() {
        let written: Vec<(Key, i64)> = versions
            .steps(&transaction.acts)
            .into_iter()
            .filter_map(|step| match step {
                Step::Append(key, element) => Some((key, element)),
                Step::Read(..) => None,
            })
            .collect();
        writers.extend(written.iter().map(|element| (*element, index)));
        let found = written.iter().filter(|element| left.contains(element)).count();
        let is_there = found > 0;
        let told = match (&transaction.outcome, is_there) {
            _ if is_there && found < written.len() => "half there",
            (Outcome::Acknowledged, false) if !written.is_empty() => "acknowledged and not there",
            (Outcome::Committed, false) if !written.is_empty() => "committed and not there",
            (Outcome::Refused, true) => "refused and there",
            (Outcome::Unknown, true) => {
                transaction.outcome = Outcome::Committed;
                continue;
            }
            (Outcome::Unknown, false) => {
                transaction.outcome = Outcome::Refused;
                continue;
            }
            _ => continue,
        };
        wrong.push(format!("{told}: {transaction:?}"));
    }
    let strangers = left.iter().filter(|element| !writers.contains_key(element));
    wrong.extend(strangers.map(|(key, element)| format!("{element} in {key} is nobody's")));
    wrong
}
