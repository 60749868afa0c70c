//! The resolver: finishes what crashes and lost connections left.
//!
//! * [`launcher`]: one per server; starts a worker in each database that has the extension;
//! * [`worker`]: one per database; serves its backends, forgets old decisions, keeps the times;
//! * [`sweep`]: settles one participant;
//! * [`questions`]: what a sweep asks it;
//! * [`process`]: what every background worker needs.

pub mod launcher;
mod process;
mod questions;
mod sweep;
pub mod worker;
