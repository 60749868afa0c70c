//! The resolver of one database.
//!
//! When it starts, it sweeps every participant on the durable list: a crash may have left something
//! there. From then on, a backend that leaves something in doubt wakes it; what backends cannot
//! tell it finds by reading the decision table from time to time.
//!
//! It also does for its database what only one process may do: it draws the identity, writes
//! participants down, and deletes decisions when all participants have confirmed and `forget_delay`
//! has passed.
//!
//! * [`answering`]: does what backends ask for;
//! * [`sweeping`]: takes in what backends have left, and starts sweeps; [`results`]: what follows;
//! * [`reading`]: reads the tables;
//! * [`addresses`]: where the foreign servers are;
//! * [`participant`]: one participant, and when to sweep it; [`roster`]: all of them;
//! * [`pending`]: what is prepared here under the application's 'gxid';
//! * [`telling`]: what the log says of what is left.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::CString;
use std::time::Instant;

use pgrx::pg_sys;

use crate::pg::error::{Result, boundary, c_string};
use crate::pg::syncrep;
use crate::pg::wait_event::WaitEvent;
use crate::protocol::gid::{Identity, Nonce};
use crate::protocol::ledger::Ledger;
use crate::remote::app_name;
use crate::remote::wait::{Interrupts, WaitSet};
use crate::resolver::process;
use crate::resolver::waits::Detector;
use crate::resolver::worker::participant::Participant;
use crate::resolver::worker::reading::Reading;
use crate::resolver::worker::roster::Roster;
use crate::shared::{confirmed, resolvers, seen, stats};
use crate::store::participant_list::{self, ParticipantRecord};
use crate::store::{forgotten, identity, trusted};

mod addresses;
mod answering;
mod participant;
mod pending;
mod reading;
mod results;
mod roster;
mod sweeping;
mod telling;

/// The resolver's process; the argument is the database.
#[unsafe(no_mangle)]
pub extern "C-unwind" fn pg_fdw_xacts_resolver_main(argument: pg_sys::Datum) {
    boundary(|| {
        process::take_signals();
        let dbid = pg_sys::Oid::from_u32(argument.value() as u32);
        // SAFETY: called once in a new background worker; connects as superuser.
        unsafe {
            pg_sys::BackgroundWorkerInitializeConnectionByOid(
                dbid,
                pg_sys::Oid::INVALID,
                pg_sys::BGWORKER_BYPASS_ALLOWCONN,
            );
            pg_sys::before_shmem_exit(Some(at_exit), pg_sys::Datum::from(0));
        }
        process::introduce(app_name::RESOLVER);
        if !resolvers::become_resolver() {
            return Ok(());
        }
        while let Some(mut worker) = Worker::start()? {
            while resolvers::is_trusted() {
                worker.round()?;
            }
            if resolvers::is_paused() {
                return Ok(());
            }
        }
        resolvers::report(None);
        Ok(())
    });
}

unsafe extern "C-unwind" fn at_exit(_code: i32, _argument: pg_sys::Datum) {
    resolvers::leave();
}

struct Worker {
    identity: Identity,
    participants: Roster,
    /// Committed transactions that not all of their participants have confirmed.
    ledger: Ledger,
    /// Transactions that all participants have confirmed, and whose decisions are not deleted yet.
    confirmed: HashSet<Nonce>,
    /// Decisions to delete, with the time from which `forget_delay` counts; oldest first.
    to_delete: VecDeque<(Instant, Nonce)>,
    /// What an operator has given up, by transaction: the numbers of the participants. Their
    /// decisions are kept.
    forgotten: HashMap<Nonce, HashSet<i32>>,
    /// By server without a place for statistics: how many participants may have something left
    /// there.
    elsewhere: HashMap<pg_sys::Oid, u64>,
    /// Backends that wait until each of these participants has been tried.
    trying: Vec<answering::Trying>,
    /// How far WAL had been written when this process started: an earlier resolver may have written
    /// what no standby has yet.
    started: pg_sys::XLogRecPtr,
    /// Backends whose answer waits for the synchronous standbys.
    replicating: Vec<answering::Replicating>,
    /// The table that is being read, a part in each round.
    reading: Option<Reading>,
    /// This process has read the whole decision table.
    has_looked: bool,
    last_look: Option<Instant>,
    next_reap: Instant,
    next_forget: Instant,
    last_expiry: Option<Instant>,
    /// Not every participant that is due could be tried in this round.
    more_due: bool,
    /// [`entries::left_changes`] when [`Worker::note_handed_over`] ran last; None if it has to run.
    ///
    /// [`entries::left_changes`]: crate::shared::entries::left_changes
    left_seen: Option<u64>,
    /// Looks for deadlocks.
    waits: Detector,
    /// What `pg_stat_activity` shows of this process.
    shown: CString,
}

