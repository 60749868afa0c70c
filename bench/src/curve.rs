//! How figures change with one number: what is measured at each of some points, and whether that
//! stays the same.

use serde::{Deserialize, Serialize};

use crate::statistics::Spread;

/// What one number does to some figures.
#[derive(Debug, Serialize, Deserialize)]
pub struct Curve {
    /// What it is called in file names.
    pub name: String,
    /// What grows, in the plural.
    pub what: String,
    /// How it was set up and measured.
    pub how: String,
    /// The numbers.
    pub points: Vec<usize>,
    /// The figures.
    pub lines: Vec<Line>,
}

/// A figure, and why it may change.
#[derive(Debug, Clone, Copy)]
pub struct Figure {
    /// With its unit.
    pub label: &'static str,
    /// A sentence that is shown where it does not stay the same.
    pub reason: &'static str,
}

/// A figure at all points.
#[derive(Debug, Serialize, Deserialize)]
pub struct Line {
    /// The label of the figure.
    pub label: String,
    /// Its reason.
    pub reason: String,
    /// What was measured, by point.
    pub values: Vec<Option<Spread>>,
}

/// Up to this factor a figure counts as unchanged: rounds that are far apart differ by so much.
const NOISE: f64 = 1.3;

/// What has become of a figure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Verdict {
    /// It has stayed the same.
    Flat,
    /// At the last point it is so many times what it was at another.
    Changes {
        /// The last figure over that one.
        factor: f64,
        /// The other point.
        from: usize,
    },
}

impl Curve {
    /// A curve without points.
    pub fn new(name: &str, what: &str, how: impl Into<String>) -> Self {
        let (name, what) = (name.to_owned(), what.to_owned());
        Self { name, what, how: how.into(), points: Vec::new(), lines: Vec::new() }
    }

    /// Begins with the next point.
    pub fn point(&mut self, point: usize) {
        self.points.push(point);
        for line in &mut self.lines {
            line.values.push(None);
        }
    }

    /// What was measured there, once for each round.
    pub fn note(&mut self, figure: Figure, rounds: &[f64]) {
        let place = self.lines.iter().position(|line| line.label == figure.label);
        let place = place.unwrap_or_else(|| {
            self.lines.push(Line {
                label: figure.label.to_owned(),
                reason: figure.reason.to_owned(),
                values: vec![None; self.points.len()],
            });
            self.lines.len() - 1
        });
        if let Some(last) = self.lines[place].values.last_mut() {
            *last = Spread::of(rounds);
        }
    }

    /// The file of its plot.
    pub fn plot(&self) -> String {
        format!("growth-{}.svg", self.name)
    }
}

impl Line {
    /// Its figures over the first of them that is not 0.
    pub fn relative(&self) -> Vec<Option<f64>> {
        let first = self.values.iter().flatten().map(|v| v.median).find(|v| *v > 0.0);
        self.values.iter().map(|value| Some(value.as_ref()?.median / first?)).collect()
    }

    /// What has become of it, against the point from which that differs most; `None` with fewer
    /// than two figures.
    pub fn verdict(&self, points: &[usize]) -> Option<Verdict> {
        let mut known = points.iter().zip(&self.values).filter_map(|(p, v)| Some((*p, (*v)?)));
        let (_, last) = known.next_back()?;
        let mut all = known.peekable();
        all.peek()?;
        let differing = all.filter(|(_, earlier)| !is_same(earlier, &last));
        let changes = differing.map(|(from, earlier)| (last.median / earlier.median, from));
        let most = changes.max_by(|(a, _), (b, _)| a.ln().abs().total_cmp(&b.ln().abs()));
        Some(most.map_or(Verdict::Flat, |(factor, from)| Verdict::Changes { factor, from }))
    }
}

/// Whether the rounds at two points differ by no more than rounds at one do.
fn is_same(a: &Spread, b: &Spread) -> bool {
    let factor = b.median / a.median;
    let overlap = a.min <= b.max && b.min <= a.max && a.min < a.max;
    a.median == b.median
        || (1.0 / NOISE..=NOISE).contains(&factor)
        || (overlap && (0.5..=2.0).contains(&factor))
}

#[cfg(test)]
mod tests {
    use super::{Curve, Figure, Verdict};

    const A: Figure = Figure { label: "a", reason: "" };
    const B: Figure = Figure { label: "b", reason: "" };

    fn verdict(rounds: [&[f64]; 3]) -> Option<Verdict> {
        let mut curve = Curve::new("n", "things", "");
        for (point, rounds) in [1, 5, 10].into_iter().zip(rounds) {
            curve.point(point);
            curve.note(A, rounds);
        }
        curve.lines[0].verdict(&curve.points)
    }

    #[test]
    fn a_figure_is_flat_unless_it_changes_by_more_than_its_rounds_do() {
        assert_eq!(verdict([&[1.0], &[], &[1.29]]), Some(Verdict::Flat));
        assert_eq!(verdict([&[1.0, 1.0, 1.9], &[], &[1.8, 1.8, 2.0]]), Some(Verdict::Flat));
        let grows = Verdict::Changes { factor: 4.0, from: 1 };
        assert_eq!(verdict([&[1.0], &[], &[4.0]]), Some(grows));
        assert_eq!(verdict([&[0.5, 1.0, 5.0], &[], &[2.0, 4.0, 6.0]]), Some(grows));
        assert_eq!(verdict([&[], &[], &[4.0]]), None);
    }

    #[test]
    fn a_figure_that_has_fallen_before_it_grew_is_not_flat() {
        let grows = Verdict::Changes { factor: 4.0, from: 5 };
        assert_eq!(verdict([&[8.0], &[2.0], &[8.0]]), Some(grows));
    }

    #[test]
    fn a_figure_has_a_place_at_each_point() {
        let mut curve = Curve::new("n", "things", "");
        curve.point(0);
        curve.note(A, &[2.0]);
        curve.point(7);
        curve.note(B, &[3.0]);
        curve.point(8);
        curve.note(A, &[4.0]);
        let relative: Vec<_> = curve.lines.iter().map(super::Line::relative).collect();
        assert_eq!(relative, [[Some(1.0), None, Some(2.0)], [None, Some(1.0), None]]);
    }
}
