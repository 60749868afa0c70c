//! How an entry follows its participant: what each transition of the owner's state machine changes
//! in shared memory, and why an entry may end.

use crate::protocol::participant::State;
use crate::protocol::shown::Shown;
use crate::protocol::verdict::Reason;
use crate::shared::entry::{Entry, Owner, Status};

/// What a transition changes in the entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// Nothing.
    Nothing,
    /// `entries::reserve` has made it, together with those of the other participants.
    Made,
    /// The owner has got further.
    Show(Status),
    /// The owner goes on without waiting for the answer to COMMIT PREPARED.
    Unawaited,
    /// It is left to the resolver.
    Leave(Status),
    /// A session takes it back from the resolver, to deliver the outcome.
    Claim(Status),
    /// It ends.
    End(Why),
}

impl Change {
    /// What the transition from one state to another changes.
    pub fn between(was: State, now: State) -> Self {
        match (Shown::of(was), Shown::of(now)) {
            (None, None) => Self::Nothing,
            (None, Some(_)) => Self::Made,
            (Some(shown), None) if shown.status.is_decided() => Self::End(Why::Confirmed),
            (Some(_), None) => Self::End(Why::NotPrepared),
            (Some(was), Some(now)) if was == now => Self::Nothing,
            (Some(_), Some(Shown { unawaited: true, .. })) => Self::Unawaited,
            (Some(_), Some(Shown { left: true, status, .. })) => Self::Leave(status),
            (Some(Shown { left: true, .. }), Some(Shown { status, .. })) => Self::Claim(status),
            (Some(_), Some(Shown { status, .. })) => Self::Show(status),
        }
    }

    /// Writes it to the entry, on behalf of the backend `pid`. An end is not written but ends it.
    pub fn write(self, entry: &mut Entry, pid: i32, now: i64) {
        let show = |entry: &mut Entry, status: Status| {
            if status.is_decided() {
                entry.since = now;
            }
            entry.status = status;
        };
        match self {
            Self::Nothing | Self::Made | Self::End(_) => {}
            Self::Show(status) => show(entry, status),
            Self::Unawaited => {
                entry.unawaited = true;
                entry.acknowledged = true;
            }
            Self::Leave(status) => {
                entry.status = status;
                entry.owner = Owner::Resolver;
                entry.unawaited = false;
                entry.acknowledged |= status == Status::Committing;
                entry.reason = Reason::Untried;
            }
            // Another session may have been faster.
            Self::Claim(status) if entry.is_left() => {
                show(entry, status);
                entry.owner = Owner::Backend(pid);
            }
            Self::Claim(_) => {}
        }
    }
}

/// Why an entry ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Why {
    /// The participant has confirmed the outcome to the owner.
    Confirmed,
    /// The owner knows that nothing was prepared: PREPARE was not sent, not executed or refused.
    NotPrepared,
    /// The resolver has delivered the outcome.
    Resolved,
    /// The resolver has found that nothing is prepared there any more.
    Gone,
    /// The same, of a participant that is not on the list any more.
    GoneUnlisted,
    /// An operator has given it up.
    GivenUp,
}

impl Why {
    /// Whether an entry may end for this reason: what the resolver and operators end must be the
    /// resolver's.
    pub fn may_end(self, entry: &Entry) -> bool {
        match self {
            // Whoever owns it, there is nothing to settle.
            Self::Confirmed | Self::NotPrepared | Self::Gone => true,
            Self::Resolved | Self::GivenUp => entry.is_left(),
            Self::GoneUnlisted => entry.is_for_the_resolver() && entry.participant == 0,
        }
    }

