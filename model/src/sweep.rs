//! A sweep, in the order of `src/resolver/sweep`. What it concludes, it concludes by the functions
//! of `src/protocol`.

use crate::protocol::conclusion::{
    Committed, Conclusion, HandedOver, judge_handed_over, judge_unlisted,
};
use crate::protocol::gid::Gid;
use crate::protocol::participant::Outcome;
use crate::protocol::shown::Status;
use crate::protocol::verdict::{Decision, Others, Place, Reason, Verdict, judge};
use crate::resolver::{gid, identity, left, nonce};
use crate::rules::Rule;
use crate::session::{is_replicated, settling};
use crate::world::{At, Command, Entry, Fence, Row, Sweep, Work};
use crate::{Hand, Side};

impl Hand<'_> {
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
            // What was given up is registered with another number when it is used again.
            committed: host.open[i] && !is_owned && !host.removed[i],
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
        let committed = sweep.committed || (!is_known && self.host().open[i]);
        if sweep.place == Place::Recorded && committed && sweep.left.is_none() {
            gone = self.conclude_committed(&mut sweep);
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
    fn conclude_committed(&mut self, sweep: &mut Sweep) -> bool {
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
