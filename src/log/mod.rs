//! What is written down: the decision table, which is the truth, and shared memory, which only makes it
//! fast to find and visible. Losing shared memory loses nothing.
//!
//! * [`table`]: reading and writing our tables below SQL;
//! * [`trusted`]: which tables are the extension's;
//! * [`decisions`]: one row per distributed transaction;
//! * [`labels`]: what became of transactions, for clients that lost the answer;
//! * [`label_limit`]: how many of them a role may use;
//! * [`registered`]: the identity and the participants that ever prepared;
//! * [`replication`]: whether decisions are where synchronous standbys need them;
//! * [`shmem`]: what is in shared memory and the lock over it;
//! * [`places`]: lists of places in its arrays;
//! * [`entries`]: one entry per participant that is prepared or about to be;
//! * [`entry_table`]: where they are;
//! * [`stats`]: counters per foreign server;
//! * [`workers`]: which database has a resolver;
//! * [`requests`]: what backends ask of it;
//! * [`left`]: what the resolver leaves, and why;
//! * [`seen`]: which participants have been asked since the start.

pub mod decisions;
pub mod entries;
pub mod entry_table;
pub mod label_limit;
pub mod labels;
pub mod left;
pub mod places;
pub mod registered;
pub mod replication;
pub mod requests;
pub mod seen;
pub mod shmem;
pub mod stats;
pub mod table;
pub mod trusted;
pub mod workers;
