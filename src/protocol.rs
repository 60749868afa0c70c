//! The protocol as plain functions over plain data: no PostgreSQL, no I/O, no unsafe.
//!
//! * [`ahead`]: which scans are asked before the executor comes to them;
//! * [`answers`]: what an answer says of a participant's transaction;
//! * [`conclusion`]: what a sweep concludes about what is not listed;
//! * [`copy_text`]: rows in the text format of COPY;
//! * [`cut`]: whether the snapshots of several servers are one cut through the order of decisions;
//! * [`fingerprint`]: which server and database a connection has reached;
//! * [`gid`]: the identifiers given to `PREPARE TRANSACTION`;
//! * [`pipeline`]: which answer on a connection belongs to whom;
//! * [`patience`]: how long the resolver waits for a server that has much to answer;
//! * [`place`]: whether two foreign servers lead to the same database;
//! * [`label`]: what a client may be told of a transaction it has labelled;
//! * [`ledger`]: what is decided and not confirmed, by participant;
//! * [`local_commits`]: what lately was decided, by the local transaction;
//! * [`order`]: the order of decisions, and what has lately been delivered;
//! * [`participant`]: the life of one participant in a transaction;
//! * [`plan`]: how a commit must run, given who has written;
//! * [`restore_point`]: on which servers a restore point is made;
//! * [`session_lock`]: how sessions of one coordinator know each other;
//! * [`shown`]: what others see of a participant;
//! * [`verdict`]: what the resolver may conclude about a prepared transaction it found;
//! * [`retry`]: when to try again;
//! * [`waits`]: who waits for whom over several servers, and the deadlocks among that;
//! * [`wall_clock`]: how long ago something was, by a clock that somebody may set.

#![forbid(unsafe_code)]

pub mod ahead;
pub mod answers;
pub mod conclusion;
pub mod copy_text;
pub mod cut;
pub mod fingerprint;
pub mod gid;
pub mod label;
pub mod ledger;
pub mod local_commits;
pub mod order;
pub mod participant;
pub mod patience;
pub mod pipeline;
pub mod place;
pub mod plan;
pub mod restore_point;
pub mod retry;
pub mod session_lock;
pub mod shown;
pub mod verdict;
pub mod waits;
pub mod wall_clock;
