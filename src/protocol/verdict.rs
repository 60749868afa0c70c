//! What the resolver may conclude about one prepared transaction that it found on a participant.
//!
//! Presumed abort: the decision row is inserted before PREPARE is sent and outlives the delivery, so a
//! gid that is listed on the participant and has no row *afterwards* was aborted. The order of the
//! observations is what makes this safe; [`settle`] takes them in that order.

/// What the decision table says of a transaction, seen with a dirty snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    /// The row's transaction committed.
    Committed,
    /// The row's transaction is running, or prepared here under the application's 'gxid'.
    InProgress,
    /// There is no row.
    Absent,
}

/// What is known of the server that a list of prepared transactions was read from, asked before the
/// list on the same connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// The recorded server and database, and not in recovery.
    Recorded,
    /// Another server or database answers at this address; not in recovery.
    Other,
    /// A standby: its list is empty or old.
    InRecovery,
}

/// What to do with a prepared transaction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// `COMMIT PREPARED`.
    Commit,
    /// `ROLLBACK PREPARED`.
    Rollback,
    /// Nothing now.
    Leave(Reason),
}

/// Why something is left that is prepared, or may be.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Reason {
    /// The resolver has not tried yet.
    Untried,
    /// It was decided before the start of this server, and the participant has not been asked since.
    Unasked,
    /// The backend that ran the transaction is alive and settles it.
    Owner,
    /// The transaction is prepared here under the application's 'gxid'.
    Undecided,
    /// Somebody else has settled it since it was listed.
    Overtaken,
    /// A session of another start or another copy of this coordinator is alive there.
    Strangers,
    /// It is not prepared there, and the process that may still prepare it is alive.
    Preparer,
    /// It is not listed there, and its transaction there has not ended.
    Unlisted,
    /// A synchronous standby does not have the decision yet.
    NotReplicated,
    /// Another session is settling it there.
    Busy,
    /// The user mapping's role may not settle it.
    NotAllowed,
    /// The server has refused to settle it for another reason.
    Refused,
    /// The server at this address only reads.
    Standby,
    /// The server at this address is not the one that was recorded.
    OtherServer,
    /// Another process has the right to settle there.
    Fence,
    /// The server or its user mapping does not exist here any more.
    Gone,
    /// The participant was not reached, or did not answer.
    Unreached,
}

impl Reason {
    /// Whether nothing is wrong: what is left will be settled without anybody's doing, or is the application's.
    pub fn is_expected(self) -> bool {
        matches!(self, Self::Owner | Self::Undecided | Self::Overtaken)
    }

    /// In words. What a server has answered, or why it was not reached, is told with it.
    pub fn text(self) -> &'static str {
        match self {
            Self::Untried => "the resolver has not tried yet",
            Self::Unasked => {
                "decided before the start of this server, and not asked for there since"
            }
            Self::Owner => "its session is settling it",
            Self::Undecided => "waits for COMMIT PREPARED or ROLLBACK PREPARED here",
            Self::Overtaken => "it has been settled by somebody else meanwhile",
            Self::Strangers => {
                "a session of another start or another copy of this coordinator is alive there"
            }
            Self::Preparer => "the process that may still prepare it is alive there",
            Self::Unlisted => "it is not listed there, and its transaction there has not ended",
            Self::NotReplicated => {
                "a synchronous standby of this server does not have the decision yet"
            }
            Self::Busy => "another session is settling it there",
            Self::NotAllowed => "permission denied to settle it there",
            Self::Refused => "the server has refused to settle it",
            Self::Standby => "the server only reads",
            Self::OtherServer => "the server is not the one that was used before",
            Self::Fence => "another process settles transactions of this coordinator there",
            Self::Gone => "the server or its user mapping does not exist any more",
            Self::Unreached => "the server was not reached",
        }
    }

    /// What has to happen before it can be settled, and what will then; a sentence.
    pub fn next(self) -> &'static str {
        match self {
            Self::Owner | Self::Overtaken | Self::Untried | Self::Unasked => {
                "Nothing has to be done."
            }
            Self::Undecided => "Settle it here with COMMIT PREPARED or ROLLBACK PREPARED.",
            Self::Strangers => {
                "The resolver tries again; it settles it when that session has ended. A copy of this coordinator must not run beside it."
            }
            Self::Preparer => {
                "The resolver tries again; it settles it when that process has ended."
            }
            Self::Unlisted => "The resolver tries again until that transaction has ended.",
            Self::NotReplicated => "The resolver delivers it when the standby has caught up.",
            Self::NotAllowed => {
                "The resolver tries again; give the user mapping the role that has prepared it, or a superuser."
            }
            Self::OtherServer => {
                "The resolver tries again; point the foreign server's options back at the server that was used before."
            }
            Self::Fence => "The resolver tries again until that process has ended.",
            Self::Gone => {
                "Create the server and its user mapping again, or give it up with pg_fdw_xacts_forget()."
            }
            Self::Busy | Self::Refused | Self::Standby | Self::Unreached => {
                "The resolver tries again."
            }
        }
    }
}

