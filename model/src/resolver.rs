//! What a resolver does, in the order of `src/resolver`. What it concludes, it concludes by the
//! functions of `src/protocol`.

use crate::protocol::conclusion::{
    Committed, Conclusion, HandedOver, judge_handed_over, judge_unlisted,
};
use crate::protocol::gid::{Gid, Identity, Nonce};
use crate::protocol::ledger::{Ledger, Noted, open_by_entries};
use crate::protocol::participant::Outcome;
use crate::protocol::shown::{Shown, Status};
use crate::protocol::verdict::{Decision, Others, Place, Reason, Verdict, judge};
use crate::rules::Rule;
use crate::session::{is_replicated, settling};
use crate::world::{At, Command, Entry, Fence, Row, Shard, Sweep, Work, Xact};
use crate::{Hand, Side};

/// An entry that the resolver makes.
fn left(status: Status, counted: bool) -> Entry {
    Entry { shown: Shown { status, left: true, unawaited: false }, counted }
}

fn identity() -> Identity {
    Identity::new(7).expect("positive")
}

fn nonce() -> Nonce {
    Nonce::new(42).expect("short")
}

/// Our transaction's name on a participant.
fn gid(i: usize) -> Gid {
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
    fn prepared(&self, i: usize) -> Vec<String> {
        let mut list: Vec<String> = Vec::new();
        if self.xact == Xact::Prepared {
            list.push(gid(i).to_string());
        }
        if self.strangers {
            list.extend(STRANGERS.map(str::to_owned));
        }
        list
    }

    fn xact_status(&self) -> &'static str {
        match self.xact {
            Xact::Open | Xact::Failed | Xact::Prepared => "in progress",
            Xact::Committed => "committed",
            Xact::Aborted => "aborted",
        }
    }
}

