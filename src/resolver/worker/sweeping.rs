//! Which participants are swept now, together with which others, and what has come of it.

use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::time::{Duration, Instant};

use pgrx::pg_sys::{Oid, TransactionId};

use super::Worker;
use crate::pg::error::Result;
use crate::pg::{syncrep, transaction};
use crate::protocol::gid::{Gid, Nonce};
use crate::protocol::verdict::{Decision, Reason};
use crate::remote::options::Server;
use crate::resolver::sweep::failure::Failure;
use crate::resolver::sweep::{Decisions, Open, Progress, Subject, Sweep, Swept};
use crate::resolver::worker::participant::Participant;
use crate::shared::entries;
use crate::shared::entry::{Entry, Status};
use crate::shared::left::{self, Left, Members};
use crate::store::participant_list::ParticipantRecord;
use crate::store::{decisions, forgotten};

/// How many sweeps run at a time, and how many of them on one server.
const SWEEPS: usize = 128;
const SWEEPS_ON_SERVER: usize = 16;

/// How long one round may spend on sweeps that fail to start: others are served between many that fail at once, for
/// example because their servers have been dropped.
const FAILING: Duration = Duration::from_millis(10);

/// How many others are tried in the place of one whose server has gone.
const STAND_INS: usize = 16;

/// How many committed transactions one sweep asks for: others are served between two.
const OPEN_IN_SWEEP: usize = 10_000;

/// Where each server is, as its options say; none for one that has gone.
type Addresses = HashMap<Oid, Option<CString>>;

fn address(serverid: Oid) -> Option<CString> {
    Server::find(serverid).map(|server| server.address())
}

impl Worker {
    /// Starts the sweeps that are due; those that could not be started now are begun in the next round.
    pub(super) fn start_sweeps(&mut self) -> Result<()> {
        self.more_due = false;
        let now = Instant::now();
        let due = self.participants.due(now);
        if due.is_empty() {
            return Ok(());
        }
        let mut sweeps: HashMap<u64, usize> = HashMap::new();
        let mut all = 0;
        for id in self.participants.sweeping() {
            if let Some(participant) = self.participants.get(id) {
                *sweeps.entry(participant.registered.system_identifier).or_default() += 1;
                all += 1;
            }
        }
        let owned: HashSet<Gid> = entries::owned().iter().filter_map(Entry::gid).collect();
        let left = entries::left();
        let mut addresses = Addresses::new();
        for id in due {
            if all >= SWEEPS {
                break;
            }
            // One that was taken along by another since is not due any more, and one beside another waits.
            if !self.participants.is_startable(id, now) {
                continue;
            }
            let Some(registered) = self.participants.get(id).map(|p| p.registered.clone()) else {
                continue;
            };
            let on_server = sweeps.entry(registered.system_identifier).or_default();
            if *on_server >= SWEEPS_ON_SERVER {
                continue;
            }
            if self.start_sweep(registered, &owned, &left, &mut addresses)? {
                *on_server += 1;
                all += 1;
                continue;
            }
            if now.elapsed() >= FAILING {
                self.more_due = true;
                break;
            }
        }
        Ok(())
    }

    /// Starts to sweep a participant and those beside it; tells whether that was possible.
    fn start_sweep(
        &mut self,
        registered: ParticipantRecord,
        owned: &HashSet<Gid>,
        left: &[Entry],
        addresses: &mut Addresses,
    ) -> Result<bool> {
        let id = registered.id;
        let group = self.group(&registered, addresses)?;
        // Only one session of ours can hold the fence there.
        let mut fenced = None;
        for holder in self.participants.fenced_at(&registered) {
            let kept = self.participants.change(holder, |p| p.fenced.take()).flatten();
            if holder == id {
                fenced = kept;
            }
        }
        let mut seen = HashSet::new();
        let mut committed = Vec::new();
        let mut members = Vec::new();
        for member in group {
            let taken = self.participants.change(member, |p| {
                p.due = None;
                (p.registered.clone(), std::mem::take(&mut p.seen))
            });
            let Some((registered, of_member)) = taken else { continue };
            seen.extend(of_member);
            for (nonce, remote_xid) in self.ledger.open_at(member) {
                let gid = registered.gid(self.identity, nonce);
                if committed.len() == OPEN_IN_SWEEP {
                    break;
                }
                if !owned.contains(&gid) {
                    let xid = TransactionId::from(self.ledger.xid(nonce).unwrap_or(0));
                    committed.push(Open { gid, participant: member, remote_xid, xid });
                }
            }
            members.push(registered);
        }
        let list = members;
        let members: Members = list.iter().collect();
        let mut left = left.to_vec();
        left.retain(|e| e.status.is_decided() && members.have(e));
        let mut stand_ins: Vec<ParticipantRecord> =
            list.into_iter().filter(|member| member.id != id).collect();
        if stand_ins.is_empty() {
            stand_ins = self.stand_ins(&registered);
        }
        let by = self.participants.get(id).map(|p| p.connect_as(&stand_ins).clone());
        let by = by.unwrap_or_else(|| registered.clone());
        let (identity, participant) = (self.identity, registered);
        let subject = Subject { identity, participant, by, members, left, seen, committed };
        match Sweep::start(subject, fenced) {
            Ok(sweep) => {
                self.participants.change(id, |p| p.sweep = Some(Box::new(sweep)));
                Ok(true)
            }
            Err(failure) => {
                self.failed(id, failure)?;
                Ok(false)
            }
        }
    }

