//! Settling one participant, and those beside it: everything prepared there that is ours. A sweep never waits by itself,
//! so that many run side by side and a slow server delays nobody else.
//!
//! The order of the observations closes the races:
//! 1. the decision rows, for what may be concluded from a gid that is *not* listed: what is open of them is kept by
//!    participant, and given to the sweep at its beginning;
//! 2. the server's fingerprint, and whether it is in recovery;
//! 3. the fence: an exclusive advisory lock on our identity there, so that of all copies of this coordinator only
//!    one settles;
//! 4. which sessions of ours are alive, of this start of the server or of another, and again after
//! 5. the list of prepared transactions of our identity;
//! 6. the decision rows again, for what is listed. A row is inserted before its PREPARE is sent, so a
//!    listed gid without a row has aborted.

use std::collections::{HashMap, HashSet};
use std::ffi::{CStr, CString};
use std::rc::Rc;
use std::time::{Duration, Instant};

use pgrx::pg_sys;

use crate::libpq::PgResult;
use crate::pg::error::{Error, Result, SqlState, c_string};
use crate::pg::{text, transaction};
use crate::protocol::gid::{Gid, Identity, Nonce};
use crate::protocol::pipeline::Ticket;
use crate::protocol::verdict::{Decision, Place, Reason};
use crate::remote::connect::{Connecting, Established, Step};
use crate::remote::options::{Mapping, Purpose, Server};
use crate::remote::wait::Interest;
use crate::remote::{Connection, report};
use crate::resolver::questions;
use crate::resolver::sweep::failure::Failure;
use crate::resolver::sweep::settling::Settling;
use crate::shared::entry::{Entry, Status};
use crate::shared::left::{Left, Members};
use crate::store::participant_list::ParticipantRecord;
use crate::store::trusted;
use crate::xact::session_lock;

mod concluding;
pub mod failure;
mod moving;
mod settling;

/// How long connecting, and then each step of the conversation, may take.
const STEP: Duration = Duration::from_secs(10);

/// How long decisions wait for the synchronous standbys, and how often is looked whether these have caught up.
const REPLICATION: (Duration, Duration) = (Duration::from_secs(1), Duration::from_millis(10));

/// A sweep on its way.
pub struct Sweep {
    subject: Subject,
    stage: Stage,
    deadline: Instant,
}

/// What it is about.
pub struct Subject {
    /// Whose transactions.
    pub identity: Identity,
    /// The participant that it is for.
    pub participant: ParticipantRecord,
    /// As whose user it connects: this one, or another in the same place.
    pub by: ParticipantRecord,
    /// All that it asks for: this one, and others in the same place that are reached in the same way.
    pub members: Members,
    /// What backends have left here before it began.
    pub left: Vec<Entry>,
    /// What an earlier one has found prepared.
    pub seen: HashSet<Gid>,
    /// Committed transactions with these participants that nobody has confirmed.
    pub committed: Vec<Open>,
}

/// A committed transaction at one of its participants.
#[derive(Clone, Copy)]
pub struct Open {
    /// Its name there.
    pub gid: Gid,
    /// The participant's number.
    pub participant: i32,
    /// Its xid there, 0 where it is not known.
    pub remote_xid: u64,
    /// Its xid here.
    pub xid: pg_sys::TransactionId,
}

/// What the decision table says of transactions, and their xids here; those that it does not have are not in it.
pub type Decisions = HashMap<Nonce, (Decision, pg_sys::TransactionId)>;

enum Stage {
    Connecting(Connecting, CString),
    Asking(Fenced, Asked),
    /// What is listed has to be looked up in the decision table, which is read once for all that have come so far.
    Listed(Fenced, Settling),
    Settling(Fenced, Settling),
    /// Decisions wait for the synchronous standbys, until then.
    Replicating(Fenced, Settling, Instant),
}

/// A session that holds the fence, or has asked for it. The server ends it when nothing is heard of us
/// for `idle_session_timeout`: the fence is a lease.
///
/// With it the address that it was made with.
pub struct Fenced(Established, CString);

impl Fenced {
    /// Whether server and mapping still lead to it.
    fn is_current(&self, participant: &ParticipantRecord) -> Result<bool> {
        let Some(mapping) = Mapping::find(participant.userid, participant.serverid) else {
            return Ok(false);
        };
        let server = Server::read(participant.serverid);
        self.0.is_current(&server, &mapping, Purpose::Resolver)
    }
}

struct Asked {
    fence: Option<Ticket>,
    /// Asked before the list: who is not there any more cannot prepare after it.
    before: Ticket,
    list: Ticket,
    /// Asked after the list: whose transaction is on it, is there still.
    after: Ticket,
}

