//! The protocol as plain functions over plain data: no PostgreSQL, no I/O, no unsafe.
//!
//! * [`answers`]: what an answer says of a participant's transaction;
//! * [`conclusion`]: what a sweep concludes about what is not listed;
//! * [`fingerprint`]: which server and database a connection has reached;
//! * [`gid`]: the identifiers given to `PREPARE TRANSACTION`;
//! * [`pipeline`]: which answer on a connection belongs to whom;
//! * [`label`]: what a client may be told of a transaction it has labelled;
//! * [`ledger`]: what is decided and not confirmed, by participant;
//! * [`participant`]: the life of one participant in a transaction;
//! * [`plan`]: how a commit must run, given who has written;
//! * [`session_lock`]: how sessions of one coordinator know each other;
//! * [`shown`]: what others see of a participant;
//! * [`verdict`]: what the resolver may conclude about a prepared transaction it found;
//! * [`retry`]: when to try again.
//!
//! `order` and `cut` are the groundwork of consistent reads, checked by a model and called by
//! nothing else yet: the order of decisions, and whether the snapshots of several servers are one
//! cut through it.

pub mod answers;
pub mod conclusion;
#[cfg(test)]
mod cut;
pub mod fingerprint;
pub mod gid;
pub mod label;
pub mod ledger;
#[cfg(test)]
mod order;
pub mod participant;
pub mod pipeline;
pub mod plan;
pub mod retry;
pub mod session_lock;
pub mod shown;
pub mod verdict;
