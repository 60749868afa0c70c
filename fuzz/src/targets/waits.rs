//! Deadlocks over several servers, beside a plain search for cycles.

use std::collections::{BTreeMap, BTreeSet};

use crate::data::Data;
use crate::protocol::waits::locks::{Columns, Kind, Lock, target};
use crate::protocol::waits::{Graph, Node, Said, Session};

const TYPES: [&str; 8] =
    ["transactionid", "tuple", "relation", "extend", "virtualxid", "advisory", "object", "new"];
const MODES: [&str; 4] = ["ShareLock", "ExclusiveLock", "AccessShareLock", "NewLock"];
const NUMBERS: [&str; 5] = ["", "1", "2", "18446744073709551616", "x"];

pub(super) fn waits(data: &[u8]) {
    let mut data = Data(data);
    let data = &mut data;
    let sessions: Vec<Session> = (0..data.below(5))
        .map(|n| Session {
            pid: 1 + i32::from(n),
            number: data.below(4).into(),
            begun: data.number() as i64,
            can_be_cancelled: data.flag(),
            needs_all: data.flag(),
            awaits: (0..data.below(3))
                .map(|_| (data.below(3).into(), 10 + i32::from(data.below(4))))
                .collect(),
        })
        .collect();
    let said: BTreeMap<u32, Said> = (0..data.below(4)).map(|n| (n.into(), said(data))).collect();
    let graph = Graph::join(&sessions, &said);
    let cycles = graph.cycles();
    for cycle in &cycles {
        let mut ends = cycle.edges.iter().zip(cycle.edges.iter().cycle().skip(1));
        assert!(ends.all(|(edge, next)| edge.to == next.from), "it is no cycle: {cycle:?}");
        assert!(graph.has_all(&cycle.edges));
        if let Some(victim) = cycle.victim {
            assert!(cycle.edges.iter().any(|edge| edge.from == Node::Here(victim)));
            assert!(sessions.iter().any(|s| s.pid == victim && s.can_be_cancelled));
        }
        let _ = (cycle.detail(|server| server.to_string()), cycle.is_seen_by_one());
    }
    assert_eq!(!cycles.is_empty(), has_cycle(&graph), "{graph:?}");
    for pid in graph.silent() {
        assert!(graph.edges.iter().any(|edge| edge.to == Node::Here(pid)));
    }
}

fn said(data: &mut Data) -> Said {
    let mut said = Said::default();
    for _ in 0..data.below(5) {
        let blockers = (0..data.below(4)).map(|_| i32::from(data.below(16))).collect();
        said.blockers.insert(process(data), blockers);
    }
    for _ in 0..data.below(6) {
        let process = process(data);
        said.waits.insert(process, lock(data));
    }
    said.held = (0..data.below(4)).map(|_| lock(data)).collect();
    said.owners =
        (0..data.below(4)).map(|_| (process(data), 1 + i32::from(data.below(5)))).collect();
    said.prepared = (0..data.below(3)).map(|n| (n.into(), 1 + i32::from(data.below(5)))).collect();
    said
}

fn process(data: &mut Data) -> i32 {
    10 + i32::from(data.below(6))
}

fn lock(data: &mut Data) -> Lock {
    let locktype = data.choose(&TYPES);
    let columns = Columns {
        locktype,
        database: data.choose(&NUMBERS),
        relation: data.choose(&NUMBERS),
        page: data.choose(&NUMBERS),
        transactionid: data.choose(&NUMBERS),
        virtualxid: data.choose(&NUMBERS),
        ..Columns::default()
    };
    Lock {
        kind: Kind::named(locktype),
        target: target(columns),
        mode: data.choose(&MODES).to_owned(),
        transaction: data.choose(&NUMBERS).to_owned(),
        since: data.number() as i64,
    }
}

/// Takes away, again and again, the waits for whoever waits for nobody that is left: what stays is
/// on a cycle or leads to one.
fn has_cycle(graph: &Graph) -> bool {
    let mut left: Vec<(Node, Node)> = graph.edges.iter().map(|edge| (edge.from, edge.to)).collect();
    loop {
        let before = left.len();
        let waiting: BTreeSet<Node> = left.iter().map(|(from, _)| *from).collect();
        left.retain(|(_, to)| waiting.contains(to));
        if left.len() == before {
            return before > 0;
        }
    }
}