/// What a sweep found.
pub struct Swept {
    /// The participants that were asked for.
    pub members: Members,
    /// The foreign server's name.
    pub server: CString,
    /// What is left, and why.
    pub left: Vec<Left>,
    /// What the server has answered to one that it has refused.
    pub refusal: Option<Error>,
    /// A session of another start is alive there, which may still prepare something.
    pub strangers: bool,
    /// Something was handed over while it was under way: sweep again at once.
    pub more: bool,
    /// Committed transactions of which a participant has nothing left.
    pub delivered: Vec<(Nonce, i32)>,
    /// Prepared transactions that were settled.
    pub resolved: u64,
    /// Decided commits that somebody on the participant has undone.
    pub heuristic: Vec<(Nonce, i32)>,
    /// The server has moved: where to.
    pub moved: Option<CString>,
    /// Keeps the fence, while anything of ours is prepared there.
    pub fenced: Option<Fenced>,
}

/// What became of a step.
pub enum Progress {
    /// Wait for the socket, then advance again.
    Waits(Box<Sweep>),
    /// It has to be told what was decided of what is listed.
    Listed(Box<Sweep>),
    /// Done.
    Done(Box<Swept>),
}

impl Sweep {
    /// Starts to settle participants, on the session that still holds the fence if there is one.
    ///
    /// # Errors
    /// The server or user mapping has gone, or connecting fails at once.
    pub fn start(subject: Subject, fenced: Option<Fenced>) -> Result<Self, Failure> {
        let deadline = Instant::now() + STEP;
        let fenced = fenced.filter(|f| f.0.connection.is_reusable() && !f.0.connection.hung_up());
        let fenced = match fenced {
            Some(fenced) if transaction::run(|| fenced.is_current(&subject.participant))? => {
                Some(fenced)
            }
            // Server or mapping have been changed, or the user's privileges: it ends, and with it its fence.
            _ => None,
        };
        let stage = match fenced {
            Some(fenced) => Stage::ask(fenced, subject.identity, true)?,
            None => {
                let (connecting, address) = transaction::run(|| connect(&subject.by, deadline))??;
                Stage::Connecting(connecting, address)
            }
        };
        Ok(Self { subject, stage, deadline })
    }

    /// What it does, in words for `pg_stat_activity`.
    pub fn describe(&self) -> Vec<u8> {
        let (doing, server) = match &self.stage {
            Stage::Connecting(connecting, _) => ("connecting to", connecting.server_name()),
            Stage::Asking(fenced, _)
            | Stage::Listed(fenced, _)
            | Stage::Settling(fenced, _)
            | Stage::Replicating(fenced, ..) => ("on", &*fenced.0.connection.server_name),
        };
        // A committed one that a backend has left here is among both.
        let aborting = self.subject.left.iter().filter(|e| e.status == Status::Aborting).count();
        let what = match self.subject.committed.len() + aborting {
            0 => "looking for transactions".to_owned(),
            1 => "settling 1 transaction".to_owned(),
            count => format!("settling {count} transactions"),
        };
        [what.as_bytes(), b", ", doing.as_bytes(), b" server \"", server.to_bytes(), b"\""].concat()
    }

    /// The socket to wait for.
    pub fn interest(&self) -> Interest {
        match &self.stage {
            Stage::Connecting(connecting, _) => connecting.interest(),
            Stage::Asking(fenced, _)
            | Stage::Listed(fenced, _)
            | Stage::Settling(fenced, _)
            | Stage::Replicating(fenced, ..) => fenced.0.connection.interest(),
        }
    }

    /// When to go on, also if nothing has come.
    pub fn deadline(&self) -> Instant {
        match self.stage {
            Stage::Replicating(..) => self.deadline.min(Instant::now() + REPLICATION.1),
            _ => self.deadline,
        }
    }

    /// Goes on as far as it can without waiting.
    ///
    /// # Errors
    /// The participant cannot be reached, does not answer in time, is not the recorded server, only reads, or
    /// somebody else holds the fence.
    pub fn advance(mut self) -> Result<Progress, Failure> {
        loop {
            self.stage = match self.stage {
                Stage::Connecting(connecting, address) if !connecting.is_ready() => {
                    self.stage = Stage::Connecting(connecting, address);
                    return self.waits();
                }
                Stage::Connecting(connecting, address) => match connecting.step()? {
                    Step::Established(established) => {
                        self.deadline = Instant::now() + STEP;
                        Stage::ask(Fenced(*established, address), self.subject.identity, false)?
                    }
                    Step::Waits(connecting) => {
                        self.stage = Stage::Connecting(connecting, address);
                        return self.waits();
                    }
                },
                Stage::Asking(fenced, asked) => {
                    if !drained(&fenced.0.connection)? {
                        self.stage = Stage::Asking(fenced, asked);
                        return self.waits();
                    }
                    self.deadline = Instant::now() + STEP;
                    let settling = Settling::begin(&fenced, &asked, &self.subject)?;
                    if settling.listed.is_empty() {
                        Stage::Settling(fenced, settling)
                    } else {
                        Stage::Listed(fenced, settling)
                    }
                }
                Stage::Listed(..) => return Ok(Progress::Listed(Box::new(self))),
                Stage::Replicating(fenced, mut settling, until) => {
                    let late = Instant::now() >= until;
                    if !settling.deliver_commits(&fenced.0.connection, late)? {
                        fenced.0.connection.pump();
                        self.stage = Stage::Replicating(fenced, settling, until);
                        return self.waits();
                    }
                    Stage::Settling(fenced, settling)
                }
                Stage::Settling(fenced, settling) => {
                    if !drained(&fenced.0.connection)? {
                        self.stage = Stage::Settling(fenced, settling);
                        return self.waits();
                    }
                    return self
                        .subject
                        .conclude(fenced, settling)
                        .map(|swept| Progress::Done(Box::new(swept)));
                }
            };
        }
    }

