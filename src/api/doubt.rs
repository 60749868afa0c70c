//! What is in doubt: the one source for the view, the statistics, `pg_fdw_xacts_resolve()` and the
//! outcome of a label.
//!
//! Most of it has an entry in shared memory. What was decided before the start of this server has
//! none: it counts as in doubt until its participant has been asked (see [`seen`]), and is read
//! from the decision table.

use std::collections::{HashMap, HashSet};

use pgrx::pg_sys::{Oid, TransactionId};

use crate::pg::globals::{in_recovery, my_database, server_start};
use crate::protocol::gid::Gid;
use crate::protocol::verdict::{Decision, Reason};
use crate::shared::entry::{Entry, Status};
use crate::shared::shmem;
use crate::shared::stats::ServerStats;
use crate::shared::{entries, resolvers, seen, stats};
use crate::store::decisions::{self, Row};
use crate::store::participant_list::{self, ParticipantRecord};
use crate::store::{forgotten, identity};

/// One participant of a transaction that is prepared there, is about to be, or may be.
pub struct Shown {
    /// The database here.
    pub dbid: Oid,
    /// The local transaction; 0 where it is not known.
    pub xid: TransactionId,
    /// Its name on the participant.
    pub gid: Gid,
    /// What has to be done there.
    pub status: Status,
    /// A backend settles it.
    pub owned: bool,
    /// Since when, in PostgreSQL's microseconds.
    pub since: i64,
    /// Why it is in doubt if it was left to the resolver, in the server's encoding.
    pub reason: Option<Vec<u8>>,
}

impl Shown {
    /// Whether it is prepared there and not settled: it holds locks there.
    pub fn is_in_doubt(&self) -> bool {
        matches!(self.status, Status::Prepared | Status::Committing | Status::Aborting)
    }

    /// The foreign server.
    pub fn serverid(&self) -> Oid {
        Oid::from_u32(self.gid.serverid)
    }

    /// Whether it is of this database.
    pub fn is_here(&self) -> bool {
        self.dbid == my_database()
    }
}

/// All of them. Of other databases, only what has an entry in shared memory.
pub fn all() -> Vec<Shown> {
    let mut all = Vec::new();
    for_each(|shown| all.push(shown));
    all
}

/// Calls `f` for each of [`all`]. After a start there may be one for each participant of each
/// decision, so that who only counts does not keep them.
pub fn for_each(mut f: impl FnMut(Shown)) {
    // `asked` is read before the entries: whatever is left of a participant that counts as asked
    // has an entry by then.
    let asked = seen::asked();
    let entries = entries::all();
    let stats: Stats = stats::all().into_iter().map(|s| (s.serverid, s)).collect();
    let mut known = HashSet::new();
    for shown in entries.iter().filter_map(|entry| of_entry(entry, &stats)) {
        known.insert(shown.gid);
        f(shown);
    }
    let list = participant_list::all();
    of_table(&asked, &list, &stats, |shown| {
        if !known.contains(&shown.gid) {
            f(shown);
        }
    });
}

/// What has happened on the servers of this database.
type Stats = HashMap<Oid, ServerStats>;

fn of_entry(entry: &Entry, stats: &Stats) -> Option<Shown> {
    let reason = match (entry.is_left(), entry.status) {
        (true, Status::Prepared) => Some(Reason::Undecided.text().into()),
        (true, Status::Committing | Status::Aborting) => Some(match entry.reason {
            // What the server has answered, or why it was not reached, is more precise.
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

fn last_error(dbid: Oid, serverid: Oid, stats: &Stats) -> Option<Vec<u8>> {
    stats.get(&serverid).filter(|s| s.dbid == dbid).and_then(stats::last_error)
}

/// What only the decision table of this database tells.
fn of_table(
    asked: &seen::Asked,
    list: &[ParticipantRecord],
    stats: &Stats,
    mut f: impl FnMut(Shown),
) {
    let standby = in_recovery();
    let lacked = shmem::read(|m| m.shared.entries_lacked);
    // What is prepared here has entries once the resolver has read the decision table.
    let pending = standby || lacked || !resolvers::is_up();
    let unasked = !standby && list.iter().any(|r| !asked.has(r.id));
    if !pending && !unasked {
        return;
    }
    let Some(identity) = identity::known() else { return };
    let forgotten = forgotten::all();
    let by_id: HashMap<i32, &ParticipantRecord> = list.iter().map(|r| (r.id, r)).collect();
    decisions::for_each(|row| {
        let is_pending = row.decision == Decision::InProgress;
        let is_unknown = unasked && !is_pending && asked.is_older(row.xid, row.is_frozen);
        if !is_pending && !is_unknown {
            return;
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
            f(Shown {
                dbid: my_database(),
                xid: row.xid,
                gid: registered.gid(identity, row.nonce),
                status: if is_pending { Status::Prepared } else { Status::Committing },
                owned: false,
                since: server_start(),
                reason: Some(reason),
            });
        }
    });
}

/// Whether a transaction was committed before the start of this server, and one of its participants
/// has not been asked since whether it was delivered there. False on a standby, which cannot tell.
pub fn is_unasked(xid: TransactionId, is_frozen: bool) -> bool {
    let standby = in_recovery();
    let asked = seen::asked();
    if standby || !asked.is_older(xid, is_frozen) {
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
    decisions::of_xid(xid).iter().any(is_left)
}
