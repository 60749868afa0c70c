//! What a sweep does with a participant's answers: concludes what may be settled, and settles it.

use std::collections::{HashMap, HashSet};
use std::ffi::{CStr, CString};

use pgrx::{PgLogLevel, pg_sys};

use super::concluding::other_server;
use super::failure::Failure;
use super::{Asked, Decisions, Fenced, Subject, answer, moving, place, send};
use crate::pg::error::{Error, Result, SqlState};
use crate::pg::{syncrep, text};
use crate::protocol::gid::{Command, Gid, Prepared};
use crate::protocol::participant::Outcome;
use crate::protocol::pipeline::Ticket;
use crate::protocol::session_lock::SessionLock;
use crate::protocol::verdict::{Decision, Others, Place, Reason, Verdict, settle};
use crate::remote::Connection;
use crate::resolver::questions;
use crate::shared::entries;
use crate::shared::entry::{Entry, Status};
use crate::shared::entry_change::Why;
use crate::shared::left::Left;
use crate::xact::session_lock;

const INSUFFICIENT_PRIVILEGE: SqlState = SqlState::new(b"42501");

/// Everything has been asked, and the verdicts on what is listed are on their way.
pub(super) struct Settling {
    pub(super) listed: HashSet<Gid>,
    /// It has turned out to be the recorded server, at another address.
    pub(super) moved: Option<CString>,
    /// What is not settled now, and why.
    pub(super) left: HashMap<Gid, Left>,
    /// What the server has answered to the first that it has refused.
    pub(super) refusal: Option<Error>,
    pub(super) strangers: bool,
    pub(super) alive: Vec<i32>,
    pub(super) place: Place,
    /// Decided, and listed; they are sent once the synchronous standbys have what was written until `decided`.
    commits: Vec<Listed>,
    decided: pg_sys::XLogRecPtr,
    sent: Vec<Sent>,
    /// What became of the committed transactions that are not listed.
    pub(super) verified: Option<Ticket>,
}

/// A gid that the participant lists.
struct Listed {
    gid: Gid,
    /// The local transaction, 0 where there is no row.
    xid: pg_sys::TransactionId,
}

/// A verdict on its way.
struct Sent {
    listed: Listed,
    tag: &'static CStr,
    ticket: Ticket,
}

