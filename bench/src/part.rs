//! Parts of the benchmark: each can be measured by itself, and has a result that is kept.

use anyhow::Result;

use crate::curve::Curve;
use crate::effort::Effort;
use crate::report::Report;
use crate::stand::Stand;

/// Something to be measured.
pub struct Part {
    /// What `--only` and the file of its result call it.
    pub name: &'static str,
    /// About how many seconds it takes, with `--quick` and without.
    seconds: (u64, u64),
    work: Work,
}

enum Work {
    /// On servers that several parts share.
    OnStand(fn(&Stand, Effort, &mut Report) -> Result<()>),
    /// On servers of its own.
    Alone(fn(Effort) -> Result<Vec<Curve>>),
}

impl Part {
    /// One that is measured on the shared servers.
    pub const fn on_stand(
        name: &'static str,
        seconds: (u64, u64),
        measure: fn(&Stand, Effort, &mut Report) -> Result<()>,
    ) -> Self {
        Self { name, seconds, work: Work::OnStand(measure) }
    }

    /// One that starts its own servers.
    pub const fn alone(
        name: &'static str,
        seconds: (u64, u64),
        measure: fn(Effort) -> Result<Vec<Curve>>,
    ) -> Self {
        Self { name, seconds, work: Work::Alone(measure) }
    }

    /// About how many seconds it takes.
    pub fn seconds(&self, effort: Effort) -> u64 {
        effort.choose(self.seconds.0, self.seconds.1)
    }

    /// Measures it. The shared servers are started by the first part that needs them, and stopped
    /// by one that has its own.
    pub fn measure(&self, effort: Effort, stand: &mut Option<Stand>) -> Result<Report> {
        let mut report = Report::default();
        match self.work {
            Work::OnStand(measure) => {
                let stand = match stand {
                    Some(running) => running,
                    None => stand.insert(Stand::start()?),
                };
                measure(stand, effort, &mut report)?;
            }
            Work::Alone(measure) => {
                *stand = None;
                report.curves = measure(effort)?;
            }
        }
        Ok(report)
    }
}
