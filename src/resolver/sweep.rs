//! Settling one participant, and others in the same place. A sweep never waits by itself, so that
//! many run side by side and a slow server delays nobody else.
//!
//! The order of the observations closes the races:
//! 1. the committed transactions that the participants have not confirmed, for conclusions from a
//!    gid that is *not* listed: the resolver keeps them by participant, and gives them to the sweep
//!    when it begins;
//! 2. the server's fingerprint, and whether it is in recovery;
//! 3. the fence: an exclusive advisory lock on our identity there, so that of all copies of this
//!    coordinator only one settles;
//! 4. which sessions of ours are alive, of this incarnation or of another; read again after
//! 5. the list of prepared transactions of our identity;
//! 6. the decision rows of what is listed. A row is inserted before its PREPARE is sent, so a
//!    listed gid without a row has aborted.
//!
//! * [`observation`]: 2 to 5;
//! * [`settling`]: what follows, and COMMIT PREPARED and ROLLBACK PREPARED;
//! * [`moving`]: a server at another address than the recorded one;
//! * [`failure`]: why nothing could be settled.

use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::time::{Duration, Instant};

use pgrx::pg_sys;

use crate::guc::answer_timeout;
use crate::pg::error::{Error, Result};
use crate::pg::transaction;
use crate::protocol::gid::{Gid, Identity, Nonce};
use crate::protocol::patience::Patience;
use crate::protocol::verdict::{Decision, Reason};
use crate::remote::connect::{Connecting, Established, Step};
use crate::remote::options::{Mapping, Purpose, Server};
use crate::remote::wait::Interest;
use crate::remote::{Connection, report};
use crate::resolver::sweep::failure::Failure;
use crate::resolver::sweep::observation::{Observation, Questions};
use crate::resolver::sweep::settling::Settling;
use crate::shared::entry::{Entry, Status};
use crate::shared::left::{Left, Members};
use crate::store::participant_list::ParticipantRecord;
use crate::store::trusted;

pub mod failure;
mod moving;
mod observation;
mod settling;

/// How long commits wait for the synchronous standbys.
const REPLICATION: Duration = Duration::from_secs(1);

/// How often a sweep checks whether these have caught up.
const REPLICATION_POLL: Duration = Duration::from_millis(10);

/// A sweep on its way.
pub struct Sweep {
    stage: Stage,
    patience: Patience,
    /// How many transactions it has to settle, as far as was known when it began.
    known: usize,
}

/// What a sweep is about.
pub struct Subject {
    pub identity: Identity,
    /// The participant that it is for.
    pub participant: ParticipantRecord,
    /// The participant with whose user mapping it connects: the same, or another in the same place.
    pub connect_as: ParticipantRecord,
    /// All participants that it asks for: this one, and others in the same place that are reached
    /// in the same way.
    pub members: Members,
    /// What backends had left here when it began.
    pub handed_over: Vec<Entry>,
    /// What an earlier sweep has found prepared.
    pub listed_before: HashSet<Gid>,
    /// Committed transactions that these participants have not confirmed.
    pub committed: Vec<Open>,
}

/// A committed transaction that one of its participants has not confirmed.
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

/// What the decision table says of what is listed; what has no row is not in it.
pub type Decisions = HashMap<Gid, Decided>;

/// What the decision table says of one prepared transaction.
#[derive(Clone, Copy)]
pub struct Decided {
    /// What became of the local transaction.
    pub decision: Decision,
    /// Its xid.
    pub xid: pg_sys::TransactionId,
    /// The number of the participant where it is prepared; 0 where that is not known.
    pub participant: i32,
    /// The xid of the prepared transaction there; 0 where it is not known.
    pub remote_xid: u64,
}

enum Stage {
    Connecting(Subject, Connecting, CString),
    Asking(Subject, Fenced, Questions),
    /// What is listed has to be looked up in the decision table, which is read once for all sweeps
    /// that have come so far.
    Listed(Settling),
    /// Commits wait for the synchronous standbys, until then.
    Replicating(Settling, Instant),
    /// Answers are on their way.
    Settling(Settling),
}

/// A session that holds the fence, or has asked for it. The server ends it when it has heard
/// nothing from us for `idle_session_timeout`: the fence is a lease.
pub struct Fenced {
    session: Established,
    /// The address that the session was made to.
    address: CString,
}

impl Fenced {
    fn connection(&self) -> &Connection {
        &self.session.connection
    }

    /// Whether server and mapping still lead to it.
    fn is_current(&self, participant: &ParticipantRecord) -> Result<bool> {
        let Some(mapping) = Mapping::find(participant.userid, participant.serverid) else {
            return Ok(false);
        };
        let server = Server::read(participant.serverid);
        self.session.is_current(&server, &mapping, Purpose::Resolver)
    }
}

