//! What a sweep does with a participant's answers: concludes what may be settled, and settles it.

use std::collections::{HashMap, HashSet};
use std::ffi::CStr;

use pgrx::{PgLogLevel, pg_sys};

use super::{Asked, Fenced, answer, place, send, xid_of};
use crate::log::decisions::{self, Row};
use crate::log::entries;
use crate::log::registered::Registered;
use crate::log::replication;
use crate::log::shmem::Entry;
use crate::pg::error::{Error, Result, SqlState};
use crate::pg::transaction;
use crate::protocol::gid::{Gid, Identity, Nonce};
use crate::protocol::pipeline::Ticket;
use crate::protocol::verdict::{Decision, Others, Place, Verdict, settle};
use crate::remote::{Connection, SessionLock};
use crate::resolver::questions;
use crate::xact::{Prepared, session_lock};

const INSUFFICIENT_PRIVILEGE: SqlState = SqlState::new(b"42501");

/// Everything has been asked, and the verdicts on what is listed are on their way.
pub(super) struct Settling {
    pub(super) listed: HashSet<Gid>,
    /// Listed, and not ours to settle now.
    pub(super) unsettled: HashSet<Gid>,
    /// The unsettled ones among them that wait for the application.
    pub(super) pending: HashSet<Gid>,
    pub(super) strangers: bool,
    pub(super) alive: Vec<i32>,
    pub(super) place: Place,
    pub(super) sent: Vec<(Gid, &'static CStr, Ticket)>,
    /// Servers and users whose prepared transactions this one's role may not settle.
    pub(super) not_allowed: Vec<(pg_sys::Oid, pg_sys::Oid)>,
    /// What became of the committed transactions that are not listed.
    pub(super) verified: Option<Ticket>,
}

impl Settling {
    /// Looks at the answers, and sends what they call for.
    pub(super) fn begin(
        fenced: &Fenced,
        asked: &Asked,
        identity: Identity,
        participant: &Registered,
        committed: &[Row],
    ) -> Result<Self> {
        let place = place(fenced, participant)?;
        let connection = &fenced.0.connection;
        if place == Place::InRecovery {
            return Err(Error::new(
                SqlState::READ_ONLY_SQL_TRANSACTION,
                format!("server \"{}\" is a standby", connection.server_name.to_string_lossy()),
            ));
        }
        if let Some(fence) = asked.fence {
            let held = answer(connection, fence, c"pg_try_advisory_lock")?;
            if held.value(0, 0).is_none_or(|v| v.to_bytes() != b"t") {
                return Err(Error::new(
                    SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
                    format!(
                        "another process settles transactions of this coordinator on server \"{}\"",
                        connection.server_name.to_string_lossy()
                    ),
                )
                .detail(format!(
                    "The advisory lock {} is held there by {}.",
                    identity.number(),
                    held.value(0, 1).map_or_else(
                        || "a session that has just ended".into(),
                        |pid| format!("process {}", pid.to_string_lossy())
                    )
                ))
                .hint("A physical copy of this coordinator must not run beside it."));
            }
        }
        let SessionLock { incarnation, .. } = session_lock(identity);
        let mut strangers = false;
        let mut alive = Vec::new();
        for ticket in [asked.before, asked.after] {
            let sessions = answer(connection, ticket, c"pg_locks")?;
            for row in 0..sessions.rows() {
                let number = |column| -> Option<i64> {
                    sessions.value(row, column)?.to_str().ok()?.parse().ok()
                };
                if number(1) == Some(i64::from(incarnation as u32)) {
                    alive.extend(number(0).map(|pid| pid as i32));
                } else {
                    strangers = true;
                }
            }
        }
        let list = answer(connection, asked.list, c"pg_prepared_xacts")?;
        let listed: HashSet<Gid> = (0..list.rows())
            .filter_map(|row| Gid::parse(list.value(row, 0)?.to_str().ok()?))
            .filter(|gid| gid.identity == identity)
            .collect();
        let mut settling = Self {
            listed,
            unsettled: HashSet::new(),
            pending: HashSet::new(),
            strangers,
            alive,
            place,
            sent: Vec::new(),
            not_allowed: Vec::new(),
            verified: None,
        };
        settling.deliver(connection)?;
        let unlisted: Vec<u64> = committed
            .iter()
            .filter(|row| !settling.listed.contains(&participant.gid(identity, row.nonce)))
            .filter_map(|row| xid_of(row, participant))
            .collect();
        if place == Place::Recorded && !unlisted.is_empty() {
            settling.verified = Some(send(connection, &questions::status(&unlisted))?);
        }
        Ok(settling)
    }