impl Hand<'_> {
    /// The ledger, as far as the model keeps it.
    fn ledger(&mut self) -> Ledger {
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

    fn confirmed_by(&mut self, i: usize) {
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

    fn note_handed_over(&mut self) {
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

    /// Goes one step further in sweeping a participant, or begins to. `late`: without waiting any
    /// longer for the synchronous standby.
    pub fn sweep(&mut self, i: usize, late: bool) -> bool {
        let Some(mut sweep) = self.host().work[i].sweep else {
            return !late && self.begin_sweep(i) && self.sweep(i, false);
        };
        if late != (late && sweep.at == At::Replicating) {
            return false;
        }
        if !matches!(sweep.at, At::Asking) && !sweep.astray && !self.is_fenced(i) {
            return self.fail(i);
        }
        match sweep.at {
            At::Asking => {
                sweep.astray = self.world.shards[i].away;
                // An image has the same fingerprint and another address; what else answers at the
                // recorded address has another fingerprint.
                let (is_same_server, is_same_address) =
                    (!sweep.astray || self.setting.image, !sweep.astray || !self.setting.image);
                sweep.place = Place::of(
                    false,
                    is_same_server || !self.setting.has(Rule::Fingerprint),
                    is_same_address || !self.setting.has(Rule::Address),
                );
                if sweep.astray && self.is_fenced(i) {
                    // The options have changed: the session that was kept ends.
                    self.world.shards[i].fence = None;
                }
                if !sweep.astray && !self.take_fence(i) {
                    return self.fail(i);
                }
                if self.setting.has(Rule::SessionsBefore) {
                    self.see_sessions(i, &mut sweep);
                }
                if !self.setting.has(Rule::ListFirst) {
                    sweep.early = Some(self.decision());
                }
                sweep.at = At::Listing;
            }
            At::Listing => {
                if !sweep.astray {
                    self.read_list(i, &mut sweep);
                }
                sweep.at = At::Judging;
            }
            At::Judging => {
                if self.setting.has(Rule::SessionsAfter) {
                    self.see_sessions(i, &mut sweep);
                }
                self.judge(i, &mut sweep);
            }
            At::Replicating => {
                let replicated = is_replicated(self.host());
                if !replicated && !late && self.setting.has(Rule::ResolverReplicated) {
                    return false;
                }
                let replicated = replicated || !self.setting.has(Rule::ResolverReplicated);
                let others = Others { owner: false, other_incarnations: sweep.others, replicated };
                match judge(sweep.place, others, Decision::Committed) {
                    Verdict::Leave(reason) => sweep.left = Some((reason, Decision::Committed)),
                    _ => sweep.sent = Some(Command::CommitPrepared),
                }
                sweep.at = At::Settling;
            }
            At::Settling => {
                let shard = &mut self.world.shards[i];
                if sweep.mistaken {
                    shard.strangers = false;
                }
                if !sweep.astray {
                    sweep.heard = sweep.sent.map(|command| shard.settle(command));
                    sweep.status = Some(shard.xact_status());
                }
                return self.conclude(i, sweep);
            }
        }
        self.host().work[i].sweep = Some(sweep);
        true
    }

    fn begin_sweep(&mut self, i: usize) -> bool {
        self.note_handed_over();
        let host = *self.host();
        // A heartbeat while 'gxid' is pending finds what the last sweep has found.
        let is_pending = host.row == Row::Pending && !host.work[i].unsettled && self.is_fenced(i);
        let is_busy = self.setting.serial && host.work.iter().any(|work| work.sweep.is_some());
        if !host.work[i].due || is_pending || is_busy {
            return false;
        }
        let is_owned = host.entries[i].is_some_and(|entry| !entry.shown.left);
        let sweep = Sweep {
            at: At::Asking,
            astray: false,
            place: Place::Recorded,
            known: host.entries[i].is_some_and(|entry| entry.is_for_the_resolver()),
            committed: host.open[i] && !is_owned,
            was_listed: host.work[i].was_listed,
            others: false,
            alive: false,
            listed: false,
            mistaken: false,
            early: None,
            sent: None,
            heard: None,
            status: None,
            left: None,
        };
        let unsettled = host.work[i].unsettled;
        self.host().work[i] = Work { unsettled, due: false, was_listed: false, sweep: Some(sweep) };
        true
    }

    fn take_fence(&mut self, i: usize) -> bool {
        if self.is_fenced(i) {
            return true;
        }
        let incarnation = self.host().incarnation;
        let needs = self.setting.has(Rule::Fence);
        let fence = &mut self.world.shards[i].fence;
        if fence.is_some() && needs {
            return false;
        }
        *fence = Some(Fence { incarnation, client: true, late: None });
        true
    }

    fn see_sessions(&mut self, i: usize, sweep: &mut Sweep) {
        let own = self.host().incarnation;
        if sweep.astray {
            return;
        }
        for (incarnation, prepares) in self.world.shards[i].lock_holders() {
            if incarnation != own {
                sweep.others |= self.setting.has(Rule::OtherIncarnations);
            } else if prepares {
                sweep.alive |= self.setting.has(Rule::Preparer);
            }
        }
    }

    fn read_list(&mut self, i: usize, sweep: &mut Sweep) {
        for text in self.world.shards[i].prepared(i) {
            let parsed = Gid::parse(&text).filter(|gid| gid.identity == identity());
            match parsed {
                Some(found) if found == gid(i) => sweep.listed = true,
                Some(_) => sweep.mistaken = true,
                None => sweep.mistaken |= !self.setting.has(Rule::WholeGid),
            }
        }
    }

    /// What is known to be committed, or what the decision table says.
    fn decision(&mut self) -> Decision {
        match self.ledger().xid(nonce()) {
            Some(_) => Decision::Committed,
            None => self.host().decision(),
        }
    }

    fn judge(&mut self, i: usize, sweep: &mut Sweep) {
        sweep.at = At::Settling;
        if !sweep.listed {
            return;
        }
        let decision = match sweep.early.unwrap_or_else(|| self.decision()) {
            Decision::InProgress if !self.setting.has(Rule::Undecided) => Decision::Absent,
            decision => decision,
        };
        let is_owned = self.host().entries[i].is_some_and(|entry| !entry.shown.left);
        let owner = is_owned && self.setting.has(Rule::Owner);
        let others = Others { owner, other_incarnations: sweep.others, replicated: true };
        match judge(sweep.place, others, decision) {
            Verdict::Commit => sweep.at = At::Replicating,
            Verdict::Rollback => sweep.sent = Some(settling(Outcome::Abort)),
            Verdict::Leave(reason) => sweep.left = Some((reason, decision)),
        }
    }

    fn conclude(&mut self, i: usize, mut sweep: Sweep) -> bool {
        if let (Some(command), Some(heard)) = (sweep.sent, sweep.heard) {
            let decision = match command {
                Command::CommitPrepared => Decision::Committed,
                _ => Decision::Absent,
            };
            if !heard.settles() {
                sweep.left = Some((Reason::Overtaken, decision));
            } else if self.host().entries[i].is_some_and(|entry| entry.shown.left) {
                self.host().entries[i] = None;
            }
        }
        let mut gone = false;
        // Without the rule, what has become known since the sweep began counts as well.
        let is_known = self.setting.has(Rule::LeftBefore);
        let committed = if is_known { sweep.committed } else { self.host().open[i] };
        if sweep.place == Place::Recorded && committed && sweep.left.is_none() {
            gone = self.conclude_committed(i, &mut sweep);
        }
        let entry = self.host().entries[i].filter(Entry::is_for_the_resolver);
        let mut more = false;
        if let (Some(entry), None) = (entry, sweep.left) {
            let it = HandedOver {
                aborts: entry.shown.status == Status::Aborting,
                settled: sweep.listed || gone,
                known: sweep.known || !is_known,
                preparer_lives: sweep.alive,
                was_listed: sweep.was_listed,
            };
            let others = Others { other_incarnations: sweep.others, ..Others::default() };
            match judge_handed_over(sweep.place, others, it) {
                Conclusion::Ended => self.host().entries[i] = None,
                Conclusion::SweepAgain => more = true,
                Conclusion::Left(reason) => {
                    let decision = if it.aborts { Decision::Absent } else { Decision::Committed };
                    sweep.left = Some((reason, decision));
                }
            }
        }
        if sweep.place != Place::Recorded {
            return self.fail(i);
        }
        self.note_left(i, &sweep);
        let is_left = sweep.left.is_some_and(|(reason, _)| reason != Reason::Undecided);
        let waits = self.host().entries[i].is_some_and(|entry| entry.waits());
        let keep_fence = more || sweep.others || sweep.left.is_some() || waits;
        if !keep_fence && !sweep.astray {
            self.world.shards[i].fence = None;
        }
        let unsettled = sweep.others || is_left || more;
        self.host().work[i] = Work {
            unsettled,
            due: unsettled || keep_fence,
            was_listed: sweep.left.is_some() && sweep.listed,
            sweep: None,
        };
        if gone {
            self.confirmed_by(i);
        }
        self.note_handed_over();
        true
    }

    /// Whether nothing is left of a committed transaction.
    fn conclude_committed(&mut self, i: usize, sweep: &mut Sweep) -> bool {
        if sweep.listed {
            return true;
        }
        let known = self.setting.xids;
        match judge_unlisted(sweep.status.filter(|_| known)) {
            Committed::Delivered => {}
            Committed::Open(reason) => {
                sweep.left = Some((reason, Decision::Committed));
                return false;
            }
            Committed::Undone => {
                self.world.heuristic |= self.side == Side::Original;
                self.host().forgotten[i] = true;
            }
        }
        true
    }

    /// Makes an entry for what is left and has none.
    fn note_left(&mut self, i: usize, sweep: &Sweep) {
        let Some((reason, decision)) = sweep.left else { return };
        let entry = &mut self.host().entries[i];
        if entry.is_some() || reason.is_expected() {
            return;
        }
        if sweep.listed || reason == Reason::Unlisted {
            let status = match decision {
                Decision::Committed => Status::Committing,
                Decision::InProgress => Status::Prepared,
                Decision::Absent => Status::Aborting,
            };
            *entry = Some(left(status, false));
        }
    }

    /// A sweep has failed: it is tried again.
    fn fail(&mut self, i: usize) -> bool {
        let work = &mut self.host().work[i];
        *work = Work { due: true, sweep: None, ..*work };
        true
    }

    /// The connection of a sweep breaks.
    pub fn lose_sweep(&mut self, i: usize) -> bool {
        let Some(sweep) = self.host().work[i].sweep else { return false };
        let incarnation = self.host().incarnation;
        let late = (sweep.at == At::Settling).then_some(sweep.sent).flatten();
        if let Some(fence) = self.world.shards[i].fence.as_mut()
            && fence.incarnation == incarnation
            && !sweep.astray
        {
            (fence.client, fence.late) = (false, late);
        }
        self.fail(i)
    }
}
