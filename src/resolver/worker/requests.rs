//! What backends ask of the resolver, and its answers.

use std::collections::HashSet;
use std::ffi::CString;
use std::time::{Duration, Instant};

use pgrx::{PgLogLevel, pg_sys};

use super::Worker;
use crate::log::registered::{self, Registered};
use crate::log::shmem::{Request, RequestKind};
use crate::log::{decisions, entries, labels, replication, requests, stats, workers};
use crate::pg::error::{Error, Result, SqlState, c_string};
use crate::pg::{text, transaction};
use crate::protocol::gid::Nonce;
use crate::protocol::verdict::Decision;
use crate::remote::options::Server;

/// A backend that waits until each of these participants has been tried.
pub struct Trying {
    slot: usize,
    request: Request,
    participants: HashSet<i32>,
}

/// A backend whose answer waits until the synchronous standbys have what it tells of.
pub struct Replicating {
    slot: usize,
    request: Request,
    answer: i32,
    position: pg_sys::XLogRecPtr,
}

/// How often is looked whether they have.
pub(super) const REPLICATION_POLL: Duration = Duration::from_millis(10);

impl Worker {
    /// Does what backends ask for.
    pub(super) fn answer_requests(&mut self) -> Result<()> {
        for (slot, request) in requests::waiting() {
            let mut known = self.trying.iter().map(|t| &t.request).chain(
                // They wait for a standby, the resolver does not.
                self.replicating.iter().map(|r| &r.request),
            );
            if known.any(|r| r.serial == request.serial) {
                continue;
            }
            let answer = match request.kind {
                RequestKind::Register => self.register(&request),
                RequestKind::ForgetTransaction => self.forget_transaction(&request),
                RequestKind::ForgetServer => self.forget_server(&request),
                RequestKind::TakeLabel => Ok(i32::from(take_label(&request))),
                RequestKind::Resolve => {
                    self.try_all(slot, request)?;
                    continue;
                }
            };
            match answer {
                Ok(answer) => {
                    // What it tells of is before this; so is what an earlier request has written.
                    // SAFETY: a plain global: the end of the last commit record.
                    let position = unsafe { pg_sys::XactLastCommitEnd }.max(self.started);
                    self.replicating.push(Replicating { slot, request, answer, position });
                }
                Err(error) => {
                    requests::answer(slot, &request, None);
                    error.log(PgLogLevel::WARNING)?;
                }
            }
        }
        self.answer_replicated();
        Ok(())
    }

    /// Answers those whose answer the synchronous standbys have.
    pub(super) fn answer_replicated(&mut self) {
        self.replicating.retain(|r| {
            let replicated = replication::outlives_a_failover(r.position);
            if replicated {
                requests::answer(r.slot, &r.request, Some(r.answer));
            }
            !replicated && asked_still(r)
        });
    }

    /// Writes down a participant that a backend is about to prepare on. Where the server is said to be is read from the
    /// catalog: the backend makes sure that this is what its connection was made from.
    fn register(&mut self, request: &Request) -> Result<i32> {
        let mut wanted = wanted(request);
        wanted.address =
            transaction::run(|| Ok(Server::find(wanted.serverid)))?.map(|server| server.address());
        let known = self.participants.values().map(|p| &p.registered);
        if let Some(known) =
            known.clone().find(|r| r.is_like(&wanted) && r.address == wanted.address)
        {
            return Ok(known.id);
        }
        let like: Vec<Registered> = known.filter(|r| r.is_like(&wanted)).cloned().collect();
        for known in like {
            if known.address.is_none() || self.is_clean(&known)? {
                return self.move_to(known, wanted.address);
            }
        }
        let (registered, _) = replication::run_here(|| {
            // The number of a forgotten participant may still stand in decisions.
            let id = registered::all()
                .iter()
                .map(|r| r.id)
                .chain(decisions::all().iter().flat_map(|row| row.participants.iter().map(|p| p.0)))
                .max()
                .map_or(1, |max| max + 1);
            let registered = Registered { id, ..wanted };
            registered::insert(&registered)?;
            Ok(registered)
        })?;
        let id = registered.id;
        self.warn_of_twin(&registered)?;
        // Something may have been left there before it was forgotten.
        self.add(registered, Some(Instant::now()), false);
        Ok(id)
    }

    /// Whether nothing can be left on a participant: it has been swept clean, and nothing has been prepared there since
    /// that is not confirmed.
    fn is_clean(&self, registered: &Registered) -> Result<bool> {
        // SAFETY: a plain global of this process.
        let dbid = unsafe { pg_sys::MyDatabaseId };
        let Registered { id, serverid, userid, .. } = *registered;
        let participant = self.participants.get(&id);
        let has_entry = entries::all()
            .iter()
            .any(|e| (e.dbid, e.serverid, e.userid) == (dbid, serverid, userid));
        if participant.is_none_or(|p| p.unswept || p.sweep.is_some()) || has_entry {
            return Ok(false);
        }
        let rows = transaction::run(|| Ok(decisions::but(|nonce| self.settled.contains(nonce))))?;
        Ok(!rows.iter().any(|row| row.participants.iter().any(|(of, _)| *of == id)))
    }

    /// The server of a participant that is clean has another address now, or it was not known: it keeps its number.
    fn move_to(&mut self, registered: Registered, address: Option<CString>) -> Result<i32> {
        let id = registered.id;
        let moved = Registered { address, ..registered };
        replication::run_here(|| {
            registered::delete(id)?;
            registered::insert(&moved)
        })?;
        self.warn_of_twin(&moved)?;
        if let Some(participant) = self.participants.get_mut(&id) {
            participant.registered = moved;
            participant.fenced = None;
        }
        Ok(id)
    }

