//! Consistent reads: what is read on several servers together shows the same transactions.

mod bank;
mod faults;
mod half_delivered;
mod held;
mod local;
mod places;
mod statements;
mod units;
mod waits;
