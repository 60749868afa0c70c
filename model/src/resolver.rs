//! What a resolver knows, and does between sweeps, in the order of `src/resolver/worker`.

use crate::Hand;
use crate::protocol::gid::{Gid, Identity, Nonce};
use crate::protocol::ledger::{Ledger, Noted, open_by_entries};
use crate::protocol::shown::{Shown, Status};
use crate::protocol::verdict::Decision;
use crate::rules::Rule;
use crate::world::{Entry, Row, Shard, Work, Xact};

/// An entry that the resolver makes.
pub(crate) fn left(status: Status, counted: bool) -> Entry {
    Entry { shown: Shown { status, left: true, unawaited: false }, counted }
}

pub(crate) fn identity() -> Identity {
    Identity::new(7).expect("positive")
}

pub(crate) fn nonce() -> Nonce {
    Nonce::new(42).expect("short")
}

/// Our transaction's name on a participant.
pub(crate) fn gid(i: usize) -> Gid {
    Gid { identity: identity(), nonce: nonce(), serverid: 100 + i as u32, userid: 10 }
}

/// What others have prepared on each participant: another coordinator, and whoever likes such
/// names.
const STRANGERS: [&str; 3] = [
    "px_00000000000000000008000000000000000042_100_10",
    "px_7_42_100_10",
    "px_00000000000000000007000000000000000042_100_10_1",
];

impl Shard {
    /// The incarnations of the sessions that hold the session lock, and whether it is the process
    /// that has prepared, or may.
    pub fn lock_holders(&self) -> impl Iterator<Item = (u8, bool)> {
        let processes = [(self.worker, true), (self.settler, false)];
        let processes = processes.into_iter().filter_map(|(process, prepares)| {
            process.filter(|p| p.lock).map(|p| (p.incarnation, prepares))
        });
        let neighbour = self.neighbour.map(|neighbour| (neighbour.incarnation, false));
        let fence = self.fence.map(|fence| (fence.incarnation, false));
        processes.chain(neighbour).chain(fence)
    }

    /// `pg_prepared_xacts`.
    pub(crate) fn prepared(&self, i: usize) -> Vec<String> {
        let mut list: Vec<String> = Vec::new();
        if self.xact == Xact::Prepared {
            list.push(gid(i).to_string());
        }
        if self.strangers {
            list.extend(STRANGERS.map(str::to_owned));
        }
        list
    }

    pub(crate) fn xact_status(&self) -> &'static str {
        match self.xact {
            Xact::Open | Xact::Failed | Xact::Prepared => "in progress",
            Xact::Committed => "committed",
            Xact::Aborted => "aborted",
        }
    }
}

