//! What is written down: the decision table, which is the truth, and shared memory, which only makes it
//! fast to find and visible. Losing shared memory loses nothing.
//!
//! * [`table`]: reading and writing our tables below SQL;
//! * [`decisions`]: one row per distributed transaction;
//! * [`labels`]: what became of transactions, for clients that lost the answer;
//! * [`registered`]: the identity and the participants that ever prepared;
//! * [`replication`]: whether decisions are where synchronous standbys need them;
//! * [`shmem`]: the shared structure and its lock;
//! * [`entries`]: one entry per participant that is prepared or about to be;
//! * [`stats`]: counters per foreign server;
//! * [`workers`]: which database has a resolver;
//! * [`requests`]: what backends ask of it;
//! * [`left`]: what the resolver leaves, and why;
//! * [`seen`]: which participants have been asked since the start.

pub mod decisions;
pub mod entries;
pub mod labels;
pub mod left;
pub mod registered;
pub mod replication;
pub mod requests;
pub mod seen;
pub mod shmem;
pub mod stats;
pub mod table;
pub mod workers;
