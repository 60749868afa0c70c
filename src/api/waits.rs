//! What the view `pg_fdw_xacts_waits` reads: who waits for whom over all servers, among the
//! sessions of this database.

use std::collections::{HashMap, HashSet};

use pgrx::datum::TimestampWithTimeZone;
use pgrx::prelude::*;

use crate::shared::wait_rows::{self, Row};
use crate::shared::waits;

/// One row per wait and blocker that the resolver has seen last, and one per session that has
/// waited for a server for longer than `deadlock_timeout` without a lock's being known.
#[pg_extern(sql = false)]
#[allow(clippy::type_complexity)]
fn pg_fdw_xacts_waiting() -> TableIterator<
    'static,
    (
        name!(pid, Option<i32>),
        name!(serverid, Option<pg_sys::Oid>),
        name!(remote_pid, Option<i32>),
        name!(since, Option<TimestampWithTimeZone>),
        name!(waits_for, Option<String>),
        name!(blocked_by, Option<i32>),
        name!(blocked_by_remote_pid, Option<i32>),
    ),
> {
    crate::pg::preload::require().unwrap_or_else(|error| error.raise_in_pgrx());
    let known = |pid: i32| (pid != 0).then_some(pid);
    let time = |microseconds| TimestampWithTimeZone::try_from(microseconds).ok();
    let rows = rows().into_iter().map(|(row, lock)| {
        let is_there = row.serverid != pg_sys::Oid::INVALID;
        (
            known(row.pid),
            is_there.then_some(row.serverid),
            known(row.process).filter(|_| is_there),
            time(row.since),
            lock,
            known(row.blocked_by),
            known(row.blocker).filter(|_| is_there),
        )
    });
    TableIterator::new(rows.collect::<Vec<_>>())
}

/// The rows, each with the lock if there is one. What a session has waited for before is left out.
fn rows() -> Vec<(Row, Option<String>)> {
    let waits: HashMap<u64, waits::Wait> =
        waits::all().into_iter().map(|w| (w.number, w)).collect();
    // Where no session waits, the resolver may have ended before it could take its rows away.
    let mut shown = if waits.is_empty() { Vec::new() } else { wait_rows::shown() };
    shown.retain(|row| row.number == 0 || waits.contains_key(&row.number));
    let known: HashSet<_> = shown.iter().map(|r| (r.number, r.serverid, r.process)).collect();
    let mut rows: Vec<_> = shown.into_iter().map(|row| (row, Some(row.lock()))).collect();
    for wait in waits.values() {
        for server in wait.servers() {
            if !known.contains(&(wait.number, server.serverid, server.process)) {
                let row = Row {
                    number: wait.number,
                    pid: wait.pid,
                    serverid: server.serverid,
                    process: server.process,
                    since: wait.since,
                    ..Row::EMPTY
                };
                rows.push((row, None));
            }
        }
    }
    rows.sort_by_key(|(row, _)| (row.since, row.pid, row.process, row.blocked_by, row.blocker));
    rows
}
