//! Settling one participant: everything prepared there that is ours. A sweep never waits by itself, so that many
//! run side by side and a slow server delays nobody else.
//!
//! The order of the observations closes the races:
//! 1. the decision rows, for what may be concluded from a gid that is *not* listed;
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

use pgrx::{PgLogLevel, pg_sys};

use crate::libpq::PgResult;
use crate::log::decisions::{self, Row};
use crate::log::entries;
use crate::log::registered::Registered;
use crate::log::shmem::{Entry, Status};
use crate::log::trusted;
use crate::pg::error::{Error, Result, SqlState, c_string};
use crate::pg::transaction;
use crate::protocol::gid::{Gid, Identity, Nonce};
use crate::protocol::pipeline::Ticket;
use crate::protocol::verdict::{Decision, Place, absence_is_final};
use crate::remote::Connection;
use crate::remote::connect::{Connecting, Established, Step};
use crate::remote::options::{Mapping, Purpose, Server};
use crate::remote::report;
use crate::remote::wait::Want;
use crate::resolver::questions;
use crate::resolver::sweep::settling::Settling;
use crate::xact::session_lock;

mod settling;

/// How long connecting, and then each step of the conversation, may take.
const STEP: Duration = Duration::from_secs(10);

/// A sweep on its way.
pub struct Sweep {
    identity: Identity,
    participant: Registered,
    /// What backends have left here.
    left: Vec<Entry>,
    /// Committed transactions with this participant that nobody has confirmed.
    committed: Vec<Row>,
    stage: Stage,
    deadline: Instant,
}

enum Stage {
    Connecting(Connecting, String),
    Asking(Fenced, Asked),
    Settling(Fenced, Settling),
}

/// A session that holds the fence, or has asked for it. The server ends it when nothing is heard of us
/// for `idle_session_timeout`: the fence is a lease.
///
/// With it the address that it was made with.
pub struct Fenced(Established, String);

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
    /// The foreign server's name.
    pub server: CString,
    /// Something is left that cannot be settled yet: sweep again soon.
    pub again: bool,
    /// Committed transactions of which this participant has nothing left, with all their participants.
    pub delivered: Vec<(Nonce, Vec<i32>)>,
    /// Prepared transactions that were settled.
    pub resolved: u64,
    /// Decided commits that somebody on the participant has undone.
    pub heuristic: Vec<Nonce>,
    /// Servers and users whose prepared transactions this one's role may not settle.
    pub not_allowed: Vec<(pg_sys::Oid, pg_sys::Oid)>,
    /// Keeps the fence, while anything of ours is prepared there.
    pub fenced: Option<Fenced>,
}

/// What became of a step.
pub enum Progress {
    /// Wait for the socket, then advance again.
    Waits(Box<Sweep>),
    /// Done.
    Done(Box<Swept>),
}

impl Sweep {
    /// Starts to settle a participant, on the session that still holds the fence if there is one.
    /// `confirmed` tells which transactions need not be looked after. It connects as `by`, the participant itself or
    /// another one in the same place.
    ///
    /// # Errors
    /// Its server or user mapping has gone, or connecting fails at once.
    pub fn start(
        identity: Identity,
        participant: &Registered,
        by: &Registered,
        fenced: Option<Fenced>,
        confirmed: impl Fn(&Nonce) -> bool,
    ) -> Result<Self> {
        let left = handed_over(participant);
        let committed = transaction::run(|| Ok(decisions::all()))?
            .into_iter()
            .filter(|row| row.decision == Decision::Committed && !confirmed(&row.nonce))
            .filter(|row| row.participants.iter().any(|(id, _)| *id == participant.id))
            .collect();
        let deadline = Instant::now() + STEP;
        let fenced = fenced.filter(|f| f.0.connection.is_reusable() && !f.0.connection.hung_up());
        let stage = match fenced {
            Some(fenced) => Stage::ask(fenced, identity, true)?,
            None => {
                let (connecting, address) = transaction::run(|| connect(by, deadline))?;
                Stage::Connecting(connecting, address)
            }
        };
        Ok(Self { identity, participant: participant.clone(), left, committed, stage, deadline })
    }

    /// What it does, in words for `pg_stat_activity`.
    pub fn describe(&self) -> Vec<u8> {
        let (doing, server) = match &self.stage {
            Stage::Connecting(connecting, _) => ("connecting to", connecting.server_name()),
            Stage::Asking(fenced, _) | Stage::Settling(fenced, _) => {
                ("on", &*fenced.0.connection.server_name)
            }
        };
        // A committed one that a backend has left here is among both.
        let aborting = self.left.iter().filter(|e| e.status == Status::Aborting).count();
        let what = match self.committed.len() + aborting {
            0 => "looking for transactions".to_owned(),
            1 => "settling 1 transaction".to_owned(),
            count => format!("settling {count} transactions"),
        };
        [what.as_bytes(), b", ", doing.as_bytes(), b" server \"", server.to_bytes(), b"\""].concat()
    }

