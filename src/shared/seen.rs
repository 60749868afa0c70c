//! Which participants have been asked since the start of this server what they hold.
//!
//! A crash and a restart lose the entries. What was decided before is on record, but whether a participant has heard of
//! it is not: until the participant has been asked, it counts as in doubt. Afterwards whatever is left there has an
//! entry again. What has been decided since the start has always had one.
//!
//! A participant is a bit, 64 of one database to a word. There are enough words for 4096 databases with numbers of
//! participants up to 64, or for one with numbers up to 262,144; a participant for which there is no word is never
//! marked, so that its older decisions stay in view until they are deleted.

use std::collections::HashMap;

use pgrx::pg_sys::{self, Oid, TransactionId};

use crate::pg::globals::my_database;
use crate::shared::shmem;

const WORDS: usize = 4096;

/// In shared memory.
#[repr(C)]
pub struct Seen {
    /// Older transactions were before this server's start, or its promotion; 0 until the launcher has come up, which no
    /// distributed transaction overtakes.
    first_xid: TransactionId,
    words: [Word; WORDS],
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Word {
    /// Invalid where unused.
    dbid: Oid,
    /// Which 64 participants.
    index: u32,
    bits: u64,
}

fn place(participant: i32) -> (u32, u64) {
    (participant as u32 / 64, 1 << (participant as u32 % 64))
}

/// This server has started: what is in the tables so far is from before.
pub fn note_start() {
    // SAFETY: a background worker of a server that is not in recovery: the next xid is known.
    let next = unsafe { pg_sys::ReadNextFullTransactionId() };
    shmem::write(|m| {
        if m.shared.seen.first_xid == pg_sys::InvalidTransactionId {
            m.shared.seen.first_xid = TransactionId::from_inner(next.value as u32);
        }
    });
}

/// A participant of this database has been asked.
pub fn add(participant: i32) {
    let dbid = my_database();
    let (index, bit) = place(participant);
    shmem::write(|m| {
        let words = &mut m.shared.seen.words;
        let own = words.iter().position(|w| (w.dbid, w.index) == (dbid, index));
        if let Some(n) = own.or_else(|| words.iter().position(|w| w.dbid == Oid::INVALID)) {
            let bits = own.map_or(0, |n| words[n].bits) | bit;
            words[n] = Word { dbid, index, bits };
        }
    });
}

/// A database is gone.
pub fn forget_database(dbid: Oid) {
    shmem::write(|m| {
        for word in m.shared.seen.words.iter_mut().filter(|w| w.dbid == dbid) {
            word.dbid = Oid::INVALID;
        }
    });
}

/// Who has been asked, of this database's participants.
pub struct Asked {
    first_xid: TransactionId,
    words: HashMap<u32, u64>,
}

/// Reads it.
pub fn asked() -> Asked {
    let dbid = my_database();
    shmem::read(|m| Asked {
        first_xid: m.shared.seen.first_xid,
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

    /// Whether a transaction was before the start.
    pub fn is_older(&self, xid: TransactionId) -> bool {
        // SAFETY: compares numbers.
        self.first_xid == pg_sys::InvalidTransactionId
            || unsafe { pg_sys::TransactionIdPrecedes(xid, self.first_xid) }
    }
}
