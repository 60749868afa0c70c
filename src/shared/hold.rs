//! The hold: while restore points are made on several servers, no transaction begins to be
//! delivered.
//!
//! A transaction that is decided after this server's point must not reach a foreign server before
//! that server's point. So sessions that are about to deliver a decision look, in the same
//! exclusive section in which it gets its number, whether somebody holds; and wait, for at most
//! [`LONGEST`]. Like the window ([`super::window`]) it is a lease and no lock: nothing is left
//! behind by a process that dies.
//!
//! Correctness does not depend on anybody's waiting. What must not be done between the first point
//! and the last is counted, and who has made the points compares the counts:
//! * a COMMIT PREPARED is about to be sent, by whomever, of a transaction that had no number when
//!   somebody began to hold. Who has one was decided before, and may be delivered at any time. (A
//!   reader may have given it, so that a number alone does not say that delivering has begun.)
//! * a participant was added to the durable list, without which nobody would look for what is
//!   prepared there. That must not happen since it was decided which servers get a point, either.

use std::time::{Duration, Instant};

use crate::guc;
use crate::pg::globals::now;
use crate::pg::latch;
use crate::pg::wait_event::WaitEvent;
use crate::protocol::gid::Gid;
use crate::protocol::wall_clock::lasts;
use crate::shared::order;
use crate::shared::shmem::{self, Memory};

/// How long somebody may hold, and how long those who deliver wait.
const LONGEST: Duration = Duration::from_secs(1);

/// The part of shared memory that tells; all 0 at first.
#[derive(Default, Debug)]
#[repr(C)]
pub struct Hold {
    /// In PostgreSQL's microseconds.
    until: i64,
    /// The last number that was given to a transaction when somebody last began to hold.
    since: u64,
    counts: Counts,
}

/// How often something was done that must not be done between two points.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[repr(C)]
struct Counts {
    deliveries: u64,
    participants: u64,
}

impl Hold {
    /// A transaction with this number, or without one that is known, is about to be delivered.
    fn deliver(&mut self, number: Option<u64>) {
        if number.is_none_or(|number| number > self.since) {
            self.counts.deliveries += 1;
        }
    }

    fn begin(&mut self, now: i64, clock: u64) -> Option<Held> {
        if self.is_held(now) {
            return None;
        }
        // Somebody may still rely on what has happened since an earlier number.
        if self.until != 0 {
            self.deliver(None);
        }
        self.until = now + LONGEST.as_micros() as i64;
        self.since = clock;
        Some(Held { until: self.until, counts: self.counts })
    }

    /// Ends it, unless it has ended by itself and somebody else holds.
    fn end(&mut self, held: &Held) {
        if self.until == held.until {
            self.until = 0;
        }
    }

    fn is_held(&self, now: i64) -> bool {
        lasts(self.until, now, LONGEST)
    }
}

/// This process holds, until this is dropped or the lease has ended.
pub struct Held {
    until: i64,
    counts: Counts,
}

impl Held {
    /// Holds from now on; `None` if somebody else does.
    pub fn begin() -> Option<Self> {
        let now = now();
        shmem::write(|m| {
            let clock = m.shared.order.now().at;
            m.shared.hold.begin(now, clock)
        })
    }

    /// Whether there were as many participants when it began.
    pub fn began_with(&self, participants: u64) -> bool {
        self.counts.participants == participants
    }

    /// Ends it; returns whether it has held.
    pub fn end(self) -> bool {
        shmem::write(|m| {
            m.shared.hold.end(&self);
            m.shared.hold.counts == self.counts
        })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        shmem::write(|m| m.shared.hold.end(self));
    }
}

/// How often a participant was added to a list, in any database.
pub fn participants() -> u64 {
    shmem::read(|m| m.shared.hold.counts.participants)
}

/// A participant was added to the list, or has another address there; nothing has been prepared
/// there yet.
pub fn add_participant() {
    shmem::write(|m| m.shared.hold.counts.participants += 1);
}

