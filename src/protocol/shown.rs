//! What is shown of a participant, to the resolver and to views, as long as its owner is in a
//! state.

use crate::protocol::participant::State;

/// Status of a participant as the view shows it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Status {
    /// PREPARE was or will be sent.
    Preparing,
    /// PREPARE was confirmed; not decided.
    Prepared,
    /// Decided: COMMIT PREPARED has to be delivered.
    Committing,
    /// ROLLBACK PREPARED has to be delivered.
    Aborting,
}

impl Status {
    /// As the view shows it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Preparing => "preparing",
            Self::Prepared => "prepared",
            Self::Committing => "committing",
            Self::Aborting => "aborting",
        }
    }

    /// Whether the outcome is decided and has to be delivered.
    pub fn is_decided(self) -> bool {
        matches!(self, Self::Committing | Self::Aborting)
    }
}

/// What an entry in shared memory says as long as its participant is in a state.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Shown {
    /// How far it is.
    pub status: Status,
    /// It is the resolver's, not the session's.
    pub left: bool,
    /// COMMIT PREPARED is on its way, and nobody waits for the answer.
    pub unawaited: bool,
}

impl Shown {
    /// `None`: there is no entry.
    pub fn of(state: State) -> Option<Self> {
        let owned = |status| Some(Self { status, left: false, unawaited: false });
        let left = |status| Some(Self { status, left: true, unawaited: false });
        match state {
            State::Reserved | State::Preparing => owned(Status::Preparing),
            State::Prepared => owned(Status::Prepared),
            State::Committing => owned(Status::Committing),
            State::Aborting => owned(Status::Aborting),
            State::CommitUnawaited => {
                Some(Self { status: Status::Committing, left: false, unawaited: true })
            }
            State::Waiting => left(Status::Prepared),
            State::LeftToCommit => left(Status::Committing),
            State::LeftToAbort => left(Status::Aborting),
            State::Active
            | State::CommittingOnePhase
            | State::RollingBack
            | State::Settled
            | State::ReaderUnawaited
            | State::Unknown => None,
        }
    }
}
