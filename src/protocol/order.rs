//! The order of decisions, which consistent reads are checked against: a clock that counts
//! decisions, and the recent past of those whose delivery has ended.
//!
//! A decision gets its number before the first participant may hear of it, so whatever a reader can
//! see anywhere has a number already. As long as a unit of readers is open, a participant that has
//! confirmed leaves a row here: otherwise a transaction that is confirmed on one participant and
//! delayed on another would leave nothing by which its missing half could be noticed.
//!
//! While no unit is open nothing is written for readers.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::protocol::cut::Row;
use crate::protocol::place::Place;

/// A row whose delivery has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
struct Past {
    row: Row,
    /// What the clock showed when it ended.
    ended: u64,
}

/// The clock, the open units and the past. Plain data: it lives in shared memory, where all bytes
/// are 0 at first.
#[derive(Debug)]
#[repr(C)]
pub struct Order<const HISTORY: usize> {
    clock: u64,
    /// Read without a lock by those who commit in one phase.
    open_units: AtomicU64,
    /// How often it has become known what is in doubt on some server from before our start.
    learned: u64,
    /// How many rows were ever added to `past`; the next one's place is this modulo its length.
    added: u64,
    past: [Past; HISTORY],
}

impl<const HISTORY: usize> Default for Order<HISTORY> {
    fn default() -> Self {
        let nothing =
            Past { row: Row { place: Place::default(), xid: 0, from: 0, to: 0 }, ended: 0 };
        Self {
            clock: 0,
            open_units: AtomicU64::new(0),
            learned: 0,
            added: 0,
            past: [nothing; HISTORY],
        }
    }
}

/// When a snapshot, or the unit that it belongs to, began.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Opened {
    /// What the clock showed. A cut has at least everything up to here.
    pub at: u64,
    learned: u64,
}

impl<const HISTORY: usize> Order<HISTORY> {
    /// A transaction is decided: its number. Called before the first `COMMIT PREPARED` of it is
    /// sent.
    pub fn decide(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// A participant of a numbered transaction has confirmed, or was given up.
    pub fn ended(&mut self, place: Place, xid: u64, number: u64) {
        self.add(Row { place, xid, from: number, to: number });
    }

    /// `COMMIT` of a transaction that does not prepare is about to be sent: the number from which
    /// on it may be visible, `None` where no reader needs to know.
    pub fn one_phase_sent(&self) -> Option<u64> {
        self.is_read().then_some(self.clock)
    }

    /// It was answered; `sent` is what [`one_phase_sent`](Self::one_phase_sent) said.
    pub fn one_phase_answered(&mut self, place: Place, xid: u64, sent: Option<u64>) {
        if self.is_read() {
            let to = self.decide();
            self.add(Row { place, xid, from: sent.unwrap_or(0), to });
        }
    }

    fn add(&mut self, row: Row) {
        if self.is_read() {
            self.past[(self.added % HISTORY as u64) as usize] = Past { row, ended: self.clock };
            self.added += 1;
        }
    }

    /// Whether a unit of readers is open. Nobody has to hold a lock to ask; who has taken a
    /// snapshot later than the answer `false` was given has opened its unit later, too.
    pub fn is_read(&self) -> bool {
        self.open_units.load(Ordering::SeqCst) > 0
    }

    /// A transaction begins to read, before its first snapshot is asked for. Each has to be
    /// [closed](Self::close).
    pub fn open(&mut self) -> Opened {
        self.open_units.fetch_add(1, Ordering::SeqCst);
        self.now()
    }

    /// The beginning of another unit in a transaction that has been opened.
    pub fn now(&self) -> Opened {
        Opened { at: self.clock, learned: self.learned }
    }

    /// A transaction that has read has ended.
    pub fn close(&mut self) {
        self.open_units.fetch_sub(1, Ordering::SeqCst);
    }

    /// It has become known what is in doubt on a server from before our start: what was opened
    /// earlier may have seen half of it.
    pub fn learn(&mut self) {
        self.learned += 1;
    }

    /// The rows whose delivery has ended since a unit was opened; `None` where some are not known
    /// any more, or were not known then: the unit has to be opened anew.
    pub fn since(&self, opened: Opened) -> Option<Vec<Row>> {
        if self.learned != opened.learned {
            return None;
        }
        let kept = self.added.min(HISTORY as u64);
        let mut rows = Vec::new();
        for back in 1..=kept {
            let past = &self.past[((self.added - back) % HISTORY as u64) as usize];
            // The clock never goes back: all before this one are older.
            if past.ended < opened.at {
                return Some(rows);
            }
            rows.push(past.row);
        }
        // All that is kept is recent: what was overwritten may be too.
        (kept == self.added).then_some(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(number: u64) -> Place {
        Place::new(number as u32, &number, Some(1))
    }

    fn xids(order: &Order<3>, opened: Opened) -> Option<Vec<u64>> {
        let mut xids: Vec<u64> = order.since(opened)?.iter().map(|row| row.xid).collect();
        xids.sort_unstable();
        Some(xids)
    }

    #[test]
    fn nothing_is_kept_while_nobody_reads() {
        let mut order = Order::<3>::default();
        let number = order.decide();
        order.ended(at(1), 10, number);
        assert_eq!(order.one_phase_sent(), None);
        order.one_phase_answered(at(1), 11, None);
        let opened = order.open();
        assert_eq!(opened.at, 1, "a transaction in one phase took no number");
        assert_eq!(xids(&order, opened), Some(vec![]));
    }

    #[test]
    fn what_has_ended_since_is_found_and_what_is_lost_is_noticed() {
        let mut order = Order::<3>::default();
        let first = order.open();
        let number = order.decide();
        order.ended(at(1), 10, number);
        order.ended(at(2), 20, number);
        let second = order.open();
        assert_eq!(xids(&order, first), Some(vec![10, 20]));
        assert_eq!(xids(&order, second), Some(vec![10, 20]), "they ended at this very number");
        order.decide();
        let third = order.open();
        order.ended(at(1), 30, 2);
        assert_eq!(xids(&order, first), Some(vec![10, 20, 30]));
        assert_eq!(xids(&order, third), Some(vec![30]));
        order.ended(at(2), 40, 2);
        assert_eq!(xids(&order, first), None, "the row of 10 was overwritten");
        assert_eq!(xids(&order, third), Some(vec![30, 40]));
    }

    #[test]
    fn what_was_opened_before_all_was_known_begins_anew() {
        let mut order = Order::<3>::default();
        let opened = order.open();
        order.learn();
        assert_eq!(order.since(opened), None);
        assert_eq!(order.since(order.now()), Some(vec![]));
    }

    #[test]
    fn a_transaction_in_one_phase_counts_from_its_commit_to_its_answer() {
        let mut order = Order::<3>::default();
        order.decide();
        let opened = order.open();
        let sent = order.one_phase_sent();
        assert_eq!(sent, Some(1));
        order.decide();
        order.one_phase_answered(at(1), 10, sent);
        order.one_phase_answered(at(1), 11, None);
        let rows = order.since(opened).unwrap();
        assert!(rows.contains(&Row { place: at(1), xid: 10, from: 1, to: 3 }), "{rows:?}");
        assert!(rows.contains(&Row { place: at(1), xid: 11, from: 0, to: 4 }), "{rows:?}");
    }
}