/// Who else may act on a gid that was found, or has to know of it first.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Others {
    /// The backend that ran the transaction is alive and delivering.
    pub owner: bool,
    /// A session of our identity but of another start of the server is alive there: a backend that a crash left
    /// behind, or a physical copy of this coordinator at work.
    pub strangers: bool,
    /// The synchronous standbys have every decision that was seen.
    pub replicated: bool,
}

/// Concludes about a gid of our identity that `place` *listed*, from the decision looked up after the
/// list was read, and after `others` was.
///
/// A listed gid is settled wherever it is found: nobody else draws our identity, and the decision is
/// looked up by the exact gid.
pub fn settle(place: Place, others: Others, decision: Decision) -> Verdict {
    match (place, others, decision) {
        // A standby takes neither COMMIT PREPARED nor ROLLBACK PREPARED.
        (Place::InRecovery, ..) => Verdict::Leave(Reason::Standby),
        (_, Others { owner: true, .. }, _) => Verdict::Leave(Reason::Owner),
        (.., Decision::InProgress) => Verdict::Leave(Reason::Undecided),
        // A decision that a standby may still lose must not be delivered.
        (_, Others { replicated: false, .. }, Decision::Committed) => {
            Verdict::Leave(Reason::NotReplicated)
        }
        (.., Decision::Committed) => Verdict::Commit,
        // The row may be in the other copy's table.
        (_, Others { strangers: true, .. }, Decision::Absent) => Verdict::Leave(Reason::Strangers),
        (.., Decision::Absent) => Verdict::Rollback,
    }
}

