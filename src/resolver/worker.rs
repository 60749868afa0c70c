//! The resolver of one database.
//!
//! After its start every participant on the durable list is due: a crash may have left something there.
//! From then on a backend that leaves something behind wakes it; what nobody tells, it finds in its rounds.
//! It also answers for its database: draws the identity, writes down participants, and deletes decisions
//! when all have confirmed and `forget_delay` has passed.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::CString;
use std::time::{Duration, Instant};

use pgrx::pg_sys;

use crate::guc;
use crate::log::left::Left;
use crate::log::registered::{self, Registered};
use crate::log::shmem::{Entry, Status};
use crate::log::{decisions, entries, labels, left, replication, seen, stats, workers};
use crate::pg::error::{Result, boundary, c_string};
use crate::pg::transaction;
use crate::pg::wait_event::WaitEvent;
use crate::protocol::gid::{Gid, Identity, Nonce};
use crate::protocol::verdict::{Decision, Reason};
use crate::remote::wait::{Patience, WaitSet};
use crate::resolver::process;
use crate::resolver::sweep::{Progress, Sweep};
use crate::resolver::worker::participant::Participant;

mod participant;
mod pending;
mod requests;
mod telling;

/// How often decisions whose time has come are deleted: that reads through the whole table, which grows with the delay.
fn forget_interval(delay: Duration) -> Duration {
    (delay / 10).clamp(Duration::from_secs(1), Duration::from_secs(30))
}

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
    participants: HashMap<i32, Participant>,
    /// Transactions that all participants have confirmed, oldest first.
    confirmed: VecDeque<(Instant, Nonce)>,
    /// The same, to look up.
    settled: HashSet<Nonce>,
    /// Which participants of a committed transaction have none of it left.
    delivered: HashMap<Nonce, HashSet<i32>>,
    /// What is not delivered any more: its decision stays.
    forgotten: HashSet<(Nonce, i32)>,
    /// What was told of servers on which something may be left.
    published: HashMap<pg_sys::Oid, u64>,
    /// Backends that wait until each of these participants has been tried.
    trying: Vec<requests::Trying>,
    /// Up to where WAL had been written when it started: an earlier one may have left what no standby has.
    started: pg_sys::XLogRecPtr,
    /// Backends whose answer waits for the synchronous standbys.
    replicating: Vec<requests::Replicating>,
    next_look: Instant,
    next_forget: Instant,
    /// What was shown last of what it does.
    shown: CString,
}

/// How much longer than `commit_timeout` an owner may take to settle before the resolver does.
const OWNER_GRACE: Duration = Duration::from_secs(10);

impl Worker {
    /// Reads the durable state; `None` where the extension is missing.
    fn start() -> Result<Option<Self>> {
        // Who is answered waits for the standbys, see `started`.
        let (state, _) = replication::run_here(|| {
            if !registered::extension_exists() {
                return Ok(None);
            }
            let identity = registered::identity()?;
            Ok(Some((identity, registered::all(), registered::forgotten())))
        })?;
        let Some((identity, list, forgotten)) = state else { return Ok(None) };
        let now = Instant::now();
        let mut worker = Self {
            identity,
            participants: HashMap::new(),
            confirmed: VecDeque::new(),
            settled: HashSet::new(),
            delivered: HashMap::new(),
            forgotten,
            published: HashMap::new(),
            trying: Vec::new(),
            started: replication::written_so_far(),
            replicating: Vec::new(),
            next_look: now,
            next_forget: now,
            shown: CString::default(),
        };
        let asked = seen::asked();
        for registered in list {
            let is_asked = asked.has(registered.id);
            worker.add(registered, Some(now), is_asked);
        }
        worker.look()?;
        worker.publish_unswept();
        workers::new_generation();
        workers::report_resolver(Some(identity));
        Ok(Some(worker))
    }

    fn add(&mut self, registered: Registered, due: Option<Instant>, asked: bool) {
        let id = registered.id;
        self.participants.insert(id, Participant::new(registered, due, asked));
    }

