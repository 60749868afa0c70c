//! Documents: which parts each has, and how it is written, with its plots, from the results that
//! are kept.

use std::path::Path;

use anyhow::{Context, Result};

use crate::kept::{Kept, Store};
use crate::measures;
use crate::part::Part;
use crate::plot;
use crate::report::{growth, markdown};

/// The name of a part, and its result if there is one.
pub type Outcome = (&'static str, Option<Kept>);

/// What parts are put together to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Document {
    /// Measures against others.
    Benchmark,
    /// What grows with what.
    Growth,
}

impl Document {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Benchmark, Self::Growth];

    /// Its parts, in their order.
    pub fn parts(self) -> &'static [Part] {
        match self {
            Self::Benchmark => measures::ALL,
            Self::Growth => measures::growth::ALL,
        }
    }

    /// The name of its file.
    pub fn file(self) -> &'static str {
        match self {
            Self::Benchmark => "report.md",
            Self::Growth => "growth.md",
        }
    }

    /// Writes it into `directory`.
    pub fn write(self, directory: &Path, store: &Store) -> Result<()> {
        let outcomes = self
            .parts()
            .iter()
            .map(|part| Ok((part.name, store.find(part.name)?)))
            .collect::<Result<Vec<Outcome>>>()?;
        for (_, kept) in &outcomes {
            let Some(Kept { report, .. }) = kept else { continue };
            for table in &report.tables {
                if let Some(name) = &table.plot {
                    plot::draw(table, &directory.join(name)).with_context(|| name.clone())?;
                }
            }
            for curve in &report.curves {
                let name = curve.plot();
                plot::draw_growth(curve, &directory.join(&name)).context(name)?;
            }
        }
        let text = match self {
            Self::Benchmark => markdown::render(&outcomes),
            Self::Growth => growth::render(&outcomes),
        };
        let path = directory.join(self.file());
        std::fs::write(&path, text).with_context(|| path.display().to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::Document;

    #[test]
    fn a_name_is_that_of_one_part() {
        let mut names: Vec<_> =
            Document::ALL.iter().flat_map(|document| document.parts()).map(|p| p.name).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
