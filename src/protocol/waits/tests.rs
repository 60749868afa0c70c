//! Joins of small worlds, and the search for cycles beside a naive one.

use std::collections::{BTreeSet, HashMap};

use proptest::prelude::*;

use super::cycle::Cycle;
use super::locks::{Columns, Kind, Lock, target};
use super::{Edge, Graph, HERE, Node, Said, Session};

const S1: u32 = 1;
const S2: u32 = 2;

fn session(pid: i32, begun: i64, awaits: &[(u32, i32)]) -> Session {
    Session {
        pid,
        number: pid as u64,
        begun,
        can_be_cancelled: true,
        needs_all: true,
        awaits: awaits.to_vec(),
    }
}

fn lock(locktype: &str, object: &str, mode: &str) -> Lock {
    let columns = Columns {
        locktype,
        relation: object,
        tuple: object,
        transactionid: object,
        ..Columns::default()
    };
    Lock {
        kind: Kind::named(locktype),
        target: target(columns),
        mode: mode.to_owned(),
        transaction: String::new(),
        since: 0,
    }
}

impl Said {
    fn waits(mut self, pid: i32, locktype: &str, object: &str, blockers: &[i32]) -> Self {
        let wait = lock(locktype, object, "ShareLock");
        self.waits.insert(pid, Lock { since: i64::from(pid), ..wait });
        self.blockers.insert(pid, blockers.to_vec());
        self
    }

    fn owned(mut self, process: i32, pid: i32) -> Self {
        self.owners.insert(process, pid);
        self
    }

    fn prepared(mut self, xid: u64, transaction: &str, pid: Option<i32>, held: Lock) -> Self {
        let own = lock("transactionid", &xid.to_string(), "ExclusiveLock");
        for lock in [own, held] {
            self.held.push(Lock { transaction: transaction.to_owned(), ..lock });
        }
        self.prepared.extend(pid.map(|pid| (xid, pid)));
        self
    }
}

fn join(sessions: &[Session], said: impl IntoIterator<Item = (u32, Said)>) -> Graph {
    Graph::join(sessions, &said.into_iter().collect())
}

fn only(graph: &Graph) -> Cycle {
    let mut cycles = graph.cycles();
    assert_eq!(cycles.len(), 1, "{cycles:#?}");
    cycles.remove(0)
}

fn members(cycle: &Cycle) -> BTreeSet<Node> {
    cycle.edges.iter().map(|edge| edge.from).collect()
}

/// Two sessions that lock rows on two servers in opposite order.
fn crossed() -> (Vec<Session>, [(u32, Said); 2]) {
    let sessions = vec![session(10, 1, &[(S2, 102)]), session(20, 2, &[(S1, 201)])];
    let s1 = Said::default().owned(101, 10).owned(201, 20);
    let s2 = Said::default().owned(102, 10).owned(202, 20);
    let s1 = s1.waits(201, "transactionid", "745", &[101]);
    let s2 = s2.waits(102, "transactionid", "746", &[202]);
    (sessions, [(S1, s1), (S2, s2)])
}

#[test]
fn the_younger_of_two_gives_way_and_is_told_why() {
    let (sessions, said) = crossed();
    let cycle = only(&join(&sessions, said));
    assert_eq!(cycle.victim, Some(20));
    let name = |server| format!("s{server}");
    assert_eq!(
        cycle.detail(name),
        "Process 20 waits on server \"s1\", as process 201 there, for ShareLock on transaction 745; \
         blocked by process 10, process 101 there.\n\
         Process 10 waits on server \"s2\", as process 102 there, for ShareLock on transaction 746; \
         blocked by process 20, process 202 there."
    );
}

#[test]
fn who_cannot_be_cancelled_does_not_give_way() {
    let (mut sessions, said) = crossed();
    sessions[1].can_be_cancelled = false;
    assert_eq!(only(&join(&sessions, said.clone())).victim, Some(10));
    sessions[0].can_be_cancelled = false;
    assert_eq!(only(&join(&sessions, said)).victim, None);
}

#[test]
fn half_of_what_is_needed_is_no_cycle() {
    let (sessions, said) = crossed();
    for n in 0..2 {
        assert!(join(&sessions[n..=n], said.clone()).cycles().is_empty());
        assert!(join(&sessions, said[n..=n].to_vec()).cycles().is_empty());
        let mut unlabelled = said.clone();
        unlabelled[n].1.owners.clear();
        assert!(join(&sessions, unlabelled).cycles().is_empty());
        let mut free = said.clone();
        free[n].1.waits.clear();
        assert!(join(&sessions, free).cycles().is_empty());
    }
}

#[test]
fn a_cycle_is_the_same_when_every_wait_in_it_is() {
    let (sessions, said) = crossed();
    let cycle = only(&join(&sessions, said.clone()));
    assert!(join(&sessions, said.clone()).has_all(&cycle.edges));
    let mut renumbered = sessions.clone();
    renumbered[0].number = 99;
    assert!(!join(&renumbered, said.clone()).has_all(&cycle.edges));
    let mut later = said;
    later[1].1.waits.values_mut().for_each(|lock| lock.since += 1);
    assert!(!join(&sessions, later).has_all(&cycle.edges));
}

