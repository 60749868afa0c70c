//! What is written down: the decision table, which is the truth, and shared memory, which only makes it
//! fast to find and visible. Losing shared memory loses nothing.
//!
//! * [`table`]: reading and writing our tables below SQL;
//! * [`decisions`]: one row per distributed transaction;
//! * [`registered`]: the identity and the participants that ever prepared;
//! * [`shmem`]: the shared structure and its lock;
//! * [`entries`]: one entry per participant that is prepared or about to be;
//! * [`workers`]: which database has a resolver, and what backends ask of it.

pub mod decisions;
pub mod entries;
pub mod registered;
pub mod shmem;
pub mod table;
pub mod workers;
