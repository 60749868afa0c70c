//! The resolver's side of [`requests`]: does what backends ask for, and answers them.

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::time::{Duration, Instant};

use pgrx::PgLogLevel;
use pgrx::pg_sys::{self, Oid};

use super::Worker;
use crate::pg::error::{Error, Result, SqlState};
use crate::pg::globals::{last_commit_end, my_database};
use crate::pg::{syncrep, text, transaction};
use crate::protocol::gid::{Gid, Nonce};
use crate::protocol::verdict::Decision;
use crate::remote::options::Server;
use crate::resolver::worker::participant::Participant;
use crate::shared::entry_change::Why;
use crate::shared::requests::{Ask, Request};
use crate::shared::{entries, hold, requests, resolvers, seen};
use crate::store::participant_list::{self, ParticipantRecord};
use crate::store::{decisions, forgotten, labels};

/// A backend that waits until each of these participants has been tried.
pub(super) struct Trying {
    request: Request,
    participants: HashSet<i32>,
}

/// A backend whose answer waits until the synchronous standbys have what the answer rests on.
pub(super) struct Replicating {
    request: Request,
    answer: i32,
    position: pg_sys::XLogRecPtr,
}

/// How often the resolver checks whether they have.
pub(super) const REPLICATION_POLL: Duration = Duration::from_millis(10);

impl Worker {
    /// Does what backends ask for.
    pub(super) fn answer_requests(&mut self) -> Result<()> {
        for (request, ask) in requests::waiting() {
            if self.is_in_hand(&request) {
                continue;
            }
            let answer = match ask {
                Ask::Register { serverid, userid, system_identifier, database } => {
                    let wanted = ParticipantRecord {
                        id: 0,
                        serverid,
                        userid,
                        system_identifier,
                        database,
                        address: None,
                    };
                    match self.register(wanted).transpose() {
                        Some(answer) => answer,
                        // Tried again when the whole decision table has been read.
                        None => continue,
                    }
                }
                Ask::ForgetTransaction { nonce, serverid, userid } => {
                    self.forget_transaction(nonce, serverid, userid)
                }
                Ask::ForgetServer(serverid) => self.forget_server(serverid),
                Ask::TakeLabel(label) => Ok(i32::from(take_label(&label))),
                Ask::Resolve => {
                    self.try_all(request)?;
                    continue;
                }
            };
            match answer {
                Ok(answer) => {
                    // What the answer rests on was written before this point, by this request or by
                    // an earlier one.
                    let position = last_commit_end().max(self.started);
                    self.replicating.push(Replicating { request, answer, position });
                }
                Err(error) => {
                    request.answer(None);
                    error.log(PgLogLevel::WARNING)?;
                }
            }
        }
        self.answer_replicated();
        Ok(())
    }

    /// Whether the resolver has begun a request that it has not answered yet.
    fn is_in_hand(&self, request: &Request) -> bool {
        self.trying.iter().any(|t| t.request.is(request))
            || self.replicating.iter().any(|r| r.request.is(request))
    }

    /// Answers those whose answer the synchronous standbys have; the resolver does not wait for
    /// these.
    pub(super) fn answer_replicated(&mut self) {
        self.replicating.retain(|r| {
            let replicated = syncrep::outlives_a_failover(r.position);
            if replicated {
                r.request.answer(Some(r.answer));
            }
            !replicated && r.request.is_waiting()
        });
    }

