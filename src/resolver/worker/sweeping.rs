//! Which participants have to be swept because backends have left something on them, and which are
//! swept now, together with which others.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use pgrx::pg_sys::{Oid, TransactionId};

use super::Worker;
use super::addresses::Addresses;
use crate::pg::error::Result;
use crate::pg::transaction;
use crate::protocol::gid::Gid;
use crate::protocol::ledger::{Noted, open_by_entries};
use crate::protocol::verdict::Decision;
use crate::resolver::sweep::{Decided, Decisions, Open, Progress, Subject, Sweep};
use crate::shared::entries;
use crate::shared::entry::{Entry, Status};
use crate::shared::entry_change::Why;
use crate::shared::left::Members;
use crate::store::decisions::{self, Row};
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

impl Worker {
    /// Something may be left on a participant: it is swept soon.
    pub(super) fn has_work(&mut self, id: i32) {
        self.participants.change(id, |participant| participant.unsettled = true);
        self.make_due(id);
    }

    /// Has a participant swept soon, unless a sweep is under way or the last one has failed: then
    /// it is retried when the delay has passed. Does not wait for the time at which the fence is to
    /// be renewed.
    pub(super) fn make_due(&mut self, id: i32) {
        self.participants.change(id, |p| {
            if p.sweep.is_none() && (p.failures == 0 || p.due.is_none()) {
                let now = Instant::now();
                p.due = Some(p.due.map_or(now, |due| due.min(now)));
            }
        });
    }

    /// Has the participants swept on which backends have left something since the last time.
    pub(super) fn note_handed_over(&mut self) {
        let changes = entries::left_changes();
        if self.left_seen.replace(changes) == Some(changes) {
            return;
        }
        for mut entry in entries::left() {
            let Some(gid) = entry.gid() else { continue };
            if entry.participant != 0 && !self.participants.has(entry.participant) {
                entries::release(&gid);
                entry.participant = 0;
            }
            match entry.status {
                Status::Committing if self.confirmed.contains(&gid.nonce) => {
                    entries::end(&gid, Why::Gone);
                }
                Status::Committing => {
                    self.note_committed(&gid, &entry);
                    self.note_work(&entry);
                }
                Status::Aborting => self.note_work(&entry),
                // It waits for the application. Meanwhile this server must hold the fence there: a
                // physical copy of it that does not know the transaction would roll it back.
                Status::Prepared => self.guard(&entry),
                Status::Preparing => {}
            }
        }
    }

    /// The owner of a committed transaction has left it to the resolver. Where its entries do not
    /// tell who has confirmed it, it is taken in with its decision row.
    fn note_committed(&mut self, gid: &Gid, entry: &Entry) {
        if self.ledger.has(gid.nonce) {
            return;
        }
        let all = entries::of_transaction(entry.xid);
        let noted: Vec<Noted> = all
            .iter()
            .filter(|e| e.nonce == entry.nonce)
            .map(|e| Noted {
                participant: e.participant,
                xid: e.remote_xid,
                participants: e.participants as usize,
            })
            .collect();
        let Some(mut open) = open_by_entries(&noted, entries::are_lacking()) else { return };
        open.retain(|(id, _)| !self.is_forgotten(gid.nonce, *id));
        if !open.is_empty() {
            self.ledger.add(gid.nonce, entry.xid.into_inner(), open);
        }
    }

    fn note_work(&mut self, entry: &Entry) {
        for id in self.whose(entry) {
            self.has_work(id);
        }
    }

    /// The participants that an entry may be of.
    fn whose(&self, entry: &Entry) -> Vec<i32> {
        match entry.participant {
            0 => self.participants.with_mapping(entry.serverid, entry.userid),
            id => vec![id],
        }
    }

    /// Has the fence taken where an entry's transaction is prepared.
    fn guard(&mut self, entry: &Entry) {
        for id in self.whose(entry) {
            if self
                .participants
                .get(id)
                .is_some_and(|p| !self.participants.is_fenced(&p.registered))
            {
                self.make_due(id);
            }
        }
    }

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
        let mut addresses = Addresses::default();
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
        let successors = addresses.successors(&registered)?;
        // Only one session of ours can hold the fence there.
        let mut fenced = None;
        for holder in self.participants.fenced_at(&registered) {
            let kept = self.participants.change(holder, |p| p.fenced.take()).flatten();
            if holder == id {
                fenced = kept;
            }
        }
        let subject = self.subject(registered, group, successors, owned, left);
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
    /// more. `successors`: see [`Addresses::successors`].
    fn subject(
        &mut self,
        participant: ParticipantRecord,
        group: Vec<i32>,
        successors: Option<Vec<ParticipantRecord>>,
        owned: &HashSet<Gid>,
        left: &[Entry],
    ) -> Subject {
        let mut listed_before = HashSet::new();
        let mut committed = Vec::new();
        let mut list = Vec::new();
        for id in group {
            let taken = self.participants.change(id, |p| {
                p.begin_sweep();
                (p.registered.clone(), p.listed.clone())
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
        let is_gone = successors.is_some();
        stand_ins.splice(0..0, successors.into_iter().flatten());
        stand_ins.truncate(STAND_INS);
        let itself = self.participants.get(participant.id);
        let connect_as = itself.map(|p| p.connect_as(&stand_ins, is_gone).clone());
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
        if beside.len() > 1 {
            addresses.read(beside.iter().map(|(_, serverid)| *serverid))?;
        }
        let own = addresses.of(registered.serverid);
        let is_same = |(id, serverid): &(i32, Oid)| {
            *id == registered.id || (own.is_some() && own == addresses.of(*serverid))
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

    /// What was decided of what is listed. The table is read only for transactions that are neither
    /// known to be committed nor prepared here under the application's 'gxid'.
    fn decisions<'a>(&self, listed: impl Iterator<Item = &'a Gid>) -> Result<Decisions> {
        let mut found = Decisions::new();
        let mut wanted = Vec::new();
        for gid in listed {
            if let Some(xid) = self.ledger.xid(gid.nonce) {
                let mut ids = self.named(gid).into_iter();
                let open = ids.find_map(|id| Some((id, self.ledger.remote_xid(gid.nonce, id)?)));
                let (participant, remote_xid) = open.unwrap_or_default();
                let (decision, xid) = (Decision::Committed, TransactionId::from(xid));
                found.insert(*gid, Decided { decision, xid, participant, remote_xid });
                continue;
            }
            let pending = entries::of(gid).filter(|e| e.status == Status::Prepared);
            match pending.map(|entry| (decisions::of(entry.xid), entry)) {
                Some((Decision::Absent, _)) | None => wanted.push(*gid),
                Some((decision, Entry { xid, participant, remote_xid, .. })) => {
                    found.insert(*gid, Decided { decision, xid, participant, remote_xid });
                }
            }
        }
        if !wanted.is_empty() {
            let nonces = wanted.iter().map(|gid| gid.nonce).collect();
            let rows = transaction::run(|| Ok(decisions::of_all(&nonces)))?;
            for gid in wanted {
                let Some(row) = rows.get(&gid.nonce) else { continue };
                let ids = self.named(&gid);
                let member = row.participants.iter().find(|(id, _)| ids.contains(id)).copied();
                let (participant, remote_xid) = member.unwrap_or_default();
                let Row { decision, xid, .. } = *row;
                found.insert(gid, Decided { decision, xid, participant, remote_xid });
            }
        }
        Ok(found)
    }

    /// The participants that a gid may be of.
    fn named(&self, gid: &Gid) -> Vec<i32> {
        self.participants.with_mapping(gid.serverid.into(), gid.userid.into())
    }
}
