//! Consistent reads: what is read on several servers together shows the same transactions.

mod after_a_restart;
pub mod bank;
mod caught;
mod ends;
mod faults;
mod half_delivered;
pub mod held;
mod local;
mod parallel;
mod places;
mod same_place;
mod statements;
mod units;
mod waits;
