//! The life of one participant in one distributed transaction, as its owner sees it.
//!
//! ```text
//!          Reserve       SendPrepare       tag PREPARE TRANSACTION
//! Active ─────────▶ Reserved ─────▶ Preparing ─────▶ Prepared ─────▶ Committing ─────▶ Settled
//!   │                   │               │               │  decision      │
//!   │ SendCommit        │               │ refused       │ abort          │ not confirmed
//!   ▼                   ▼               ▼               ▼                ▼
//! CommittingOnePhase  RollingBack     Settled        Aborting        LeftToCommit
//! ```
//!
//! `Prepared` becomes `Waiting` when the application has prepared the local transaction under its
//! own 'gxid'; COMMIT PREPARED and ROLLBACK PREPARED of that 'gxid' go on from there, in any
//! session.
//!
//! From `Preparing` on, the participant no longer decides the outcome by itself: the local decision
//! does, and what cannot be confirmed is left to the resolver, never dropped.

/// What has been decided about a distributed transaction.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Outcome {
    /// Every participant commits.
    Commit,
    /// Every participant rolls back.
    Abort,
}

impl Outcome {
    /// The decision as an event of each participant.
    pub fn event(self) -> Event {
        match self {
            Self::Commit => Event::DecidedCommit,
            Self::Abort => Event::DecidedAbort,
        }
    }
}

/// Where a participant is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum State {
    /// The session is attached. Its remote transaction is open, or has not begun.
    Active,
    /// `COMMIT` in one phase was sent: only its answer tells the outcome.
    CommittingOnePhase,
    /// It has a gid, and shared memory shows it. `PREPARE TRANSACTION` has not been sent.
    Reserved,
    /// `PREPARE TRANSACTION` was sent.
    Preparing,
    /// The exact tag came back.
    Prepared,
    /// Prepared, and the outcome is that of the application's 'gxid', which is prepared here.
    Waiting,
    /// Decided: `COMMIT PREPARED` has to be delivered.
    Committing,
    /// Decided: `ROLLBACK PREPARED` has to be delivered.
    Aborting,
    /// `ROLLBACK` has to be delivered. Nothing was prepared, so the end of the connection does as
    /// well.
    RollingBack,
    /// Nothing is left there.
    Settled,
    /// `COMMIT` of a participant that has only read was sent; the connection takes the answer
    /// later.
    ReaderUnawaited,
    /// `COMMIT PREPARED` was sent with `commit_wait = off`; the connection takes the answer later.
    CommitUnawaited,
    /// `COMMIT` in one phase was not answered. Nothing was prepared, so there is nothing to settle.
    Unknown,
    /// The resolver delivers `COMMIT PREPARED`.
    LeftToCommit,
    /// The resolver delivers `ROLLBACK PREPARED`.
    LeftToAbort,
}