    /// The participants that one session can ask for: in one place, and reached in the same way. That two servers look the
    /// same from inside does not make them one: they may be copies.
    fn group(&self, registered: &ParticipantRecord, addresses: &mut Addresses) -> Result<Vec<i32>> {
        let beside: Vec<(i32, Oid)> = self
            .participants
            .beside(registered)
            .filter(|p| p.registered.address == registered.address)
            .map(|p| (p.registered.id, p.registered.serverid))
            .collect();
        let unknown: HashSet<Oid> = beside.iter().map(|(_, serverid)| *serverid).collect();
        if beside.len() > 1 && unknown.iter().any(|serverid| !addresses.contains_key(serverid)) {
            transaction::run(|| {
                for serverid in unknown {
                    addresses.entry(serverid).or_insert_with(|| address(serverid));
                }
                Ok(())
            })?;
        }
        let own = addresses.get(&registered.serverid).and_then(Option::as_ref);
        let is_same = |(id, serverid): &(i32, Oid)| {
            let other = addresses.get(serverid).and_then(Option::as_ref);
            *id == registered.id || (own.is_some() && own == other)
        };
        Ok(beside.into_iter().filter(is_same).map(|(id, _)| id).collect())
    }

    /// Who else may ask for one whose server has gone, or moved: those that are recorded at the same address. The sweep
    /// looks whether they still lead there.
    fn stand_ins(&self, registered: &ParticipantRecord) -> Vec<ParticipantRecord> {
        self.participants
            .beside(registered)
            .filter(|p| p.registered.id != registered.id && !p.is_gone())
            .filter(|p| p.registered.address == registered.address)
            .map(|p| p.registered.clone())
            .take(STAND_INS)
            .collect()
    }

    /// Takes the sweeps that are on their way as far as they go without waiting.
    pub(super) fn advance_sweeps(&mut self) -> Result<()> {
        let mut listed = Vec::new();
        for id in self.participants.sweeping() {
            let Some(sweep) = self.participants.take_sweep(id) else { continue };
            match sweep.advance() {
                Ok(Progress::Listed(sweep)) => listed.push((id, sweep)),
                progress => self.progressed(id, progress)?,
            }
        }
        if listed.is_empty() {
            return Ok(());
        }
        // After all of these lists have been read.
        let decisions = self.decisions(listed.iter().flat_map(|(_, sweep)| sweep.listed()))?;
        for (id, sweep) in listed {
            self.progressed(id, sweep.decide(&decisions))?;
        }
        Ok(())
    }

    fn progressed(&mut self, id: i32, progress: Result<Progress, Failure>) -> Result<()> {
        match progress {
            Ok(Progress::Waits(sweep) | Progress::Listed(sweep)) => {
                self.participants.change(id, |p| p.sweep = Some(sweep));
                Ok(())
            }
            Ok(Progress::Done(swept)) => self.swept(id, *swept),
            Err(failure) => self.failed(id, failure),
        }
    }

