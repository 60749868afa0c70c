//! All steps of the model.

use stateright::{Model, Property};

use crate::check::Checked;
use crate::events::{lose, reappear, replicate};
use crate::properties::fingerprint;
use crate::protocol::participant::Outcome;
use crate::setting::Setting;
use crate::shard::Who;
use crate::world::{
    Each, Faults, Host, MOST, Neighbour, Process, Row, Session, Shard, Work, World, Xact,
};
use crate::{Hand, Side};

/// A step.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Action {
    /// The application ends its transaction: COMMIT or PREPARE TRANSACTION.
    End,
    /// Its session takes its locks.
    TakeLocks,
    /// The session takes an answer of this participant, or notices that none will come.
    Hear(Side, usize),
    /// The local transaction commits, or is prepared.
    Decide,
    /// It waits for the standby no longer.
    GoOn(Side),
    /// The session waits no longer: a deadline, a cancel, or its end.
    GiveUp(Side),
    /// The application settles 'gxid': a session connects.
    Connect(Side, Outcome),
    /// It looks for others, and settles.
    Settle(Side),
    /// A server process of a session executes what was sent.
    Execute(usize, Who),
    /// A server process ends, because its client has gone.
    Exit(usize, Who),
    /// So does one that has nothing to do with the transaction.
    NeighbourExits(usize),
    /// The server process of a resolver that has gone executes what was sent.
    FenceExecutes(usize),
    /// It ends.
    FenceExits(usize),
    /// The resolver reads the decision table.
    Look(Side),
    /// The resolver sweeps this participant, one step.
    Sweep(Side, usize),
    /// It waits no longer for the standby.
    SweepLate(Side, usize),
    /// It takes over what a session has not delivered in time.
    Reap,
    /// It deletes the decision.
    Delete,
    /// The standby receives what was written.
    Replicate,
    /// A client asks for the outcome by label.
    Ask,
    /// The server is back, or its options are changed back.
    MoveBack(usize),
    /// A participant that was given up is used again.
    Reappear(usize),
    /// The participant refuses.
    Refuse(usize, Who),
    /// Its transaction has failed, and nobody has noticed.
    Fail(usize),
    /// A trigger there releases the session's lock.
    ReleaseLock(usize),
    /// Another session's process waits there for the transaction.
    NeighbourWaits(usize),
    /// The coordinator crashes and starts again.
    Crash,
    /// It is lost, and its standby is promoted.
    FailOver,
    /// The participant's server crashes and starts again.
    CrashShard(usize),
    /// The connection of the session breaks.
    Lose(Side, usize),
    /// The connection of a sweep breaks.
    LoseSweep(Side, usize),
    /// The server's options are changed to another server.
    MoveAway(usize),
    /// An operator gives the participant up.
    Forget(usize),
    /// A physical copy of the coordinator is made, and started.
    Copy,
}

impl Action {
    /// Whether it may not happen at all. All others happen, if they stay possible.
    pub fn is_fault(self) -> bool {
        matches!(
            self,
            Self::Refuse(..)
                | Self::Fail(_)
                | Self::ReleaseLock(_)
                | Self::NeighbourWaits(_)
                | Self::Crash
                | Self::FailOver
                | Self::CrashShard(_)
                | Self::Lose(..)
                | Self::LoseSweep(..)
                | Self::MoveAway(_)
                | Self::Forget(_)
                | Self::Copy
        )
    }
}

pub(crate) const NEW_HOST: Host = Host {
    incarnation: 0,
    row: Row::NotYet,
    row_on_standby: Row::NotYet,
    listed: false,
    listed_on_standby: false,
    forgotten: [false; MOST],
    taken: false,
    taken_on_standby: false,
    session: None,
    entries: [None; MOST],
    in_ledger: false,
    members: [false; MOST],
    open: [false; MOST],
    confirmed: false,
    work: [Work { unsettled: false, due: false, was_listed: false, sweep: None }; MOST],
};

impl World {
    /// The client is told an outcome.
    pub fn tell(&mut self, outcome: Outcome) {
        self.contradicted |= self.told.is_some_and(|told| told != outcome);
        self.told = Some(outcome);
    }