    /// The socket to wait for.
    pub fn want(&self) -> Want {
        match &self.stage {
            Stage::Connecting(connecting, _) => connecting.want(),
            Stage::Asking(fenced, _) | Stage::Settling(fenced, _) => fenced.0.connection.want(),
        }
    }

    /// When to give up.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Goes on as far as it can without waiting.
    ///
    /// # Errors
    /// The participant cannot be reached, does not answer in time, is not the recorded server, only reads, or
    /// somebody else holds the fence.
    pub fn advance(mut self) -> Result<Progress> {
        loop {
            self.stage = match self.stage {
                Stage::Connecting(connecting, address) if !connecting.is_ready() => {
                    self.stage = Stage::Connecting(connecting, address);
                    return self.waits();
                }
                Stage::Connecting(connecting, address) => match connecting.step()? {
                    Step::Established(established) => {
                        self.deadline = Instant::now() + STEP;
                        Stage::ask(Fenced(*established, address), self.identity, false)?
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
                    let settling = Settling::begin(
                        &fenced,
                        &asked,
                        self.identity,
                        &self.participant,
                        &self.committed,
                    )?;
                    Stage::Settling(fenced, settling)
                }
                Stage::Settling(fenced, settling) => {
                    if !drained(&fenced.0.connection)? {
                        self.stage = Stage::Settling(fenced, settling);
                        return self.waits();
                    }
                    return conclude(
                        self.identity,
                        &self.participant,
                        &self.left,
                        self.committed,
                        fenced,
                        settling,
                    )
                    .map(|swept| Progress::Done(Box::new(swept)));
                }
            };
        }
    }

    fn waits(self) -> Result<Progress> {
        if Instant::now() < self.deadline {
            return Ok(Progress::Waits(Box::new(self)));
        }
        Err(match &self.stage {
            Stage::Connecting(connecting, _) => connecting.timed_out(),
            Stage::Asking(..) | Stage::Settling(..) => {
                report::lost(c"the server did not answer in time")
            }
        })
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

fn connect(participant: &Registered, deadline: Instant) -> Result<(Connecting, String)> {
    let mapping = Mapping::find(participant.userid, participant.serverid).ok_or_else(|| {
        Error::new(
            SqlState::UNDEFINED_OBJECT,
            format!(
                "transactions may be in doubt on foreign server {}, but the server or its user mapping for user {} has gone",
                participant.serverid, participant.userid
            ),
        )
    })?;
    let server = Server::read(participant.serverid);
    if !handler_is_ours(participant.serverid) {
        return Err(Error::new(
            SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!("server \"{}\" does not use pg_fdw_xacts", server.name.to_string_lossy()),
        )
        .hint(
            "Give its wrapper the handler pg_fdw_xacts_handler until nothing is in doubt there.",
        ));
    }
    let connecting = Connecting::start(&server, &mapping, Purpose::Resolver, Some(deadline))?;
    Ok((connecting, server.address()))
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
    connection.answer(ticket, Some(sql))
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

/// Everything has been answered: what follows from it.
fn conclude(
    identity: Identity,
    participant: &Registered,
    left: &[Entry],
    committed: Vec<Row>,
    fenced: Fenced,
    mut settling: Settling,
) -> Result<Swept> {
    let connection = &fenced.0.connection;
    let resolved = settling.note_answers(connection, participant)?;
    let statuses = match settling.verified {
        Some(ticket) => questions::read_status(connection, ticket)?,
        None => HashMap::new(),
    };
    let mut heuristic = Vec::new();
    let mut delivered = Vec::new();
    let mut gone = HashSet::new();
    if settling.place == Place::Recorded {
        for row in committed {
            let gid = participant.gid(identity, row.nonce);
            if settling.unsettled.contains(&gid) {
                continue;
            }
            if !settling.listed.contains(&gid) {
                let status = xid_of(&row, participant).and_then(|xid| statuses.get(&xid));
                match status.map(String::as_str) {
                    // Too long ago to be known: assumed delivered, as nothing else can be.
                    Some("committed") | None => {}
                    Some("in progress") => continue,
                    Some(other) => {
                        heuristic.push(row.nonce);
                        report_heuristic(connection, &gid, other)?;
                    }
                }
            }
            gone.insert(gid);
            delivered.push((row.nonce, row.participants.iter().map(|(id, _)| *id).collect()));
        }
    }
    let mut again = settling.strangers;
    for entry in left {
        let Some(gid) = entry.gid() else { continue };
        let settled = if settling.listed.contains(&gid) {
            !settling.unsettled.contains(&gid)
        } else if entry.status == Status::Aborting {
            let may_live = settling.strangers || settling.alive.contains(&entry.remote_pid);
            absence_is_final(settling.place, may_live)
        } else {
            gone.contains(&gid)
        };
        if settled {
            entries::remove(&gid);
        } else {
            again = true;
        }
    }
    again |= settling.unsettled.difference(&settling.pending).next().is_some();
    if settling.place != Place::Recorded {
        return Err(other_server(&fenced, participant));
    }
    let keep = again || !settling.pending.is_empty() || awaits_application(participant);
    let not_allowed = std::mem::take(&mut settling.not_allowed);
    let server = connection.server_name.clone();
    let fenced = keep.then_some(fenced);
    Ok(Swept { server, again, delivered, resolved, heuristic, not_allowed, fenced })
}

fn place(fenced: &Fenced, participant: &Registered) -> Result<Place> {
    let Fenced(Established { connection, .. }, address) = fenced;
    let fingerprint = connection.fingerprint().ok_or_else(|| connection.doom_error())?;
    let is_recorded = participant.is_at(&fingerprint) && participant.is_where(address);
    Ok(match (fingerprint.in_recovery, is_recorded) {
        (true, _) => Place::InRecovery,
        (false, true) => Place::Recorded,
        (false, false) => Place::Other,
    })
}

fn other_server(Fenced(established, address): &Fenced, participant: &Registered) -> Error {
    let name = established.connection.server_name.to_string_lossy();
    let error = |message: String| Error::new(SqlState::CONNECTION_FAILURE, message);
    match &participant.address {
        Some(known) if known != address => {
            error(format!("server \"{name}\" is not where it was when it was used")).detail(format!(
                "Transactions may be in doubt in database \"{}\" of the server with system identifier {} at \"{known}\"; the address is now \"{address}\". What is not prepared here may be there.",
                participant.database, participant.system_identifier
            ))
            .hint("Point the foreign server's options back at it, so that they can be settled. If it is the same server, or has been replaced by its standby, pg_fdw_xacts_forget() gives up what cannot be told.")
        }
        _ => error(format!("server \"{name}\" is not the one that was used before"))
            .detail(format!(
                "Transactions may be in doubt in database \"{}\" of the server with system identifier {}.",
                participant.database, participant.system_identifier
            ))
            .hint("Point the foreign server's options back at it, so that they can be settled."),
    }
}

fn report_heuristic(connection: &Connection, gid: &Gid, status: &str) -> Result<()> {
    Error::new(
        SqlState::new(b"40000"),
        format!(
            "heuristic outcome: '{gid}' was decided to commit but is {status} on server \"{}\"",
            connection.server_name.to_string_lossy()
        ),
    )
    .detail("Somebody settled the prepared transaction there by hand, or the server was restored to an earlier state.")
    .hint("The other servers have committed: repair the data on this one.")
    .log(PgLogLevel::WARNING)
}

fn xid_of(row: &Row, participant: &Registered) -> Option<u64> {
    row.participants
        .iter()
        .find(|(id, _)| *id == participant.id)
        .map(|(_, xid)| *xid)
        .filter(|xid| *xid != 0)
}

/// Whether something here waits for the application's COMMIT PREPARED or ROLLBACK PREPARED.
fn awaits_application(participant: &Registered) -> bool {
    // SAFETY: a plain global of this process.
    let dbid = unsafe { pg_sys::MyDatabaseId };
    entries::all().iter().any(|e| {
        (e.dbid, e.owner, e.status) == (dbid, 0, Status::Prepared)
            && (e.serverid, e.userid) == (participant.serverid, participant.userid)
    })
}

/// The entries that backends have left here.
fn handed_over(participant: &Registered) -> Vec<Entry> {
    // SAFETY: a plain global of this process.
    let dbid = unsafe { pg_sys::MyDatabaseId };
    entries::all()
        .into_iter()
        .filter(|e| {
            e.dbid == dbid
                && e.owner == 0
                && (e.serverid, e.userid) == (participant.serverid, participant.userid)
                && matches!(e.status, Status::Committing | Status::Aborting)
        })
        .collect()
}
