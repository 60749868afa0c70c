//! Consistent reads: what is read on several servers together shows the same transactions.

mod after_a_restart;
mod bank;
mod ends;
mod half_delivered;
mod local;
mod parallel;
mod places;
mod units;
mod waits;