    /// The same with its participants in an order of their states.
    fn sorted(&self, setting: &Setting) -> Self {
        let key = |i: usize| {
            let host = |host: &Host| {
                let session = host.session.map(|s| (s.states[i], s.awaits[i], s.skips[i]));
                let marks = (host.forgotten[i], host.members[i], host.open[i]);
                (session, marks, host.entries[i], host.work[i])
            };
            fingerprint(&(self.shards[i], host(&self.host), self.copy.as_ref().map(host)))
        };
        let keys: Vec<u64> = setting.all().map(key).collect();
        if keys.is_sorted() {
            return *self;
        }
        let mut order: Vec<usize> = setting.all().collect();
        order.sort_by_key(|i| keys[*i]);
        let mut sorted = *self;
        for (to, from) in order.into_iter().enumerate() {
            sorted.shards[to] = self.shards[from];
            sorted.host.take_place(to, &self.host, from);
            if let (Some(copy), Some(was)) = (&mut sorted.copy, &self.copy) {
                copy.take_place(to, was, from);
            }
        }
        sorted
    }

    fn take(budget: &mut u8) -> bool {
        let is_left = *budget > 0;
        *budget = budget.saturating_sub(1);
        is_left
    }
}

impl Host {
    /// What it has of one participant becomes what another one has of another.
    fn take_place(&mut self, to: usize, was: &Self, from: usize) {
        if let (Some(session), Some(was)) = (&mut self.session, &was.session) {
            session.states[to] = was.states[from];
            session.awaits[to] = was.awaits[from];
            session.skips[to] = was.skips[from];
        }
        self.forgotten[to] = was.forgotten[from];
        self.members[to] = was.members[from];
        self.open[to] = was.open[from];
        self.entries[to] = was.entries[from];
        self.work[to] = was.work[from];
    }
}

impl Checked {
    /// All steps that may be possible.
    pub fn candidates(&self, world: &World, actions: &mut Vec<Action>) {
        let setting = &self.setting;
        let sides: &[Side] = if world.copy.is_some() { &Side::BOTH } else { &[Side::Original] };
        for i in setting.all() {
            for who in [Who::Worker, Who::Settler] {
                actions.extend([Action::Execute(i, who), Action::Exit(i, who)]);
            }
            actions.extend([
                Action::NeighbourExits(i),
                Action::FenceExecutes(i),
                Action::FenceExits(i),
            ]);
        }
        for side in sides {
            actions.extend(setting.all().map(|i| Action::Hear(*side, i)));
        }
        actions.extend([Action::TakeLocks, Action::End, Action::Decide]);
        if setting.standby {
            actions.push(Action::Replicate);
        }
        for side in sides {
            actions.extend([Action::GoOn(*side), Action::Settle(*side), Action::Look(*side)]);
        }
        for side in sides {
            for i in setting.all() {
                actions.push(Action::Sweep(*side, i));
                if setting.standby {
                    actions.push(Action::SweepLate(*side, i));
                }
            }
        }
        actions.extend(setting.all().map(Action::MoveBack));
        actions.extend(setting.all().map(Action::Reappear));
        if !setting.commit_wait {
            actions.push(Action::Reap);
        }
        actions.push(Action::Delete);
        if setting.label {
            actions.push(Action::Ask);
        }
        for side in sides {
            actions.push(Action::GiveUp(*side));
            if setting.gxid {
                actions.push(Action::Connect(*side, Outcome::Commit));
                actions.push(Action::Connect(*side, Outcome::Abort));
            }
        }
        self.faults(world, sides, actions);
    }

    fn faults(&self, world: &World, sides: &[Side], actions: &mut Vec<Action>) {
        let setting = &self.setting;
        let Faults { crashes, losses, refusals, moves, forgets } = world.faults;
        for i in setting.all() {
            if refusals > 0 {
                actions.extend([
                    Action::Refuse(i, Who::Worker),
                    Action::Fail(i),
                    Action::ReleaseLock(i),
                ]);
            }
            if setting.neighbour {
                actions.push(Action::NeighbourWaits(i));
            }
            if crashes > 0 {
                actions.push(Action::CrashShard(i));
            }
            if losses > 0 {
                for side in sides {
                    actions.extend([Action::Lose(*side, i), Action::LoseSweep(*side, i)]);
                }
            }
            if moves > 0 {
                actions.push(Action::MoveAway(i));
            }
            if forgets > 0 {
                actions.push(Action::Forget(i));
            }
        }
        if crashes > 0 {
            actions.push(Action::Crash);
            if setting.standby {
                actions.push(Action::FailOver);
            }
        }
        if setting.copy {
            actions.push(Action::Copy);
        }
    }

