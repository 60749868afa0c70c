//! What a participant's answer to a command that ends its transaction says.

use crate::protocol::participant::{Event, State};

/// What has come back for a command.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Heard {
    /// The exact tag of the command: it was done.
    Done,
    /// The tag of ROLLBACK, where the transaction had failed. Any other tag but the command's own
    /// is no answer: [`Self::Lost`].
    OtherTag,
    /// An error. PREPARE was not executed, because a command before it has failed.
    Skipped,
    /// The error that nothing of that name is prepared there.
    NotPrepared,
    /// Another error of the server's.
    Refused,
    /// No answer. What a server says as it goes away is none, nor is an error of libpq's.
    Lost,
}

impl Heard {
    /// What the answer means in phase one to a participant that was told to prepare, or to commit
    /// what it has only read. `None`: what became of the command is not known.
    pub fn in_phase_one(self, state: State) -> Option<Event> {
        let prepares = state == State::Preparing;
        match self {
            Self::Done if prepares => Some(Event::PrepareConfirmed),
            Self::Skipped => Some(Event::PrepareSkipped),
            // A failed transaction answers PREPARE with the tag ROLLBACK and no error.
            Self::OtherTag | Self::NotPrepared | Self::Refused if prepares => {
                Some(Event::PrepareRefused)
            }
            Self::Done | Self::OtherTag | Self::NotPrepared | Self::Refused => {
                Some(Event::Confirmed)
            }
            Self::Lost => None,
        }
    }

    /// Whether the answer to COMMIT PREPARED or, from another session than the one that has
    /// prepared, to ROLLBACK PREPARED says that it was done.
    pub fn settles(self) -> bool {
        self == Self::Done
    }

    /// Whether the answer to ROLLBACK, or to a ROLLBACK PREPARED behind the PREPARE on the same
    /// connection, says that nothing is left there.
    pub fn is_rolled_back(self, state: State) -> bool {
        match (self, state) {
            (Self::Done, _) | (Self::OtherTag, State::RollingBack) => true,
            // PREPARE was answered before it on this connection: there is nothing to roll back. Or
            // PREPARE was not executed: the transaction that is still open ends with the
            // connection, which is not used again.
            (Self::NotPrepared | Self::Skipped, State::Aborting) => true,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Heard; 6] = [
        Heard::Done,
        Heard::OtherTag,
        Heard::Skipped,
        Heard::NotPrepared,
        Heard::Refused,
        Heard::Lost,
    ];

    #[test]
    fn only_the_exact_tag_is_success() {
        for heard in ALL {
            let event = heard.in_phase_one(State::Preparing);
            assert_eq!(event == Some(Event::PrepareConfirmed), heard == Heard::Done, "{heard:?}");
            assert_eq!(heard.settles(), heard == Heard::Done, "{heard:?}");
        }
    }

    #[test]
    fn phase_one_can_take_what_any_answer_means() {
        for state in [State::Preparing, State::CommittingOnePhase] {
            for heard in ALL {
                let Some(event) = heard.in_phase_one(state) else { continue };
                let reader_skips = state != State::Preparing && heard == Heard::Skipped;
                assert_eq!(state.on(event).is_ok(), !reader_skips, "{state:?} {heard:?}");
            }
        }
    }

    #[test]
    fn without_an_answer_nothing_is_known() {
        assert_eq!(Heard::Lost.in_phase_one(State::Preparing), None);
        for state in [State::Aborting, State::RollingBack] {
            assert!(!Heard::Lost.is_rolled_back(state));
            assert!(!Heard::Refused.is_rolled_back(state));
        }
    }
}
