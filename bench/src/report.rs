//! What the benchmark found: rows with a target, tables behind them, and where it was measured.

pub mod growth;
mod markdown;

use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::machine::Machine;
use crate::plot;
use crate::statistics::Spread;

/// Everything that is written into `report.md` and `report.json`.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Where and with what.
    pub machine: Machine,
    /// Whether slices were short and rounds few.
    pub quick: bool,
    /// The measures with a target, and others worth a line.
    pub rows: Vec<Row>,
    /// The figures behind the rows.
    pub tables: Vec<Table>,
}

/// One measure.
#[derive(Debug, Serialize)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
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
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
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
#[derive(Debug, Serialize)]
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
    /// Writes `report.md`, `report.json` and the plots into `directory`.
    pub fn write(&self, directory: &Path) -> Result<()> {
        std::fs::create_dir_all(directory)?;
        for table in &self.tables {
            if let Some(name) = &table.plot {
                plot::draw(table, &directory.join(name)).with_context(|| name.clone())?;
            }
        }
        std::fs::write(directory.join("report.json"), serde_json::to_string_pretty(self)? + "\n")?;
        std::fs::write(directory.join("report.md"), markdown::render(self))?;
        Ok(())
    }

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
}
