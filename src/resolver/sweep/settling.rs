//! What follows from what a participant has shown: the verdicts on what is listed, their delivery,
//! and what may be concluded about the rest.

use std::collections::{HashMap, HashSet};
use std::ffi::CStr;
use std::fmt::Display;

use pgrx::{PgLogLevel, pg_sys};

use super::failure::{self, Failure};
use super::observation::{self, Observation};
use super::{Decided, Decisions, Fenced, Subject, Swept, moving};
use crate::pg::debug::debug;
use crate::pg::error::{Error, Result, SqlState};
use crate::pg::{syncrep, text};
use crate::protocol::conclusion::{
    Committed, Conclusion, HandedOver, judge_handed_over, judge_unlisted,
};
use crate::protocol::gid::{Command, Gid, Nonce, Prepared};
use crate::protocol::participant::Outcome;
use crate::protocol::pipeline::Ticket;
use crate::protocol::verdict::{Decision, Others, Place, Reason, Verdict, judge};
use crate::remote::Connection;
use crate::shared::entry::{Entry, Status};
use crate::shared::entry_change::Why;
use crate::shared::left::{Left, Members, handed_over};
use crate::shared::{entries, hold};

const INSUFFICIENT_PRIVILEGE: SqlState = SqlState::new(b"42501");

/// A sweep that has read the participant's answers, and settles.
pub(super) struct Settling {
    pub(super) subject: Subject,
    pub(super) fenced: Fenced,
    pub(super) seen: Observation,
    /// Listed and committed; sent once the synchronous standbys have what was written until
    /// `decided`.
    commits: Vec<Listed>,
    decided: pg_sys::XLogRecPtr,
    sent: Vec<Sent>,
    /// What became of the committed transactions that are not listed, on its way.
    status: Option<Ticket>,
    /// What is not settled now, and why.
    left: HashMap<Gid, Left>,
    /// What the server has answered to the first COMMIT or ROLLBACK PREPARED that it has refused.
    refusal: Option<Error>,
    /// The xids there of those that are committed or listed; 0 where they are not known.
    xids: HashMap<Gid, u64>,
    /// How many were settled.
    resolved: u64,
    /// Committed transactions of which nothing is left on a participant, with its number.
    delivered: Vec<(Nonce, i32)>,
    /// Those of them that somebody on the participant has undone.
    heuristic: Vec<(Nonce, i32)>,
}

/// A gid that the participant lists.
struct Listed {
    gid: Gid,
    /// The local transaction, 0 if there is no row.
    xid: pg_sys::TransactionId,
}

/// A COMMIT PREPARED or ROLLBACK PREPARED on its way.
struct Sent {
    listed: Listed,
    tag: &'static CStr,
    ticket: Ticket,
}

impl Settling {
    /// Asks what became of the committed transactions that are not listed. [`judge`](Self::judge)
    /// comes next.
    pub(super) fn begin(subject: Subject, fenced: Fenced, seen: Observation) -> Result<Self> {
        let xids = subject.committed.iter().map(|open| (open.gid, open.remote_xid)).collect();
        let mut settling = Self {
            xids,
            subject,
            fenced,
            seen,
            commits: Vec::new(),
            decided: 0,
            sent: Vec::new(),
            status: None,
            left: HashMap::new(),
            refusal: None,
            resolved: 0,
            delivered: Vec::new(),
            heuristic: Vec::new(),
        };
        settling.ask_status()?;
        Ok(settling)
    }

    fn ask_status(&mut self) -> Result<()> {
        let committed = self.subject.committed.iter();
        let unlisted: Vec<u64> = committed
            .filter(|open| open.remote_xid != 0 && !self.seen.listed.contains(&open.gid))
            .map(|open| open.remote_xid)
            .collect();
        if self.seen.place == Place::Recorded && !unlisted.is_empty() {
            self.status = Some(observation::ask_status(self.connection(), &unlisted)?);
        }
        Ok(())
    }

    pub(super) fn connection(&self) -> &Connection {
        self.fenced.connection()
    }

    fn server(&self) -> String {
        text::carried(&self.connection().server_name)
    }

    /// Logs a step of the protocol at DEBUG1, with the gid.
    fn log_step(&self, gid: &Gid, step: impl Display) {
        debug(|| format!("'{gid}' on server \"{}\": {step}", self.server()));
    }

    fn leave(&mut self, gid: Gid, status: Status, xid: pg_sys::TransactionId, reason: Reason) {
        self.log_step(&gid, format_args!("left in doubt: {}", reason.text()));
        let listed = self.seen.listed.contains(&gid);
        let place = self.connection().place(gid.serverid).unwrap_or_default();
        let remote_xid = self.xids.get(&gid).copied().unwrap_or(0);
        self.left.insert(gid, Left { gid, place, remote_xid, status, xid, reason, listed });
    }

