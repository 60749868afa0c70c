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
    Part::alone("clients", (10, 60), clients::measure),
    Part::alone("per-shard", (10, 60), shards::measure),
    Part::alone("rows", (20, 120), decisions::measure),
    Part::alone("mappings", (20, 90), mappings::measure),
    Part::alone("in-doubt", (20, 150), doubt::measure),
    Part::alone("partitions", (15, 120), partitions::measure),
    Part::alone("databases", (20, 150), databases::measure),
    Part::alone("limit", (20, 60), limit::measure),
    Part::alone("idle", (20, 200), idle::measure),
];
