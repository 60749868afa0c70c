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

use crate::part::Part;

/// All subjects, in the order of the report.
pub const ALL: &[Part] = &[
    Part::alone("clients", (15, 45), clients::measure),
    Part::alone("per-shard", (15, 35), shards::measure),
    Part::alone("rows", (25, 90), decisions::measure),
    Part::alone("mappings", (20, 45), mappings::measure),
    Part::alone("in-doubt", (25, 90), doubt::measure),
    Part::alone("partitions", (15, 80), partitions::measure),
    Part::alone("databases", (35, 140), databases::measure),
    Part::alone("limit", (25, 35), limit::measure),
    Part::alone("idle", (25, 140), idle::measure),
];
