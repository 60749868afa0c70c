//! What the resolver may conclude about one prepared transaction on a participant.
//!
//! Presumed abort: the decision row is inserted before PREPARE is sent and deleted after the
//! delivery. So if a gid is listed on the participant, and its row is looked up *afterwards* and
//! missing, the transaction has aborted. This is safe because of the order of the observations, in
//! which [`judge`] takes them.

/// What the decision table says of a transaction, read with a dirty snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Decision {
    /// The transaction that inserted the row has committed.
    Committed,
    /// The transaction that inserted the row still runs, or is prepared here under the
    /// application's 'gxid'.
    InProgress,
    /// There is no row.
    Absent,
}

/// The server that a list of prepared transactions was read from; asked before the list, on the
/// same connection.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Place {
    /// The recorded server and database; not in recovery.
    Recorded,
    /// Another server or database answers at this address; not in recovery.
    Other,
    /// A standby: its list is empty or old.
    InRecovery,
}

impl Place {
    /// From what the server at the end of a connection says of itself, and where it was found.
    /// Only the address tells two copies of one server apart: both have the same fingerprint.
    pub fn of(in_recovery: bool, is_same_server: bool, is_same_address: bool) -> Self {
        match (in_recovery, is_same_server && is_same_address) {
            (true, _) => Self::InRecovery,
            (false, true) => Self::Recorded,
            (false, false) => Self::Other,
        }
    }
}

/// What to do with a prepared transaction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// `COMMIT PREPARED`.
    Commit,
    /// `ROLLBACK PREPARED`.
    Rollback,
    /// Nothing, for now.
    Leave(Reason),
}

/// Why the resolver leaves something in doubt that is prepared, or may be.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Reason {
    /// The resolver has not tried yet.
    Untried,
    /// It was decided before the start of this server, and the participant has not been asked
    /// since.
    Unasked,
    /// The backend that ran the transaction is alive and settles it.
    Owner,
    /// The transaction is prepared here under the application's 'gxid'.
    Undecided,
    /// Somebody else has settled it since the list was read.
    Overtaken,
    /// A session of another incarnation is alive there: of an earlier start of this server, or of a
    /// copy of it.
    OtherIncarnation,
    /// It is not prepared there, but the process that may still prepare it is alive.
    Preparer,
    /// It is not listed there, but its transaction there has not ended.
    Unlisted,
    /// A synchronous standby does not have the decision yet.
    NotReplicated,
    /// Another session is settling it there.
    Busy,
    /// The user mapping's role may not settle it.
    NotAllowed,
    /// The server has refused to settle it for another reason.
    Refused,
    /// The server at this address is in recovery.
    Standby,
    /// The server at this address is not the one that was recorded.
    OtherServer,
    /// Another process holds the fence there, and settles.
    Fence,
    /// The server or its user mapping does not exist here any more.
    Gone,
    /// The participant was not reached, or did not answer.
    Unreached,
}

impl Reason {
    /// Whether this is part of normal operation: it is being settled, or waits for the application.
    pub fn is_expected(self) -> bool {
        matches!(self, Self::Owner | Self::Undecided | Self::Overtaken)
    }

