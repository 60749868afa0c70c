//! What a sweep may conclude about transactions that it knows of otherwise than from the list: what
//! is committed and not confirmed, and what sessions have left to the resolver.

use crate::protocol::verdict::{Others, Place, Reason, judge_absence};

/// What became of a committed transaction on a participant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Committed {
    /// It is committed there.
    Delivered,
    /// Somebody has undone it there: a heuristic outcome.
    Undone,
    /// That cannot be told yet.
    Open(Reason),
}

/// What became of a committed transaction that the recorded server does not list. `status`: what
/// the server says of its xid; `None` where it is not known or too old for the server to know.
pub fn judge_unlisted(status: Option<&str>) -> Committed {
    match status {
        // Too old to be known: it must be assumed to be delivered.
        Some("committed") | None => Committed::Delivered,
        Some("in progress") => Committed::Open(Reason::Unlisted),
        Some(_) => Committed::Undone,
    }
}

/// What a sweep knows of something that a session has left on a participant, and that the sweep has
/// not left itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HandedOver {
    /// ROLLBACK PREPARED has to be delivered, not COMMIT PREPARED.
    pub aborts: bool,
    /// The sweep has settled it, or found it delivered.
    pub settled: bool,
    /// It was left before the sweep began.
    pub known: bool,
    /// The process that may still prepare it is alive there.
    pub preparer_lives: bool,
    /// An earlier sweep has found it prepared.
    pub was_listed: bool,
}

/// What follows for something that a session has left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Conclusion {
    /// Nothing is left there.
    Ended,
    /// It was left too late for this sweep, which may have read the list before it was prepared.
    SweepAgain,
    /// It stays, for this reason.
    Left(Reason),
}

/// Concludes about something that a session has left on a participant.
pub fn judge_handed_over(place: Place, others: Others, it: HandedOver) -> Conclusion {
    if it.settled {
        return Conclusion::Ended;
    }
    if !it.known {
        return Conclusion::SweepAgain;
    }
    if !it.aborts {
        // It is not among the committed transactions that this sweep asks for: its owner delivers
        // it, or all have confirmed it already.
        return Conclusion::Left(Reason::Overtaken);
    }
    match judge_absence(place, others, it.preparer_lives, it.was_listed) {
        None => Conclusion::Ended,
        Some(reason) => Conclusion::Left(reason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABORTED: HandedOver = HandedOver {
        aborts: true,
        settled: false,
        known: true,
        preparer_lives: false,
        was_listed: false,
    };

    #[test]
    fn only_the_servers_own_word_undoes_a_commit() {
        assert_eq!(judge_unlisted(None), Committed::Delivered);
        assert_eq!(judge_unlisted(Some("committed")), Committed::Delivered);
        assert_eq!(judge_unlisted(Some("in progress")), Committed::Open(Reason::Unlisted));
        for other in ["aborted", "not known"] {
            assert_eq!(judge_unlisted(Some(other)), Committed::Undone, "{other}");
        }
    }

    #[test]
    fn what_is_unlisted_has_ended_only_where_its_absence_proves_it() {
        let nobody = Others::default();
        let conclude = |place, it| judge_handed_over(place, nobody, it);
        assert_eq!(conclude(Place::Recorded, ABORTED), Conclusion::Ended);
        for place in [Place::Other, Place::InRecovery] {
            assert!(matches!(conclude(place, ABORTED), Conclusion::Left(_)), "{place:?}");
        }
        let lives = HandedOver { preparer_lives: true, ..ABORTED };
        assert_eq!(conclude(Place::Recorded, lives), Conclusion::Left(Reason::Preparer));
        let late = HandedOver { known: false, ..ABORTED };
        assert_eq!(conclude(Place::Recorded, late), Conclusion::SweepAgain);
        let commits = HandedOver { aborts: false, ..ABORTED };
        assert_eq!(conclude(Place::Recorded, commits), Conclusion::Left(Reason::Overtaken));
    }

    #[test]
    fn what_was_settled_has_ended_whatever_else_is_known() {
        for known in [false, true] {
            let it = HandedOver { settled: true, known, preparer_lives: true, ..ABORTED };
            let ended = judge_handed_over(Place::Recorded, Others::default(), it);
            assert_eq!(ended, Conclusion::Ended);
        }
    }
}