/// What a sweep has found and done.
pub struct Swept {
    /// The participants that it asked for.
    pub members: Members,
    /// The foreign server's name.
    pub server: CString,
    /// What is left, and why.
    pub left: Vec<Left>,
    /// What the server has answered to the first COMMIT or ROLLBACK PREPARED that it has refused.
    pub refusal: Option<Error>,
    /// A session of another incarnation is alive there, which may still prepare something.
    pub other_incarnations: bool,
    /// Something was handed over while it was under way: sweep again at once.
    pub more: bool,
    /// Committed transactions of which nothing is left on a participant, with its number.
    pub delivered: Vec<(Nonce, i32)>,
    /// How many prepared transactions were settled.
    pub resolved: u64,
    /// Those of the delivered that somebody on the participant has undone.
    pub heuristic: Vec<(Nonce, i32)>,
    /// The new address of a server that has moved.
    pub moved: Option<CString>,
    /// The session that holds the fence, to be kept as long as anything of ours is prepared there.
    pub fenced: Option<Fenced>,
}

impl Swept {
    /// Whether nothing is left on the participants but what sessions were about to settle. What
    /// these do not settle gets an entry of the resolver's, or has a line in the ledger.
    pub fn leaves_only_to_sessions(&self) -> bool {
        let is_a_sessions = |l: &Left| {
            matches!(l.reason, Reason::Owner | Reason::Overtaken)
                && self.members.of(&l.gid).is_some()
        };
        !self.other_incarnations && !self.more && self.left.iter().all(is_a_sessions)
    }
}

/// How far a sweep has come.
pub enum Progress {
    /// It waits for its socket: advance it again then.
    Waits(Box<Sweep>),
    /// It has to be told what was decided of what is listed.
    Listed(Box<Sweep>),
    Done(Box<Swept>),
}

impl Sweep {
    /// Starts to settle participants, on the session that still holds the fence if there is one.
    ///
    /// # Errors
    /// The server or user mapping no longer exists, or connecting fails at once.
    pub fn start(subject: Subject, fenced: Option<Fenced>) -> Result<Self, Failure> {
        let patience = Patience::new(answer_timeout(), Instant::now());
        // A committed transaction that a backend has left here is among both.
        let is_aborting = |e: &&Entry| e.status == Status::Aborting;
        let known =
            subject.committed.len() + subject.handed_over.iter().filter(is_aborting).count();
        let fenced = fenced.filter(|f| f.connection().is_still_reusable());
        let fenced = match fenced {
            Some(fenced) if transaction::run(|| fenced.is_current(&subject.participant))? => {
                Some(fenced)
            }
            // If server, mapping or the user's privileges were changed, the session ends, and the
            // fence with it.
            _ => None,
        };
        let stage = match fenced {
            Some(fenced) => {
                let questions = Questions::ask(fenced.connection(), subject.identity, true)?;
                Stage::Asking(subject, fenced, questions)
            }
            None => {
                let (connecting, address) =
                    transaction::run(|| connect(&subject.connect_as, patience.until()))??;
                Stage::Connecting(subject, connecting, address)
            }
        };
        Ok(Self { stage, patience, known })
    }

    /// What it does, in words for `pg_stat_activity`.
    pub fn describe(&self) -> Vec<u8> {
        let (doing, server) = match self.connection() {
            Ok(connection) => ("on", &*connection.server_name),
            Err(connecting) => ("connecting to", connecting.server_name()),
        };
        let what = match self.known {
            0 => "looking for transactions".to_owned(),
            1 => "settling 1 transaction".to_owned(),
            count => format!("settling {count} transactions"),
        };
        [what.as_bytes(), b", ", doing.as_bytes(), b" server \"", server.to_bytes(), b"\""].concat()
    }

    /// The connection, or the one that is being made.
    fn connection(&self) -> Result<&Connection, &Connecting> {
        match &self.stage {
            Stage::Connecting(_, connecting, _) => Err(connecting),
            Stage::Asking(_, fenced, _) => Ok(fenced.connection()),
            Stage::Listed(settling)
            | Stage::Settling(settling)
            | Stage::Replicating(settling, _) => Ok(settling.connection()),
        }
    }

    /// The socket to wait for.
    pub fn interest(&self) -> Interest {
        match self.connection() {
            Ok(connection) => connection.interest(),
            Err(connecting) => connecting.interest(),
        }
    }

