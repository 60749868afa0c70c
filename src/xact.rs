//! The distributed transaction of this backend: who takes part, and what happens when it ends.
//!
//! * [`attachment`]: what execution uses: attach to a participant, run statements there;
//! * [`participants`]: the list of this transaction's participants;
//! * [`callbacks`]: PostgreSQL's transaction and subtransaction callbacks;
//! * [`commit`]: before the decision and after it;
//! * [`reach`]: that the resolver will be able to reach those who prepare;
//! * [`deliveries`]: commits whose confirmation nobody waits for;
//! * [`endings`]: commits of those who have only read, for which nobody waits;
//! * [`one_phase`]: the commit of a participant that does not prepare;
//! * [`replayed`]: what a subscription settles;
//! * [`abort`]: the abort of a transaction;
//! * [`inject`]: faults for tests;
//! * [`utility`]: COMMIT PREPARED and ROLLBACK PREPARED by the application.

mod abort;
mod attachment;
pub mod callbacks;
mod commit;
mod deliveries;
mod endings;
pub mod inject;
mod one_phase;
pub mod participants;
mod reach;
mod replayed;
mod unconfirmed;
pub mod utility;

pub use attachment::{Attachment, attach, attach_to_write, on_long_wait};
pub use callbacks::collect_deliveries;
pub use reach::note_dropped_mapping;