    /// Two addresses of one server, or two servers of one image: which, cannot be known.
    fn warn_of_twin(&self, new: &Registered) -> Result<()> {
        let twin = self.participants.values().map(|p| &p.registered).find(|r| {
            r.id != new.id && r.is_beside(new) && r.address.is_some() && r.address != new.address
        });
        let Some(twin) = twin else { return Ok(()) };
        let shown = |r: &Registered| r.address.as_deref().map(text::carried).unwrap_or_default();
        Error::new(
            SqlState::new(b"01000"),
            format!(
                "the servers at \"{}\" and \"{}\" have the same system identifier and database name",
                shown(twin),
                shown(new)
            ),
        )
        .detail("They are one server at two addresses, or two servers of which one was copied from the other.")
        .hint("If they are two, do not point one foreign server from one to the other while pg_fdw_xacts shows a row of it.")
        .log(PgLogLevel::WARNING)
    }

    /// Makes everything due; the answer comes when all have been tried.
    fn try_all(&mut self, slot: usize, request: Request) -> Result<()> {
        self.look()?;
        for participant in self.participants.values_mut() {
            participant.due = Some(Instant::now());
        }
        let participants = self.participants.keys().copied().collect();
        self.trying.push(Trying { slot, request, participants });
        Ok(())
    }

    /// Notes that a participant has been tried.
    pub(super) fn tried(&mut self, id: i32) {
        for trying in &mut self.trying {
            trying.participants.remove(&id);
        }
    }

    /// Answers those for whom all have been tried.
    pub(super) fn answer_trying(&mut self) {
        let known = &self.participants;
        self.trying.retain_mut(|trying| {
            trying.participants.retain(|id| known.contains_key(id));
            if trying.participants.is_empty() {
                requests::answer(trying.slot, &trying.request, Some(0));
            }
            !trying.participants.is_empty()
        });
    }

    fn forget_transaction(&mut self, request: &Request) -> Result<i32> {
        let Some(nonce) = Nonce::new(request.nonce) else { return Ok(0) };
        let ids: Vec<i32> = self
            .participants
            .values()
            .map(|p| &p.registered)
            .filter(|r| (r.serverid, r.userid) == (request.serverid, request.userid))
            .map(|r| r.id)
            .collect();
        let (committed, _) = replication::run_here(|| {
            let row = decisions::all()
                .into_iter()
                .find(|row| row.nonce == nonce && row.decision == Decision::Committed);
            let committed: Vec<i32> = row
                .iter()
                .flat_map(|row| row.participants.iter().map(|p| p.0))
                .filter(|id| ids.contains(id))
                .collect();
            for id in &committed {
                registered::forget(nonce, *id)?;
            }
            Ok(committed)
        })?;
        let mut forgotten = 0;
        for participant in self.participants.values() {
            if ids.contains(&participant.registered.id) {
                let gid = participant.registered.gid(self.identity, nonce);
                forgotten += i32::from(entries::forget(&gid));
            }
        }
        self.forgotten.extend(committed.iter().map(|id| (nonce, *id)));
        Ok(forgotten.max(committed.len() as i32))
    }

    fn forget_server(&mut self, request: &Request) -> Result<i32> {
        let list: Vec<Registered> = self
            .participants
            .values()
            .map(|p| p.registered.clone())
            .filter(|r| r.serverid == request.serverid)
            .collect();
        replication::run_here(|| {
            for registered in &list {
                registered::delete(registered.id)?;
            }
            Ok(())
        })?;
        for registered in &list {
            self.participants.remove(&registered.id);
        }
        workers::new_generation();
        let _ = stats::set_unswept(request.serverid, 0);
        self.published.remove(&request.serverid);
        Ok((list.len() + entries::forget_server(request.serverid)) as i32)
    }
}

/// Whether somebody waits for the answer.
fn asked_still(r: &Replicating) -> bool {
    requests::waiting().iter().any(|(_, request)| request.serial == r.request.serial)
}

fn wanted(request: &Request) -> Registered {
    Registered {
        id: 0,
        serverid: request.serverid,
        userid: request.userid,
        system_identifier: request.system_identifier,
        database: c_string(&request.database[..]),
        address: None,
    }
}

/// Takes a label. A transaction that is about to use it is not waited for: others wait for the resolver.
fn take_label(request: &Request) -> bool {
    let label = c_string(&request.label[..]);
    let taken = replication::run_here(|| {
        if labels::find(&label)?.is_some() {
            return Ok(false);
        }
        // SAFETY: the setting is local to this transaction.
        unsafe {
            pg_sys::set_config_option(
                c"lock_timeout".as_ptr(),
                c"100ms".as_ptr(),
                pg_sys::GucContext::PGC_USERSET,
                pg_sys::GucSource::PGC_S_SESSION,
                pg_sys::GucAction::GUC_ACTION_LOCAL,
                true,
                0,
                false,
            );
        }
        labels::insert(&label, true)?;
        // What is said of the label must outlive a crash, and a fail-over to a synchronous standby.
        // SAFETY: sets a flag of the transaction.
        unsafe { pg_sys::ForceSyncCommit() };
        replication::require_synchronous_commit();
        Ok(true)
    });
    // In use, or about to be: whoever asked looks again.
    taken.is_ok_and(|(taken, _)| taken)
}
