//! The order of decisions, and what readers of several servers have to know of it: which
//! transactions have a number and are not confirmed everywhere, and which were confirmed lately.
//!
//! A transaction gets its number before anybody sends COMMIT PREPARED of it, so nothing is visible
//! on any server that has none. What has a number and is not confirmed has an entry; what has been
//! confirmed is in the history as long as somebody reads ([`crate::protocol::order`]).

use pgrx::pg_sys::Oid;

use crate::pg::globals::my_pid;
use crate::pg::versions::backend_number;
use crate::protocol::cut::{NOT_YET, Row};
use crate::protocol::gid::Gid;
use crate::protocol::local_commits::{LocalCommit, LocalCommits};
use crate::protocol::order::{Opened, Order};
use crate::protocol::place::Place;
use crate::shared::entry::{Entry, Owner, Status};
use crate::shared::shmem::{self, Memory};

/// How many confirmed participants are remembered: those of a second or so at the highest rates.
const HISTORY: usize = 8192;

/// The part of shared memory that holds the order.
pub type SharedOrder = Order<HISTORY>;

/// Those of its decisions that are visible here.
pub type SharedLocalCommits = LocalCommits<HISTORY>;

/// This server, as a place that is read.
#[derive(Clone, Debug)]
pub struct Here {
    /// Where it is.
    pub place: Place,
    /// The database.
    pub dbid: Oid,
    /// The snapshot's `xmax`.
    pub xmax: u64,
    /// The transactions that were in progress in it and have committed since.
    pub ended: Vec<u64>,
}

/// A backend's commit in one phase that is on its way; an xid of 0 is none.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct OnePhase {
    place: Place,
    xid: u64,
    sent: u64,
}

/// A row, with the gid of what is still to be delivered.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// What readers are checked against.
    pub row: Row,
    /// Whose entry it is from; `None` for one that has been confirmed, or commits in one phase.
    pub gid: Option<Gid>,
}

/// A transaction with consistent reads begins. [`close`] has to follow.
pub fn open() -> Opened {
    shmem::write(|m| m.shared.order.open())
}

/// What begins now, in a transaction that has been opened.
pub fn now() -> Opened {
    shmem::read(|m| m.shared.order.now())
}

/// The beginning of a read on one server, and whether something is missing there that another
/// session was told of: then the snapshot has to be checked. `place` is `None` if it is not known
/// yet where the server leads.
pub fn begin_on(serverid: Oid, place: Option<Place>) -> (Opened, bool) {
    let pid = my_pid();
    shmem::read(|m| {
        let opened = m.shared.order.now();
        let table = m.entries();
        let mut is_missing = false;
        if table.acknowledged() > 0 {
            table.for_each(|entry| {
                // What this backend has sent itself comes first on its connection.
                let is_own = entry.owner == Owner::Backend(pid);
                is_missing |= entry.is_on(serverid, place) && entry.is_acknowledged() && !is_own;
            });
        }
        (opened, is_missing)
    })
}

/// A transaction with consistent reads has ended.
pub fn close() {
    shmem::write(|m| m.shared.order.close());
}

/// Everything that snapshots taken at these places since `opened`, and the local one if this server
/// is read too, have to be checked against; `None` if some of it has been forgotten.
pub fn known(opened: Opened, places: &[Place], here: Option<&Here>) -> Option<Vec<Known>> {
    let is_there = |row: &Row| places.iter().any(|place| place.is_same(&row.place));
    shmem::read(|m| {
        let past = m.shared.order.since(opened)?;
        let mut known: Vec<Known> = past.into_iter().map(|row| Known { row, gid: None }).collect();
        let under_way = m.one_phase.iter().filter(|commit| commit.xid != 0);
        known.extend(under_way.map(|OnePhase { place, xid, sent }| Known {
            row: Row { place: *place, xid: *xid, from: *sent, to: NOT_YET },
            gid: None,
        }));
        m.entries().for_each(|entry| {
            if entry.number != 0 && entry.remote_xid != 0 {
                let Entry { place, remote_xid: xid, number, .. } = *entry;
                known.push(Known {
                    row: Row { place, xid, from: number, to: number },
                    gid: entry.gid(),
                });
            }
        });
        known.retain(|known| is_there(&known.row));
        if let Some(Here { place, dbid, xmax, ended }) = here {
            let commits = m.shared.local_commits.since(dbid.to_u32(), *xmax, ended, opened.at)?;
            known.extend(commits.into_iter().map(|LocalCommit { xid, number, .. }| Known {
                row: Row { place: *place, xid, from: number, to: number },
                gid: None,
            }));
        }
        Some(known)
    })
}

