//! Histories: what transactions have done with lists and registers and what they were shown, with
//! the times at which they began and ended; and whether the isolation that is promised explains it.
//!
//! All of it is plain functions over plain data. The cycles are found by [`adya`], a checker that
//! knows nothing of this project; each kind of anomaly that it has to find, or to allow, is written
//! down as a small history in `anomalies`.
//!
//! | module | subject |
//! |---|---|
//! | `lists` | registers as lists of what was written to them |
//! | `settled` | all or nothing in the end: the last state against what clients were told |
//! | `verdict` | the history for the checker, and what it has found |

#[cfg(test)]
mod anomalies;
mod lists;
mod settled;
mod verdict;

use std::fmt;

use serde::Serialize;

pub use settled::settle;
pub use verdict::{Promise, Verdict, check, jepsen};

/// Nanoseconds since the beginning of the run.
pub type Time = u64;

/// What is kept under a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Kind {
    /// Elements are appended, and the whole list is read.
    List,
    /// One value, which is read and then overwritten.
    Register,
}

/// A list or a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Key {
    /// Which of the two.
    pub kind: Kind,
    /// The server that has it: 0 for the coordinator.
    pub place: usize,
    /// Its number there.
    pub number: i64,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::List => "list",
            Kind::Register => "register",
        };
        write!(f, "{kind} {} at {}", self.number, self.place)
    }
}

/// What a transaction does with one key. Whatever is appended or written is so only once in a
/// history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Act {
    /// Appends to a list.
    Append(Key, i64),
    /// Reads a list.
    Elements(Key, Vec<i64>),
    /// Writes to a register, which the same transaction has read before.
    Write(Key, i64),
    /// Reads a register; nothing has been written to it at first.
    Value(Key, Option<i64>),
}

/// What is known of the end of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Outcome {
    /// The client was told, at the time at which the transaction ended, that it is committed.
    Acknowledged,
    /// It is committed, and nobody knows since when.
    Committed,
    /// It is not.
    Refused,
    /// Nobody knows.
    Unknown,
}

/// A transaction as its client saw it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Transaction {
    /// Whose it is: of a process, one begins after the other has ended.
    pub process: u64,
    /// When the client was about to begin.
    pub began: Time,
    /// When the client had heard the last of it.
    pub ended: Time,
    /// What the client, or later the last state, says of its end.
    pub outcome: Outcome,
    /// What it has done, in order.
    pub acts: Vec<Act>,
    /// How it was run, for those who read a report.
    pub note: String,
}

impl Transaction {
    /// Whether it has written anything.
    pub fn has_written(&self) -> bool {
        self.acts.iter().any(|act| matches!(act, Act::Append(..) | Act::Write(..)))
    }
}
