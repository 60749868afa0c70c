//! What is in doubt, as everybody is told who asks: the view, the statistics, `pg_fdw_xacts_resolve()`, the outcome of a
//! label.
//!
//! Entries in shared memory tell most of it. What was decided before the start of this server has none: it counts as in
//! doubt until its participant has been asked (see [`seen`]), and is read from the decision table.

use std::collections::{HashMap, HashSet};

use pgrx::pg_sys::{Oid, TransactionId};

use crate::pg::globals::{in_recovery, my_database, server_start};
use crate::protocol::gid::Gid;
use crate::protocol::verdict::{Decision, Reason};
use crate::shared::entry::{Entry, Status};
use crate::shared::shmem::{self, ServerStats};
use crate::shared::{entries, seen, stats, workers};
use crate::store::decisions::{self, Row};
use crate::store::participant_list::{self, ParticipantRecord};
use crate::store::{forgotten, identity};

/// One participant of a transaction that is prepared there or about to be, or may be.
pub struct Shown {
    /// The database here.
    pub dbid: Oid,
    /// The local transaction; 0 where it is not known.
    pub xid: TransactionId,
    /// Its name on the participant.
    pub gid: Gid,
    /// What has to be done there.
    pub status: Status,
    /// A session is at it.
    pub owned: bool,
    /// Since when, in PostgreSQL's microseconds.
    pub since: i64,
    /// Why it is left, where it is, in the server's encoding.
    pub reason: Option<Vec<u8>>,
}

impl Shown {
    /// Prepared there, and not settled: it holds locks there.
    pub fn is_in_doubt(&self) -> bool {
        matches!(self.status, Status::Prepared | Status::Committing | Status::Aborting)
    }

    /// The foreign server.
    pub fn serverid(&self) -> Oid {
        Oid::from_u32(self.gid.serverid)
    }

    /// In this database.
    pub fn is_here(&self) -> bool {
        self.dbid == my_database()
    }
}

/// All of them, those of other databases as far as shared memory tells.
pub fn all() -> Vec<Shown> {
    // In this order: what is not found among the entries any more has been asked for.
    let asked = seen::asked();
    let entries = entries::all();
    let stats = stats::all();
    let mut shown: Vec<Shown> =
        entries.iter().filter_map(|entry| of_entry(entry, &stats)).collect();
    let list = participant_list::all();
    let known: HashSet<Gid> = shown.iter().map(|s| s.gid).collect();
    shown.extend(of_table(&asked, &list, &stats).into_iter().filter(|s| !known.contains(&s.gid)));
    shown
}

fn of_entry(entry: &Entry, stats: &[ServerStats]) -> Option<Shown> {
    let reason = match (entry.is_left(), entry.status) {
        (true, Status::Prepared) => Some(Reason::Undecided.text().into()),
        (true, Status::Committing | Status::Aborting) => Some(match entry.reason {
            // The server's own words, or those of the attempt to reach it.
            Reason::Unreached | Reason::Refused | Reason::Gone => {
                last_error(entry.dbid, entry.serverid, stats)
                    .unwrap_or_else(|| entry.reason.text().into())
            }
            reason => reason.text().into(),
        }),
        _ => None,
    };
    Some(Shown {
        dbid: entry.dbid,
        xid: entry.xid,
        gid: entry.gid()?,
        status: entry.status,
        owned: !entry.is_left(),
        since: entry.since,
        reason,
    })
}

fn last_error(dbid: Oid, serverid: Oid, stats: &[ServerStats]) -> Option<Vec<u8>> {
    stats.iter().find(|s| (s.dbid, s.serverid) == (dbid, serverid)).and_then(stats::last_error)
}

/// What the decision table of this database alone knows.
fn of_table(asked: &seen::Asked, list: &[ParticipantRecord], stats: &[ServerStats]) -> Vec<Shown> {
    let standby = in_recovery();
    let lacked = shmem::read(|m| m.shared.entries_lacked);
    // What is prepared here has entries as soon as a resolver has looked for it.
    let pending = standby || lacked || !workers::resolver_is_up();
    let unasked = !standby && list.iter().any(|r| !asked.has(r.id));
    if !pending && !unasked {
        return Vec::new();
    }
    let Some(identity) = identity::known() else { return Vec::new() };
    let forgotten = forgotten::all();
    let by_id: HashMap<i32, &ParticipantRecord> = list.iter().map(|r| (r.id, r)).collect();
    let mut shown = Vec::new();
    for row in decisions::all() {
        let is_pending = row.decision == Decision::InProgress;
        let is_unknown = unasked && !is_pending && asked.is_older(row.xid);
        if !is_pending && !is_unknown {
            continue;
        }
        for (id, _) in &row.participants {
            let Some(registered) = by_id.get(id) else { continue };
            let reason = if is_pending {
                Reason::Undecided.text().into()
            } else if asked.has(*id) || forgotten.contains(&(row.nonce, *id)) {
                continue;
            } else {
                last_error(my_database(), registered.serverid, stats)
                    .unwrap_or_else(|| Reason::Unasked.text().into())
            };
            shown.push(Shown {
                dbid: my_database(),
                xid: row.xid,
                gid: registered.gid(identity, row.nonce),
                status: if is_pending { Status::Prepared } else { Status::Committing },
                owned: false,
                since: server_start(),
                reason: Some(reason),
            });
        }
    }
    shown
}

/// Whether a participant of a transaction that was committed before the start of this server has not been asked yet
/// whether it has heard of it. A standby cannot tell.
pub fn is_unasked(xid: TransactionId) -> bool {
    let standby = in_recovery();
    let asked = seen::asked();
    if standby || !asked.is_older(xid) {
        return false;
    }
    let list = participant_list::all();
    if list.iter().all(|r| asked.has(r.id)) {
        return false;
    }
    let forgotten = forgotten::all();
    let is_left = |row: &Row| {
        row.participants.iter().any(|(id, _)| {
            list.iter().any(|r| r.id == *id)
                && !asked.has(*id)
                && !forgotten.contains(&(row.nonce, *id))
        })
    };
    decisions::all().iter().any(|row| row.xid == xid && is_left(row))
}