impl Settling {
    /// Looks at the answers. What is listed is for [`Self::judge`], and its commits for [`Self::deliver_commits`].
    pub(super) fn begin(
        fenced: &Fenced,
        asked: &Asked,
        subject: &Subject,
    ) -> Result<Self, Failure> {
        let identity = subject.identity;
        let place = place(fenced, &subject.participant)?;
        let connection = &fenced.0.connection;
        if place == Place::InRecovery {
            let error = Error::new(
                SqlState::READ_ONLY_SQL_TRANSACTION,
                format!("server \"{}\" is a standby", text::carried(&connection.server_name)),
            );
            return Err(Failure { reason: Reason::Standby, error });
        }
        if let Some(fence) = asked.fence {
            let held = answer(connection, fence, c"pg_try_advisory_lock")?;
            let is_held = held.value(0, 0).is_some_and(|v| v.to_bytes() == b"t");
            // The one who is at work there may be this process, for another participant.
            if !is_held && place == Place::Other {
                return Err(other_server(fenced, &subject.participant));
            }
            if !is_held {
                let error = Error::new(
                    SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
                    format!(
                        "another process settles transactions of this coordinator on server \"{}\"",
                        text::carried(&connection.server_name)
                    ),
                )
                .detail(format!(
                    "The advisory lock {} is held there by {}.",
                    identity.number(),
                    held.value(0, 1).map_or_else(
                        || "a session that has just ended".into(),
                        |holder| format!("process {}", text::carried(holder))
                    )
                ))
                .hint("A physical copy of this coordinator must not run beside it. Whoever may connect to that database can take the lock: REVOKE CONNECT on it from those who need not.");
                return Err(Failure { reason: Reason::Fence, error });
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
        let moved = moving::follow(fenced, subject, &listed)?;
        let place = if moved.is_some() { Place::Recorded } else { place };
        let mut settling = Self {
            listed,
            moved,
            left: HashMap::new(),
            refusal: None,
            strangers,
            alive,
            place,
            commits: Vec::new(),
            decided: 0,
            sent: Vec::new(),
            verified: None,
        };
        let unlisted: Vec<u64> = subject
            .committed
            .iter()
            .filter(|open| open.remote_xid != 0 && !settling.listed.contains(&open.gid))
            .map(|open| open.remote_xid)
            .collect();
        if place == Place::Recorded && !unlisted.is_empty() {
            settling.verified = Some(send(connection, &questions::status(&unlisted))?);
        }
        Ok(settling)
    }

    /// Leaves one, for a reason.
    pub(super) fn leave(
        &mut self,
        gid: Gid,
        status: Status,
        xid: pg_sys::TransactionId,
        reason: Reason,
    ) {
        let listed = self.listed.contains(&gid);
        self.left.insert(gid, Left { gid, status, xid, reason, listed });
    }

    /// Finds the verdicts on what is listed, and sends those that take back.
    pub(super) fn judge(&mut self, connection: &Connection, decisions: &Decisions) -> Result<()> {
        self.decided = syncrep::written_so_far();
        let owned: HashSet<Gid> = entries::owned().iter().filter_map(Entry::gid).collect();
        for gid in self.listed.iter().copied().collect::<Vec<Gid>>() {
            let (decision, xid) = decisions
                .get(&gid.nonce)
                .copied()
                .unwrap_or((Decision::Absent, pg_sys::InvalidTransactionId));
            let others =
                Others { owner: owned.contains(&gid), strangers: self.strangers, replicated: true };
            match settle(self.place, others, decision) {
                Verdict::Commit => self.commits.push(Listed { gid, xid }),
                Verdict::Rollback => self.send(connection, Listed { gid, xid }, false)?,
                Verdict::Leave(reason) => {
                    let status = match decision {
                        Decision::Committed => Status::Committing,
                        Decision::InProgress => Status::Prepared,
                        Decision::Absent => Status::Aborting,
                    };
                    self.leave(gid, status, xid, reason);
                }
            }
        }
        Ok(())
    }

    /// Sends the commits, once the synchronous standbys have all that was decided; `false` while they have not. When it
    /// is `late` they are left.
    pub(super) fn deliver_commits(&mut self, connection: &Connection, late: bool) -> Result<bool> {
        if self.commits.is_empty() {
            return Ok(true);
        }
        let replicated = syncrep::outlives_a_failover(self.decided);
        if !replicated && !late {
            return Ok(false);
        }
        let others = Others { strangers: self.strangers, replicated, owner: false };
        for listed in std::mem::take(&mut self.commits) {
            match settle(self.place, others, Decision::Committed) {
                Verdict::Leave(reason) => {
                    self.leave(listed.gid, Status::Committing, listed.xid, reason);
                }
                _ => self.send(connection, listed, true)?,
            }
        }
        Ok(true)
    }

    fn send(&mut self, connection: &Connection, listed: Listed, commit: bool) -> Result<()> {
        let settle_by = Prepared::new(listed.gid);
        let outcome = if commit { Outcome::Commit } else { Outcome::Abort };
        let &Command { ref sql, tag } = settle_by.settling(outcome);
        let ticket = connection.send_alone(sql).ok_or_else(|| connection.doom_error())?;
        self.sent.push(Sent { listed, tag, ticket });
        Ok(())
    }

    /// Notes what the participant answered to the verdicts; returns how many it settled.
    pub(super) fn note_answers(&mut self, connection: &Connection) -> Result<u64> {
        let mut resolved = 0;
        for Sent { listed: Listed { gid, xid }, tag, ticket } in std::mem::take(&mut self.sent) {
            let status =
                if tag == c"COMMIT PREPARED" { Status::Committing } else { Status::Aborting };
            let reason = match connection.take(ticket) {
                Some(Ok(Ok(result))) if result.command_tag() == tag => {
                    resolved += 1;
                    // Also that of a user mapping which is not there any more.
                    entries::end(&gid, Why::Resolved);
                    Error::new(
                        SqlState(0),
                        format!(
                            "resolved: {} '{gid}' on server \"{}\"",
                            tag.to_string_lossy(),
                            text::carried(&connection.server_name)
                        ),
                    )
                    .log(PgLogLevel::LOG)?;
                    continue;
                }
                Some(Ok(Err(failure))) => {
                    let reason = refusal(SqlState::parse(failure.error_field(b'C')));
                    if !reason.is_expected() {
                        self.refusal.get_or_insert_with(|| connection.error_of(&failure, None));
                    }
                    reason
                }
                _ => Reason::Refused,
            };
            self.leave(gid, status, xid, reason);
        }
        Ok(resolved)
    }
}

/// What an error in answer to COMMIT PREPARED or ROLLBACK PREPARED means.
fn refusal(code: SqlState) -> Reason {
    match code {
        // Somebody else settled it between the list and now: the next sweep finds out how.
        SqlState::UNDEFINED_OBJECT => Reason::Overtaken,
        SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE => Reason::Busy,
        INSUFFICIENT_PRIVILEGE => Reason::NotAllowed,
        _ => Reason::Refused,
    }
}
