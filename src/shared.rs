//! Shared memory: what is prepared is found fast and shown here, and backends and resolvers talk to
//! each other. After a crash everything that matters is read from [`crate::store`] again.
//!
//! * [`shmem`]: its arrays, and the lock over them; [`places`]: lists of places in arrays;
//! * [`entry`]: what is known of one participant that is prepared or about to be;
//! * [`entry_change`]: how it follows its participant, and why it may end;
//! * [`entries`]: all of them; [`entry_table`]: where they are;
//! * [`left`]: what the resolver has left, and why;
//! * [`seen`]: which participants have been asked since the start;
//! * [`order`]: the order of decisions, for consistent reads;
//! * [`hold`]: no delivery begins while restore points are made;
//! * [`window`]: readers ask those who deliver to wait a moment;
//! * [`reads`]: counters of consistent reads;
//! * [`stats`]: counters per foreign server;
//! * [`label_limit`]: how many labels a role may use;
//! * [`incarnation`]: what tells this start of the server from others;
//! * [`resolvers`]: which database has a resolver;
//! * [`requests`]: what backends ask of it;
//! * [`waits`]: who waits for servers for long, and what the resolver says to that; [`wait_rows`]:
//!   what it has seen of that;
//! * [`confirmed`]: what all participants have confirmed.

pub mod confirmed;
pub mod entries;
pub mod entry;
pub mod entry_change;
pub mod entry_table;
pub mod hold;
pub mod incarnation;
pub mod label_limit;
pub mod left;
pub mod order;
pub mod places;
pub mod reads;
pub mod requests;
pub mod resolvers;
pub mod seen;
pub mod shmem;
pub mod stats;
pub mod wait_rows;
pub mod waits;
pub mod window;
