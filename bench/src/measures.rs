//! What is measured, a file for each subject.

mod beside;
mod bulk;
mod decisions;
pub mod growth;
mod hot;
mod instructions;
mod joins;
mod latency;
mod local;
mod processor;
mod reads;
mod throughput;
mod waits;
mod wal;

use anyhow::Result;

use crate::effort::Effort;
use crate::report::Report;
use crate::stand::Stand;

/// Measures something and adds it to the report.
pub type Measure = fn(&Stand, Effort, &mut Report) -> Result<()>;

/// All, by the names that `--only` takes, in the order of the report.
pub const ALL: &[(&str, Measure)] = &[
    ("waits", waits::measure),
    ("latency", latency::by_round_trip),
    ("shards", latency::by_shards),
    ("throughput", throughput::measure),
    ("processor", processor::measure),
    ("reads", reads::latency),
    ("joins", joins::measure),
    ("beside", beside::measure),
    ("hot", hot::measure),
    ("insert", bulk::insert),
    ("scan", bulk::scan),
    ("local", local::measure),
    ("instructions", instructions::measure),
    ("decisions", decisions::measure),
    ("wal", wal::measure),
];