    /// What has been decided of what is listed. What is known to be committed stays so, and what waits for the application
    /// tells itself; the others are looked for in the table, and have aborted if they are not there.
    fn decisions<'a>(&self, listed: impl Iterator<Item = &'a Gid>) -> Result<Decisions> {
        let mut found = Decisions::new();
        let mut wanted = HashSet::new();
        for gid in listed {
            if let Some(xid) = self.ledger.xid(gid.nonce) {
                found.insert(gid.nonce, (Decision::Committed, TransactionId::from(xid)));
                continue;
            }
            let pending = entries::of(gid).filter(|e| e.status == Status::Prepared);
            match pending.map(|entry| (decisions::of(entry.xid), entry.xid)) {
                Some((Decision::Absent, _)) | None => {
                    wanted.insert(gid.nonce);
                }
                Some(known) => {
                    found.insert(gid.nonce, known);
                }
            }
        }
        if !wanted.is_empty() {
            found.extend(transaction::run(|| Ok(decisions::of_all(&wanted)))?);
        }
        Ok(found)
    }

    fn swept(&mut self, id: i32, swept: Swept) -> Result<()> {
        let members = swept.members.clone();
        let noted = left::note(&members, &swept.left);
        let elsewhere = self.of_others(id, &swept.left);
        let left: HashSet<i32> = swept
            .left
            .iter()
            .filter(|l| l.reason != Reason::Undecided)
            .filter_map(|l| members.of(&l.gid))
            .collect();
        let (strangers, server) = (swept.strangers, swept.server.clone());
        let delivered = swept.delivered.clone();
        let moved = swept.moved.clone();
        self.keep_heuristic(&swept.heuristic)?;
        self.participants.change(id, |p| p.swept(swept, noted, &elsewhere)).transpose()?;
        for member in members.ids().filter(|_| moved.is_some()) {
            self.participants.change(member, |p| p.registered.address.clone_from(&moved));
        }
        for member in members.ids() {
            let left = strangers || left.contains(&member);
            let beside = |p: &mut Participant| {
                let is_due = p.due.is_some();
                p.swept_beside(&server, noted, left).map(|()| is_due)
            };
            let waits = member != id
                && self.participants.change(member, beside).transpose()?.unwrap_or(false);
            if !waits {
                self.tried(member);
            }
        }
        for (nonce, id) in &delivered {
            if self.ledger.delivered(*nonce, *id) {
                self.settle(*nonce);
            }
        }
        // More than one sweep asks for, or known since it began.
        if !delivered.is_empty() {
            for member in members.ids() {
                if self.ledger.open_at(member).next().is_some() {
                    self.has_work(member);
                }
            }
        }
        self.note_asked_by_others(id);
        // What was handed over meanwhile is looked at again.
        self.left_seen = None;
        self.note_handed_over();
        Ok(())
    }

    /// What has gone from a participant without us may come back, with a restore or on the server that we were not shown:
    /// its decision is kept for ever.
    fn keep_heuristic(&mut self, heuristic: &[(Nonce, i32)]) -> Result<()> {
        if heuristic.is_empty() {
            return Ok(());
        }
        syncrep::run_here(|| {
            heuristic.iter().try_for_each(|(nonce, id)| forgotten::add(*nonce, *id))
        })?;
        for (nonce, id) in heuristic {
            self.forgotten.entry(*nonce).or_default().insert(*id);
        }
        Ok(())
    }

    fn failed(&mut self, id: i32, failure: Failure) -> Result<()> {
        self.tried(id);
        let is_elsewhere = failure.reason == Reason::OtherServer;
        let Self { participants, ledger, identity, .. } = self;
        let fail = |p: &mut Participant| {
            let registered = p.registered.clone();
            let undelivered = || {
                let open = ledger.open_at(id);
                open.map(|(nonce, _)| registered.gid(*identity, nonce)).collect()
            };
            p.failed(failure, ledger.count_at(id), undelivered)?;
            // It may have been written down that it moved, in a sweep that then failed.
            if is_elsewhere { p.read_address() } else { Ok(()) }
        };
        participants.change(id, fail).transpose()?;
        self.note_asked_by_others(id);
        // The others whom it was to ask for try it as their own users.
        let Some(registered) = self.participants.get(id).map(|p| p.registered.clone()) else {
            return Ok(());
        };
        let others: Vec<i32> = self
            .participants
            .beside(&registered)
            .filter(|p| p.due.is_none() && p.sweep.is_none())
            .filter(|p| p.unswept || self.is_awaited(p.registered.id))
            .map(|p| p.registered.id)
            .collect();
        for other in others {
            self.participants.change(other, |p| match p.failures {
                0 => p.make_due(),
                _ => p.retry(Instant::now()),
            });
        }
        Ok(())
    }

    /// What has lost its server or user mapping is asked by others in the same database, if there are any.
    fn note_asked_by_others(&mut self, id: i32) {
        let Some(participant) = self.participants.get(id) else { return };
        let beside = || self.participants.beside(&participant.registered);
        if !beside().any(Participant::is_asked) {
            return;
        }
        let gone: Vec<i32> =
            beside().filter(|p| p.cannot_be_asked()).map(|p| p.registered.id).collect();
        for id in gone {
            self.participants.change(id, Participant::note_asked);
        }
    }

    /// What one mapping's role may not settle, and the one that has prepared it may: that one is swept next.
    fn of_others(&mut self, id: i32, left: &[Left]) -> HashSet<Gid> {
        let mut elsewhere = HashSet::new();
        for gid in left.iter().filter(|l| l.reason == Reason::NotAllowed).map(|l| l.gid) {
            for other in self.participants.with_mapping(gid.serverid.into(), gid.userid.into()) {
                if other != id {
                    elsewhere.insert(gid);
                    self.has_work(other);
                }
            }
        }
        elsewhere
    }
}
