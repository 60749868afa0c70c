//! What backends ask of the resolver, and its answers.

use std::collections::HashSet;
use std::ffi::CString;
use std::time::{Duration, Instant};

use pgrx::{PgLogLevel, pg_sys};

use super::Worker;
use crate::pg::error::{Error, Result, SqlState, c_string};
use crate::pg::globals::{last_commit_end, my_database};
use crate::pg::{syncrep, text, transaction};
use crate::protocol::gid::Nonce;
use crate::protocol::verdict::Decision;
use crate::remote::options::Server;
use crate::shared::entry_change::Why;
use crate::shared::shmem::{Request, RequestKind};
use crate::shared::{entries, requests, workers};
use crate::store::participant_list::{self, ParticipantRecord};
use crate::store::{decisions, forgotten, labels};

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
                RequestKind::Register => match self.register(&request).transpose() {
                    Some(answer) => answer,
                    // It is looked at again when the table of decisions has been read.
                    None => continue,
                },
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
                    let position = last_commit_end().max(self.started);
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
            let replicated = syncrep::outlives_a_failover(r.position);
            if replicated {
                requests::answer(r.slot, &r.request, Some(r.answer));
            }
            !replicated && asked_still(r)
        });
    }

    /// Writes down a participant that a backend is about to prepare on; `None`: not yet. Where the server is said to be is
    /// read from the catalog: the backend makes sure that this is what its connection was made from.
    fn register(&mut self, request: &Request) -> Result<Option<i32>> {
        let mut wanted = wanted(request);
        wanted.address =
            transaction::run(|| Ok(Server::find(wanted.serverid)))?.map(|server| server.address());
        let of_mapping = self.participants.with_mapping(wanted.serverid, wanted.userid);
        // All that is wanted, but perhaps at another address.
        let like: Vec<ParticipantRecord> = of_mapping
            .into_iter()
            .filter_map(|id| self.participants.get(id))
            .map(|p| p.registered.clone())
            .filter(|r| {
                (r.system_identifier, &r.database) == (wanted.system_identifier, &wanted.database)
            })
            .collect();
        if let Some(known) = like.iter().find(|r| r.address == wanted.address) {
            return Ok(Some(known.id));
        }
        for known in like {
            if known.address.is_none() || self.is_clean(&known) {
                return self.move_to(known, wanted.address).map(Some);
            }
        }
        // The number of a forgotten participant may still stand in decisions.
        if !self.has_looked {
            return Ok(None);
        }
        let registered = ParticipantRecord { id: self.participants.next_id(), ..wanted };
        syncrep::run_here(|| participant_list::insert(&registered))?;
        let id = registered.id;
        self.warn_of_twin(&registered)?;
        // Something may have been left there before it was forgotten.
        self.add(registered, Some(Instant::now()), false);
        Ok(Some(id))
    }

    /// Whether nothing can be left on a participant: it has been swept clean, and nothing has been prepared there since
    /// that is not confirmed.
    fn is_clean(&self, registered: &ParticipantRecord) -> bool {
        let dbid = my_database();
        let ParticipantRecord { id, serverid, userid, .. } = *registered;
        let has_entry = entries::all()
            .iter()
            .any(|e| (e.dbid, e.serverid, e.userid) == (dbid, serverid, userid));
        let is_swept = self.participants.get(id).is_some_and(|p| !p.unswept && p.sweep.is_none());
        self.has_looked && is_swept && !has_entry && self.ledger.count_at(id) == 0
    }

    /// The server of a participant that is clean has another address now, or it was not known: it keeps its number.
    fn move_to(&mut self, registered: ParticipantRecord, address: Option<CString>) -> Result<i32> {
        let id = registered.id;
        syncrep::run_here(|| participant_list::move_to(&HashSet::from([id]), address.as_deref()))?;
        let moved = ParticipantRecord { address, ..registered };
        self.warn_of_twin(&moved)?;
        self.participants.change(id, |participant| {
            participant.registered = moved;
            participant.fenced = None;
        });
        Ok(id)
    }

    /// Two addresses of one server, or two servers of one image: which, cannot be known.
    fn warn_of_twin(&self, new: &ParticipantRecord) -> Result<()> {
        let twin = self
            .participants
            .beside(new)
            .map(|p| &p.registered)
            .find(|r| r.id != new.id && r.address.is_some() && r.address != new.address);
        let Some(twin) = twin else { return Ok(()) };
        let shown =
            |r: &ParticipantRecord| r.address.as_deref().map(text::carried).unwrap_or_default();
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
        self.look_at_all()?;
        let participants: HashSet<i32> = self.participants.ids().collect();
        for id in &participants {
            self.participants.change(*id, |participant| participant.due = Some(Instant::now()));
        }
        self.trying.push(Trying { slot, request, participants });
        Ok(())
    }

    /// Notes that a participant has been tried.
    pub(super) fn tried(&mut self, id: i32) {
        for trying in &mut self.trying {
            trying.participants.remove(&id);
        }
    }

    /// Whether somebody waits until a participant has been tried.
    pub(super) fn is_awaited(&self, id: i32) -> bool {
        self.trying.iter().any(|trying| trying.participants.contains(&id))
    }

    /// Answers those for whom all have been tried.
    pub(super) fn answer_trying(&mut self) {
        let known = &self.participants;
        self.trying.retain_mut(|trying| {
            trying.participants.retain(|id| known.has(*id));
            if trying.participants.is_empty() {
                requests::answer(trying.slot, &trying.request, Some(0));
            }
            !trying.participants.is_empty()
        });
    }

    fn forget_transaction(&mut self, request: &Request) -> Result<i32> {
        let Some(nonce) = Nonce::new(request.nonce) else { return Ok(0) };
        let ids = self.participants.with_mapping(request.serverid, request.userid);
        let (committed, _) = syncrep::run_here(|| {
            let row = decisions::all()
                .into_iter()
                .find(|row| row.nonce == nonce && row.decision == Decision::Committed);
            let committed: Vec<i32> = row
                .iter()
                .flat_map(|row| row.participants.iter().map(|p| p.0))
                .filter(|id| ids.contains(id))
                .collect();
            for id in &committed {
                forgotten::add(nonce, *id)?;
            }
            Ok(committed)
        })?;
        let mut forgotten = 0;
        for participant in ids.iter().filter_map(|id| self.participants.get(*id)) {
            let gid = participant.registered.gid(self.identity, nonce);
            forgotten += i32::from(entries::end(&gid, Why::GivenUp));
        }
        for id in &committed {
            self.forgotten.entry(nonce).or_default().insert(*id);
            if self.ledger.delivered(nonce, *id) {
                self.settle(nonce);
            }
        }
        Ok(forgotten.max(committed.len() as i32))
    }

    fn forget_server(&mut self, request: &Request) -> Result<i32> {
        let ids = self.participants.on_server(request.serverid);
        syncrep::run_here(|| participant_list::delete_server(request.serverid))?;
        for id in &ids {
            self.participants.remove(*id);
            self.ledger.remove(*id);
        }
        workers::new_generation();
        Ok((ids.len() + entries::end_server(request.serverid)) as i32)
    }
}

/// Whether somebody waits for the answer.
fn asked_still(r: &Replicating) -> bool {
    requests::waiting().iter().any(|(_, request)| request.serial == r.request.serial)
}

fn wanted(request: &Request) -> ParticipantRecord {
    ParticipantRecord {
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
    let taken = syncrep::run_here(|| {
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
        // SAFETY: sets a flag of the transaction: what is said of the label must outlive a crash.
        unsafe { pg_sys::ForceSyncCommit() };
        Ok(true)
    });
    // In use, or about to be: whoever asked looks again.
    taken.is_ok_and(|(taken, _)| taken)
}
