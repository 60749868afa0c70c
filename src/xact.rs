//! The distributed transaction of this backend: who takes part, and what happens when it ends.
//!
//! While it runs:
//! * [`attachment`]: what execution uses: attach to a participant, run statements there;
//! * [`participants`]: the list of this transaction's participants;
//! * [`mod@unit`]: what one query does on its servers; [`start`]: the hook that sees it begin;
//! * [`renewal`]: what a READ COMMITTED transaction sees there;
//! * [`cut`]: consistent reads over several servers;
//! * [`branch`]: a participant's gid and state, and the one function that moves it;
//! * [`long_waits`]: its waits that may be part of a deadlock.
//!
//! When it ends:
//! * [`callbacks`]: PostgreSQL's transaction and subtransaction callbacks, which call the rest;
//! * [`phase_one`]: before the decision;
//! * [`write_down`]: what is on record before the first PREPARE is sent;
//! * [`reach`]: that the resolver will be able to reach those who prepare;
//! * [`numbers`]: the participants' numbers on the durable list, asked of the resolver;
//! * [`refusals`]: the errors of phase one;
//! * [`one_phase`]: the commit of a participant that does not prepare; [`at_once`]: together with
//!   the only statement;
//! * [`phase_two`]: after the decision;
//! * [`settle`]: delivering the outcome, whoever has decided it;
//! * [`abort`]: the abort of a transaction;
//! * [`deliveries`]: commits whose confirmation nobody waits for;
//! * [`endings`]: commits of participants that have only read, which nobody waits for.
//!
//! When the application has prepared it under its own 'gxid':
//! * [`utility`]: the hook that sees COMMIT PREPARED and ROLLBACK PREPARED;
//! * [`gxid`]: what they do here;
//! * [`replayed`]: what a subscription settles.
//!
//! [`restore_point`]: one restore point on this server and others.
//!
//! [`inject`]: faults for tests.

mod abort;
mod at_once;
mod attachment;
mod branch;
pub mod callbacks;
mod cut;
mod deliveries;
mod endings;
mod gxid;
pub mod inject;
mod long_waits;
mod numbers;
mod one_phase;
pub mod participants;
mod phase_one;
mod phase_two;
mod reach;
mod refusals;
mod renewal;
mod replayed;
pub mod restore_point;
mod settle;
pub mod start;
mod unit;
pub mod utility;
mod write_down;

pub use attachment::{Attachment, attach, attach_to_write, settle_all_owed};
pub use callbacks::collect_deliveries;
pub use cut::{fix as fix_snapshot, is_on as reads_consistently};
pub use long_waits::{HOOKS as LONG_WAITS, on_long_wait};
pub use reach::note_dropped_mapping;
