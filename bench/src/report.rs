//! What a part of the benchmark found: figures for the first page, rows with a target, the tables
//! behind them, and curves.

pub mod growth;
pub mod markdown;
mod origin;

use serde::{Deserialize, Serialize};

use crate::curve::Curve;
use crate::statistics::Spread;

/// The findings of one part.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Ratios for the first page.
    pub headlines: Vec<(Headline, Spread)>,
    /// The measures with a target, and others worth a line.
    pub rows: Vec<Row>,
    /// The figures behind the rows.
    pub tables: Vec<Table>,
    /// What grows with what.
    pub curves: Vec<Curve>,
}

/// A figure of the first page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Headline {
    /// A transaction on two shards over a network.
    Latency,
    /// Such transactions of many clients.
    Throughput,
    /// Many rows by one statement.
    Bulk,
    /// A read of two shards with one snapshot.
    Reads,
    /// What does not use foreign tables.
    Local,
}

/// One measure.
#[derive(Debug, Serialize, Deserialize)]
pub struct Row {
    /// What was measured.
    pub measure: String,
    /// The result.
    pub figure: Spread,
    /// What the figure counts.
    pub unit: Unit,
    /// What it has to be; nothing where the figure only informs.
    pub target: Option<Target>,
    /// What others measure, or a restriction.
    pub remark: String,
}

/// What a figure counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unit {
    /// Round trips in sequence, or turns to speak: whole numbers.
    Count,
    /// One time or rate over another.
    Ratio,
    /// Bytes.
    Bytes,
    /// Megabytes, 10^6 bytes.
    Megabytes,
}

/// A bound for a figure's median.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum Target {
    /// This or less.
    AtMost(f64),
    /// This or more.
    AtLeast(f64),
}

impl Target {
    /// Whether `value` reaches it.
    pub fn reached(self, value: f64) -> bool {
        match self {
            Self::AtMost(bound) => value <= bound,
            Self::AtLeast(bound) => value >= bound,
        }
    }
}

/// Figures of several contenders under several conditions.
#[derive(Debug, Serialize, Deserialize)]
pub struct Table {
    /// Subject, with the unit of all figures.
    pub title: String,
    /// What the columns are, for example "round trip in ms".
    pub condition: String,
    /// The conditions.
    pub columns: Vec<String>,
    /// A name and its figure for each column.
    pub lines: Vec<(String, Vec<Option<Spread>>)>,
    /// File name of its plot, where the conditions are numbers.
    pub plot: Option<String>,
}

impl Report {
    /// Adds a row; a measure without a figure is left out.
    pub fn row(
        &mut self,
        measure: impl Into<String>,
        figure: Option<Spread>,
        unit: Unit,
        target: Option<Target>,
        remark: impl Into<String>,
    ) {
        let (measure, remark) = (measure.into(), remark.into());
        if let Some(figure) = figure {
            self.rows.push(Row { measure, figure, unit, target, remark });
        }
    }

    /// Puts a figure on the first page, if there is one.
    pub fn headline(&mut self, headline: Headline, figure: Option<Spread>) {
        self.headlines.extend(figure.map(|figure| (headline, figure)));
    }
}
