//! What is measured, a file for each subject.

mod beside;
mod bulk;
mod decisions;
pub mod growth;
mod hot;
mod instructions;
mod latency;
mod local;
mod processor;
mod reads;
mod several;
mod statements;
mod throughput;
mod waits;
mod wal;

use crate::part::Part;

/// All that compare with others, in the order of the report.
pub const ALL: &[Part] = &[
    Part::on_stand("waits", (30, 40), waits::measure),
    Part::on_stand("latency", (40, 95), latency::by_round_trip),
    Part::on_stand("shards", (40, 110), latency::by_shards),
    Part::on_stand("statements", (10, 25), statements::measure),
    Part::on_stand("throughput", (20, 90), throughput::measure),
    Part::on_stand("processor", (25, 80), processor::measure),
    Part::on_stand("reads", (20, 60), reads::latency),
    Part::on_stand("several", (8, 20), several::measure),
    Part::on_stand("beside", (10, 60), beside::measure),
    Part::on_stand("hot", (5, 25), hot::measure),
    Part::on_stand("insert", (10, 30), bulk::insert),
    Part::on_stand("scan", (10, 30), bulk::scan),
    Part::on_stand("local", (10, 25), local::measure),
    Part::on_stand("instructions", (60, 60), instructions::measure),
    Part::on_stand("decisions", (20, 40), decisions::measure),
    Part::on_stand("wal", (5, 15), wal::measure),
];