    /// Sends the verdicts on what is listed.
    fn deliver(&mut self, connection: &Connection) -> Result<()> {
        if self.listed.is_empty() {
            return Ok(());
        }
        let rows: HashMap<Nonce, Row> = transaction::run(|| Ok(decisions::all()))?
            .into_iter()
            .map(|row| (row.nonce, row))
            .collect();
        let owned: HashSet<Gid> =
            entries::all().iter().filter(|e| e.owner != 0).filter_map(Entry::gid).collect();
        let decision =
            |gid: &Gid| rows.get(&gid.nonce).map_or(Decision::Absent, |row| row.decision);
        // A decision that a standby may still lose must not be delivered.
        let replicated = !self.listed.iter().any(|g| decision(g) == Decision::Committed)
            || replication::everything_committed_is_replicated()?;
        for gid in &self.listed {
            let others = Others { owner: owned.contains(gid), strangers: self.strangers };
            let decision = decision(gid);
            let settle_by = Prepared::new(*gid);
            let (command, tag) = match settle(self.place, others, decision) {
                Verdict::Commit if replicated => (settle_by.commit, c"COMMIT PREPARED"),
                Verdict::Rollback => (settle_by.rollback, c"ROLLBACK PREPARED"),
                Verdict::Commit | Verdict::Leave => {
                    self.unsettled.insert(*gid);
                    if decision == Decision::InProgress {
                        self.pending.insert(*gid);
                    }
                    continue;
                }
            };
            let ticket = connection.send_alone(&command).ok_or_else(|| connection.doom_error())?;
            self.sent.push((*gid, tag, ticket));
        }
        Ok(())
    }

    /// Notes what the participant answered to the verdicts; returns how many it settled.
    pub(super) fn note_answers(
        &mut self,
        connection: &Connection,
        participant: &Registered,
    ) -> Result<u64> {
        let mut resolved = 0;
        for (gid, tag, ticket) in std::mem::take(&mut self.sent) {
            match connection.take(ticket) {
                Some(Ok(Ok(result))) if result.command_tag() == tag => {
                    resolved += 1;
                    Error::new(
                        SqlState(0),
                        format!(
                            "resolved: {} '{gid}' on server \"{}\"",
                            tag.to_string_lossy(),
                            connection.server_name.to_string_lossy()
                        ),
                    )
                    .log(PgLogLevel::LOG)?;
                }
                // Somebody else settled it between the list and now: the next sweep finds out how.
                Some(Ok(Err(failure)))
                    if SqlState::parse(failure.error_field(b'C')) == SqlState::UNDEFINED_OBJECT =>
                {
                    self.unsettled.insert(gid);
                }
                // It belongs to another mapping's role: that one is swept next.
                Some(Ok(Err(failure)))
                    if SqlState::parse(failure.error_field(b'C')) == INSUFFICIENT_PRIVILEGE
                        && (gid.serverid.into(), gid.userid.into())
                            != (participant.serverid, participant.userid) =>
                {
                    self.not_allowed.push((gid.serverid.into(), gid.userid.into()));
                }
                Some(Ok(Err(failure))) => {
                    connection.error_of(&failure, None).log(PgLogLevel::LOG)?;
                    self.unsettled.insert(gid);
                }
                _ => {
                    self.unsettled.insert(gid);
                }
            }
        }
        Ok(resolved)
    }
}