    /// When to advance it even if nothing has come from its socket.
    pub fn deadline(&self) -> Instant {
        match &self.stage {
            Stage::Connecting(_, connecting, _) => {
                connecting.deadline().unwrap_or(self.patience.until())
            }
            Stage::Replicating(..) => self.patience.until().min(Instant::now() + REPLICATION_POLL),
            _ => self.patience.until(),
        }
    }

    /// Goes on as far as it can without waiting.
    ///
    /// # Errors
    /// The participant cannot be reached, does not answer in time, is not the recorded server, is
    /// in recovery, or somebody else holds the fence.
    pub fn advance(mut self) -> Result<Progress, Failure> {
        loop {
            self.stage = match self.stage {
                Stage::Connecting(subject, connecting, address) => {
                    if !connecting.is_ready() {
                        let connecting = match connecting.is_overdue() {
                            true => connecting.give_up_host()?,
                            false => connecting,
                        };
                        self.stage = Stage::Connecting(subject, connecting, address);
                        return Ok(Progress::Waits(Box::new(self)));
                    }
                    match connecting.step()? {
                        Step::Established(established) => {
                            self.patience.renew(Instant::now());
                            let fenced = Fenced { session: *established, address };
                            let questions =
                                Questions::ask(fenced.connection(), subject.identity, false)?;
                            Stage::Asking(subject, fenced, questions)
                        }
                        Step::Waits(connecting) => {
                            self.stage = Stage::Connecting(subject, connecting, address);
                            return Ok(Progress::Waits(Box::new(self)));
                        }
                    }
                }
                Stage::Asking(subject, fenced, questions) => {
                    if !drained(fenced.connection())? {
                        self.stage = Stage::Asking(subject, fenced, questions);
                        return self.waits();
                    }
                    self.patience.renew(Instant::now());
                    let seen = Observation::read(&fenced, &questions, &subject)?;
                    let nothing = seen.listed.is_empty();
                    let settling = Settling::begin(subject, fenced, seen)?;
                    if nothing { Stage::Settling(settling) } else { Stage::Listed(settling) }
                }
                Stage::Listed(..) => return Ok(Progress::Listed(Box::new(self))),
                Stage::Replicating(mut settling, until) => {
                    let late = Instant::now() >= until;
                    if !settling.deliver_commits(late)? {
                        settling.connection().pump();
                        self.stage = Stage::Replicating(settling, until);
                        return self.waits();
                    }
                    Stage::Settling(settling)
                }
                Stage::Settling(settling) => {
                    if !drained(settling.connection())? {
                        self.stage = Stage::Settling(settling);
                        return self.waits();
                    }
                    return settling.conclude().map(|swept| Progress::Done(Box::new(swept)));
                }
            };
        }
    }

    /// What is listed, if it has to be told what was decided of that.
    pub fn listed(&self) -> impl Iterator<Item = &Gid> {
        let listed = match &self.stage {
            Stage::Listed(settling) => Some(&settling.seen.listed),
            _ => None,
        };
        listed.into_iter().flatten()
    }

    /// Goes on with what was decided, which was read after the list.
    ///
    /// # Errors
    /// Those of [`Sweep::advance`].
    pub fn decide(mut self, decisions: &Decisions) -> Result<Progress, Failure> {
        if let Stage::Listed(mut settling) = self.stage {
            settling.judge(decisions)?;
            self.stage = Stage::Replicating(settling, Instant::now() + REPLICATION);
        }
        self.advance()
    }

    fn waits(mut self) -> Result<Progress, Failure> {
        let unanswered = self.connection().map_or(0, Connection::unanswered);
        if !self.patience.is_over(unanswered, Instant::now()) {
            return Ok(Progress::Waits(Box::new(self)));
        }
        Err(report::lost(c"the server did not answer in time").into())
    }
}

/// Whether the handler of a server's wrapper belongs to the extension; it is not called to find
/// out.
pub fn handler_is_ours(serverid: pg_sys::Oid) -> bool {
    // SAFETY: catalog entries in this transaction's memory.
    let handler = unsafe {
        let wrapper = (*pg_sys::GetForeignServer(serverid)).fdwid;
        (*pg_sys::GetForeignDataWrapper(wrapper)).fdwhandler
    };
    trusted::is_member(pg_sys::ProcedureRelationId, handler)
}

/// Begins to connect; returns the connection to come and its address.
fn connect(
    participant: &ParticipantRecord,
    deadline: Instant,
) -> Result<Result<(Connecting, CString), Failure>> {
    let Some(mapping) = Mapping::find(participant.userid, participant.serverid) else {
        return Ok(Err(failure::gone(participant)));
    };
    let server = Server::read(participant.serverid);
    if !handler_is_ours(participant.serverid) {
        return Ok(Err(failure::other_wrapper(&server.name)));
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