    fn round(&mut self) -> Result<()> {
        process::attend()?;
        self.answer_requests()?;
        self.note_confirmed();
        self.note_handed_over();
        if Instant::now() >= self.next_look {
            self.look()?;
        }
        self.forget()?;
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
        let sweeps = self.participants.values().filter_map(|p| p.sweep.as_ref());
        let mut lines: Vec<Vec<u8>> = sweeps.map(|sweep| sweep.describe()).collect();
        lines.sort_unstable();
        let busy = !lines.is_empty();
        let text = if busy {
            lines.join(&b", "[..])
        } else {
            let unswept = self.participants.values().filter(|p| p.unswept).count();
            format!("waiting; {unswept} of {} participants to settle", self.participants.len())
                .into_bytes()
        };
        let text = c_string(text);
        if text != self.shown {
            process::show(busy, &text);
            self.shown = text;
        }
    }

    /// Tells everybody on which servers something may be left.
    fn publish_unswept(&mut self) {
        let mut servers: HashMap<pg_sys::Oid, u64> = HashMap::new();
        for participant in self.participants.values() {
            *servers.entry(participant.registered.serverid).or_default() +=
                u64::from(participant.unswept);
        }
        let mut elsewhere = 0;
        for (serverid, unswept) in servers {
            if self.published.get(&serverid) == Some(&unswept) {
                continue;
            }
            if stats::set_unswept(serverid, unswept) {
                self.published.insert(serverid, unswept);
            } else {
                elsewhere += unswept;
            }
        }
        workers::set_unswept_elsewhere(elsewhere);
        stats::report_lack();
    }

    /// Waits for the latch, for a participant's answer, or for the next thing to do.
    fn sleep(&self) -> Result<()> {
        let mut next = self.next_look;
        let mut wants = Vec::new();
        for participant in self.participants.values() {
            match &participant.sweep {
                Some(sweep) => {
                    next = next.min(sweep.deadline());
                    wants.push(sweep.want());
                }
                // One that has to wait for another's sweep of the same place is woken by its end.
                None if self.is_busy_at(&participant.registered) => {}
                None => next = next.min(participant.due.unwrap_or(next)),
            }
        }
        if let Some((since, _)) = self.confirmed.front() {
            next = next.min((*since + guc::forget_delay()).max(self.next_forget));
        }
        if !self.replicating.is_empty() {
            next = next.min(Instant::now() + requests::REPLICATION_POLL);
        }
        wants.retain(|want| want.socket >= 0);
        let sockets: Vec<_> = wants.iter().map(|want| want.socket).collect();
        let event = WaitEvent::ResolverMain;
        WaitSet::new(&sockets).wait(&wants, Some(next), Patience::Interruptible, event)?;
        Ok(())
    }

    fn note_confirmed(&mut self) {
        for nonce in workers::take_confirmed() {
            self.settle(nonce);
        }
    }

    fn settle(&mut self, nonce: Nonce) {
        self.delivered.remove(&nonce);
        let forgotten = self.forgotten.iter().any(|(of, _)| *of == nonce);
        // The decision that somebody may still need one day stays.
        if self.settled.insert(nonce) && !forgotten {
            self.confirmed.push_back((Instant::now(), nonce));
        }
    }

    /// Makes participants due that a backend has left something on.
    fn note_handed_over(&mut self) {
        for mut entry in entries::left() {
            let Some(gid) = entry.gid() else { continue };
            if entry.participant != 0 && !self.participants.contains_key(&entry.participant) {
                left::release(&gid);
                entry.participant = 0;
            }
            match entry.status {
                Status::Committing | Status::Aborting => {}
                // It waits for the application; the fence is kept meanwhile.
                Status::Prepared => {
                    self.guard(&entry);
                    continue;
                }
                Status::Free | Status::Preparing => continue,
            }
            if entry.status == Status::Committing && self.settled.contains(&gid.nonce) {
                entries::remove(&gid);
                continue;
            }
            for participant in self.participants.values_mut() {
                if left::is_at(&entry, &participant.registered) {
                    participant.unswept = true;
                    participant.make_due();
                }
            }
        }
    }

    /// Has the fence taken where something waits for the application: a physical copy of this server, which knows
    /// nothing of it, would roll it back.
    fn guard(&mut self, entry: &Entry) {
        let waits: Vec<i32> = self
            .participants
            .values()
            .filter(|p| left::is_at(entry, &p.registered))
            .filter(|p| !self.is_fenced(&p.registered))
            .map(|p| p.registered.id)
            .collect();
        for id in waits {
            if let Some(participant) = self.participants.get_mut(&id) {
                participant.make_due();
            }
        }
    }

    /// Whether the fence is held, or being taken, in the same database of the same server.
    fn is_fenced(&self, registered: &Registered) -> bool {
        self.is_busy_at(registered)
            || self
                .participants
                .values()
                .any(|p| p.fenced.is_some() && p.registered.is_beside(registered))
    }