impl Hand<'_> {
    /// The ledger, as far as the model keeps it.
    pub(crate) fn ledger(&mut self) -> Ledger {
        let xid = u64::from(self.setting.xids);
        let all = self.setting.writers();
        let host = self.host();
        let mut ledger = Ledger::default();
        if host.in_ledger {
            let members = all.clone().filter(|i| host.members[*i]);
            ledger.add(nonce(), 1, members.map(|i| (i as i32, xid)));
            for i in all.filter(|i| !host.open[*i]) {
                ledger.remove(i as i32);
            }
        }
        ledger
    }

    fn keep(&mut self, ledger: &Ledger) {
        let all = self.setting.all();
        let host = self.host();
        host.in_ledger = ledger.has(nonce());
        for i in all {
            host.open[i] = ledger.open_at(i as i32).next().is_some();
            host.members[i] &= host.in_ledger;
        }
    }

    fn add_to_ledger(&mut self, members: impl Fn(usize) -> bool) {
        let members: Vec<usize> = self.setting.writers().filter(|i| members(*i)).collect();
        let xid = u64::from(self.setting.xids);
        let mut ledger = self.ledger();
        if !ledger.has(nonce()) && !members.is_empty() {
            ledger.add(nonce(), 1, members.iter().map(|i| (*i as i32, xid)));
            for i in members {
                self.host().members[i] = true;
            }
        }
        self.keep(&ledger);
    }

    pub(crate) fn confirmed_by(&mut self, i: usize) {
        let mut ledger = self.ledger();
        let last = ledger.confirmed_by(nonce(), i as i32);
        self.host().members[i] = false;
        self.keep(&ledger);
        if last {
            self.all_confirmed();
        }
    }

    /// All participants have confirmed.
    pub fn all_confirmed(&mut self) {
        let mut ledger = self.ledger();
        ledger.confirmed_by_all(nonce());
        self.keep(&ledger);
        self.host().confirmed = true;
    }

    fn has_work(&mut self, i: usize) {
        let work = &mut self.host().work[i];
        (work.unsettled, work.due) = (true, true);
    }

    /// Whether this coordinator's resolver holds the fence.
    pub fn is_fenced(&mut self, i: usize) -> bool {
        let incarnation = self.host().incarnation;
        let fence = self.world.shards[i].fence;
        fence.is_some_and(|fence| fence.incarnation == incarnation && fence.client)
    }

    pub(crate) fn note_handed_over(&mut self) {
        for i in self.setting.writers() {
            let Some(entry) = self.host().entries[i].filter(|e| e.shown.left) else { continue };
            match entry.shown.status {
                Status::Committing if self.host().confirmed => self.host().entries[i] = None,
                Status::Committing => {
                    self.note_committed();
                    self.has_work(i);
                }
                Status::Aborting => self.has_work(i),
                Status::Prepared if !self.is_fenced(i) => self.host().work[i].due = true,
                Status::Prepared | Status::Preparing => {}
            }
        }
    }

    /// Takes in what the entries tell of who has not confirmed.
    fn note_committed(&mut self) {
        let host = *self.host();
        let (all, xid) = (self.setting.writers().len(), u64::from(self.setting.xids));
        let noted: Vec<Noted> = self
            .setting
            .writers()
            .filter_map(|i| {
                let entry = host.entries[i]?;
                let knows = entry.counted || !self.setting.has(Rule::CountEntries);
                let participants = if knows { all } else { 0 };
                Some(Noted { participant: i as i32, xid, participants })
            })
            .collect();
        let Some(open) = open_by_entries(&noted, false) else { return };
        let is_open = |i: usize| open.iter().any(|(id, _)| *id == i as i32);
        self.add_to_ledger(|i| is_open(i) && !host.forgotten[i]);
    }

    /// Reads the decision table.
    pub fn look(&mut self) -> bool {
        let was = *self.host();
        if !self.setting.has(Rule::Look) {
            return false;
        }
        let is_owned = was.entries.iter().flatten().any(|entry| !entry.shown.left);
        if was.decision() == Decision::Committed && !is_owned && !was.confirmed && !was.in_ledger {
            self.add_to_ledger(|i| !was.forgotten[i]);
        }
        for i in self.setting.writers() {
            let entry = &mut self.host().entries[i];
            let Some(entry) = entry.as_mut().filter(|entry| entry.waits()) else {
                if was.row == Row::Pending && entry.is_none() && was.session.is_none() {
                    *entry = Some(left(Status::Prepared, true));
                }
                continue;
            };
            // It has been settled without a session's delivering it.
            entry.shown.status = match was.decision() {
                Decision::InProgress => continue,
                Decision::Committed => Status::Committing,
                Decision::Absent => Status::Aborting,
            };
        }
        for i in self.setting.writers() {
            if self.host().open[i] {
                self.has_work(i);
            }
        }
        self.note_handed_over();
        was != *self.host()
    }

    /// Takes over what a session has not delivered in time.
    pub fn reap(&mut self) -> bool {
        let was = self.host().entries;
        for entry in self.host().entries.iter_mut().flatten() {
            entry.shown.left |= entry.shown.status.is_decided();
        }
        was != self.host().entries
    }

    /// Deletes the decision.
    pub fn delete(&mut self) -> bool {
        let keeps = self.setting.has(Rule::KeepDecision);
        let keeps_forgotten = self.setting.has(Rule::KeepForgotten);
        let host = self.host();
        // The delay is longer than any sweep.
        let is_read = host.work.iter().any(|work| work.sweep.is_some());
        if host.decision() != Decision::Committed || is_read {
            return false;
        }
        let is_due = host.confirmed || !keeps;
        if !is_due || (keeps_forgotten && host.forgotten.contains(&true)) {
            return false;
        }
        host.row = Row::Deleted;
        true
    }

    /// An operator gives a participant up.
    pub fn forget(&mut self, i: usize) -> bool {
        if self.host().forgotten[i] || self.host().work[i].sweep.is_some() {
            return false;
        }
        let mut ledger = self.ledger();
        if self.setting.has(Rule::KeepForgotten) {
            ledger.remove(i as i32);
            self.keep(&ledger);
        } else if ledger.has(nonce()) {
            self.confirmed_by(i);
        }
        let host = self.host();
        host.forgotten[i] = true;
        host.work[i] = Work::default();
        if host.entries[i].is_some_and(|entry| entry.is_for_the_resolver()) {
            host.entries[i] = None;
        }
        true
    }
}
