//! Medians, ranges and ratios.

use serde::{Deserialize, Serialize};

/// The results of several rounds: their median and their range.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The value in the middle.
    pub median: f64,
    /// The smallest value.
    pub min: f64,
    /// The largest value.
    pub max: f64,
}

impl Spread {
    /// The spread of `values`; `None` without any, or if one of them is no number, such as a ratio
    /// to 0.
    pub fn of(values: &[f64]) -> Option<Self> {
        values.iter().all(|value| value.is_finite()).then_some(())?;
        Some(Self {
            median: median(values)?,
            min: values.iter().copied().reduce(f64::min)?,
            max: values.iter().copied().reduce(f64::max)?,
        })
    }

    /// One value, measured once.
    pub fn single(value: f64) -> Self {
        Self { median: value, min: value, max: value }
    }
}

/// The median of `values`, between the two in the middle where their number is even; `None` without
/// any.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    Some((sorted[sorted.len() / 2 - 1] + upper) / 2.0)
}

/// The ratio of `ours` to `theirs`, round by round, so that what slowed the machine down in a round
/// cancels out.
pub fn ratio(ours: &[f64], theirs: &[f64]) -> Option<Spread> {
    let ratios: Vec<f64> = ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect();
    Spread::of(&ratios)
}

/// As [`ratio`], for many short rounds, one of which alone says nothing: the spread of the medians
/// of `size` rounds each.
pub fn ratio_of_groups(ours: &[f64], theirs: &[f64], size: usize) -> Option<Spread> {
    let medians: Vec<f64> = ours
        .chunks(size)
        .zip(theirs.chunks(size))
        .filter_map(|(ours, theirs)| Some(ratio(ours, theirs)?.median))
        .collect();
    Spread::of(&medians)
}

#[cfg(test)]
mod tests {
    use super::{Spread, median, ratio, ratio_of_groups};

    #[test]
    fn one_round_of_many_does_not_show_in_the_range() {
        let spread = ratio_of_groups(&[1.0, 1.0, 9.0, 2.0, 0.1, 2.0], &[1.0; 6], 3);
        assert_eq!(spread, Some(Spread { median: 1.5, min: 1.0, max: 2.0 }));
    }

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[9.0, 1.0, 2.0, 4.0]), Some(3.0));
    }

    #[test]
    fn a_ratio_is_taken_round_by_round() {
        // The second round was ten times as slow for both.
        let spread = ratio(&[1.0, 10.0, 3.0], &[2.0, 20.0, 2.0]);
        assert_eq!(spread, Some(Spread { median: 0.5, min: 0.5, max: 1.5 }));
        assert_eq!(ratio(&[], &[]), None);
        assert_eq!(ratio(&[1.0, 1.0], &[1.0, 0.0]), None);
    }
}
