//! The life of one participant in one transaction.
//!
//! ```text
//!            START            PREPARE sent        tag PREPARE TRANSACTION
//!  (attached) ───▶ Active ──────────▶ Preparing ──────────▶ Prepared ──────▶ Committing ──▶ Settled
//!                    │                    │                    │     decision     │
//!                    │ COMMIT sent        │ refused            │                  │ no answer
//!                    ▼                    ▼                    ▼                  ▼
//!                CommittingOnePhase   Settled (aborted)     Aborting ────────▶ HandedOver
//! ```
//!
//! `Committing`, and `CommittingOnePhase` of a reader, may also end in `Unawaited`: the connection takes the answer.
//!
//! From `Preparing` on the outcome is not the participant's own any more: it is settled by the decision, and
//! what cannot be confirmed is handed to the resolver, never dropped.

/// Where a participant is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// Its remote transaction is open (or not begun yet).
    Active,
    /// `COMMIT` in one phase was sent: only its answer tells.
    CommittingOnePhase,
    /// `PREPARE TRANSACTION` was sent.
    Preparing,
    /// The exact tag came back.
    Prepared,
    /// Decided: `COMMIT PREPARED` has to be delivered.
    Committing,
    /// `ROLLBACK` or `ROLLBACK PREPARED` has to be delivered.
    Aborting,
    /// Nothing is left there.
    Settled,
    /// The last command is on the wire, and the connection takes its answer: `COMMIT` of a reader, or
    /// `COMMIT PREPARED` with `commit_wait = off`.
    Unawaited,
    /// The resolver has it.
    HandedOver,
}

/// What happens to a participant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// `COMMIT` is about to be sent, without PREPARE.
    SendCommit,
    /// `PREPARE TRANSACTION` is about to be sent.
    SendPrepare,
    /// The exact tag `PREPARE TRANSACTION` came.
    PrepareConfirmed,
    /// The participant answered PREPARE with an error or another tag: it rolled back by itself.
    PrepareRefused,
    /// The participant did not execute PREPARE, because a command before it failed: its transaction is still open.
    PrepareSkipped,
    /// The local transaction is durably committed.
    DecidedCommit,
    /// The local transaction is prepared under the application's 'gxid'.
    DecidedLater,
    /// The local transaction aborted.
    DecidedAbort,
    /// The participant confirmed what was sent last.
    Confirmed,
    /// What was sent last is left to the connection: nobody waits for the answer.
    Unawaited,
    /// It could not be reached, or did not answer in time.
    Unconfirmed,
}

/// An event that the state does not allow: a bug of ours, never a user's error.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("participant in state {0:?} cannot take {1:?}")]
pub struct Illegal(pub State, pub Event);

impl State {
    /// The state after `event`.
    ///
    /// # Errors
    /// The event is not possible here.
    pub fn on(self, event: Event) -> Result<Self, Illegal> {
        use Event as E;
        use State as S;
        Ok(match (self, event) {
            (S::Active, E::SendCommit) => S::CommittingOnePhase,
            (S::CommittingOnePhase, E::Confirmed) => S::Settled,
            (S::Active, E::SendPrepare) => S::Preparing,
            (S::Preparing, E::PrepareConfirmed) => S::Prepared,
            (S::Preparing, E::PrepareRefused) => S::Settled,
            (S::Preparing, E::PrepareSkipped) => S::Active,
            (S::Prepared, E::DecidedCommit) => S::Committing,
            // From now on whoever settles 'gxid' settles this.
            (S::Prepared, E::DecidedLater) => S::HandedOver,
            (S::Active | S::Preparing | S::Prepared, E::DecidedAbort) => S::Aborting,
            // Its COMMIT's answer never came; nothing can be taken back any more.
            (S::CommittingOnePhase, E::DecidedAbort) => S::HandedOver,
            (S::Committing | S::Aborting, E::Confirmed) => S::Settled,
            (S::Committing | S::Aborting, E::Unconfirmed) => S::HandedOver,
            (S::CommittingOnePhase | S::Committing, E::Unawaited) => S::Unawaited,
            // The ends are final whatever the local transaction does.
            (
                S::Settled | S::Unawaited | S::HandedOver,
                E::DecidedCommit | E::DecidedAbort | E::DecidedLater,
            ) => self,
            _ => return Err(Illegal(self, event)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A prepared transaction may exist there: then nothing may forget it.
    fn may_be_prepared(state: State) -> bool {
        matches!(
            state,
            State::Preparing
                | State::Prepared
                | State::Committing
                | State::Unawaited
                | State::HandedOver
        )
    }

    const STATES: [State; 9] = [
        State::Active,
        State::CommittingOnePhase,
        State::Preparing,
        State::Prepared,
        State::Committing,
        State::Aborting,
        State::Settled,
        State::Unawaited,
        State::HandedOver,
    ];
    const EVENTS: [Event; 11] = [
        Event::SendCommit,
        Event::SendPrepare,
        Event::PrepareConfirmed,
        Event::PrepareRefused,
        Event::PrepareSkipped,
        Event::DecidedCommit,
        Event::DecidedLater,
        Event::DecidedAbort,
        Event::Confirmed,
        Event::Unawaited,
        Event::Unconfirmed,
    ];

    #[test]
    fn the_normal_life() {
        let mut s = State::Active;
        for e in
            [Event::SendPrepare, Event::PrepareConfirmed, Event::DecidedCommit, Event::Confirmed]
        {
            s = s.on(e).unwrap();
        }
        assert_eq!(s, State::Settled);
    }

    /// A prepared transaction ends only by a confirmation, by the participant's own refusal, or in the
    /// resolver's hands.
    #[test]
    fn nothing_prepared_is_ever_forgotten() {
        for s in STATES {
            for e in EVENTS {
                let Ok(next) = s.on(e) else { continue };
                if may_be_prepared(s) && next == State::Settled && s != State::Settled {
                    assert!(
                        matches!(e, Event::Confirmed | Event::PrepareRefused),
                        "{s:?} forgot on {e:?}"
                    );
                }
            }
        }
    }

    /// Nobody waits only for what is decided, or has nothing to decide.
    #[test]
    fn no_prepare_goes_unawaited() {
        for s in STATES {
            if s.on(Event::Unawaited).is_ok() {
                assert!(matches!(s, State::Committing | State::CommittingOnePhase), "{s:?}");
            }
        }
    }

    #[test]
    fn committing_needs_a_confirmed_prepare() {
        for s in STATES {
            if s.on(Event::DecidedCommit) == Ok(State::Committing) {
                assert_eq!(s, State::Prepared);
            }
        }
    }

    #[test]
    fn an_abort_is_possible_from_everywhere_before_the_decision() {
        for s in [State::Active, State::Preparing, State::Prepared] {
            assert_eq!(s.on(Event::DecidedAbort), Ok(State::Aborting));
        }
        assert!(State::Committing.on(Event::DecidedAbort).is_err());
    }
}