    /// Takes a step; `false`: it is not possible, or changes nothing.
    pub fn step(&self, world: &mut World, action: Action) -> bool {
        let setting = &self.setting;
        macro_rules! hand {
            ($side:expr) => {
                Hand { setting, world, side: $side }
            };
        }
        match action {
            Action::TakeLocks => hand!(Side::Original).take_locks(),
            Action::End => hand!(Side::Original).begin(),
            Action::Hear(side, i) => hand!(side).hear(i),
            Action::Decide => hand!(Side::Original).decide(),
            Action::GoOn(side) => hand!(side).go_on(),
            Action::GiveUp(side) => hand!(side).give_up(),
            Action::Connect(side, outcome) => hand!(side).connect(outcome),
            Action::Settle(side) => hand!(side).settle(),
            Action::Execute(i, who) => world.shards[i].execute(who, setting),
            Action::Exit(i, who) => world.shards[i].exit(who),
            Action::NeighbourExits(i) => world.shards[i].neighbour_exits(setting),
            Action::FenceExecutes(i) => world.shards[i].fence_ends(true),
            Action::FenceExits(i) => world.shards[i].fence_ends(false),
            Action::Look(side) => hand!(side).look(),
            Action::Sweep(side, i) => hand!(side).sweep(i, false),
            Action::SweepLate(side, i) => hand!(side).sweep(i, true),
            Action::Reap => hand!(Side::Original).reap(),
            Action::Delete => hand!(Side::Original).delete(),
            Action::Replicate => replicate(&mut world.host),
            Action::Ask => self.ask(world),
            Action::MoveBack(i) => std::mem::take(&mut world.shards[i].away),
            Action::Reappear(i) => reappear(world, i),
            Action::Refuse(i, who) => {
                World::take(&mut world.faults.refusals) && world.shards[i].refuse(who)
            }
            Action::Fail(i) => {
                let shard = &mut world.shards[i];
                let is_open = shard.xact == Xact::Open;
                shard.xact = Xact::Failed;
                is_open && World::take(&mut world.faults.refusals)
            }
            Action::ReleaseLock(i) => {
                let shard = &mut world.shards[i];
                shard.xact == Xact::Open
                    && World::take(&mut world.faults.refusals)
                    && shard.worker.as_mut().is_some_and(|p| std::mem::take(&mut p.lock))
            }
            Action::NeighbourWaits(i) => world.shards[i].neighbour_waits(),
            Action::Crash => World::take(&mut world.faults.crashes) && self.crash(world, false),
            Action::FailOver => World::take(&mut world.faults.crashes) && self.crash(world, true),
            Action::CrashShard(i) => {
                world.shards[i].crash();
                World::take(&mut world.faults.crashes)
            }
            Action::Lose(side, i) => {
                World::take(&mut world.faults.losses) && lose(&mut hand!(side), i)
            }
            Action::LoseSweep(side, i) => {
                World::take(&mut world.faults.losses) && hand!(side).lose_sweep(i)
            }
            Action::MoveAway(i) => {
                World::take(&mut world.faults.moves)
                    && !std::mem::replace(&mut world.shards[i].away, true)
            }
            Action::Forget(i) => {
                World::take(&mut world.faults.forgets) && hand!(Side::Original).forget(i)
            }
            Action::Copy => self.copy(world),
        }
    }
}

impl Model for Checked {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        let setting = &self.setting;
        let mut host = Host { session: Some(Session::working()), ..NEW_HOST };
        // A copy sweeps what earlier transactions have put on the list.
        host.listed = setting.copy || setting.restarted;
        for i in setting.all().filter(|_| setting.restarted) {
            (host.work[i].unsettled, host.work[i].due) = (true, true);
        }
        let shard = |i: usize| Shard {
            xact: Xact::Open,
            strangers: true,
            worker: Some(Process { lock: false, is_known: false, ..Process::new(0) }),
            settler: None,
            neighbour: (setting.neighbour && i == 0).then_some(Neighbour {
                incarnation: 0,
                client: true,
                waits: false,
            }),
            fence: None,
            away: false,
        };
        let shards: Each<Shard> = std::array::from_fn(shard);
        vec![World {
            faults: setting.faults,
            host,
            copy: None,
            shards,
            told: None,
            contradicted: false,
            illegal: false,
            heuristic: false,
        }]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        self.candidates(world, actions);
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut next = *world;
        if !self.step(&mut next, action) || next == *world {
            return None;
        }
        Some(if self.symmetric { next.sorted(&self.setting) } else { next })
    }

    fn properties(&self) -> Vec<Property<Self>> {
        self.promises()
    }
}
