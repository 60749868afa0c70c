//! What follows from the result of a sweep: for the participants that it was for, for the
//! transactions that they have confirmed, and for the backends that wait.

use std::collections::HashSet;
use std::time::Instant;

use super::Worker;
use crate::pg::error::Result;
use crate::pg::syncrep;
use crate::protocol::gid::{Gid, Nonce};
use crate::protocol::verdict::Reason;
use crate::resolver::sweep::failure::Failure;
use crate::resolver::sweep::{Progress, Swept};
use crate::resolver::worker::participant::Participant;
use crate::shared::left::{self, Left};
use crate::store::forgotten;

impl Worker {
    /// Keeps a sweep that goes on, and acts on one that has ended.
    pub(super) fn progressed(
        &mut self,
        id: i32,
        progress: Result<Progress, Failure>,
    ) -> Result<()> {
        match progress {
            Ok(Progress::Waits(sweep) | Progress::Listed(sweep)) => {
                self.participants.change(id, |p| p.sweep = Some(sweep));
                Ok(())
            }
            Ok(Progress::Done(swept)) => self.swept(id, *swept),
            Err(failure) => self.failed(id, failure),
        }
    }

    /// Acts on the result of a sweep.
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
                p.swept_beside(swept, noted, left).map(|()| is_due)
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

    /// Acts on a sweep that has failed.
    pub(super) fn failed(&mut self, id: i32, failure: Failure) -> Result<()> {
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
        let Some(participant) = self.participants.get(id) else { return Ok(()) };
        let registered = participant.registered.clone();
        if participant.is_left_to_sessions() && self.nothing_is_noted_at(&registered) {
            // The sessions have settled it.
            self.participants.change(id, |p| p.unsettled = false);
        }
        // The other participants that it was to ask for are tried with their own user mappings.
        let others: Vec<i32> = self
            .participants
            .beside(&registered)
            .filter(|p| p.due.is_none() && p.sweep.is_none())
            .filter(|p| p.unsettled || self.is_awaited(p.registered.id))
            .map(|p| p.registered.id)
            .collect();
        for other in others {
            match self.participants.get(other).map(|p| p.failures) {
                Some(0) => self.make_due(other),
                _ => _ = self.participants.change(other, |p| p.retry(Instant::now())),
            }
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
