//! Whether this transaction reads consistently, which is decided when its first remote statement is
//! sent and stays until it ends.

use std::cell::Cell;

use crate::guc::{self, ConsistentReads};
use crate::pg::backend_local::BackendLocal;
use crate::pg::error::{Error, Result, SqlState};
use crate::pg::globals::uses_one_snapshot;
use crate::protocol::order::Opened;
use crate::shared::order;
use crate::xact::participants;

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

/// Whether all servers of this transaction are known to be one unit.
pub(super) fn is_one_unit() -> bool {
    matches!(DECIDED.get().get(), Decided::On(reading) if reading.is_one_unit)
}

/// Whether it does, or will when it sends its first statement.
pub(super) fn may_be_on() -> bool {
    match DECIDED.get().get() {
        Decided::On(_) => true,
        Decided::Off => false,
        Decided::Not => guc::consistent_reads() != ConsistentReads::Off,
    }
}

/// From now on all servers of this transaction are one unit, whatever the setting says; returns
/// whether they were before.
///
/// # Errors
/// 25001: servers have been read that have told no snapshots.
pub(super) fn make_one_unit() -> Result<(Reading, bool)> {
    match DECIDED.get().get() {
        Decided::On(reading) => {
            let now = Reading { is_one_unit: true, ..reading };
            DECIDED.get().set(Decided::On(now));
            Ok((now, reading.is_one_unit))
        }
        Decided::Off if !participants::is_empty() => Err(Error::new(
            SqlState::ACTIVE_SQL_TRANSACTION,
            "pg_fdw_xacts_snapshot() must be called before any foreign server is used",
        )
        .hint("With \"pg_fdw_xacts.consistent_reads\" set to on, it can be called later.")),
        Decided::Off | Decided::Not => Ok((begin(true), uses_one_snapshot())),
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