/// The decisions of this database that have no number yet and have also written here, each by its
/// local transaction and the gid of one participant.
pub fn unnumbered(dbid: Oid) -> Vec<(u64, Gid)> {
    shmem::read(|m| {
        let mut found = Vec::new();
        m.entries().for_each(|entry| {
            let is_open = entry.number == 0 && entry.status != Status::Aborting;
            if entry.local_xid != 0 && entry.dbid == dbid && is_open {
                found.extend(entry.gid().map(|gid| (entry.local_xid, gid)));
            }
        });
        found
    })
}

/// The local transactions of those entries.
pub fn entries_that(are: impl Fn(&Entry) -> bool) -> Vec<u64> {
    shmem::read(|m| {
        let mut found = Vec::new();
        m.entries().for_each(|entry| {
            if are(entry) {
                found.push(entry.local_xid);
            }
        });
        found
    })
}

/// Gives the transaction that a gid belongs to its number, unless it has one: all of its entries,
/// together. Whoever sends COMMIT PREPARED of it calls this first.
pub fn number_transaction(gid: &Gid) {
    shmem::write(|m| number(m, gid));
}

/// The same, where the lock is held. Returns the number; `None` if the gid has no entry.
pub(super) fn number(m: &mut Memory<'_>, gid: &Gid) -> Option<u64> {
    let place = m.entries().find(gid)?;
    let first = *m.entries().at(place);
    if first.number != 0 {
        return Some(first.number);
    }
    let nonce = gid.nonce.number();
    let places = m.entries().places_of_transaction(first.dbid, first.xid);
    let of_it = |m: &mut Memory<'_>| -> Vec<usize> {
        let table = m.entries();
        places.iter().copied().filter(|place| table.at(*place).nonce == nonce).collect()
    };
    let members = of_it(m);
    // One that was found later, when the others had their number already, has the same.
    let given = members.iter().map(|place| m.entries().at(*place).number).max().unwrap_or(0);
    let number = if given == 0 { m.shared.order.decide() } else { given };
    if given == 0 && first.local_xid != 0 {
        let (dbid, xid) = (first.dbid.to_u32(), first.local_xid);
        m.shared.local_commits.add(LocalCommit { dbid, xid, number });
    }
    for place in members {
        m.entries().change(place, |entry| {
            if entry.status != Status::Aborting {
                entry.number = number;
            }
        });
    }
    Some(number)
}

/// A commit in one phase, from before COMMIT is sent until it is answered. Only where somebody
/// reads there is anything to note of it.
pub struct UnderWay {
    place: Place,
    xid: u64,
    sent: Option<u64>,
}

impl UnderWay {
    /// COMMIT of the transaction that has this xid at that place is about to be sent.
    pub fn begin(place: Place, xid: u64) -> Self {
        let sent = shmem::is_read()
            .then(|| {
                shmem::write(|m| {
                    let sent = m.shared.order.one_phase_sent()?;
                    m.one_phase[backend_number()] = OnePhase { place, xid, sent };
                    Some(sent)
                })
            })
            .flatten();
        Self { place, xid, sent }
    }

    /// The same where nobody reads, before the xid is known; `None` if somebody does.
    pub fn begin_unread(place: Place) -> Option<Self> {
        let under_way = Self::begin(place, 0);
        under_way.sent.is_none().then_some(under_way)
    }

    /// It turns out to be the transaction with this xid.
    pub fn is_of(&mut self, xid: u64) {
        self.xid = xid;
    }

    /// It was committed there: whoever begins to read now has to see it.
    pub fn committed(self) {
        if self.xid != 0 && (self.sent.is_some() || shmem::is_read()) {
            shmem::write(|m| {
                m.shared.order.one_phase_answered(self.place, self.xid, self.sent);
            });
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        if self.sent.is_some() {
            shmem::write(|m| m.one_phase[backend_number()].xid = 0);
        }
    }
}
