//! Whether the snapshots of several servers are one cut through the order of decisions: everything
//! up to one decision on all of them, and of what comes later nothing.
//!
//! Participants of one coordinator's transactions are told of a decision one after the other, so
//! snapshots that are taken at about the same time may show one half of a transaction. No server
//! can tell; the coordinator can, because each decision has a number
//! ([`order`](crate::protocol::order)) and each participant's xid is known: an xid is visible in a
//! snapshot or it is not.

use std::rc::Rc;

use crate::protocol::place::Place;

/// A transaction on one server, as far as readers need to know it. A cut that has anything from
/// `from` on has it all up to there; a cut at `to` or later must see it. With one number for both,
/// that is a numbered transaction; one that does not prepare may become visible at any time
/// between.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Row {
    /// Where it was.
    pub place: Place,
    /// The transaction's xid there.
    pub xid: u64,
    /// Where it is visible, the cut is at least here.
    pub from: u64,
    /// A cut at this number or a later one must see it; [`NOT_YET`] while its commit has not been
    /// answered.
    pub to: u64,
}

/// No cut has to see it yet.
pub const NOT_YET: u64 = u64::MAX;

/// A server's snapshot, as `pg_current_snapshot()` tells it. Meant for top-level xids of
/// transactions that have committed or will: an aborted one looks visible, too. On a standby the
/// text is wrong, because xids in progress are missing there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Snapshot {
    xmax: u64,
    /// In ascending order, all below `xmax`.
    in_progress: Vec<u64>,
}

impl Snapshot {
    /// One of this server. `in_progress` is in ascending order.
    pub fn new(xmax: u64, in_progress: Vec<u64>) -> Self {
        Self { xmax, in_progress }
    }

    /// Reads `xmin:xmax:xip_list`; `None` if that is not one.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(':');
        let xmin: u64 = parts.next()?.parse().ok()?;
        let xmax: u64 = parts.next()?.parse().ok()?;
        let list = parts.next()?;
        if parts.next().is_some() || xmin > xmax {
            return None;
        }
        let in_progress: Vec<u64> = match list {
            "" => Vec::new(),
            list => list.split(',').map(|xid| xid.parse().ok()).collect::<Option<_>>()?,
        };
        let is_valid =
            in_progress.is_sorted() && in_progress.iter().all(|xid| (xmin..xmax).contains(xid));
        is_valid.then_some(Self { xmax, in_progress })
    }

    /// Whether it sees what a transaction did that has committed by then.
    pub fn sees(&self, xid: u64) -> bool {
        xid < self.xmax && self.in_progress.binary_search(&xid).is_err()
    }
}

/// The snapshot of one server of a unit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Taken {
    /// Where.
    pub place: Place,
    /// What it sees.
    pub snapshot: Rc<Snapshot>,
    /// Something was read from it already: it cannot be taken again.
    pub is_fixed: bool,
}

/// Whether some snapshots are one cut.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// They are, at this number.
    Cut(u64),
    /// They are not, and none that is fixed is to blame: all fresh ones are to be taken again. Not
    /// the late ones alone: one that is taken alone is a round trip ahead of the others, and sees
    /// what they do not.
    Again(Row),
    /// They are not, and one that is fixed lacks this: no waiting can help.
    TooOld(Row),
}

/// Checks snapshots against the rows at their places. `opened` is what the clock showed before the
/// oldest of them was asked for; the rows are those that were known at any time since then, read
/// after the last snapshot was answered.
pub fn check(opened: u64, rows: &[Row], taken: &[Taken]) -> Verdict {
    let at_place = |row: &Row| {
        let place = row.place;
        taken.iter().filter(move |t| t.place.is_same(&place))
    };
    let cut = rows
        .iter()
        .filter(|row| at_place(row).any(|t| t.snapshot.sees(row.xid)))
        .map(|row| row.from)
        .fold(opened, u64::max);
    let mut again = None;
    for row in rows.iter().filter(|row| row.to <= cut) {
        for t in at_place(row).filter(|t| !t.snapshot.sees(row.xid)) {
            if t.is_fixed {
                return Verdict::TooOld(*row);
            }
            again = again.or(Some(*row));
        }
    }
    again.map_or(Verdict::Cut(cut), Verdict::Again)
}