impl Worker {
    /// Reads the durable state; `None` if the extension is missing.
    fn start() -> Result<Option<Self>> {
        // Does not wait for synchronous standbys: answers to backends do, see `started`.
        let (state, _) = syncrep::run_here(|| {
            if !trusted::extension_exists() {
                return Ok(None);
            }
            let identity = identity::known_or_drawn()?;
            Ok(Some((identity, participant_list::all(), forgotten::all())))
        })?;
        let Some((identity, list, forgotten)) = state else { return Ok(None) };
        let now = Instant::now();
        let mut worker = Self {
            identity,
            participants: Roster::default(),
            ledger: Ledger::default(),
            confirmed: HashSet::new(),
            to_delete: VecDeque::new(),
            forgotten: HashMap::new(),
            elsewhere: HashMap::new(),
            trying: Vec::new(),
            started: syncrep::written_so_far(),
            replicating: Vec::new(),
            reading: None,
            has_looked: false,
            last_look: None,
            next_reap: now,
            next_forget: now,
            last_expiry: None,
            more_due: false,
            left_seen: None,
            waits: Detector::default(),
            shown: CString::default(),
        };
        for (nonce, id) in forgotten {
            worker.forgotten.entry(nonce).or_default().insert(id);
        }
        let asked = seen::asked();
        for registered in list {
            let is_asked = asked.has(registered.id);
            worker.add(registered, Some(now), is_asked);
        }
        // It is ready before it has read the decision table, so that commits do not have to wait.
        worker.publish_unsettled();
        resolvers::new_generation();
        resolvers::report(Some(identity));
        Ok(Some(worker))
    }

    fn add(&mut self, registered: ParticipantRecord, due: Option<Instant>, asked: bool) {
        self.participants.add(Participant::new(registered, due, asked));
    }

    fn round(&mut self) -> Result<()> {
        process::attend()?;
        self.answer_requests()?;
        self.note_confirmed();
        self.reap();
        self.note_handed_over();
        self.read_on()?;
        self.start_sweeps()?;
        self.advance_sweeps()?;
        self.waits.round(self.identity)?;
        // In this order: a backend that is answered acts on what was published.
        self.publish_unsettled();
        self.answer_trying();
        self.answer_replicated();
        self.show();
        self.sleep()
    }

    /// Shows in `pg_stat_activity` what this process does.
    fn show(&mut self) {
        let sweeping = self.participants.sweeping();
        let sweeps = sweeping.iter().filter_map(|id| self.participants.get(*id)?.sweep.as_ref());
        let mut lines: Vec<Vec<u8>> = sweeps.map(|sweep| sweep.describe()).collect();
        lines.sort_unstable();
        let busy = !lines.is_empty();
        let text = if busy {
            lines.join(&b", "[..])
        } else {
            let (unsettled, all) = (self.participants.unsettled(), self.participants.len());
            format!("waiting; {unsettled} of {all} participants to settle").into_bytes()
        };
        let text = c_string(text);
        if text != self.shown {
            process::show(busy, &text);
            self.shown = text;
        }
    }

    /// Publishes in shared memory on which servers something may be left.
    fn publish_unsettled(&mut self) {
        let changed = self.participants.take_changed();
        if changed.is_empty() {
            return;
        }
        for (serverid, unsettled) in changed {
            self.elsewhere.remove(&serverid);
            if !stats::set_unsettled(serverid, unsettled) && unsettled > 0 {
                self.elsewhere.insert(serverid, unsettled);
            }
        }
        resolvers::set_unsettled_elsewhere(self.elsewhere.values().sum());
        stats::report_lack();
    }

    /// Waits for the latch, for a participant's answer, or until the next thing is due.
    fn sleep(&self) -> Result<()> {
        let now = Instant::now();
        let mut next = self.next_reading().min(self.next_reap);
        let mut interests = Vec::new();
        for id in self.participants.sweeping() {
            let Some(sweep) = self.participants.get(id).and_then(|p| p.sweep.as_ref()) else {
                continue;
            };
            next = next.min(sweep.deadline());
            interests.push(sweep.interest());
        }
        // A participant that is due already waits for another sweep to end.
        if let Some(due) =
            self.participants.next_due().filter(|due| *due > now || interests.is_empty())
        {
            next = next.min(due);
        }
        if self.more_due {
            next = now;
        }
        if !self.replicating.is_empty() {
            next = next.min(now + answering::REPLICATION_POLL);
        }
        next = self.waits.deadline().map_or(next, |deadline| next.min(deadline));
        interests.extend(self.waits.interests());
        interests.retain(|interest| interest.socket >= 0);
        let sockets: Vec<_> = interests.iter().map(|interest| interest.socket).collect();
        let event = WaitEvent::ResolverMain;
        WaitSet::new(&sockets).wait(&interests, Some(next), Interrupts::Raise, event)?;
        Ok(())
    }

    fn note_confirmed(&mut self) {
        for nonce in confirmed::take() {
            self.all_confirmed(nonce);
        }
    }

    /// All participants of a transaction have confirmed it.
    fn all_confirmed(&mut self, nonce: Nonce) {
        self.ledger.confirmed_by_all(nonce);
        // Where a participant was given up, its prepared transaction may still come to light: then
        // it needs the decision.
        if self.confirmed.insert(nonce) && !self.forgotten.contains_key(&nonce) {
            self.to_delete.push_back((Instant::now(), nonce));
        }
    }

    fn is_forgotten(&self, nonce: Nonce, id: i32) -> bool {
        self.forgotten.get(&nonce).is_some_and(|ids| ids.contains(&id))
    }
}
