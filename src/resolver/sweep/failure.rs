//! Why nothing was settled on a participant.

use crate::pg::error::Error;
use crate::protocol::verdict::Reason;

/// A sweep that came to nothing.
#[derive(Debug)]
pub struct Failure {
    /// In a word, for each transaction that stays in doubt by it.
    pub reason: Reason,
    /// In full.
    pub error: Error,
}

impl From<Error> for Failure {
    /// Whatever has no reason of its own: the participant was not reached.
    fn from(error: Error) -> Self {
        Self { reason: Reason::Unreached, error }
    }
}
