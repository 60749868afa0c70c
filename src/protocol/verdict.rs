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
    /// Nothing now: somebody else will, or it cannot be known from here.
    Leave,
}

/// Who else may act on a gid that was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Others {
    /// The backend that ran the transaction is alive and delivering.
    pub owner: bool,
    /// A session of our identity but of another start of the server is alive there: a backend that a crash left
    /// behind, or a physical copy of this coordinator at work.
    pub strangers: bool,
}

/// Concludes about a gid of our identity that `place` *listed*, from the decision looked up after the
/// list was read, and after `others` was.
///
/// A listed gid is settled wherever it is found: nobody else draws our identity, and the decision is
/// looked up by the exact gid.
pub fn settle(place: Place, others: Others, decision: Decision) -> Verdict {
    match (place, others, decision) {
        // A standby takes neither COMMIT PREPARED nor ROLLBACK PREPARED.
        (Place::InRecovery, ..)
        | (_, Others { owner: true, .. }, _)
        | (.., Decision::InProgress)
        // The row may be in the other copy's table.
        | (_, Others { strangers: true, .. }, Decision::Absent) => Verdict::Leave,
        (.., Decision::Committed) => Verdict::Commit,
        (.., Decision::Absent) => Verdict::Rollback,
    }
}

/// Whether a gid that the list did *not* show has been settled: evidence only on the recorded server,
/// and only while no session is left that may still prepare it.
pub fn absence_is_final(place: Place, preparer_may_live: bool) -> bool {
    place == Place::Recorded && !preparer_may_live
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACES: [Place; 3] = [Place::Recorded, Place::Other, Place::InRecovery];
    const DECISIONS: [Decision; 3] = [Decision::Committed, Decision::InProgress, Decision::Absent];

    #[test]
    fn each_verdict_follows_the_decision_alone() {
        for place in PLACES {
            for (owner, strangers) in [(false, false), (false, true), (true, false), (true, true)] {
                for decision in DECISIONS {
                    let expected = match decision {
                        _ if owner || place == Place::InRecovery => Verdict::Leave,
                        Decision::Committed => Verdict::Commit,
                        Decision::Absent if !strangers => Verdict::Rollback,
                        _ => Verdict::Leave,
                    };
                    let verdict = settle(place, Others { owner, strangers }, decision);
                    assert_eq!(verdict, expected, "{place:?} {owner} {strangers} {decision:?}");
                }
            }
        }
    }

    #[test]
    fn absence_counts_only_on_the_recorded_server() {
        for place in PLACES {
            assert_eq!(absence_is_final(place, false), place == Place::Recorded);
            assert!(!absence_is_final(place, true));
        }
    }
}
