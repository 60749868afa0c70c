//! What is in shared memory: it makes what is prepared fast to find and visible, and lets backends and resolvers talk to
//! each other. Losing it loses nothing that [`crate::store`] does not have.
//!
//! * [`shmem`]: what is in shared memory and the lock over it;
//! * [`places`]: lists of places in its arrays;
//! * [`entry`]: what is known of one participant that is prepared or about to be;
//! * [`entry_change`]: how it follows its participant, and why it may end;
//! * [`entries`]: all of them;
//! * [`entry_table`]: where they are;
//! * [`left`]: what the resolver leaves, and why;
//! * [`seen`]: which participants have been asked since the start;
//! * [`stats`]: counters per foreign server;
//! * [`label_limit`]: how many labels a role may use;
//! * [`workers`]: which database has a resolver;
//! * [`requests`]: what backends ask of it.

pub mod entries;
pub mod entry;
pub mod entry_change;
pub mod entry_table;
pub mod label_limit;
pub mod left;
pub mod places;
pub mod requests;
pub mod seen;
pub mod shmem;
pub mod stats;
pub mod workers;
