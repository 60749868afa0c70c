//! Consistent reads: what is read on several servers together shows the same transactions.

mod bank;
mod half_delivered;
mod local;
mod units;
mod waits;