    /// Whether the statistics count it as settled by its owner. One whose owner did not wait was
    /// delivered by it, even if the resolver is the first to see that.
    pub fn is_by_owner(self, entry: &Entry) -> bool {
        match self {
            Self::Confirmed => true,
            Self::Gone | Self::GoneUnlisted => entry.unawaited,
            Self::NotPrepared | Self::Resolved | Self::GivenUp => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use pgrx::pg_sys::{Oid, TransactionId};

    use super::*;
    use crate::protocol::participant::tests::{STATES, may_be_prepared, transitions};
    use crate::protocol::place::Place;

    const PID: i32 = 7;

    /// The entry as it is shown while its owner is in a state.
    fn entry(state: State) -> Option<Entry> {
        let Shown { status, left, unawaited } = Shown::of(state)?;
        Some(Entry {
            status,
            owner: if left { Owner::Resolver } else { Owner::Backend(PID) },
            remote_pid: 0,
            since: 0,
            dbid: Oid::from_u32(1),
            xid: TransactionId::from(700),
            serverid: Oid::from_u32(2),
            userid: Oid::from_u32(3),
            identity: 1,
            nonce: 1,
            participant: 1,
            remote_xid: 0,
            local_xid: 0,
            place: Place::default(),
            number: 0,
            acknowledged: false,
            participants: 1,
            unawaited,
            reason: Reason::Unreached,
        })
    }

    #[test]
    fn whatever_may_be_prepared_has_an_entry_and_only_that_and_what_is_about_to_be() {
        for state in STATES {
            let expected = may_be_prepared(state) || state == State::Reserved;
            assert_eq!(Shown::of(state).is_some(), expected, "{state:?}");
        }
    }

    /// Every transition leaves the entry as its new state shows it.
    #[test]
    fn an_entry_follows_every_transition() {
        for (was, event, now) in transitions() {
            let change = Change::between(was, now);
            let (before, after) = (entry(was), entry(now));
            match (before, after) {
                (None, None) => assert_eq!(change, Change::Nothing),
                (None, Some(_)) => assert_eq!((change, now), (Change::Made, State::Reserved)),
                (Some(_), None) => assert!(matches!(change, Change::End(_)), "{was:?} {event:?}"),
                (Some(mut entry), Some(expected)) => {
                    change.write(&mut entry, PID, 5);
                    assert_eq!(entry.status, expected.status, "{was:?} {event:?}");
                    assert_eq!(entry.owner, expected.owner, "{was:?} {event:?}");
                    assert_eq!(entry.unawaited, expected.unawaited, "{was:?} {event:?}");
                }
            }
        }
    }

    #[test]
    fn each_end_says_whether_the_outcome_was_delivered() {
        for (was, _, now) in transitions() {
            if let Change::End(why) = Change::between(was, now) {
                let decided = [State::Committing, State::CommitUnawaited, State::Aborting];
                let expected =
                    if decided.contains(&was) { Why::Confirmed } else { Why::NotPrepared };
                assert_eq!(why, expected, "{was:?} {now:?}");
            }
        }
    }

    #[test]
    fn the_decision_sets_the_time_and_what_is_left_is_untried() {
        let mut e = entry(State::Prepared).unwrap();
        Change::Show(Status::Committing).write(&mut e, PID, 5);
        assert_eq!((e.since, e.reason), (5, Reason::Unreached));
        Change::Leave(Status::Committing).write(&mut e, PID, 9);
        assert_eq!((e.since, e.reason), (5, Reason::Untried));
        assert!(e.is_for_the_resolver());
    }

    #[test]
    fn what_is_decided_is_overdue_after_a_while_whatever_happens_to_the_clock() {
        let limit = std::time::Duration::from_micros(10);
        let since = 3_600_000_000;
        let decided = Entry { since, ..entry(State::Committing).unwrap() };
        assert!(!decided.is_overdue(since + 10, limit) && decided.is_overdue(since + 11, limit));
        assert!(decided.is_overdue(0, limit), "the clock was set back by an hour");
        let undecided = Entry { since, ..entry(State::Prepared).unwrap() };
        assert!(!undecided.is_overdue(since + 11, limit));
    }

    #[test]
    fn only_what_is_the_resolvers_can_be_claimed() {
        let mut left = entry(State::Waiting).unwrap();
        Change::Claim(Status::Aborting).write(&mut left, 8, 5);
        assert_eq!((left.owner, left.status, left.since), (Owner::Backend(8), Status::Aborting, 5));
        Change::Claim(Status::Committing).write(&mut left, 9, 6);
        assert_eq!((left.owner, left.status), (Owner::Backend(8), Status::Aborting));
    }

    #[test]
    fn nobody_ends_what_a_backend_owns_but_the_backend_and_who_knows_that_it_is_gone() {
        for state in STATES {
            let Some(entry) = entry(state) else { continue };
            for why in [Why::Confirmed, Why::NotPrepared, Why::Gone] {
                assert!(why.may_end(&entry), "{why:?} {state:?}");
            }
            for why in [Why::Resolved, Why::GivenUp] {
                assert_eq!(why.may_end(&entry), entry.is_left(), "{why:?} {state:?}");
            }
            assert!(!Why::GoneUnlisted.may_end(&entry), "it is on the list");
            let unlisted = Entry { participant: 0, ..entry };
            let expected = matches!(state, State::LeftToCommit | State::LeftToAbort);
            assert_eq!(Why::GoneUnlisted.may_end(&unlisted), expected, "{state:?}");
        }
    }

    #[test]
    fn an_owner_that_did_not_wait_has_delivered_all_the_same() {
        let awaited = entry(State::Committing).unwrap();
        let unawaited = Entry { unawaited: true, ..awaited };
        for (why, of_awaited, of_unawaited) in [
            (Why::Confirmed, true, true),
            (Why::Gone, false, true),
            (Why::GoneUnlisted, false, true),
            (Why::NotPrepared, false, false),
            (Why::Resolved, false, false),
            (Why::GivenUp, false, false),
        ] {
            assert_eq!(why.is_by_owner(&awaited), of_awaited, "{why:?}");
            assert_eq!(why.is_by_owner(&unawaited), of_unawaited, "{why:?}");
        }
    }
}