/// A session is about to deliver a transaction: gives it its number, unless somebody holds; returns
/// whether it may go on.
pub(super) fn deliver(m: &mut Memory<'_>, gid: &Gid, now: i64) -> bool {
    let may = !m.shared.hold.is_held(now);
    if may {
        deliver_anyway(m, gid);
    }
    may
}

fn deliver_anyway(m: &mut Memory<'_>, gid: &Gid) {
    let number = order::number(m, gid);
    m.shared.hold.deliver(number);
}

/// Waits until a transaction may be delivered, or so long that nobody may expect it to wait any
/// more, and gives it its number. Called where nothing may raise.
pub(super) fn deliver_later(gid: &Gid) {
    // The resolver takes over what is not delivered in time.
    let give_up = Instant::now() + LONGEST.min(guc::commit_timeout() / 2);
    while Instant::now() < give_up {
        latch::wait(Duration::from_millis(1), WaitEvent::Settle);
        let now = now();
        if shmem::write(|m| deliver(m, gid, now)) {
            return;
        }
    }
    deliver_at_once(gid);
}

/// The transaction that a gid belongs to is about to be delivered, by somebody who does not wait:
/// gives it its number.
pub fn deliver_at_once(gid: &Gid) {
    shmem::write(|m| deliver_anyway(m, gid));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A lease that is not in shared memory does not end when it is dropped.
    fn begin(hold: &mut Hold, now: i64, clock: u64) -> Option<std::mem::ManuallyDrop<Held>> {
        hold.begin(now, clock).map(std::mem::ManuallyDrop::new)
    }

    fn has_held(hold: &Hold, held: &Held) -> bool {
        hold.counts == held.counts
    }

    #[test]
    fn one_holds_at_a_time_and_no_longer_than_the_lease() {
        let mut hold = Hold::default();
        assert!(!hold.is_held(10));
        let first = begin(&mut hold, 10, 0).unwrap();
        assert!(hold.is_held(10) && hold.is_held(first.until - 1) && !hold.is_held(first.until));
        assert!(begin(&mut hold, 11, 0).is_none());
        let second = begin(&mut hold, first.until, 0).unwrap();
        assert!(!has_held(&hold, &first) && has_held(&hold, &second));
        hold.end(&first);
        assert!(hold.is_held(first.until), "it is not the first one's any more");
        hold.end(&second);
        assert!(!hold.is_held(first.until));
        let third = begin(&mut hold, first.until, 0).unwrap();
        assert!(has_held(&hold, &third) && has_held(&hold, &second));
    }

    #[test]
    fn a_clock_that_is_set_back_does_not_make_it_longer() {
        let mut hold = Hold::default();
        let first = begin(&mut hold, 3_600_000_000, 0).unwrap();
        assert!(!hold.is_held(0));
        let second = begin(&mut hold, 0, 0).unwrap();
        assert!(!has_held(&hold, &first) && has_held(&hold, &second) && hold.is_held(1));
    }

    #[test]
    fn what_is_decided_later_must_not_be_delivered() {
        let mut hold = Hold::default();
        hold.deliver(Some(1));
        let held = begin(&mut hold, 10, 7).unwrap();
        hold.deliver(Some(7));
        assert!(has_held(&hold, &held), "it was decided before");
        hold.deliver(Some(8));
        assert!(!has_held(&hold, &held));
        hold.end(&held);
        let held = begin(&mut hold, 20, 8).unwrap();
        hold.deliver(None);
        assert!(!has_held(&hold, &held), "who knows");
    }

    #[test]
    fn a_new_participant_is_noticed() {
        let mut hold = Hold::default();
        let held = begin(&mut hold, 10, 0).unwrap();
        assert!(held.began_with(0) && !held.began_with(1));
        hold.counts.participants += 1;
        assert!(!has_held(&hold, &held));
    }
}