    /// Looks through the decision table for what nobody has told: after a start, and in every round.
    fn look(&mut self) -> Result<()> {
        self.next_look = Instant::now() + guc::resolver_interval();
        if transaction::run(|| Ok(registered::known_identity()))? != Some(self.identity) {
            // The extension has been dropped, and perhaps created again.
            workers::doubt_resolver();
            return Ok(());
        }
        entries::reap(guc::commit_timeout() + OWNER_GRACE);
        replication::run_here(|| {
            stats::forget_dropped();
            labels::expire(guc::track_retention())
        })?;
        // Most are settled, and wait to be forgotten.
        let rows = transaction::run(|| Ok(decisions::but(|nonce| self.settled.contains(nonce))))?;
        let owned = self.owned();
        for row in &rows {
            if owned.contains(&row.nonce) {
                continue;
            }
            for (id, remote_xid) in &row.participants {
                if self.forgotten.contains(&(row.nonce, *id)) {
                    continue;
                }
                let Some(participant) = self.participants.get_mut(id) else { continue };
                let gid = participant.registered.gid(self.identity, row.nonce);
                match row.decision {
                    // Nobody owns it, so it is prepared here: it waits for the application.
                    Decision::InProgress => pending::adopt(&gid, (*id, *remote_xid), row),
                    // Nobody knows yet whether it has heard. Most have: they are not shown, and take no entry that
                    // a running transaction may need.
                    _ => {
                        participant.unswept = true;
                        participant.make_due();
                    }
                }
            }
        }
        pending::note_ended();
        self.note_handed_over();
        Ok(())
    }

    /// The transactions that a living backend looks after.
    fn owned(&self) -> HashSet<Nonce> {
        entries::owned().iter().filter_map(|e| Nonce::new(e.nonce)).collect()
    }

    /// Deletes the decisions whose time has come.
    fn forget(&mut self) -> Result<()> {
        let now = Instant::now();
        if now < self.next_forget {
            return Ok(());
        }
        let delay = guc::forget_delay();
        let due = self.confirmed.iter().take_while(|(since, _)| *since + delay <= now).count();
        if due == 0 {
            return Ok(());
        }
        self.next_forget = now + forget_interval(delay);
        let nonces: HashSet<Nonce> = self.confirmed.iter().take(due).map(|(_, n)| *n).collect();
        replication::run_here(|| decisions::delete(&nonces))?;
        self.confirmed.drain(..due);
        for nonce in nonces {
            self.settled.remove(&nonce);
        }
        Ok(())
    }

    /// Whether a sweep is under way in the same database of the same server.
    fn is_busy_at(&self, registered: &Registered) -> bool {
        self.participants.values().any(|p| p.sweep.is_some() && p.registered.is_beside(registered))
    }

    /// Starts the sweeps that are due.
    fn start_sweeps(&mut self) -> Result<()> {
        let now = Instant::now();
        let is_due = |p: &Participant| p.sweep.is_none() && p.due.is_some_and(|due| due <= now);
        if !self.participants.values().any(is_due) {
            return Ok(());
        }
        let owned = self.owned();
        let mut failed = Vec::new();
        let mut due: Vec<(Option<Instant>, i32)> = self
            .participants
            .values()
            .filter(|p| is_due(p))
            .map(|p| (p.due, p.registered.id))
            .collect();
        due.sort_unstable();
        for (_, id) in due {
            let Some(registered) = self.participants.get(&id).map(|p| p.registered.clone()) else {
                continue;
            };
            // Only one session of ours can hold the fence there.
            if self.is_busy_at(&registered) {
                continue;
            }
            for other in self.participants.values_mut() {
                if other.registered.id != id && other.registered.is_beside(&registered) {
                    other.fenced = None;
                }
            }
            let stand_ins: Vec<Registered> = self
                .participants
                .values()
                .map(|p| &p.registered)
                .filter(|r| {
                    r.id != id && r.is_beside(&registered) && r.address == registered.address
                })
                .cloned()
                .collect();
            let Some(participant) = self.participants.get_mut(&id) else { continue };
            participant.due = None;
            let fenced = participant.fenced.take();
            let seen = participant.seen.clone();
            // Nor what this one has none left of while others have: it is looked at, and counted, once.
            let confirmed = |nonce: &Nonce| {
                self.settled.contains(nonce)
                    || owned.contains(nonce)
                    || self.delivered.get(nonce).is_some_and(|ids| ids.contains(&id))
            };
            // Copied, because what is undelivered is noted on the participant itself.
            let by = participant.connect_as(&stand_ins).clone();
            match Sweep::start(
                self.identity,
                &participant.registered,
                &by,
                fenced,
                seen,
                confirmed,
                &mut participant.undelivered,
            ) {
                Ok(sweep) => participant.sweep = Some(Box::new(sweep)),
                Err(error) => {
                    failed.push(participant.registered.id);
                    participant.failed(error)?;
                }
            }
        }
        for id in failed {
            self.tried(id);
        }
        Ok(())
    }

