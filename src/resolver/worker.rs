//! The resolver of one database.
//!
//! After its start every participant on the durable list is due: a crash may have left something there.
//! From then on a backend that leaves something behind wakes it; what nobody tells, it finds in its rounds.
//! It also answers for its database: draws the identity, writes down participants, and deletes decisions
//! when all have confirmed and `forget_delay` has passed.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::CString;
use std::time::Instant;

use pgrx::pg_sys;

use crate::pg::error::{Result, boundary, c_string};
use crate::pg::syncrep;
use crate::pg::wait_event::WaitEvent;
use crate::protocol::gid::{Identity, Nonce};
use crate::protocol::ledger::Ledger;
use crate::remote::wait::{Interrupts, WaitSet};
use crate::resolver::process;
use crate::resolver::worker::participant::Participant;
use crate::resolver::worker::reading::Reading;
use crate::resolver::worker::roster::Roster;
use crate::shared::{seen, stats, workers};
use crate::store::participant_list::{self, ParticipantRecord};
use crate::store::{forgotten, identity, trusted};

mod participant;
mod pending;
mod reading;
mod requests;
mod roster;
mod sweeping;
mod telling;

/// The resolver's process; the argument is the database.
#[unsafe(no_mangle)]
pub extern "C-unwind" fn pg_fdw_xacts_resolver_main(argument: pg_sys::Datum) {
    boundary(|| {
        process::take_signals();
        let dbid = pg_sys::Oid::from_u32(argument.value() as u32);
        // SAFETY: a database to connect to, as superuser.
        unsafe {
            pg_sys::BackgroundWorkerInitializeConnectionByOid(
                dbid,
                pg_sys::Oid::INVALID,
                pg_sys::BGWORKER_BYPASS_ALLOWCONN,
            );
            pg_sys::before_shmem_exit(Some(at_exit), pg_sys::Datum::from(0));
        }
        process::introduce(process::RESOLVER);
        if !workers::become_resolver() {
            return Ok(());
        }
        while let Some(mut worker) = Worker::start()? {
            while workers::is_trusted() {
                worker.round()?;
            }
            if workers::is_paused() {
                return Ok(());
            }
        }
        workers::report_resolver(None);
        Ok(())
    });
}

unsafe extern "C-unwind" fn at_exit(_code: i32, _argument: pg_sys::Datum) {
    workers::leave_resolver();
}

struct Worker {
    identity: Identity,
    participants: Roster,
    /// Committed transactions that have not been confirmed by all.
    ledger: Ledger,
    /// Transactions that all participants have confirmed, oldest first.
    confirmed: VecDeque<(Instant, Nonce)>,
    /// The same, to look up.
    settled: HashSet<Nonce>,
    /// What is not delivered any more: its decision stays.
    forgotten: HashMap<Nonce, HashSet<i32>>,
    /// Participants that are not clean on servers for whose statistics there was no place.
    elsewhere: HashMap<pg_sys::Oid, u64>,
    /// Backends that wait until each of these participants has been tried.
    trying: Vec<requests::Trying>,
    /// Up to where WAL had been written when it started: an earlier one may have left what no standby has.
    started: pg_sys::XLogRecPtr,
    /// Backends whose answer waits for the synchronous standbys.
    replicating: Vec<requests::Replicating>,
    /// What is being read through, a part in each round.
    reading: Option<Reading>,
    /// It has looked through the decision table since it has started.
    has_looked: bool,
    next_look: Instant,
    next_reap: Instant,
    next_forget: Instant,
    next_expiry: Instant,
    /// Not all that is due could be tried in this round.
    more_due: bool,
    /// What backends had left when that was looked at last; None: it has to be looked at.
    left_seen: Option<u64>,
    /// What was shown last of what it does.
    shown: CString,
}

impl Worker {
    /// Reads the durable state; `None` where the extension is missing.
    fn start() -> Result<Option<Self>> {
        // Who is answered waits for the standbys, see `started`.
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
            confirmed: VecDeque::new(),
            settled: HashSet::new(),
            forgotten: HashMap::new(),
            elsewhere: HashMap::new(),
            trying: Vec::new(),
            started: syncrep::written_so_far(),
            replicating: Vec::new(),
            reading: None,
            has_looked: false,
            next_look: now,
            next_reap: now,
            next_forget: now,
            next_expiry: now,
            more_due: false,
            left_seen: None,
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
        // Commits need not wait until it has looked through a large table of decisions.
        worker.publish_unswept();
        workers::new_generation();
        workers::report_resolver(Some(identity));
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
        // In this order: who has asked acts on what is published.
        self.publish_unswept();
        self.answer_trying();
        self.answer_replicated();
        self.show();
        self.sleep()
    }

    /// Shows in `pg_stat_activity` what is under way.
    fn show(&mut self) {
        let sweeping = self.participants.sweeping();
        let sweeps = sweeping.iter().filter_map(|id| self.participants.get(*id)?.sweep.as_ref());
        let mut lines: Vec<Vec<u8>> = sweeps.map(|sweep| sweep.describe()).collect();
        lines.sort_unstable();
        let busy = !lines.is_empty();
        let text = if busy {
            lines.join(&b", "[..])
        } else {
            let (unswept, all) = (self.participants.unswept(), self.participants.len());
            format!("waiting; {unswept} of {all} participants to settle").into_bytes()
        };
        let text = c_string(text);
        if text != self.shown {
            process::show(busy, &text);
            self.shown = text;
        }
    }

    /// Tells everybody on which servers something may be left.
    fn publish_unswept(&mut self) {
        let changed = self.participants.take_changed();
        if changed.is_empty() {
            return;
        }
        for (serverid, unswept) in changed {
            self.elsewhere.remove(&serverid);
            if !stats::set_unswept(serverid, unswept) && unswept > 0 {
                self.elsewhere.insert(serverid, unswept);
            }
        }
        workers::set_unswept_elsewhere(self.elsewhere.values().sum());
        stats::report_lack();
    }

    /// Waits for the latch, for a participant's answer, or for the next thing to do.
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
        // What is due already waits for a sweep to end.
        if let Some(due) =
            self.participants.next_due().filter(|due| *due > now || interests.is_empty())
        {
            next = next.min(due);
        }
        if self.more_due {
            next = now;
        }
        if !self.replicating.is_empty() {
            next = next.min(now + requests::REPLICATION_POLL);
        }
        interests.retain(|interest| interest.socket >= 0);
        let sockets: Vec<_> = interests.iter().map(|interest| interest.socket).collect();
        let event = WaitEvent::ResolverMain;
        WaitSet::new(&sockets).wait(&interests, Some(next), Interrupts::Raise, event)?;
        Ok(())
    }

    fn note_confirmed(&mut self) {
        for nonce in workers::take_confirmed() {
            self.settle(nonce);
        }
    }

    /// All participants of a transaction have confirmed it.
    fn settle(&mut self, nonce: Nonce) {
        self.ledger.settled(nonce);
        // The decision that somebody may still need one day stays.
        if self.settled.insert(nonce) && !self.forgotten.contains_key(&nonce) {
            self.confirmed.push_back((Instant::now(), nonce));
        }
    }

    fn is_forgotten(&self, nonce: Nonce, id: i32) -> bool {
        self.forgotten.get(&nonce).is_some_and(|ids| ids.contains(&id))
    }
}