#[test]
fn a_lock_of_the_coordinator_and_a_stranger_on_a_shard_are_parts_of_it() {
    // 10 waits on s1 for stranger 300, who waits for 20, who waits here for 10.
    let sessions = [session(10, 1, &[(S1, 101)])];
    let s1 = Said::default().owned(101, 10).owned(201, 20);
    let s1 = s1.waits(101, "relation", "5", &[300]).waits(300, "relation", "6", &[201]);
    let graph = join(&sessions, [(S1, s1.clone())]);
    assert_eq!(graph.silent(), [20]);
    assert!(graph.cycles().is_empty());
    let here = Said::default().waits(20, "relation", "7", &[10]);
    let cycle = only(&join(&sessions, [(S1, s1), (HERE, here)]));
    assert_eq!(members(&cycle), [Node::Here(10), Node::Here(20), Node::There(S1, 300)].into());
    assert_eq!(cycle.victim, Some(10));
    let told = cycle.detail(|server| format!("s{server}"));
    assert!(told.contains("blocked by process 300 there.\n"), "{told}");
    assert!(told.contains("Process 300 of server \"s1\" waits for"), "{told}");
    assert!(told.contains("Process 20 waits for ShareLock on relation 7"), "{told}");
}

#[test]
fn who_has_prepared_is_found_by_the_locks_of_the_prepared_transaction() {
    // 10 waits on s1 for what 20 has prepared there; 20 waits at its PREPARE on s2 for 10.
    let sessions = [session(10, 1, &[(S1, 101)]), session(20, 2, &[(S2, 202)])];
    let s2 = Said::default().owned(102, 10).waits(202, "transactionid", "7", &[102]);
    let waits = || Said::default().owned(101, 10).waits(101, "relation", "5", &[0]);
    for (mode, locked, found) in [
        ("RowExclusiveLock", "5", true),
        // Does not conflict with ShareLock; another table; not of ours.
        ("RowShareLock", "5", false),
        ("RowExclusiveLock", "6", false),
    ] {
        let s1 = waits().prepared(745, "3/26", Some(20), lock("relation", locked, mode));
        let graph = join(&sessions, [(S1, s1), (S2, s2.clone())]);
        assert_eq!(graph.cycles().len(), usize::from(found), "{mode} {locked}");
    }
    let held = lock("relation", "5", "RowExclusiveLock");
    let s1 = waits().prepared(745, "3/26", None, held);
    assert!(join(&sessions, [(S1, s1), (S2, s2)]).cycles().is_empty());
}

#[test]
fn a_session_that_waits_for_itself_is_a_cycle() {
    let sessions = [session(10, 1, &[(S1, 101)])];
    let s1 = Said::default().owned(101, 10).owned(102, 10).waits(101, "relation", "5", &[102]);
    assert_eq!(only(&join(&sessions, [(S1, s1)])).victim, Some(10));
}

#[test]
fn brief_locks_are_not_waits() {
    let sessions = [session(10, 1, &[(S1, 101)])];
    for locktype in ["extend", "page", "spectoken", "frozenid"] {
        let s1 = Said::default().owned(101, 10).owned(102, 10).waits(101, locktype, "5", &[102]);
        assert!(join(&sessions, [(S1, s1)]).cycles().is_empty(), "{locktype}");
    }
}

#[test]
fn who_waits_for_the_first_answer_waits_only_if_none_can_come() {
    let (mut sessions, said) = crossed();
    sessions[0].needs_all = false;
    assert_eq!(join(&sessions, said.clone()).cycles().len(), 1);
    sessions[0].awaits.push((S1, 109));
    assert!(join(&sessions, said.clone()).cycles().is_empty());
    sessions[0].needs_all = true;
    assert_eq!(join(&sessions, said).cycles().len(), 1);
}

/// 10 has a row on s1 for which 30, 31, 32 queue in this order, and waits on s2 for 32.
#[test]
fn who_only_stands_in_the_queue_does_not_give_way() {
    let mut s1 = Said::default().owned(101, 10).waits(130, "transactionid", "745", &[101]);
    let mut sessions = vec![session(10, 1, &[(S2, 102)])];
    let queue = [130, 131, 132];
    for (n, process) in queue.into_iter().enumerate() {
        s1 = s1.owned(process, process - 100);
        if n > 0 {
            s1 = s1.waits(process, "tuple", "1", &queue[..n]);
        }
        sessions.push(session(process - 100, 9 - n as i64, &[(S1, process)]));
    }
    let s2 = Said::default().owned(102, 10).owned(232, 32);
    let s2 = s2.waits(102, "transactionid", "746", &[232]);
    let cycle = only(&join(&sessions, [(S1, s1), (S2, s2)]));
    assert_eq!(members(&cycle), [Node::Here(10), Node::Here(32)].into());
    assert_eq!(cycle.victim, Some(32));
}

