//! What a server is asked of its locks, as SQL, and how the answers are read. The functions behind
//! the views are called, so that nobody's lock on a view is waited for; they need no privilege. No
//! joins: with many waiters they take the server a hundred times as long.

use std::ffi::CStr;

use crate::libpq::PgResult;
use crate::pg::error::{Result, c_string};
use crate::protocol::gid::{Gid, Identity};
use crate::protocol::pipeline::Ticket;
use crate::protocol::session_lock::SessionLock;
use crate::protocol::waits::Said;
use crate::protocol::waits::locks::{Columns, Kind, Lock, target};
use crate::remote::Connection;
use crate::shared::entries;
use crate::shared::entry::Owner;

/// What PostgreSQL's time begins with, in microseconds since 1970.
const EPOCH: i64 = 946_684_800_000_000;

/// The questions on their way.
pub(super) struct Questions {
    blockers: Ticket,
    locks: Ticket,
    prepared: Ticket,
}

impl Questions {
    /// Asks what keeps these processes waiting.
    ///
    /// # Errors
    /// The connection is lost.
    pub(super) fn ask(
        connection: &Connection,
        identity: Identity,
        lock: SessionLock,
        processes: &[i32],
    ) -> Result<Self> {
        let send = |sql: String| {
            connection.send_alone(&c_string(sql)).ok_or_else(|| connection.doom_error())
        };
        Ok(Self {
            blockers: send(blockers(processes))?,
            locks: send(locks(lock))?,
            prepared: send(prepared(identity))?,
        })
    }

    /// Reads the answers, which have all come.
    ///
    /// # Errors
    /// A question has failed.
    pub(super) fn read(self, connection: &Connection, lock: SessionLock) -> Result<Said> {
        let mut said = Said::default();
        read_blockers(&mut said, &*answer(connection, self.blockers)?);
        read_locks(&mut said, lock, &*answer(connection, self.locks)?);
        read_prepared(&mut said, &*answer(connection, self.prepared)?);
        Ok(said)
    }
}

fn answer(connection: &Connection, ticket: Ticket) -> Result<std::rc::Rc<PgResult>> {
    match connection.take(ticket) {
        Some(Ok(Ok(result))) => Ok(result),
        Some(Ok(Err(failure))) => Err(connection.error_of(&failure, None)),
        Some(Err(error)) => Err(error),
        None => Err(connection.doom_error()),
    }
}

/// Who blocks these processes, and who blocks those.
fn blockers(processes: &[i32]) -> String {
    let list: Vec<String> = processes.iter().map(i32::to_string).collect();
    format!(
        "WITH RECURSIVE w(pid) AS (\
         SELECT pg_catalog.unnest('{{{}}}'::int4[]) \
         UNION SELECT b FROM w, pg_catalog.unnest(pg_catalog.pg_blocking_pids(w.pid)) b WHERE w.pid <> 0) \
         SELECT pid, pg_catalog.pg_blocking_pids(pid) FROM w WHERE pid <> 0",
        list.join(",")
    )
}

/// The locks that are waited for, those of prepared transactions, and those by which sessions of
/// ours are known.
fn locks(lock: SessionLock) -> String {
    format!(
        "SELECT pid, granted, mode, virtualtransaction, \
         (EXTRACT(epoch FROM waitstart) * 1000000)::int8, locktype, database, relation, page, tuple, virtualxid, \
         transactionid, classid, objid, objsubid FROM pg_catalog.pg_lock_status() \
         WHERE NOT granted OR pid IS NULL \
         OR (locktype = 'advisory' AND objsubid = 2 AND classid IN ({}::oid, {}::oid))",
        lock.key as u32,
        lock.owner_key() as u32
    )
}

fn prepared(identity: Identity) -> String {
    format!(
        "SELECT transaction, gid FROM pg_catalog.pg_prepared_xact() \
         WHERE pg_catalog.starts_with(gid, '{}')",
        identity.gid_prefix()
    )
}

fn number<T: std::str::FromStr>(text: Option<&CStr>) -> Option<T> {
    text?.to_str().ok()?.parse().ok()
}

fn read_blockers(said: &mut Said, rows: &PgResult) {
    for row in 0..rows.rows() {
        let Some(pid) = number(rows.value(row, 0)) else { continue };
        let list = rows.value(row, 1).and_then(|list| list.to_str().ok()).unwrap_or_default();
        let list = list.trim_matches(['{', '}']).split(',');
        let mut list: Vec<i32> = list.filter_map(|pid| pid.parse().ok()).collect();
        list.sort_unstable();
        list.dedup();
        if !list.is_empty() {
            said.blockers.insert(pid, list);
        }
    }
}

fn read_locks(said: &mut Said, own: SessionLock, rows: &PgResult) {
    let (key, owner) = (own.key as u32, own.owner_key() as u32);
    let incarnation = own.incarnation as u32;
    let mut sessions = std::collections::HashSet::new();
    for row in 0..rows.rows() {
        let text = |column| -> &str {
            rows.value(row, column).and_then(|text| text.to_str().ok()).unwrap_or_default()
        };
        let pid: Option<i32> = number(rows.value(row, 0));
        let granted = text(1) == "t";
        let columns = Columns {
            locktype: text(5),
            database: text(6),
            relation: text(7),
            page: text(8),
            tuple: text(9),
            virtualxid: text(10),
            transactionid: text(11),
            classid: text(12),
            objid: text(13),
            objsubid: text(14),
        };
        if granted && let Some(pid) = pid {
            let class: Option<u32> = columns.classid.parse().ok();
            let object: Option<u32> = columns.objid.parse().ok();
            if class == Some(owner) {
                said.owners.extend(object.map(|owner| (pid, owner as i32)));
            } else if class == Some(key) && object == Some(incarnation) {
                sessions.insert(pid);
            }
            continue;
        }
        let lock = Lock {
            kind: Kind::named(columns.locktype),
            target: target(columns),
            mode: text(2).to_owned(),
            transaction: text(3).to_owned(),
            // In the first instants of a wait there is none.
            since: text(4).parse::<i64>().map_or(0, |since| since.saturating_sub(EPOCH)),
        };
        match pid {
            Some(pid) => _ = said.waits.insert(pid, lock),
            None => said.held.push(lock),
        }
    }
    // An owner lock of an earlier start of this server names a process of that.
    said.owners.retain(|pid, _| sessions.contains(pid));
}

fn read_prepared(said: &mut Said, rows: &PgResult) {
    for row in 0..rows.rows() {
        let gid = rows.value(row, 1).and_then(|gid| Gid::parse(gid.to_str().ok()?));
        let (Some(xid), Some(gid)) = (number(rows.value(row, 0)), gid) else { continue };
        if let Some(Owner::Backend(pid)) = entries::of(&gid).map(|entry| entry.owner) {
            said.prepared.insert(xid, pid);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_and_keys_are_written_as_the_server_reads_them() {
        assert!(blockers(&[1, 23]).contains("'{1,23}'::int4[]"));
        let lock = SessionLock { key: -1, incarnation: 5 };
        let owner = lock.owner_key() as u32;
        assert!(locks(lock).contains(&format!("IN (4294967295::oid, {owner}::oid)")));
    }
}