/// Why a gid that the list did *not* show cannot be taken for settled; `None` where it can: on the recorded server, once
/// no session is left that may still prepare it. One that was listed before has been prepared already.
pub fn absence(place: Place, others: Others, preparer_lives: bool, seen: bool) -> Option<Reason> {
    match place {
        Place::InRecovery => Some(Reason::Standby),
        Place::Other => Some(Reason::OtherServer),
        Place::Recorded if seen => None,
        Place::Recorded if others.strangers => Some(Reason::Strangers),
        Place::Recorded if preparer_lives => Some(Reason::Preparer),
        Place::Recorded => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACES: [Place; 3] = [Place::Recorded, Place::Other, Place::InRecovery];
    const DECISIONS: [Decision; 3] = [Decision::Committed, Decision::InProgress, Decision::Absent];

    const BOTH: [bool; 2] = [false, true];

    /// Everything that can be known of something that is listed.
    fn cases() -> impl Iterator<Item = (Place, Others, Decision)> {
        let others = BOTH.into_iter().flat_map(|owner| {
            BOTH.into_iter().flat_map(move |strangers| {
                BOTH.map(|replicated| Others { owner, strangers, replicated })
            })
        });
        others.flat_map(|others| {
            PLACES
                .into_iter()
                .flat_map(move |place| DECISIONS.map(|decision| (place, others, decision)))
        })
    }

    #[test]
    fn only_what_is_decided_is_settled_and_only_as_it_was_decided() {
        for (place, others, decision) in cases() {
            let expected = match settle(place, others, decision) {
                Verdict::Commit => Decision::Committed,
                Verdict::Rollback => Decision::Absent,
                Verdict::Leave(_) => continue,
            };
            assert_eq!(decision, expected, "{place:?} {others:?}");
        }
    }

    #[test]
    fn nothing_is_settled_on_a_standby_or_while_its_owner_is_at_it() {
        for (place, others, decision) in cases() {
            if place == Place::InRecovery || others.owner {
                let verdict = settle(place, others, decision);
                assert!(matches!(verdict, Verdict::Leave(_)), "{place:?} {others:?} {decision:?}");
            }
        }
    }

    /// Another copy of this coordinator may have the row that is absent here; it cannot undo a commit
    /// that is on record here.
    #[test]
    fn strangers_keep_a_rollback_back_and_no_commit() {
        for (place, others, decision) in cases().filter(|(_, others, _)| others.strangers) {
            let verdict = settle(place, others, decision);
            assert_ne!(verdict, Verdict::Rollback, "{place:?} {others:?}");
            let without = settle(place, Others { strangers: false, ..others }, decision);
            assert_eq!(verdict == Verdict::Commit, without == Verdict::Commit, "{place:?}");
        }
    }

    #[test]
    fn a_commit_that_a_standby_may_lose_is_not_delivered() {
        for (place, others, decision) in cases().filter(|(_, others, _)| !others.replicated) {
            let verdict = settle(place, others, decision);
            assert_ne!(verdict, Verdict::Commit, "{place:?} {others:?}");
        }
    }

    #[test]
    fn what_is_decided_is_settled_where_nobody_is_in_the_way() {
        let nobody = Others { owner: false, strangers: false, replicated: true };
        for place in [Place::Recorded, Place::Other] {
            assert_eq!(settle(place, nobody, Decision::Committed), Verdict::Commit);
            assert_eq!(settle(place, nobody, Decision::Absent), Verdict::Rollback);
        }
    }

    #[test]
    fn whatever_is_left_names_the_first_thing_in_the_way() {
        let nobody = Others { owner: false, strangers: false, replicated: true };
        let owned = Others { owner: true, strangers: true, replicated: false };
        let hindered = Others { owner: false, strangers: true, replicated: false };
        for (place, others, decision, reason) in [
            (Place::InRecovery, owned, Decision::Absent, Reason::Standby),
            (Place::Recorded, owned, Decision::InProgress, Reason::Owner),
            (Place::Recorded, nobody, Decision::InProgress, Reason::Undecided),
            (Place::Recorded, hindered, Decision::InProgress, Reason::Undecided),
            (Place::Other, hindered, Decision::Committed, Reason::NotReplicated),
            (Place::Other, hindered, Decision::Absent, Reason::Strangers),
        ] {
            assert_eq!(settle(place, others, decision), Verdict::Leave(reason), "{others:?}");
        }
    }

    #[test]
    fn absence_counts_only_on_the_recorded_server_and_when_nobody_can_prepare_any_more() {
        for (strangers, lives) in [(false, false), (false, true), (true, false), (true, true)] {
            for seen in BOTH {
                let others = Others { owner: false, strangers, replicated: true };
                let reason = |place| absence(place, others, lives, seen);
                assert_eq!(reason(Place::Recorded).is_none(), seen || !(strangers || lives));
                assert_eq!(reason(Place::Other), Some(Reason::OtherServer));
                assert_eq!(reason(Place::InRecovery), Some(Reason::Standby));
            }
        }
    }
}