    /// Follows a server that has moved, finds the verdict on each gid that is listed, and sends the
    /// rollbacks. The commits are for
    /// [`deliver_commits`](Self::deliver_commits).
    pub(super) fn judge(&mut self, decisions: &Decisions) -> Result<()> {
        let Self { fenced, subject, seen, .. } = &mut *self;
        seen.moved = moving::follow(fenced, subject, &seen.listed, decisions)?;
        if seen.moved.is_some() {
            seen.place = Place::Recorded;
            self.ask_status()?;
        }
        self.decided = syncrep::written_so_far();
        let owned: HashSet<Gid> = entries::owned().iter().filter_map(Entry::gid).collect();
        for gid in self.seen.listed.iter().copied().collect::<Vec<Gid>>() {
            let xid = pg_sys::InvalidTransactionId;
            let absent = Decided { decision: Decision::Absent, xid, participant: 0, remote_xid: 0 };
            let Decided { decision, xid, remote_xid, .. } =
                decisions.get(&gid).copied().unwrap_or(absent);
            self.xids.insert(gid, remote_xid);
            let others = Others {
                owner: owned.contains(&gid),
                other_incarnations: self.seen.other_incarnations,
                replicated: true,
            };
            let listed = Listed { gid, xid };
            match judge(self.seen.place, others, decision) {
                Verdict::Commit => {
                    self.log_step(&gid, "verdict: commit, its decision is committed");
                    self.commits.push(listed);
                }
                Verdict::Rollback => {
                    self.log_step(&gid, "verdict: roll back, it has no decision");
                    self.send(listed, Outcome::Abort)?;
                }
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

    /// Sends the commits once the synchronous standbys have every decision; returns `false` while
    /// they have not. If it is too `late` to wait any longer, the commits are left.
    pub(super) fn deliver_commits(&mut self, late: bool) -> Result<bool> {
        if self.commits.is_empty() {
            return Ok(true);
        }
        let replicated = syncrep::outlives_a_failover(self.decided);
        if !replicated && !late {
            return Ok(false);
        }
        let other_incarnations = self.seen.other_incarnations;
        let others = Others { other_incarnations, replicated, owner: false };
        for listed in std::mem::take(&mut self.commits) {
            match judge(self.seen.place, others, Decision::Committed) {
                Verdict::Leave(reason) => {
                    self.leave(listed.gid, Status::Committing, listed.xid, reason);
                }
                _ => self.send(listed, Outcome::Commit)?,
            }
        }
        Ok(true)
    }

    fn send(&mut self, listed: Listed, outcome: Outcome) -> Result<()> {
        let prepared = Prepared::new(listed.gid);
        let &Command { ref sql, tag } = prepared.settling(outcome);
        if outcome == Outcome::Commit {
            hold::deliver_at_once(&listed.gid);
        }
        let connection = self.connection();
        let ticket = connection.send_alone(sql).ok_or_else(|| connection.doom_error())?;
        self.log_step(&listed.gid, format_args!("sent {}", tag.to_string_lossy()));
        self.sent.push(Sent { listed, tag, ticket });
        Ok(())
    }

    /// Reads the answers to what was sent, which have all come.
    fn note_answers(&mut self) -> Result<()> {
        for Sent { listed: Listed { gid, xid }, tag, ticket } in std::mem::take(&mut self.sent) {
            let status =
                if tag == c"COMMIT PREPARED" { Status::Committing } else { Status::Aborting };
            let reason = match self.connection().take(ticket) {
                Some(Ok(Ok(result))) if result.command_tag() == tag => {
                    self.resolved += 1;
                    // Even if its user mapping no longer exists.
                    entries::end(&gid, Why::Resolved);
                    let (tag, server) = (tag.to_string_lossy(), self.server());
                    Error::new(
                        SqlState(0),
                        format!("resolved: {tag} '{gid}' on server \"{server}\""),
                    )
                    .log(PgLogLevel::LOG)?;
                    continue;
                }
                Some(Ok(Err(failure))) => {
                    let reason = refusal(SqlState::parse(failure.error_field(b'C')));
                    if !reason.is_expected() && self.refusal.is_none() {
                        self.refusal = Some(self.connection().error_of(&failure, None));
                    }
                    reason
                }
                _ => Reason::Refused,
            };
            self.leave(gid, status, xid, reason);
        }
        Ok(())
    }

    /// Everything has been answered: concludes what is delivered, what is left, and why.
    ///
    /// # Errors
    /// The server is not the recorded one.
    pub(super) fn conclude(mut self) -> Result<Swept, Failure> {
        self.note_answers()?;
        let gone = self.conclude_committed()?;
        let more = self.conclude_handed_over(&gone);
        if self.seen.place != Place::Recorded {
            return Err(failure::other_server(&self.fenced, &self.subject.participant));
        }
        // What was listed before and is not any more, of no participant on the list, has ended.
        for gid in self.subject.listed_before.iter().filter(|gid| !self.left.contains_key(gid)) {
            entries::end(gid, Why::GoneUnlisted);
        }
        let Self { subject: Subject { members, .. }, fenced, seen, left, .. } = self;
        let left: Vec<Left> = left.into_values().collect();
        let keep_fence =
            more || seen.other_incarnations || !left.is_empty() || awaits_application(&members);
        Ok(Swept {
            members,
            server: fenced.connection().server_name.clone(),
            left,
            refusal: self.refusal,
            other_incarnations: seen.other_incarnations,
            more,
            delivered: self.delivered,
            resolved: self.resolved,
            heuristic: self.heuristic,
            moved: seen.moved,
            fenced: keep_fence.then_some(fenced),
        })
    }

    /// Concludes about the committed transactions; returns those of which nothing is left on their
    /// participants.
    fn conclude_committed(&mut self) -> Result<HashSet<Gid>> {
        let statuses = match self.status {
            Some(ticket) => observation::read_status(self.connection(), ticket)?,
            None => HashMap::new(),
        };
        let mut gone = HashSet::new();
        if self.seen.place != Place::Recorded {
            return Ok(gone);
        }
        for open in std::mem::take(&mut self.subject.committed) {
            let gid = open.gid;
            if self.left.contains_key(&gid) {
                continue;
            }
            if !self.seen.listed.contains(&gid) {
                let status = statuses.get(&open.remote_xid).map(String::as_str);
                match judge_unlisted(status) {
                    Committed::Delivered => self.log_step(&gid, "was committed before"),
                    Committed::Open(reason) => {
                        self.leave(gid, Status::Committing, open.xid, reason);
                        continue;
                    }
                    Committed::Undone => {
                        self.heuristic.push((gid.nonce, open.participant));
                        self.report_heuristic(&gid, status.unwrap_or_default())?;
                    }
                }
            }
            gone.insert(gid);
            self.delivered.push((gid.nonce, open.participant));
        }
        Ok(gone)
    }

    /// Concludes about what backends have left on the participants and is not listed, or `gone`;
    /// returns whether something was handed over too late to conclude about it.
    fn conclude_handed_over(&mut self, gone: &HashSet<Gid>) -> bool {
        let known: HashSet<Gid> = self.subject.handed_over.iter().filter_map(Entry::gid).collect();
        let mut more = false;
        for entry in handed_over(&self.subject.members) {
            let Some(gid) = entry.gid() else { continue };
            if self.left.contains_key(&gid) {
                continue;
            }
            let other_incarnations = self.seen.other_incarnations;
            let others = Others { other_incarnations, ..Others::default() };
            let it = HandedOver {
                aborts: entry.status == Status::Aborting,
                settled: self.seen.listed.contains(&gid) || gone.contains(&gid),
                known: known.contains(&gid),
                preparer_lives: self.seen.alive.contains(&entry.remote_pid),
                was_listed: self.subject.listed_before.contains(&gid),
            };
            match judge_handed_over(self.seen.place, others, it) {
                Conclusion::Ended => {
                    self.log_step(&gid, "not prepared any more");
                    entries::end(&gid, Why::Gone);
                }
                Conclusion::SweepAgain => more = true,
                Conclusion::Left(reason) => self.leave(gid, entry.status, entry.xid, reason),
            }
        }
        more
    }

    fn report_heuristic(&self, gid: &Gid, status: &str) -> Result<()> {
        Error::new(
            SqlState::new(b"40000"),
            format!(
                "heuristic outcome: '{gid}' was decided to commit but is {status} on server \"{}\"",
                self.server()
            ),
        )
        .detail("Somebody settled the prepared transaction there by hand, or the server was restored to an earlier state.")
        .hint("The other servers have committed: repair the data on this one.")
        .log(PgLogLevel::WARNING)
    }
}

/// What an error in answer to COMMIT PREPARED or ROLLBACK PREPARED means.
fn refusal(code: SqlState) -> Reason {
    match code {
        // Somebody else has settled it since the list was read: the next sweep finds out how.
        SqlState::UNDEFINED_OBJECT => Reason::Overtaken,
        SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE => Reason::Busy,
        INSUFFICIENT_PRIVILEGE => Reason::NotAllowed,
        _ => Reason::Refused,
    }
}

/// Whether something here waits for the application's COMMIT PREPARED or ROLLBACK PREPARED.
fn awaits_application(members: &Members) -> bool {
    let left = entries::left();
    left.iter().any(|e| e.status == Status::Prepared && members.have(e))
}