    /// Writes down a participant that a backend is about to prepare on, and returns its number;
    /// `None`: it cannot be done yet. The server's address is read from the catalog; the backend
    /// makes sure that its connection was made to that address.
    fn register(&mut self, mut wanted: ParticipantRecord) -> Result<Option<i32>> {
        wanted.address =
            transaction::run(|| Ok(Server::find(wanted.serverid)))?.map(|server| server.address());
        let of_mapping = self.participants.with_mapping(wanted.serverid, wanted.userid);
        // The same participant, but perhaps at another address.
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
            if known.address.is_none() || self.is_settled(&known) {
                return self.move_to(known, wanted.address).map(Some);
            }
        }
        // The number of a participant that was forgotten may still stand in a decision.
        if !self.has_looked {
            return Ok(None);
        }
        let registered = ParticipantRecord { id: self.participants.next_id(), ..wanted };
        syncrep::run_here(|| participant_list::insert(&registered))?;
        // Before anybody prepares there.
        hold::add_participant();
        let id = registered.id;
        seen::add_new(id);
        self.warn_of_twin(&registered)?;
        // Something may have been left there before it was forgotten.
        self.add(registered, Some(Instant::now()), false);
        Ok(Some(id))
    }

    /// Whether nothing can be left on a participant: a sweep has left nothing there, and nothing
    /// has been prepared there since that is not confirmed.
    fn is_settled(&self, registered: &ParticipantRecord) -> bool {
        let itself = self.participants.get(registered.id);
        itself.is_some_and(|p| !p.unsettled && p.sweep.is_none())
            && self.nothing_is_noted_at(registered)
    }

    /// Whether neither entries nor decisions tell of anything that may be left on a participant.
    pub(super) fn nothing_is_noted_at(&self, registered: &ParticipantRecord) -> bool {
        let dbid = my_database();
        let ParticipantRecord { id, serverid, userid, .. } = *registered;
        let has_entry = entries::all()
            .iter()
            .any(|e| (e.dbid, e.serverid, e.userid) == (dbid, serverid, userid));
        self.has_looked && !has_entry && self.ledger.count_at(id) == 0
    }

    /// A participant with nothing left on it has another address now, or one that was not recorded:
    /// it keeps its number.
    fn move_to(&mut self, registered: ParticipantRecord, address: Option<CString>) -> Result<i32> {
        let id = registered.id;
        syncrep::run_here(|| participant_list::move_to(&HashSet::from([id]), address.as_deref()))?;
        hold::add_participant();
        let moved = ParticipantRecord { address, ..registered };
        self.warn_of_twin(&moved)?;
        self.participants.change(id, |participant| {
            participant.registered = moved;
            participant.fenced = None;
            participant.listed.clear();
            participant.has_to_be_swept();
        });
        Ok(id)
    }

    /// Warns of two addresses that look like one server from inside. Whether it is one server or
    /// two copies of an image cannot be known.
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

    /// Makes every participant due; answered when each has been tried.
    fn try_all(&mut self, request: Request) -> Result<()> {
        self.look_at_all()?;
        let participants: HashSet<i32> = self.participants.ids().collect();
        for id in &participants {
            self.participants.change(*id, |participant| participant.due = Some(Instant::now()));
        }
        self.trying.push(Trying { request, participants });
        Ok(())
    }

    /// A participant has been tried.
    pub(super) fn tried(&mut self, id: i32) {
        for trying in &mut self.trying {
            trying.participants.remove(&id);
        }
    }

    /// Whether a backend waits until a participant has been tried.
    pub(super) fn is_awaited(&self, id: i32) -> bool {
        self.trying.iter().any(|trying| trying.participants.contains(&id))
    }

    /// Answers those for whom every participant has been tried.
    pub(super) fn answer_trying(&mut self) {
        let known = &self.participants;
        self.trying.retain_mut(|trying| {
            trying.participants.retain(|id| known.has(*id));
            if trying.participants.is_empty() {
                trying.request.answer(Some(0));
            }
            !trying.participants.is_empty()
        });
    }

    fn forget_transaction(&mut self, nonce: Nonce, serverid: Oid, userid: Oid) -> Result<i32> {
        let ids = self.participants.with_mapping(serverid, userid);
        let (committed, _) = syncrep::run_here(|| {
            let row = decisions::of_nonce(nonce);
            let committed: Vec<i32> = row
                .iter()
                .filter(|row| row.decision == Decision::Committed)
                .flat_map(|row| row.participants.iter().map(|p| p.0))
                .filter(|id| ids.contains(id))
                .collect();
            for id in &committed {
                forgotten::add(nonce, *id)?;
            }
            Ok(committed)
        })?;
        // It may be of a participant that is not on the list any more.
        let gid = Gid {
            identity: self.identity,
            nonce,
            serverid: serverid.to_u32(),
            userid: userid.to_u32(),
        };
        let forgotten = i32::from(entries::end(&gid, Why::GivenUp));
        for id in ids {
            self.participants.change(id, Participant::has_to_be_swept);
        }
        for id in &committed {
            self.forgotten.entry(nonce).or_default().insert(*id);
            if self.ledger.confirmed_by(nonce, *id) {
                self.all_confirmed(nonce);
            }
        }
        Ok(forgotten.max(committed.len() as i32))
    }

    fn forget_server(&mut self, serverid: Oid) -> Result<i32> {
        // What was left just now is taken in with all its participants: the decision stays for
        // those that are given up.
        self.note_handed_over();
        let ids = self.participants.on_server(serverid);
        syncrep::run_here(|| participant_list::delete_server(serverid))?;
        for id in &ids {
            self.participants.remove(*id);
            self.ledger.remove(*id);
        }
        resolvers::new_generation();
        Ok((ids.len() + entries::end_server(serverid)) as i32)
    }
}

/// Takes a label; `false` if a transaction has used it. Does not wait for one that is about to,
/// because other backends wait for the resolver.
fn take_label(label: &CStr) -> bool {
    let taken = syncrep::run_here(|| {
        if labels::find(label)?.is_some() {
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
        labels::insert(label, true)?;
        // SAFETY: sets a flag of the transaction: what is said of the label must outlive a crash.
        unsafe { pg_sys::ForceSyncCommit() };
        Ok(true)
    });
    // In use, or about to be: the backend reads the label again.
    taken.is_ok_and(|(taken, _)| taken)
}