    /// Takes the sweeps that are on their way as far as they go without waiting.
    fn advance_sweeps(&mut self) -> Result<()> {
        let mut delivered = Vec::new();
        let mut heuristic: Vec<(Nonce, i32)> = Vec::new();
        let mut done = Vec::new();
        for participant in self.participants.values_mut() {
            let Some(sweep) = participant.sweep.take() else { continue };
            match sweep.advance() {
                Ok(Progress::Waits(sweep)) => participant.sweep = Some(sweep),
                Ok(Progress::Done(swept)) => {
                    let id = participant.registered.id;
                    heuristic.extend(swept.heuristic.iter().map(|nonce| (*nonce, id)));
                    done.push((id, Ok(swept)));
                }
                Err(failure) => done.push((participant.registered.id, Err(failure))),
            }
        }
        // What has gone from there without us may come back, with a restore or on the server that we were not shown: its
        // decision is kept for ever.
        if !heuristic.is_empty() {
            replication::run_here(|| {
                heuristic.iter().try_for_each(|(nonce, id)| registered::forget(*nonce, *id))
            })?;
            self.forgotten.extend(heuristic);
        }
        for (id, outcome) in done {
            self.tried(id);
            let elsewhere = match &outcome {
                Ok(swept) => self.of_others(id, &swept.left),
                Err(_) => HashSet::new(),
            };
            let Some(participant) = self.participants.get_mut(&id) else { continue };
            match outcome {
                Ok(swept) => {
                    delivered.extend(swept.delivered.iter().map(|(n, of)| (*n, id, of.clone())));
                    participant.swept(*swept, &elsewhere)?;
                }
                Err(failure) => {
                    let is_elsewhere = failure.reason == Reason::OtherServer;
                    participant.failed(failure)?;
                    // It may have been written down that it moved, in a sweep that then failed.
                    if is_elsewhere {
                        participant.read_address()?;
                    }
                }
            }
        }
        self.note_asked_by_others();
        for (nonce, id, of) in delivered {
            self.note_delivered(nonce, id, &of);
        }
        Ok(())
    }

    /// What has lost its server or user mapping is asked by others in the same database, if there are any.
    fn note_asked_by_others(&mut self) {
        if !self.participants.values().any(Participant::cannot_be_asked) {
            return;
        }
        let place = |r: &Registered| (r.system_identifier, r.database.clone());
        let asked: HashSet<_> = self
            .participants
            .values()
            .filter(|p| p.is_asked())
            .map(|p| place(&p.registered))
            .collect();
        for participant in self.participants.values_mut() {
            if participant.cannot_be_asked() && asked.contains(&place(&participant.registered)) {
                participant.note_asked();
            }
        }
    }

    /// What one mapping's role may not settle, and the one that has prepared it may: that one is swept next.
    fn of_others(&mut self, id: i32, left: &[Left]) -> HashSet<Gid> {
        let mut elsewhere = HashSet::new();
        for gid in left.iter().filter(|l| l.reason == Reason::NotAllowed).map(|l| l.gid) {
            for other in self.participants.values_mut() {
                let r = &other.registered;
                if r.id != id && (r.serverid, r.userid) == (gid.serverid.into(), gid.userid.into())
                {
                    elsewhere.insert(gid);
                    other.unswept = true;
                    other.make_due();
                }
            }
        }
        elsewhere
    }

    /// One participant of a committed transaction has none of it left. When all have none, it is confirmed.
    fn note_delivered(&mut self, nonce: Nonce, id: i32, all: &[i32]) {
        if self.settled.contains(&nonce) {
            return;
        }
        let delivered = self.delivered.entry(nonce).or_default();
        delivered.insert(id);
        if all.iter().all(|id| delivered.contains(id) || self.forgotten.contains(&(nonce, *id))) {
            self.settle(nonce);
        }
    }
}
