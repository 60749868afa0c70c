//! Growth: what more of something does to time, processor time and memory, a file for each subject.
//!
//! The servers do not wait for their disks, so that what the programs do is seen. Each subject has
//! servers of its own, and takes its points one after the other.

mod clients;
mod databases;
mod decisions;
mod doubt;
mod ground;
mod idle;
mod limit;
mod mappings;
mod memory;
mod partitions;
mod shards;
mod work;

use anyhow::Result;

use crate::curve::Curve;
use crate::effort::Effort;

/// Measures the curves of one subject.
pub type Growth = fn(Effort) -> Result<Vec<Curve>>;

/// All, by the names that `--only` takes, in the order of the report.
pub const ALL: &[(&str, Growth)] = &[
    ("clients", clients::measure),
    ("per-shard", shards::measure),
    ("rows", decisions::measure),
    ("mappings", mappings::measure),
    ("in-doubt", doubt::measure),
    ("partitions", partitions::measure),
    ("databases", databases::measure),
    ("limit", limit::measure),
    ("idle", idle::measure),
];
