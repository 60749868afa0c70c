//! Which participants have been asked since the start of this server what is prepared there.
//!
//! Entries are lost when the server restarts. What was decided before is on record, but whether it
//! was delivered is not: until the participant has been asked, it counts as in doubt. Then whatever
//! is left there has an entry again. What was decided since the start always has one.
//!
//! Each participant has a bit; a word has the bits of 64 participants of one database. There are
//! enough words for 4096 databases with up to 64 participants each, or for one with 262,144. A
//! participant for which there is no word never counts as asked: its older decisions are shown
//! until they are deleted.

use std::collections::HashMap;

use pgrx::pg_sys::{Oid, TransactionId};

use crate::pg::globals::my_database;
use crate::pg::snapshot::{full_near, next_xid};
use crate::shared::shmem;

const WORDS: usize = 4096;

/// The part of shared memory that holds this.
#[repr(C)]
pub struct Seen {
    /// Transactions with an older xid are from before the start of this server, or its promotion. 0
    /// until the launcher has started; no distributed transaction commits before that.
    first_xid: u64,
    words: [Word; WORDS],
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Word {
    /// Invalid if the word is unused.
    dbid: Oid,
    /// Which 64 participants: their numbers divided by 64.
    index: u32,
    bits: u64,
}

fn place(participant: i32) -> (u32, u64) {
    (participant as u32 / 64, 1 << (participant as u32 % 64))
}

/// The server has started: what is in the tables by now is from before the start.
pub fn note_start() {
    let next = next_xid();
    shmem::write(|m| {
        if m.shared.seen.first_xid == 0 {
            m.shared.seen.first_xid = next;
        }
    });
}

/// A participant of this database has been asked.
pub fn add(participant: i32) {
    let dbid = my_database();
    shmem::write(|m| {
        if set(&mut m.shared.seen, dbid, participant) {
            m.shared.order.learn();
        }
    });
}

/// A participant of this database has been put on the list: nothing was decided there before.
pub fn add_new(participant: i32) {
    let dbid = my_database();
    shmem::write(|m| {
        set(&mut m.shared.seen, dbid, participant);
    });
}

/// Whether that was not known.
fn set(seen: &mut Seen, dbid: Oid, participant: i32) -> bool {
    let (index, bit) = place(participant);
    let words = &mut seen.words;
    let own = words.iter().position(|w| (w.dbid, w.index) == (dbid, index));
    let Some(n) = own.or_else(|| words.iter().position(|w| w.dbid == Oid::INVALID)) else {
        return false;
    };
    let was = own.map_or(0, |n| words[n].bits);
    words[n] = Word { dbid, index, bits: was | bit };
    was & bit == 0
}

/// A database no longer exists.
pub fn forget_database(dbid: Oid) {
    shmem::write(|m| {
        for word in m.shared.seen.words.iter_mut().filter(|w| w.dbid == dbid) {
            word.dbid = Oid::INVALID;
        }
    });
}

/// Which participants of this database have been asked.
pub struct Asked {
    first_xid: u64,
    next_xid: u64,
    words: HashMap<u32, u64>,
}

/// Which participants of this database have been asked.
pub fn asked() -> Asked {
    let (dbid, next_xid) = (my_database(), next_xid());
    shmem::read(|m| Asked {
        first_xid: m.shared.seen.first_xid,
        next_xid,
        words: m
            .shared
            .seen
            .words
            .iter()
            .filter(|w| w.dbid == dbid)
            .map(|w| (w.index, w.bits))
            .collect(),
    })
}

impl Asked {
    /// Whether a participant has been asked since the start.
    pub fn has(&self, participant: i32) -> bool {
        let (index, bit) = place(participant);
        self.words.get(&index).is_some_and(|bits| bits & bit != 0)
    }

    /// Whether a transaction is from before the start; it counts as older where its row is frozen
    /// and its xid does not tell any more.
    pub fn is_older(&self, xid: TransactionId, is_frozen: bool) -> bool {
        self.first_xid == 0 || is_frozen || full_near(xid, self.next_xid) < self.first_xid
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(first_xid: u64, next_xid: u64) -> Asked {
        Asked { first_xid, next_xid, words: HashMap::new() }
    }

    #[test]
    fn what_is_older_than_the_start_stays_so_when_xids_begin_anew() {
        const EPOCH: u64 = 1 << 32;
        for first in [1000, EPOCH - 2, EPOCH, 3 * EPOCH + 5] {
            for since in [0, 3, 1 << 31, 3 << 31, 5 * EPOCH] {
                let next = first + since;
                let asked = asked(first, next);
                // Those that are not frozen are among the last 2^31.
                for back in [1, 2, 900, 1 << 30, (1 << 31) - 1] {
                    let Some(xid) = next.checked_sub(back) else { continue };
                    let is_older = asked.is_older((xid as u32).into(), false);
                    assert_eq!(is_older, xid < first, "{first} {next} {xid}");
                }
                assert!(asked.is_older(7.into(), true), "nobody can tell");
                // Given after it was asked what the next one is.
                assert!(!asked.is_older(((next + 9) as u32).into(), false));
            }
        }
        assert!(asked(0, 1000).is_older(7.into(), false), "the launcher has not started");
    }
}
