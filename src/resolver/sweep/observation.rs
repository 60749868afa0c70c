//! What a sweep asks a participant, as SQL, and what the answers show.

use std::collections::{HashMap, HashSet};
use std::ffi::{CStr, CString};
use std::rc::Rc;

use super::failure::{self, Failure};
use super::{Fenced, Subject};
use crate::libpq::PgResult;
use crate::pg::debug::debug;
use crate::pg::error::{Result, c_string};
use crate::pg::text;
use crate::protocol::gid::{Gid, Identity};
use crate::protocol::pipeline::Ticket;
use crate::protocol::session_lock::SessionLock;
use crate::protocol::verdict::Place;
use crate::remote::connection::{Asked, Connection};
use crate::remote::report;
use crate::shared::incarnation::session_lock;

/// The questions on their way, in the order in which they were asked.
pub(super) struct Questions {
    /// None if the session holds the fence already.
    fence: Option<Ticket>,
    /// Sessions of ours, read before the list: a session that has ended by then cannot prepare
    /// anything after it.
    sessions_before: Ticket,
    list: Ticket,
    /// Read again after the list, to see the sessions whose transactions are on it.
    sessions_after: Ticket,
}

impl Questions {
    /// Asks for everything that has to be known before anything is settled.
    pub(super) fn ask(
        connection: &Connection,
        identity: Identity,
        has_fence: bool,
    ) -> Result<Self> {
        let lock = session_lock(identity);
        let fence = match has_fence {
            true => None,
            false => Some(send(connection, &take_fence(identity, lock))?),
        };
        let sessions_before = send(connection, &lock.holders())?;
        let list = send(connection, &prepared(identity))?;
        let sessions_after = send(connection, &lock.holders())?;
        Ok(Self { fence, sessions_before, list, sessions_after })
    }
}

/// What the participant has shown.
pub(super) struct Observation {
    pub(super) place: Place,
    /// It is the recorded server, at this address, which is another than the recorded one.
    pub(super) moved: Option<CString>,
    /// The gids of ours that are prepared there.
    pub(super) listed: HashSet<Gid>,
    /// A session of ours of another incarnation is alive there.
    pub(super) other_incarnations: bool,
    /// The server processes of sessions of this incarnation that are alive there.
    pub(super) alive: HashSet<i32>,
}

impl Observation {
    /// Reads the answers, which have all come.
    ///
    /// # Errors
    /// A question failed, the server is a standby, or another process holds the fence.
    pub(super) fn read(
        fenced: &Fenced,
        questions: &Questions,
        subject: &Subject,
    ) -> Result<Self, Failure> {
        let connection = fenced.connection();
        let place = place(fenced, subject)?;
        if place == Place::InRecovery {
            return Err(failure::standby(connection));
        }
        if let Some(fence) = questions.fence {
            let held = answer(connection, fence, c"pg_try_advisory_lock", 4)?;
            if held.rows() != 1 {
                return Err(report::unexpected_answer(&connection.server_name).into());
            }
            let is_held = held.value(0, 0).is_some_and(|v| v.to_bytes() == b"t");
            // This process may hold the fence there itself, for another participant.
            if !is_held && place == Place::Other {
                return Err(failure::other_server(fenced, &subject.participant));
            }
            if !is_held {
                return Err(failure::fence_held(connection, subject.identity, held.value(0, 1)));
            }
        }
        let own = session_lock(subject.identity).incarnation as u32;
        let (mut other_incarnations, mut alive) = (false, HashSet::new());
        for ticket in [questions.sessions_before, questions.sessions_after] {
            let sessions = answer(connection, ticket, c"pg_locks", 2)?;
            for row in 0..sessions.rows() {
                let number = |column| -> Option<i64> {
                    sessions.value(row, column)?.to_str().ok()?.parse().ok()
                };
                if number(1) == Some(i64::from(own)) {
                    alive.extend(number(0).map(|pid| pid as i32));
                } else {
                    other_incarnations = true;
                }
            }
        }
        let list = answer(connection, questions.list, c"pg_prepared_xacts", 1)?;
        let listed = read_list(subject.identity, (0..list.rows()).map(|row| list.value(row, 0)))
            .ok_or_else(|| report::unexpected_answer(&connection.server_name))?;
        for gid in &listed {
            let server = &connection.server_name;
            debug(|| format!("'{gid}' on server \"{}\": found prepared", text::carried(server)));
        }
        Ok(Self { place, moved: None, listed, other_incarnations, alive })
    }
}

