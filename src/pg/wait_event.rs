//! What `pg_stat_activity` shows in `wait_event` when a process waits in this extension: names of
//! our own from PostgreSQL 17 on, `Extension` before.

use std::cell::Cell;
use std::ffi::CStr;

use pgrx::pg_sys;

use crate::pg::backend_local::BackendLocal;
use crate::pg::error::attempt;
use crate::pg::versions;

/// A reason to wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WaitEvent {
    /// A connection to a foreign server is being made.
    Connect,
    /// A foreign server works on a statement.
    Result,
    /// Foreign servers prepare.
    Prepare,
    /// The only foreign server that has written commits, in one phase.
    Commit,
    /// Foreign servers commit or roll back what they have prepared.
    Settle,
    /// Foreign servers roll back.
    Rollback,
    /// A foreign server ends a statement that was cancelled.
    Cleanup,
    /// Foreign servers tell their snapshots.
    Snapshot,
    /// The resolver serves a request of this backend.
    Resolver,
    /// The resolver has nothing to do, or waits for servers.
    ResolverMain,
    /// The launcher has nothing to do.
    LauncherMain,
}

/// Their names, in the order of the enum.
const NAMES: [&CStr; 11] = [
    c"PgFdwXactsConnect",
    c"PgFdwXactsResult",
    c"PgFdwXactsPrepare",
    c"PgFdwXactsCommit",
    c"PgFdwXactsSettle",
    c"PgFdwXactsRollback",
    c"PgFdwXactsCleanup",
    c"PgFdwXactsSnapshot",
    c"PgFdwXactsResolver",
    c"PgFdwXactsResolverMain",
    c"PgFdwXactsLauncherMain",
];

static NUMBERS: BackendLocal<Cell<Option<[u32; NAMES.len()]>>> = BackendLocal::new(Cell::new(None));

impl WaitEvent {
    /// PostgreSQL's number for it.
    pub fn number(self) -> u32 {
        numbers()[self as usize]
    }
}

/// Gets the numbers from the server. That takes a lock and may fail, so it is done with the first
/// wait set, long before anything that must not fail.
pub fn prepare() {
    let _ = numbers();
}

fn numbers() -> [u32; NAMES.len()] {
    if let Some(numbers) = NUMBERS.get().get() {
        return numbers;
    }
    let numbers = NAMES.map(|name| {
        // A server has room for 128 names. Without room, the event that all extensions share has to
        // do.
        // SAFETY: a process that waits is attached to shared memory.
        attempt(|| Ok(unsafe { versions::WaitEventExtensionNew(name) }))
            .unwrap_or(pg_sys::PG_WAIT_EXTENSION)
    });
    NUMBERS.get().set(Some(numbers));
    numbers
}
