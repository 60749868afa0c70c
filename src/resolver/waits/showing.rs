//! What a look has seen, as the view shows it.

use std::collections::{HashMap, HashSet};

use pgrx::pg_sys::Oid;

use crate::protocol::waits::{Edge, Graph, HERE, Node};
use crate::shared::wait_rows::Row;

/// How many blockers of one wait are shown.
const BLOCKERS: usize = 4;

/// The waits, each with some of its blockers: those first that do not wait themselves, which the
/// others of a queue wait for, too.
pub(super) fn rows(graph: &Graph) -> Vec<Row> {
    let waiting: HashSet<Node> = graph.edges.iter().map(|edge| edge.from).collect();
    let (queues, ends): (Vec<&Edge>, Vec<&Edge>) =
        graph.edges.iter().partition(|edge| waiting.contains(&edge.to));
    let mut shown: HashMap<(Node, u32, i32), usize> = HashMap::new();
    let mut rows: Vec<Row> = Vec::new();
    for edge in ends.into_iter().chain(queues) {
        let count = shown.entry((edge.from, edge.server, edge.process)).or_default();
        *count += 1;
        if *count <= BLOCKERS {
            rows.push(row(edge));
        }
    }
    rows
}

fn row(edge: &Edge) -> Row {
    let here = |node: Node| match node {
        Node::Here(pid) => pid,
        Node::There(..) => 0,
    };
    Row {
        number: edge.number,
        pid: here(edge.from),
        serverid: if edge.server == HERE { Oid::INVALID } else { Oid::from_u32(edge.server) },
        process: edge.process,
        since: edge.since,
        blocked_by: here(edge.to),
        blocker: edge.blocker,
        ..Row::EMPTY
    }
    .with_lock(&edge.lock)
}