/// Our gids among what is prepared there. `None` if what came is not such a list, so that nothing
/// follows from what is not on it. A name that only begins as ours do is somebody else's.
fn read_list<'a>(
    identity: Identity,
    names: impl Iterator<Item = Option<&'a CStr>>,
) -> Option<HashSet<Gid>> {
    let prefix = identity.gid_prefix();
    let mut listed = HashSet::new();
    for name in names {
        let name = name?.to_bytes();
        if !name.starts_with(prefix.as_bytes()) {
            return None;
        }
        let gid = std::str::from_utf8(name).ok().and_then(Gid::parse);
        listed.extend(gid.filter(|gid| gid.identity == identity));
    }
    Some(listed)
}

fn place(fenced: &Fenced, Subject { participant, .. }: &Subject) -> Result<Place> {
    let connection = fenced.connection();
    let fingerprint = connection.fingerprint().ok_or_else(|| connection.doom_error())?;
    let (same_server, same_address) =
        (participant.is_at(&fingerprint), participant.is_where(&fenced.address));
    Ok(Place::of(fingerprint.in_recovery, same_server, same_address))
}

/// Takes the fence if it is free, and makes it a lease; else answers who holds it. Whoever holds it
/// also holds the session lock: a process that settles without the fence sees by it that another
/// copy of the coordinator is there.
fn take_fence(identity: Identity, lock: SessionLock) -> String {
    let number = identity.number();
    let SessionLock { key, incarnation } = lock;
    format!(
        "SELECT f.taken, \
         (SELECT l.pid::text || coalesce(' of role \"' || a.usename || '\"', '') \
          FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid \
          WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted AND l.classid = {}::oid AND l.objid = {}::oid LIMIT 1), \
         pg_catalog.set_config('idle_session_timeout', '30s', false), \
         CASE WHEN f.taken \
          THEN pg_catalog.pg_try_advisory_lock_shared({key}::int4, {incarnation}::int4) END \
         FROM (SELECT pg_catalog.pg_try_advisory_lock({number}::int8) AS taken OFFSET 0) f",
        number >> 32,
        number & 0xffff_ffff
    )
}

/// The prepared transactions of an identity in this database, whoever owns them.
fn prepared(identity: Identity) -> String {
    format!(
        "SELECT gid FROM pg_catalog.pg_prepared_xacts \
         WHERE pg_catalog.starts_with(gid, '{}') AND database = pg_catalog.current_database()",
        identity.gid_prefix()
    )
}

/// What became of transactions of the participant, by their xids there. An xid that the server has
/// not assigned yet, because it was restored to an earlier state, is `not known`.
fn status(xids: &[u64]) -> String {
    let list: Vec<String> = xids.iter().map(u64::to_string).collect();
    format!(
        "SELECT x, CASE \
         WHEN x::xid8 < pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot()) \
         THEN pg_catalog.pg_xact_status(x::xid8) ELSE 'not known' END \
         FROM pg_catalog.unnest('{{{}}}'::text[]) AS x",
        list.join(",")
    )
}

/// Asks what became of transactions of the participant.
pub(super) fn ask_status(connection: &Connection, xids: &[u64]) -> Result<Ticket> {
    send(connection, &status(xids))
}

/// The answer to [`ask_status`]. A transaction too old for the server to know is not in it.
///
/// # Errors
/// The question failed: then nothing is known.
pub(super) fn read_status(connection: &Connection, ticket: Ticket) -> Result<HashMap<u64, String>> {
    let statuses = answer(connection, ticket, c"pg_xact_status", 2)?;
    Ok((0..statuses.rows())
        .filter_map(|row| {
            let xid = statuses.value(row, 0)?.to_str().ok()?.parse().ok()?;
            Some((xid, statuses.value(row, 1)?.to_string_lossy().into_owned()))
        })
        .collect())
}

fn send(connection: &Connection, sql: &str) -> Result<Ticket> {
    connection.send_alone(&c_string(sql)).ok_or_else(|| connection.doom_error())
}

/// An answer that has come: rows of so many columns.
///
/// # Errors
/// The question failed, or what came is no answer to it.
fn answer(
    connection: &Connection,
    ticket: Ticket,
    sql: &CStr,
    columns: usize,
) -> Result<Rc<PgResult>> {
    let answer = connection.wait(&Asked::of(ticket, sql))?;
    if answer.is_rows_of(columns) {
        return Ok(answer);
    }
    Err(report::unexpected_answer(&connection.server_name))
}