    /// The reason as users read it. What a server has answered, or why it was not reached, is shown
    /// in addition.
    pub fn text(self) -> &'static str {
        match self {
            Self::Untried => "the resolver has not tried yet",
            Self::Unasked => {
                "decided before the start of this server, and not asked for there since"
            }
            Self::Owner => "its session is settling it",
            Self::Undecided => "waits for COMMIT PREPARED or ROLLBACK PREPARED here",
            Self::Overtaken => "it has been settled by somebody else meanwhile",
            Self::OtherIncarnation => {
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

    /// What has to happen before it can be settled, and what happens then; a sentence.
    pub fn next(self) -> &'static str {
        match self {
            Self::Owner | Self::Overtaken | Self::Untried | Self::Unasked => {
                "Nothing has to be done."
            }
            Self::Undecided => "Settle it here with COMMIT PREPARED or ROLLBACK PREPARED.",
            Self::OtherIncarnation => {
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

/// Who else may act on a gid, or has to know of its decision first.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Others {
    /// The backend that ran the transaction is alive, and delivers the outcome.
    pub owner: bool,
    /// A session of our identity but of another incarnation is alive there: a server process that a
    /// crash of this server left behind, or a session of a physical copy.
    pub other_incarnations: bool,
    /// The synchronous standbys have the decisions.
    pub replicated: bool,
}

/// The verdict on a gid of our identity that `place` *lists*. The decision is looked up after the
/// list and `others` were read.
///
/// A listed gid is settled wherever it is found: nobody else draws our identity, and the decision
/// is looked up by the exact gid.
pub fn judge(place: Place, others: Others, decision: Decision) -> Verdict {
    match (place, others, decision) {
        // A standby takes neither COMMIT PREPARED nor ROLLBACK PREPARED.
        (Place::InRecovery, ..) => Verdict::Leave(Reason::Standby),
        (_, Others { owner: true, .. }, _) => Verdict::Leave(Reason::Owner),
        (.., Decision::InProgress) => Verdict::Leave(Reason::Undecided),
        // A decision that a fail-over may still lose must not be delivered.
        (_, Others { replicated: false, .. }, Decision::Committed) => {
            Verdict::Leave(Reason::NotReplicated)
        }
        (.., Decision::Committed) => Verdict::Commit,
        // The row may be in the decision table of a copy of this server.
        (_, Others { other_incarnations: true, .. }, Decision::Absent) => {
            Verdict::Leave(Reason::OtherIncarnation)
        }
        (.., Decision::Absent) => Verdict::Rollback,
    }
}

/// Why a gid that is *not* listed cannot be taken for settled; `None` if it can: on the recorded
/// server, once no session is alive that may still prepare it. If it `was_listed` before, it has
/// been prepared already, and nobody prepares it again.
pub fn judge_absence(
    place: Place,
    others: Others,
    preparer_lives: bool,
    was_listed: bool,
) -> Option<Reason> {
    match place {
        Place::InRecovery => Some(Reason::Standby),
        Place::Other => Some(Reason::OtherServer),
        Place::Recorded if was_listed => None,
        Place::Recorded if others.other_incarnations => Some(Reason::OtherIncarnation),
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
            BOTH.into_iter().flat_map(move |other_incarnations| {
                BOTH.map(|replicated| Others { owner, other_incarnations, replicated })
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
            let expected = match judge(place, others, decision) {
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
                let verdict = judge(place, others, decision);
                assert!(matches!(verdict, Verdict::Leave(_)), "{place:?} {others:?} {decision:?}");
            }
        }
    }

    /// Another copy of this coordinator may have the row that is absent here; it cannot undo a
    /// commit that is on record here.
    #[test]
    fn another_incarnation_keeps_a_rollback_back_and_no_commit() {
        for (place, others, decision) in cases().filter(|(_, others, _)| others.other_incarnations)
        {
            let verdict = judge(place, others, decision);
            assert_ne!(verdict, Verdict::Rollback, "{place:?} {others:?}");
            let without = judge(place, Others { other_incarnations: false, ..others }, decision);
            assert_eq!(verdict == Verdict::Commit, without == Verdict::Commit, "{place:?}");
        }
    }

    #[test]
    fn a_commit_that_a_standby_may_lose_is_not_delivered() {
        for (place, others, decision) in cases().filter(|(_, others, _)| !others.replicated) {
            let verdict = judge(place, others, decision);
            assert_ne!(verdict, Verdict::Commit, "{place:?} {others:?}");
        }
    }

    #[test]
    fn what_is_decided_is_settled_where_nobody_is_in_the_way() {
        let nobody = Others { owner: false, other_incarnations: false, replicated: true };
        for place in [Place::Recorded, Place::Other] {
            assert_eq!(judge(place, nobody, Decision::Committed), Verdict::Commit);
            assert_eq!(judge(place, nobody, Decision::Absent), Verdict::Rollback);
        }
    }

    #[test]
    fn whatever_is_left_names_the_first_thing_in_the_way() {
        let nobody = Others { owner: false, other_incarnations: false, replicated: true };
        let owned = Others { owner: true, other_incarnations: true, replicated: false };
        let hindered = Others { owner: false, other_incarnations: true, replicated: false };
        for (place, others, decision, reason) in [
            (Place::InRecovery, owned, Decision::Absent, Reason::Standby),
            (Place::Recorded, owned, Decision::InProgress, Reason::Owner),
            (Place::Recorded, nobody, Decision::InProgress, Reason::Undecided),
            (Place::Recorded, hindered, Decision::InProgress, Reason::Undecided),
            (Place::Other, hindered, Decision::Committed, Reason::NotReplicated),
            (Place::Other, hindered, Decision::Absent, Reason::OtherIncarnation),
        ] {
            assert_eq!(judge(place, others, decision), Verdict::Leave(reason), "{others:?}");
        }
    }

    #[test]
    fn absence_counts_only_on_the_recorded_server_and_when_nobody_can_prepare_any_more() {
        for (other_incarnations, lives) in
            [(false, false), (false, true), (true, false), (true, true)]
        {
            for seen in BOTH {
                let others = Others { owner: false, other_incarnations, replicated: true };
                let reason = |place| judge_absence(place, others, lives, seen);
                assert_eq!(
                    reason(Place::Recorded).is_none(),
                    seen || !(other_incarnations || lives)
                );
                assert_eq!(reason(Place::Other), Some(Reason::OtherServer));
                assert_eq!(reason(Place::InRecovery), Some(Reason::Standby));
            }
        }
    }
}