#[cfg(test)]
mod model;

#[cfg(test)]
mod tests {
    use super::*;

    fn at(number: u64) -> Place {
        Place::new(number as u32, &number, Some(1))
    }

    fn taken(place: u64, text: &str) -> Taken {
        Taken { place: at(place), snapshot: Snapshot::parse(text).unwrap().into(), is_fixed: false }
    }

    fn row(place: u64, xid: u64, number: u64) -> Row {
        Row { place: at(place), xid, from: number, to: number }
    }

    #[test]
    fn a_snapshot_sees_what_had_ended() {
        let snapshot = Snapshot::parse("10:20:12,15").unwrap();
        let seen: Vec<u64> = (8..22).filter(|xid| snapshot.sees(*xid)).collect();
        assert_eq!(seen, [8, 9, 10, 11, 13, 14, 16, 17, 18, 19]);
        assert!(!Snapshot::parse("10:10:").unwrap().sees(10));
    }

    #[test]
    fn what_is_no_snapshot_is_refused() {
        for text in ["", "1", "1:2", "1:2:3:", "2:1:", "a:2:", "1:9:3,2", "1:9:9", "5:9:4", "1:9:,"]
        {
            assert_eq!(Snapshot::parse(text), None, "{text}");
        }
    }

    #[test]
    fn half_a_transaction_is_no_cut() {
        let rows = [row(1, 10, 7), row(2, 20, 7)];
        let (sees, lacks) = (taken(1, "11:11:"), taken(2, "20:21:20"));
        let both = taken(2, "21:21:");
        assert_eq!(check(6, &rows, &[sees.clone(), lacks.clone()]), Verdict::Again(rows[1]));
        assert_eq!(check(6, &rows, &[sees.clone(), both.clone()]), Verdict::Cut(7));
        assert_eq!(check(6, &rows, &[taken(1, "10:11:10"), lacks.clone()]), Verdict::Cut(6));
        // Decided before the unit was opened: seen nowhere is not enough.
        assert_eq!(check(7, &rows, &[taken(1, "10:11:10"), both]), Verdict::Again(rows[0]));
        let fixed = Taken { is_fixed: true, ..lacks };
        assert_eq!(check(6, &rows, &[sees, fixed]), Verdict::TooOld(rows[1]));
    }

    #[test]
    fn the_order_holds_between_transactions_on_different_servers() {
        let rows = [row(1, 10, 7), row(2, 20, 8)];
        // The later one alone is seen.
        let verdict = check(6, &rows, &[taken(1, "10:11:10"), taken(2, "21:21:")]);
        assert_eq!(verdict, Verdict::Again(rows[0]));
        // The earlier one alone is a prefix.
        let verdict = check(6, &rows, &[taken(1, "11:11:"), taken(2, "20:21:20")]);
        assert_eq!(verdict, Verdict::Cut(7));
    }

    #[test]
    fn one_that_does_not_prepare_may_be_seen_early_and_must_be_seen_when_answered() {
        let unanswered = Row { place: at(1), xid: 10, from: 3, to: NOT_YET };
        let answered = Row { to: 5, ..unanswered };
        let (sees, lacks) = (taken(1, "11:11:"), taken(1, "10:11:10"));
        assert_eq!(check(2, &[unanswered], std::slice::from_ref(&sees)), Verdict::Cut(3));
        assert_eq!(check(9, &[unanswered], std::slice::from_ref(&lacks)), Verdict::Cut(9));
        assert_eq!(check(4, &[answered], std::slice::from_ref(&lacks)), Verdict::Cut(4));
        assert_eq!(check(5, &[answered], &[lacks]), Verdict::Again(answered));
    }

    #[test]
    fn two_servers_at_one_place_are_both_checked() {
        let rows = [row(1, 10, 7)];
        let verdict = check(0, &rows, &[taken(1, "11:11:"), taken(1, "10:11:10")]);
        assert_eq!(verdict, Verdict::Again(rows[0]));
    }
}
