//! Whether this transaction reads consistently, which is decided when its first remote statement is
//! sent and stays until it ends.

use std::cell::Cell;

use crate::guc::{self, ConsistentReads};
use crate::pg::backend_local::BackendLocal;
use crate::pg::globals::uses_one_snapshot;
use crate::protocol::order::Opened;
use crate::shared::order;

/// How a transaction reads consistently.
#[derive(Clone, Copy)]
pub(super) struct Reading {
    /// When it began.
    pub(super) first: Opened,
    /// All its servers are one unit.
    pub(super) is_one_unit: bool,
}

#[derive(Clone, Copy)]
enum Decided {
    Not,
    Off,
    On(Reading),
}

static DECIDED: BackendLocal<Cell<Decided>> = BackendLocal::new(Cell::new(Decided::Not));

/// How this transaction reads consistently; `None` if it does not.
pub(super) fn reading() -> Option<Reading> {
    match DECIDED.get().get() {
        Decided::On(reading) => Some(reading),
        Decided::Off => None,
        Decided::Not => {
            let is_one_unit = uses_one_snapshot();
            let is_on = match guc::consistent_reads() {
                ConsistentReads::Off => false,
                ConsistentReads::On => true,
                ConsistentReads::Auto => is_one_unit,
            };
            if !is_on {
                DECIDED.get().set(Decided::Off);
                return None;
            }
            Some(begin(is_one_unit))
        }
    }
}

fn begin(is_one_unit: bool) -> Reading {
    let reading = Reading { first: order::open(), is_one_unit };
    DECIDED.get().set(Decided::On(reading));
    reading
}

/// The transaction has ended.
pub fn end() {
    if let Decided::On(_) = DECIDED.get().replace(Decided::Not) {
        order::close();
    }
}
