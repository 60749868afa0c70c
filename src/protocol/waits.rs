//! Who waits for whom over several servers, joined from what each of them says of its own locks.
//!
//! No server sees more than its part: on a shard a process waits for another one, and only the
//! coordinator knows that both belong to sessions of its own, of which the second waits on another
//! shard for the first. A wait for a lock is for all that block it, so a cycle of waits that lasts
//! is a deadlock.
//!
//! * [`locks`]: what a server says of a lock, and which locks count;
//! * [`cycle`]: the cycles, who has to give way, and how they are told.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

pub mod cycle;
pub mod locks;
#[cfg(test)]
mod tests;

use locks::{Kind, Lock};

/// Stands for the coordinator itself among the OIDs of foreign servers.
pub const HERE: u32 = 0;

/// Who waits, or is waited for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Node {
    /// A process of the coordinator.
    Here(i32),
    /// A process of a foreign server that belongs to no session of the coordinator's database.
    There(u32, i32),
}

/// A session that waits for foreign servers, as it says itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Session {
    /// Its process.
    pub pid: i32,
    /// The number of the wait: no other wait has it.
    pub number: u64,
    /// When its transaction began.
    pub begun: i64,
    /// Whether it can give way.
    pub can_be_cancelled: bool,
    /// Whether it waits for all of the servers, or for the first that answers.
    pub needs_all: bool,
    /// Each server that it waits for, with its process there.
    pub awaits: Vec<(u32, i32)>,
}

/// What a server says of its processes.
#[derive(Clone, Default, Debug)]
pub struct Said {
    /// Who blocks a process; 0 stands for prepared transactions.
    pub blockers: BTreeMap<i32, Vec<i32>>,
    /// The lock that a process waits for.
    pub waits: BTreeMap<i32, Lock>,
    /// The locks of prepared transactions.
    pub held: Vec<Lock>,
    /// The processes here that the server's processes belong to.
    pub owners: BTreeMap<i32, i32>,
    /// The same of prepared transactions, by their xids.
    pub prepared: BTreeMap<u64, i32>,
}

/// One wait for one blocker.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Edge {
    /// Who waits.
    pub from: Node,
    /// For whom.
    pub to: Node,
    /// The server on which the lock is.
    pub server: u32,
    /// The process there that waits.
    pub process: i32,
    /// The process there that blocks it; 0: a prepared transaction.
    pub blocker: i32,
    /// The number of the session's wait; 0 for others.
    pub number: u64,
    /// When the wait for the lock began, by that server's clock.
    pub since: i64,
    /// The lock, in words.
    pub lock: Rc<str>,
}

impl Edge {
    /// What makes it the same wait when it is seen again. As long as a process waits, it releases
    /// nothing: a blocker that waits itself has blocked all the time.
    fn identity(&self) -> (Node, Node, u32, i32, u64, i64) {
        (self.from, self.to, self.server, self.process, self.number, self.since)
    }
}

/// Who waits for whom.
#[derive(Clone, Default, Debug)]
pub struct Graph {
    /// Every wait for every blocker.
    pub edges: Vec<Edge>,
    sessions: BTreeMap<i32, (i64, bool)>,
}

impl Graph {
    /// Joins what the sessions and the servers say. A server that has said nothing adds nothing.
    pub fn join(sessions: &[Session], said: &BTreeMap<u32, Said>) -> Self {
        let mut edges = Vec::new();
        for session in sessions {
            let from = Node::Here(session.pid);
            let mut own = Vec::new();
            let mut all = true;
            for &(server, process) in &session.awaits {
                let before = own.len();
                if let Some(said) = said.get(&server) {
                    said.waits_of(server, from, process, session.number, &mut own);
                }
                all &= own.len() > before;
            }
            if all || session.needs_all {
                edges.extend(own);
            }
        }
        for (&server, said) in said {
            for &process in said.blockers.keys() {
                // What a session waits for it says itself.
                if server == HERE || !said.owners.contains_key(&process) {
                    let from = said.node(server, process);
                    said.waits_of(server, from, process, 0, &mut edges);
                }
            }
        }
        let facts = |s: &Session| (s.pid, (s.begun, s.can_be_cancelled));
        Self { edges, sessions: sessions.iter().map(facts).collect() }
    }

