//! Results on disk, a file for each part, written as soon as the part is measured: what is
//! interrupted loses no more than one part, and a part that is measured again leaves the others.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::machine::{Circumstances, Machine};
use crate::report::Report;

/// The result of a part.
#[derive(Debug, Serialize, Deserialize)]
pub struct Kept {
    /// Whether slices were short and rounds few.
    pub quick: bool,
    /// Commit of what was measured.
    pub commit: String,
    /// When, and what else the machine did.
    pub circumstances: Circumstances,
    /// Where and with what.
    pub machine: Machine,
    /// How long it took to measure.
    pub seconds: u64,
    /// What was found.
    pub report: Report,
}

/// Where results are kept: `results` beside the reports.
pub struct Store(PathBuf);

impl Store {
    /// That of the reports in `directory`.
    pub fn beside(directory: &Path) -> Result<Self> {
        let results = directory.join("results");
        std::fs::create_dir_all(&results).with_context(|| results.display().to_string())?;
        Ok(Self(results))
    }

    /// Keeps the result of a part instead of an older one, which is there until the new one is
    /// complete.
    pub fn keep(&self, part: &str, kept: &Kept) -> Result<()> {
        let path = self.path(part);
        let incomplete = path.with_extension("incomplete");
        std::fs::write(&incomplete, serde_json::to_string_pretty(kept)? + "\n")?;
        std::fs::rename(&incomplete, &path).with_context(|| path.display().to_string())
    }

    /// The last result of a part. One of a form that is no longer in use is none.
    pub fn find(&self, part: &str) -> Result<Option<Kept>> {
        let path = self.path(part);
        match std::fs::read(&path) {
            Ok(text) => Ok(serde_json::from_slice(&text).ok()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| path.display().to_string()),
        }
    }

    fn path(&self, part: &str) -> PathBuf {
        self.0.join(format!("{part}.json"))
    }
}

#[cfg(test)]
pub mod tests {
    use super::{Kept, Store};
    use crate::machine::{Circumstances, Machine};
    use crate::report::Report;
    use crate::statistics::Spread;

    /// Of a machine called `kernel`.
    pub fn kept(kernel: &str, report: Report) -> Kept {
        Kept {
            quick: false,
            commit: "abc".into(),
            circumstances: Circumstances {
                date: "2026-01-02 03:04".into(),
                load: "0.1, 0.2, 0.3".into(),
                sync: 0.25,
            },
            machine: Machine {
                processors: "2 × one".into(),
                memory: "4.0 GiB".into(),
                kernel: kernel.into(),
                file_system: "ext4".into(),
                postgresql: "PostgreSQL 15.1".into(),
                extension: "0.1".into(),
            },
            seconds: 7,
            report,
        }
    }

    #[test]
    fn what_is_kept_is_found_and_replaced_and_nothing_else_is() {
        let directory = std::env::temp_dir().join(format!("kept-{}", std::process::id()));
        let store = Store::beside(&directory).expect("it is made");
        let mut report = Report::default();
        report.headline(crate::report::Headline::Bulk, Some(Spread::single(0.1 + 0.2)));
        store.keep("a", &kept("old", Report::default())).expect("it is written");
        store.keep("a", &kept("new", report)).expect("it is replaced");
        std::fs::write(directory.join("results/b.json"), "{}").expect("it is written");
        let found = store.find("a").expect("it can be read").expect("it is there");
        assert_eq!(found.machine.kernel, "new");
        assert_eq!(found.report.headlines[0].1, Spread::single(0.1 + 0.2));
        for missing in ["b", "c"] {
            assert!(store.find(missing).expect("it can be looked for").is_none(), "{missing}");
        }
        std::fs::remove_dir_all(&directory).expect("it is ours");
    }
}
