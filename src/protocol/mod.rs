//! The protocol as plain functions over plain data: no PostgreSQL, no I/O, no unsafe.
//!
//! * [`admission`]: which statements of a user may run in a participant's transaction;
//! * [`gid`]: the identifiers given to `PREPARE TRANSACTION`;
//! * [`pipeline`]: which answer on a connection belongs to whom;
//! * [`label`]: what a client may be told of a transaction it has labelled;
//! * [`ledger`]: what is decided and not confirmed, by participant;
//! * [`participant`]: the life of one participant in a transaction;
//! * [`plan`]: how a commit must run, given who has written;
//! * [`verdict`]: what the resolver may conclude about a prepared transaction it found;
//! * [`retry`]: when to try again.

pub mod admission;
pub mod gid;
pub mod label;
pub mod ledger;
pub mod participant;
pub mod pipeline;
pub mod plan;
pub mod retry;
pub mod verdict;