    /// The processes of the coordinator that block somebody and do not say what they wait for:
    /// whether that is a lock of the coordinator's own has to be asked.
    pub fn silent(&self) -> Vec<i32> {
        let blocking = self.edges.iter().filter_map(|edge| match edge.to {
            Node::Here(pid) => Some(pid),
            Node::There(..) => None,
        });
        let mut silent: Vec<i32> =
            blocking.filter(|pid| !self.sessions.contains_key(pid)).collect();
        silent.sort_unstable();
        silent.dedup();
        silent
    }

    /// Whether each of these waits is in it, too.
    pub fn has_all(&self, edges: &[Edge]) -> bool {
        let own: BTreeSet<_> = self.edges.iter().map(Edge::identity).collect();
        edges.iter().all(|edge| own.contains(&edge.identity()))
    }

    /// When a process's transaction began, if it is a session that can give way.
    fn can_give_way(&self, node: Node) -> Option<(i64, i32)> {
        let Node::Here(pid) = node else { return None };
        let &(begun, can_be_cancelled) = self.sessions.get(&pid)?;
        can_be_cancelled.then_some((begun, pid))
    }
}

impl Said {
    fn node(&self, server: u32, process: i32) -> Node {
        if server == HERE {
            return Node::Here(process);
        }
        self.owners.get(&process).map_or(Node::There(server, process), |pid| Node::Here(*pid))
    }

    /// The lock that a process waits for, if its wait counts.
    fn awaited(&self, process: i32) -> Option<&Lock> {
        self.waits.get(&process).filter(|lock| lock.kind != Kind::Brief)
    }

    /// The waits of `from`, whose process on this server is `process`.
    fn waits_of(&self, server: u32, from: Node, process: i32, number: u64, to: &mut Vec<Edge>) {
        let Some(lock) = self.awaited(process) else { return };
        let text: Rc<str> = lock.describe().into();
        let mut add = |node: Node, blocker: i32| {
            let (lock, since) = (Rc::clone(&text), lock.since);
            to.push(Edge { from, to: node, server, process, blocker, number, since, lock });
        };
        let mut blockers = self.blocked_by(process).to_vec();
        // Who queues for a row waits for the transaction that has it, as the first of the queue
        // does.
        if lock.kind == Kind::Tuple {
            for other in self.blocked_by(process) {
                if self.awaited(*other).is_some_and(|lock| lock.kind == Kind::Transaction) {
                    blockers.extend(self.blocked_by(*other));
                }
            }
            blockers.sort_unstable();
            blockers.dedup();
        }
        for blocker in blockers {
            match blocker {
                0 => {
                    for pid in self.owners_of_prepared(process, lock) {
                        add(Node::Here(pid), 0);
                    }
                }
                _ => add(self.node(server, blocker), blocker),
            }
        }
    }

    fn blocked_by(&self, process: i32) -> &[i32] {
        self.blockers.get(&process).map_or(&[], Vec::as_slice)
    }

    /// The sessions whose prepared transactions block a wait for this lock. The server does not say
    /// which they are, but which locks each has, under its virtual transaction.
    fn owners_of_prepared(&self, process: i32, lock: &Lock) -> Vec<i32> {
        let of = |lock: &Lock| -> Vec<i32> {
            let holders = self.held.iter().filter(|held| held.blocks(lock));
            let xids = holders.flat_map(|held| {
                let own = move |l: &&Lock| l.transaction == held.transaction;
                self.held.iter().filter(own)
            });
            xids.filter_map(|l| self.prepared.get(&l.xid()?).copied()).collect()
        };
        let mut owners = of(lock);
        // Of a queue for a row, those that the first of the queue waits for.
        if lock.kind == Kind::Tuple {
            for other in self.blocked_by(process) {
                owners.extend(self.awaited(*other).into_iter().flat_map(of));
            }
        }
        owners.sort_unstable();
        owners.dedup();
        owners
    }
}
