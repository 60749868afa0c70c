//! The distributed transaction of this backend: who takes part, and what happens when it ends.
//!
//! * [`session`]: what execution uses: attach to a participant, run statements there;
//! * [`participants`]: the list of this transaction's participants;
//! * [`callbacks`]: PostgreSQL's transaction and subtransaction callbacks;
//! * [`commit`]: before the decision and after it;
//! * [`abort`]: the abort of a transaction.

mod participants;
mod session;

pub use session::{Session, attach};
