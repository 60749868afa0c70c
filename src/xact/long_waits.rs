//! Long waits of this session: for which participants they are is published for the resolver, whose
//! verdict that the session is part of a deadlock becomes its error.

use std::cell::Cell;

use pgrx::pg_sys;

use crate::guc;
use crate::pg::backend_local::BackendLocal;
use crate::pg::error::{Error, Result, SqlState};
use crate::pg::globals::in_recovery;
use crate::remote::Connection;
use crate::remote::long_wait::{Hooks, Manner};
use crate::shared::stats;
use crate::shared::waits::{self, Awaited};
use crate::xact::participants;

/// What the waits of this session are told.
pub const HOOKS: Hooks = Hooks { begin, check, end: waits::end };

/// What to do when a statement's answer takes longer than `deadlock_timeout`.
type Act = fn() -> Result<()>;

static ACT: BackendLocal<Cell<Option<Act>>> = BackendLocal::new(Cell::new(None));

/// Registers what to do when a statement's answer takes longer than `deadlock_timeout`.
pub fn on_long_wait(act: Act) {
    ACT.get().set(Some(act));
}

/// Does that.
///
/// # Errors
/// Its own.
pub(super) fn act() -> Result<()> {
    ACT.get().get().map_or(Ok(()), |act| act())
}

fn begin(manner: Manner, connections: &[&Connection]) -> Option<u64> {
    // There is no resolver on a standby.
    if !guc::detect_deadlocks() || in_recovery() {
        return None;
    }
    let all = participants::all();
    let awaited: Vec<Awaited> = all
        .iter()
        .filter(|p| connections.iter().any(|c| c.number() == p.connection.number()))
        .map(|p| Awaited {
            serverid: p.serverid,
            userid: p.userid,
            process: p.connection.backend_pid(),
        })
        .collect();
    // Whether none of them can answer is not known if they are not all told.
    if awaited.is_empty() || (!manner.needs_all && awaited.len() > waits::MOST_SERVERS) {
        return None;
    }
    let Manner { can_be_cancelled, needs_all } = manner;
    // SAFETY: a wait for participants is in a transaction.
    let begun = unsafe { pg_sys::GetCurrentTransactionStartTimestamp() };
    Some(waits::publish(waits::Manner { begun, can_be_cancelled, needs_all }, &awaited))
}

fn check(number: u64) -> Result<()> {
    let Some(cycle) = waits::verdict(number) else { return Ok(()) };
    for serverid in waits::servers(number) {
        stats::deadlock(serverid);
    }
    Err(Error::new(SqlState::DEADLOCK_DETECTED, "deadlock detected")
        .detail(cycle)
        .hint("The transaction can be tried again."))
}