    /// What is listed, of one that has to be told what was decided.
    pub fn listed(&self) -> impl Iterator<Item = &Gid> {
        let listed = match &self.stage {
            Stage::Listed(_, settling) => Some(&settling.listed),
            _ => None,
        };
        listed.into_iter().flatten()
    }

    /// Goes on with what was decided, which was read after the list.
    ///
    /// # Errors
    /// Those of [`Sweep::advance`].
    pub fn decide(mut self, decisions: &Decisions) -> Result<Progress, Failure> {
        if let Stage::Listed(fenced, mut settling) = self.stage {
            settling.judge(&fenced.0.connection, decisions)?;
            self.stage = Stage::Replicating(fenced, settling, Instant::now() + REPLICATION.0);
        }
        self.advance()
    }

    fn waits(self) -> Result<Progress, Failure> {
        if Instant::now() < self.deadline {
            return Ok(Progress::Waits(Box::new(self)));
        }
        let error = match &self.stage {
            Stage::Connecting(connecting, _) => connecting.timed_out(),
            _ => report::lost(c"the server did not answer in time"),
        };
        Err(error.into())
    }
}

/// Whether the handler of a server's wrapper belongs to the extension: it is not called to find out.
fn handler_is_ours(serverid: pg_sys::Oid) -> bool {
    // SAFETY: catalog entries in this transaction's memory.
    let handler = unsafe {
        let wrapper = (*pg_sys::GetForeignServer(serverid)).fdwid;
        (*pg_sys::GetForeignDataWrapper(wrapper)).fdwhandler
    };
    trusted::is_member(pg_sys::ProcedureRelationId, handler)
}

/// The connection to come, with its address, or that there is nowhere to connect to.
fn connect(
    participant: &ParticipantRecord,
    deadline: Instant,
) -> Result<Result<(Connecting, CString), Failure>> {
    let Some(mapping) = Mapping::find(participant.userid, participant.serverid) else {
        let error = Error::new(
            SqlState::UNDEFINED_OBJECT,
            format!(
                "transactions may be in doubt on foreign server {}, but the server or its user mapping for user {} has gone",
                participant.serverid, participant.userid
            ),
        );
        return Ok(Err(Failure { reason: Reason::Gone, error }));
    };
    let server = Server::read(participant.serverid);
    if !handler_is_ours(participant.serverid) {
        let error = Error::new(
            SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!("server \"{}\" does not use pg_fdw_xacts", text::carried(&server.name)),
        )
        .hint("Give its wrapper the handler pg_fdw_xacts_handler until nothing is in doubt there.");
        return Ok(Err(Failure { reason: Reason::Gone, error }));
    }
    let connecting = Connecting::start(&server, &mapping, Purpose::Resolver, Some(deadline))?;
    Ok(Ok((connecting, server.address())))
}

/// Whether everything asked has been answered.
fn drained(connection: &Connection) -> Result<bool> {
    connection.pump();
    if connection.is_drained() {
        return Ok(true);
    }
    if connection.is_doomed() { Err(connection.doom_error()) } else { Ok(false) }
}

fn send(connection: &Connection, sql: &str) -> Result<Ticket> {
    connection.send_alone(&c_string(sql)).ok_or_else(|| connection.doom_error())
}

/// An answer that has come.
fn answer(connection: &Connection, ticket: Ticket, sql: &CStr) -> Result<Rc<PgResult>> {
    connection.wait(&crate::remote::connection::Asked::of(ticket, sql))
}

impl Stage {
    /// Asks for everything that has to be known before anything is settled.
    fn ask(fenced: Fenced, identity: Identity, has_fence: bool) -> Result<Self> {
        let connection = &fenced.0.connection;
        let fence = if has_fence {
            None
        } else {
            Some(send(connection, &questions::fence(identity, session_lock(identity)))?)
        };
        let before = send(connection, &questions::sessions(identity))?;
        let list = send(connection, &questions::prepared(identity))?;
        let after = send(connection, &questions::sessions(identity))?;
        Ok(Self::Asking(fenced, Asked { fence, before, list, after }))
    }
}

fn place(fenced: &Fenced, participant: &ParticipantRecord) -> Result<Place> {
    let Fenced(Established { connection, .. }, address) = fenced;
    let fingerprint = connection.fingerprint().ok_or_else(|| connection.doom_error())?;
    let is_recorded = participant.is_at(&fingerprint) && participant.is_where(address);
    Ok(match (fingerprint.in_recovery, is_recorded) {
        (true, _) => Place::InRecovery,
        (false, true) => Place::Recorded,
        (false, false) => Place::Other,
    })
}
