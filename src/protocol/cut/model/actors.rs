//! Who acts: transactions that commit in two phases or in one, and readers.

use std::collections::{BTreeMap, BTreeSet};

use super::Without;
use super::world::{Accepted, Name, World, at};
use crate::protocol::cut::{Taken, Verdict};
use crate::protocol::order::Opened;

/// One of those who act, between two waits.
pub(super) trait Actor {
    /// Goes on to the next wait; `false`: it has come to its end.
    fn step(&mut self, world: &mut World) -> bool;
}

/// A transaction that prepares, by the steps that it has made.
pub(super) struct TwoPhase {
    name: Name,
    steps: usize,
    is_acknowledged_early: bool,
    number: u64,
    unsent: Vec<usize>,
    unconfirmed: Vec<usize>,
}

impl Actor for TwoPhase {
    fn step(&mut self, w: &mut World) -> bool {
        self.steps += 1;
        match self.steps {
            1 => {
                let count = 2 + usize::from(w.random.chance(33));
                self.unsent = w.random.servers(count);
                self.is_acknowledged_early = w.random.chance(40);
                w.begin(self.name, true, self.unsent.clone());
            }
            2 => {
                let seen: BTreeSet<Name> =
                    self.unsent.iter().flat_map(|server| w.committed(*server)).collect();
                w.transactions.get_mut(&self.name).expect("begun").depends_on.extend(seen);
            }
            3 if w.without == Without::NumberFirst => self.send(w),
            3 => self.decide(w),
            4 if w.without == Without::NumberFirst => self.decide(w),
            _ => {
                let confirms = w.random.chance(50) && !self.unconfirmed.is_empty();
                if confirms || self.unsent.is_empty() {
                    let server =
                        self.unconfirmed.swap_remove(w.random.below(self.unconfirmed.len()));
                    w.entries.remove(&(self.name, server));
                    if w.without != Without::Past {
                        w.order.ended(at(server), w.xid(self.name, server), self.number);
                    }
                } else {
                    self.send(w);
                }
                if self.unsent.is_empty() && self.unconfirmed.is_empty() {
                    w.acknowledged.insert(self.name);
                    return false;
                }
            }
        }
        true
    }
}

impl TwoPhase {
    pub(super) fn new(name: Name) -> Self {
        Self {
            name,
            steps: 0,
            is_acknowledged_early: false,
            number: 0,
            unsent: Vec::new(),
            unconfirmed: Vec::new(),
        }
    }

    fn decide(&mut self, w: &mut World) {
        self.number = w.order.decide();
        for server in self.unsent.iter().chain(&self.unconfirmed) {
            w.entries.insert((self.name, *server), self.number);
        }
        if self.is_acknowledged_early {
            w.acknowledged.insert(self.name);
        }
    }

    fn send(&mut self, w: &mut World) {
        let server = self.unsent.swap_remove(w.random.below(self.unsent.len()));
        w.commit(self.name, server);
        self.unconfirmed.push(server);
    }
}

/// A transaction that commits in one phase.
pub(super) struct OnePhase {
    name: Name,
    steps: usize,
    sent: Option<u64>,
}

impl OnePhase {
    pub(super) fn new(name: Name) -> Self {
        Self { name, steps: 0, sent: None }
    }
}

impl Actor for OnePhase {
    fn step(&mut self, w: &mut World) -> bool {
        self.steps += 1;
        let has_rows = w.without != Without::OnePhaseRows;
        match self.steps {
            1 => {
                let servers = w.random.servers(1);
                w.begin(self.name, false, servers);
            }
            2 => {
                self.sent = w.order.one_phase_sent().filter(|_| has_rows);
                w.pending.extend(self.sent.map(|sent| (self.name, sent)));
            }
            3 => {
                let server = w.transactions[&self.name].servers[0];
                w.commit(self.name, server);
            }
            _ => {
                let server = w.transactions[&self.name].servers[0];
                w.pending.remove(&self.name);
                if has_rows {
                    let xid = w.xid(self.name, server);
                    w.order.one_phase_answered(at(server), xid, self.sent);
                }
                w.acknowledged.insert(self.name);
                return false;
            }
        }
        true
    }
}

/// A reader of two or three servers; some read from one of them before the others join.
#[derive(Default)]
pub(super) struct Reader {
    opened: Option<Opened>,
    begun_after: BTreeSet<Name>,
    servers: Vec<usize>,
    fixed: Option<usize>,
    /// How long it works with the first server alone.
    alone_for: usize,
    taken: BTreeMap<usize, (Taken, BTreeSet<Name>)>,
    missing: Vec<usize>,
    rounds: usize,
}

impl Actor for Reader {
    fn step(&mut self, w: &mut World) -> bool {
        let Some(mut opened) = self.opened else {
            let count = 2 + w.random.below(2);
            self.servers = w.random.servers(count);
            self.begun_after = w.acknowledged.clone();
            self.opened = Some(w.order.open());
            if w.random.chance(50) {
                self.fixed = Some(self.servers[0]);
                self.alone_for = [1, 3, 8][w.random.below(3)];
            }
            self.missing = w.random.shuffled(self.servers.clone());
            return true;
        };
        if let Some(first) = self.fixed.filter(|_| self.alone_for > 0) {
            if !self.taken.contains_key(&first) {
                self.take(w, first);
            }
            self.alone_for -= 1;
            if self.alone_for == 0 {
                self.missing.retain(|server| *server != first);
                if w.without == Without::FirstBeginning {
                    self.opened = Some(self.reopened(w));
                }
            }
            return true;
        }
        if let Some(server) = self.missing.pop() {
            self.take(w, server);
            return true;
        }
        self.rounds += 1;
        let taken: Vec<Taken> = self.taken.values().map(|(taken, _)| taken.clone()).collect();
        let rows = w.rows(opened).expect("the past is long enough");
        match w.check(opened, &rows, &taken) {
            Verdict::Cut(_) => {
                let snapshots =
                    self.taken.iter().map(|(s, (_, seen))| (*s, seen.clone())).collect();
                let begun_after = std::mem::take(&mut self.begun_after);
                w.accepted.push(Accepted { snapshots, begun_after });
            }
            Verdict::Again(_) if self.rounds < 60 => {
                let fresh = self.servers.iter().filter(|server| Some(**server) != self.fixed);
                self.missing = w.random.shuffled(fresh.copied().collect());
                if w.without == Without::FixedBeginning {
                    opened = self.reopened(w);
                }
                self.opened = Some(opened);
                return true;
            }
            Verdict::Again(_) | Verdict::TooOld(_) => {}
        }
        w.order.close();
        false
    }
}

impl Reader {
    fn take(&mut self, w: &World, server: usize) {
        let is_fixed = self.fixed == Some(server);
        let taken = Taken { place: at(server), snapshot: w.snapshot(server).into(), is_fixed };
        self.taken.insert(server, (taken, w.committed(server)));
    }

    /// As a unit that begins now.
    fn reopened(&self, w: &World) -> Opened {
        w.order.now()
    }
}
