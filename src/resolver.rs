//! The resolver: finishes what crashes and lost connections have left.
//!
//! * [`launcher`]: one process per server; starts a resolver in each database that has the
//!   extension;
//! * [`worker`]: one process per database; answers its backends, deletes old decisions, and decides
//!   when to sweep which participant;
//! * [`sweep`]: settles what is left on one participant;
//! * [`waits`]: finds deadlocks over several servers;
//! * [`process`]: what every background worker needs.

pub mod launcher;
mod process;
mod sweep;
mod waits;
pub mod worker;
