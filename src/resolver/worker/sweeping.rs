//! Which participants are swept now, and with which others; and what follows from the results.

use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::time::{Duration, Instant};

use pgrx::pg_sys::{Oid, TransactionId};

use super::Worker;
use crate::pg::error::Result;
use crate::pg::{syncrep, transaction};
use crate::protocol::gid::{Gid, Nonce};
use crate::protocol::verdict::Reason;
use crate::remote::options::Server;
use crate::resolver::sweep::failure::Failure;
use crate::resolver::sweep::{Open, Progress, Subject, Sweep, Swept};
use crate::resolver::worker::participant::Participant;
use crate::shared::entries;
use crate::shared::entry::Entry;
use crate::shared::left::{self, Left, Members};
use crate::store::forgotten;
use crate::store::participant_list::ParticipantRecord;

/// How many sweeps run at a time.
const SWEEPS: usize = 128;

/// How many of them run on one server.
const SWEEPS_ON_SERVER: usize = 16;

/// How long one round may spend on sweeps that fail to start, for example because their servers
/// were dropped: backends are answered between the rounds.
const FAILING: Duration = Duration::from_millis(10);

/// With how many other user mappings a participant is tried whose own server no longer exists.
const STAND_INS: usize = 16;

/// How many committed transactions one sweep asks for: backends are answered between two sweeps.
const OPEN_IN_SWEEP: usize = 10_000;

/// The address of each server by its options; None for a server that no longer exists.
type Addresses = HashMap<Oid, Option<CString>>;

fn address(serverid: Oid) -> Option<CString> {
    Server::find(serverid).map(|server| server.address())
}

impl Worker {
    /// Starts the sweeps that are due; those that cannot be started now are started in a later
    /// round.
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
            // A sweep that was just started may be for this one too, or be under way at its site.
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

    /// Starts to sweep a participant and others in the same place; returns whether that was
    /// possible.
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
        let subject = self.subject(registered, group, owned, left);
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

    /// What the sweep of a participant and others in the same place is about; they are not due any
    /// more.
    fn subject(
        &mut self,
        participant: ParticipantRecord,
        group: Vec<i32>,
        owned: &HashSet<Gid>,
        left: &[Entry],
    ) -> Subject {
        let mut listed_before = HashSet::new();
        let mut committed = Vec::new();
        let mut list = Vec::new();
        for id in group {
            let taken = self.participants.change(id, |p| {
                p.due = None;
                (p.registered.clone(), std::mem::take(&mut p.listed))
            });
            let Some((member, listed)) = taken else { continue };
            listed_before.extend(listed);
            for (nonce, remote_xid) in self.ledger.open_at(id) {
                let gid = member.gid(self.identity, nonce);
                if committed.len() == OPEN_IN_SWEEP {
                    break;
                }
                if !owned.contains(&gid) {
                    let xid = TransactionId::from(self.ledger.xid(nonce).unwrap_or(0));
                    committed.push(Open { gid, participant: id, remote_xid, xid });
                }
            }
            list.push(member);
        }
        let members: Members = list.iter().collect();
        let mut handed_over = left.to_vec();
        handed_over.retain(|e| e.status.is_decided() && members.have(e));
        let mut stand_ins = list;
        stand_ins.retain(|member| member.id != participant.id);
        if stand_ins.is_empty() {
            stand_ins = self.stand_ins(&participant);
        }
        let connect_as = self.participants.get(participant.id);
        let connect_as = connect_as.map(|p| p.connect_as(&stand_ins).clone());
        Subject {
            identity: self.identity,
            connect_as: connect_as.unwrap_or_else(|| participant.clone()),
            participant,
            members,
            handed_over,
            listed_before,
            committed,
        }
    }

    /// The participants that one session can ask for: those at the same site and the same address.
    /// The address counts because two servers at one site may be copies.
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

    /// The participants that are recorded at the same address as one whose server no longer exists
    /// or has moved: the sweep may use their user mappings. It checks whether these still lead
    /// there.
    fn stand_ins(&self, registered: &ParticipantRecord) -> Vec<ParticipantRecord> {
        self.participants
            .beside(registered)
            .filter(|p| p.registered.id != registered.id && !p.is_gone())
            .filter(|p| p.registered.address == registered.address)
            .map(|p| p.registered.clone())
            .take(STAND_INS)
            .collect()
    }

    /// Advances the sweeps that are under way as far as they can go without waiting.
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

    fn swept(&mut self, id: i32, swept: Swept) -> Result<()> {
        let members = swept.members.clone();
        let noted = left::note(&members, &swept.left);
        let elsewhere = self.of_others(id, &swept.left);
        let delivered = swept.delivered.clone();
        self.keep_heuristic(&swept.heuristic)?;
        if let Some(address) = &swept.moved {
            for member in members.ids() {
                self.participants.change(member, |p| p.registered.address = Some(address.clone()));
            }
        }
        self.swept_beside(id, &swept, noted)?;
        self.participants.change(id, |p| p.swept(swept, noted, &elsewhere)).transpose()?;
        self.tried(id);
        for (nonce, id) in &delivered {
            if self.ledger.confirmed_by(*nonce, *id) {
                self.all_confirmed(*nonce);
            }
        }
        // There was more than one sweep asks for, or more has become known since it began.
        if !delivered.is_empty() {
            for member in members.ids() {
                if self.ledger.open_at(member).next().is_some() {
                    self.has_work(member);
                }
            }
        }
        self.note_asked_by_others(id);
        // Something may have been handed over during the sweep.
        self.left_seen = None;
        self.note_handed_over();
        Ok(())
    }

    /// Takes in the result of a sweep for the other participants that it asked for.
    fn swept_beside(&mut self, id: i32, swept: &Swept, noted: bool) -> Result<()> {
        let left = swept.left.iter().filter(|l| l.reason != Reason::Undecided);
        let left: HashSet<i32> = left.filter_map(|l| swept.members.of(&l.gid)).collect();
        for member in swept.members.ids().filter(|member| *member != id) {
            let left = swept.other_incarnations || left.contains(&member);
            let beside = |p: &mut Participant| {
                let is_due = p.due.is_some();
                p.swept_beside(&swept.server, noted, left).map(|()| is_due)
            };
            let is_due = self.participants.change(member, beside).transpose()?.unwrap_or(false);
            // One that has become due again is still to be tried.
            if !is_due {
                self.tried(member);
            }
        }
        Ok(())
    }

    /// Keeps the decisions of heuristic outcomes for ever: what has gone from a participant without
    /// us may come back, after a restore, or on a copy of the server.
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
            // An earlier sweep may have recorded that it moved, and failed then.
            if is_elsewhere { p.read_address() } else { Ok(()) }
        };
        participants.change(id, fail).transpose()?;
        self.note_asked_by_others(id);
        // The other participants that it was to ask for are tried with their own user mappings.
        let Some(registered) = self.participants.get(id).map(|p| p.registered.clone()) else {
            return Ok(());
        };
        let others: Vec<i32> = self
            .participants
            .beside(&registered)
            .filter(|p| p.due.is_none() && p.sweep.is_none())
            .filter(|p| p.unsettled || self.is_awaited(p.registered.id))
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

    /// A participant whose server or user mapping no longer exists counts as asked once another one
    /// at the same site was.
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

    /// What the role of one user mapping may not settle and another participant's may, which has
    /// prepared it: that participant is swept next.
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