/// What happens to a participant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// The transaction ends, and no remote transaction was begun.
    NotBegun,
    /// `COMMIT` is about to be sent, without PREPARE.
    SendCommit,
    /// It has been given its gid and an entry in shared memory.
    Reserve,
    /// `PREPARE TRANSACTION` is about to be sent.
    SendPrepare,
    /// The exact tag `PREPARE TRANSACTION` came.
    PrepareConfirmed,
    /// It answered PREPARE with an error or another tag: it has rolled back by itself.
    PrepareRefused,
    /// It did not execute PREPARE, because a command before it failed: its transaction is still
    /// open.
    PrepareSkipped,
    /// The local transaction, or 'gxid', is durably committed.
    DecidedCommit,
    /// The local transaction is prepared under the application's 'gxid'.
    DecidedLater,
    /// The local transaction, or 'gxid', is rolled back.
    DecidedAbort,
    /// It confirmed what was sent last.
    Confirmed,
    /// The owner goes on without waiting for the answer to what was sent last.
    Unawaited,
    /// It could not be reached, did not answer in time, or refused.
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
            (S::Active, E::NotBegun) => S::Settled,
            (S::Active, E::SendCommit) => S::CommittingOnePhase,
            (S::Active, E::Reserve) => S::Reserved,
            (S::Reserved, E::SendPrepare) => S::Preparing,
            (S::Preparing, E::PrepareConfirmed) => S::Prepared,
            (S::Preparing, E::PrepareRefused) => S::Settled,
            (S::Preparing, E::PrepareSkipped) => S::Active,
            (S::Prepared, E::DecidedLater) => S::Waiting,
            (S::Prepared | S::Waiting, E::DecidedCommit) => S::Committing,
            (S::Preparing | S::Prepared | S::Waiting, E::DecidedAbort) => S::Aborting,
            (S::Active | S::Reserved, E::DecidedAbort) => S::RollingBack,
            // Too late to take anything back.
            (S::CommittingOnePhase, E::DecidedAbort) => S::Unknown,
            (S::CommittingOnePhase, E::Unawaited) => S::ReaderUnawaited,
            (S::Committing, E::Unawaited) => S::CommitUnawaited,
            (
                S::CommittingOnePhase
                | S::Committing
                | S::Aborting
                | S::RollingBack
                | S::CommitUnawaited,
                E::Confirmed,
            ) => S::Settled,
            (S::Committing | S::CommitUnawaited, E::Unconfirmed) => S::LeftToCommit,
            (S::Aborting, E::Unconfirmed) => S::LeftToAbort,
            // The owner closes the connection, which rolls back.
            (S::RollingBack, E::Unconfirmed) => S::Settled,
            // What has ended before the decision is not changed by it.
            (
                S::Settled | S::ReaderUnawaited | S::Unknown,
                E::DecidedCommit | E::DecidedAbort | E::DecidedLater,
            ) => self,
            _ => return Err(Illegal(self, event)),
        })
    }

    /// The outcome that the owner has to deliver to what is prepared there.
    pub fn undelivered(self) -> Option<Outcome> {
        match self {
            Self::Committing => Some(Outcome::Commit),
            Self::Aborting => Some(Outcome::Abort),
            _ => None,
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub const STATES: [State; 15] = [
        State::Active,
        State::CommittingOnePhase,
        State::Reserved,
        State::Preparing,
        State::Prepared,
        State::Waiting,
        State::Committing,
        State::Aborting,
        State::RollingBack,
        State::Settled,
        State::ReaderUnawaited,
        State::CommitUnawaited,
        State::Unknown,
        State::LeftToCommit,
        State::LeftToAbort,
    ];
    pub const EVENTS: [Event; 13] = [
        Event::NotBegun,
        Event::SendCommit,
        Event::Reserve,
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

    /// All legal transitions.
    pub fn transitions() -> impl Iterator<Item = (State, Event, State)> {
        STATES
            .into_iter()
            .flat_map(|s| EVENTS.map(|e| (s, e)))
            .filter_map(|(s, e)| s.on(e).ok().map(|next| (s, e, next)))
    }

    /// A prepared transaction may exist there.
    pub fn may_be_prepared(state: State) -> bool {
        match state {
            State::Preparing
            | State::Prepared
            | State::Waiting
            | State::Committing
            | State::Aborting
            | State::CommitUnawaited
            | State::LeftToCommit
            | State::LeftToAbort => true,
            State::Active
            | State::CommittingOnePhase
            | State::Reserved
            | State::RollingBack
            | State::Settled
            | State::ReaderUnawaited
            | State::Unknown => false,
        }
    }

    fn run(from: State, events: &[Event]) -> State {
        events.iter().fold(from, |state, event| state.on(*event).unwrap())
    }

    #[test]
    fn the_normal_life() {
        use Event as E;
        let prepared = run(State::Active, &[E::Reserve, E::SendPrepare, E::PrepareConfirmed]);
        assert_eq!(prepared, State::Prepared);
        assert_eq!(run(prepared, &[E::DecidedCommit, E::Confirmed]), State::Settled);
        let by_gxid = [E::DecidedLater, E::DecidedAbort, E::Unconfirmed];
        assert_eq!(run(prepared, &by_gxid), State::LeftToAbort);
    }

    #[test]
    fn every_state_is_reached_and_every_event_is_possible_somewhere() {
        let mut reached = vec![State::Active];
        while let Some(new) = transitions()
            .find(|(s, _, next)| reached.contains(s) && !reached.contains(next))
            .map(|(.., next)| next)
        {
            reached.push(new);
        }
        for state in STATES {
            assert!(reached.contains(&state), "{state:?}");
        }
        for event in EVENTS {
            assert!(transitions().any(|(_, e, _)| e == event), "{event:?}");
        }
    }

    /// A prepared transaction leaves the sight of owner and resolver only when the participant says
    /// that it is not there.
    #[test]
    fn nothing_prepared_is_ever_forgotten() {
        for (s, e, next) in transitions() {
            if may_be_prepared(s) && !may_be_prepared(next) {
                let told = [Event::Confirmed, Event::PrepareRefused, Event::PrepareSkipped];
                assert!(told.contains(&e), "{s:?} forgot on {e:?}");
            }
        }
    }

    #[test]
    fn only_prepare_itself_may_prepare_and_only_with_an_entry() {
        for (s, e, next) in transitions() {
            if !may_be_prepared(s) && may_be_prepared(next) {
                assert_eq!((s, e), (State::Reserved, Event::SendPrepare));
            }
        }
    }

    #[test]
    fn a_decided_outcome_never_changes() {
        let aborts = [State::Aborting, State::LeftToAbort];
        let commits = [State::Committing, State::CommitUnawaited, State::LeftToCommit];
        for (s, e, next) in transitions() {
            if aborts.contains(&s) {
                assert!(next == State::Settled || aborts.contains(&next), "{s:?} {e:?}");
            }
            if commits.contains(&s) {
                assert!(next == State::Settled || commits.contains(&next), "{s:?} {e:?}");
            }
        }
    }

    #[test]
    fn committing_needs_a_confirmed_prepare() {
        for (s, _, next) in transitions() {
            if next == State::Committing {
                assert!(matches!(s, State::Prepared | State::Waiting), "{s:?}");
            }
            if next == State::Prepared {
                assert_eq!(s, State::Preparing);
            }
        }
    }

    /// The owner goes on without an answer only where the outcome is decided or there is none to
    /// decide.
    #[test]
    fn no_prepare_goes_unawaited() {
        for (s, e, _) in transitions() {
            if e == Event::Unawaited {
                assert!(matches!(s, State::Committing | State::CommittingOnePhase), "{s:?}");
            }
        }
    }

    /// Whatever phase one has come to when it fails, the abort can take it from there; and whatever
    /// phase one leaves when it succeeds, each decision can.
    #[test]
    fn no_participant_refuses_the_decision() {
        use State as S;
        let failed = [S::Active, S::CommittingOnePhase, S::Reserved, S::Preparing, S::Prepared];
        let ended = [S::Settled, S::ReaderUnawaited];
        for state in failed.into_iter().chain(ended) {
            assert!(state.on(Event::DecidedAbort).is_ok(), "{state:?}");
        }
        for state in [S::Prepared].into_iter().chain(ended) {
            assert!(state.on(Event::DecidedCommit).is_ok(), "{state:?}");
            assert!(state.on(Event::DecidedLater).is_ok(), "{state:?}");
        }
        for state in [S::Committing, S::CommitUnawaited] {
            assert_eq!(state.on(Event::DecidedAbort), Err(Illegal(state, Event::DecidedAbort)));
        }
    }

    #[test]
    fn what_is_undelivered_can_be_confirmed_or_left() {
        for state in STATES.into_iter().filter(|s| s.undelivered().is_some()) {
            assert_eq!(state.on(Event::Confirmed), Ok(State::Settled));
            let left = state.on(Event::Unconfirmed).unwrap();
            assert!(matches!(left, State::LeftToCommit | State::LeftToAbort));
        }
    }
}