#[test]
fn a_hot_row_is_searched_in_no_time() {
    let mut s1 = Said::default().owned(1000, 999);
    let mut sessions = Vec::new();
    let queue: Vec<i32> = (1001..1401).collect();
    for (n, process) in queue.iter().enumerate() {
        let blockers = if n == 0 { vec![1000] } else { queue[..n].to_vec() };
        let locktype = if n == 0 { "transactionid" } else { "tuple" };
        s1 = s1.owned(*process, process - 1000).waits(*process, locktype, "1", &blockers);
        sessions.push(session(process - 1000, i64::from(*process), &[(S1, *process)]));
    }
    let begin = std::time::Instant::now();
    let graph = join(&sessions, [(S1, s1)]);
    assert!(graph.edges.len() > 79_000 && graph.cycles().is_empty());
    // A second or so without optimization; far below that with it.
    assert!(begin.elapsed().as_secs() < 20, "{:?}", begin.elapsed());
}

/// A graph over few nodes: odd numbers are strangers on a shard.
fn graph_of(pairs: &[(u8, u8)], sessions: &[(u8, i64, bool)]) -> Graph {
    let node = |n: u8| match n % 2 {
        0 => Node::Here(i32::from(n)),
        _ => Node::There(S1, i32::from(n)),
    };
    let edge = |(from, to): &(u8, u8)| Edge {
        from: node(*from),
        to: node(*to),
        server: S1,
        process: i32::from(*from),
        blocker: i32::from(*to),
        number: 0,
        since: 0,
        lock: "".into(),
    };
    Graph {
        edges: pairs.iter().map(edge).collect(),
        sessions: sessions.iter().map(|(n, begun, can)| (i32::from(*n), (*begun, *can))).collect(),
    }
}

/// Every simple cycle, by trying every way.
fn all_cycles(graph: &Graph) -> Vec<Vec<Node>> {
    fn go(graph: &Graph, way: &mut Vec<Node>, found: &mut Vec<Vec<Node>>) {
        let last = *way.last().expect("never empty");
        for edge in graph.edges.iter().filter(|edge| edge.from == last) {
            if edge.to == way[0] {
                found.push(way.clone());
            } else if !way.contains(&edge.to) {
                way.push(edge.to);
                go(graph, way, found);
                way.pop();
            }
        }
    }
    let starts: BTreeSet<Node> = graph.edges.iter().map(|edge| edge.from).collect();
    let mut found = Vec::new();
    for start in starts {
        go(graph, &mut vec![start], &mut found);
    }
    found
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 5 } else { 2000 }))]

    #[test]
    fn cycles_are_those_of_a_naive_search(
        pairs in prop::collection::vec((0_u8..7, 0_u8..7), 0..14),
        sessions in prop::collection::vec((0_u8..4, 0_i64..4, any::<bool>()), 0..5),
    ) {
        let sessions: Vec<_> = sessions.into_iter().map(|(n, b, c)| (n * 2, b, c)).collect();
        let graph = graph_of(&pairs, &sessions);
        let naive = all_cycles(&graph);
        let cycles = graph.cycles();
        prop_assert_eq!(naive.is_empty(), cycles.is_empty());
        let mut in_knots: HashMap<Node, usize> = HashMap::new();
        for (n, cycle) in cycles.iter().enumerate() {
            for (edge, next) in cycle.edges.iter().zip(cycle.edges.iter().cycle().skip(1)) {
                prop_assert!(graph.edges.contains(edge) && edge.to == next.from);
                // No session is in two of them, nor twice in one.
                prop_assert_eq!(in_knots.insert(edge.from, n), None);
            }
            let age = |node: &Node| graph.can_give_way(*node);
            let own = members(cycle);
            let youngest = own.iter().filter_map(age).max();
            prop_assert_eq!(cycle.victim, youngest.map(|(_, pid)| pid));
        }
        for other in &naive {
            // Something is done about the knot of each; what is done is on a cycle no longer than
            // any that has somebody who can give way.
            let reaches = |cycle: &&Cycle| {
                let both = |a: Node, b: Node| naive_reaches(&graph, a, b) && naive_reaches(&graph, b, a);
                both(cycle.edges[0].from, other[0])
            };
            let taken = cycles.iter().find(reaches);
            prop_assert!(taken.is_some(), "{:?}", other);
            let can = other.iter().any(|node| graph.can_give_way(*node).is_some());
            if let (Some(taken), true) = (taken, can) {
                prop_assert!(taken.edges.len() <= other.len());
                prop_assert!(taken.victim.is_some());
            }
        }
    }
}

fn naive_reaches(graph: &Graph, from: Node, to: Node) -> bool {
    let mut seen = BTreeSet::from([from]);
    loop {
        let next: Vec<Node> =
            graph.edges.iter().filter(|e| seen.contains(&e.from)).map(|e| e.to).collect();
        let before = seen.len();
        seen.extend(next);
        if seen.len() == before {
            return seen.contains(&to);
        }
    }
}
