//! Cycles of waits, and who has to give way.
//!
//! Of each knot of waits one cycle is taken at a time: a shortest one, because the longer ones go
//! through sessions that only stand in a queue, whose end would help nobody. Its youngest
//! transaction that can gives way, which loses the least.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::{Edge, Graph, HERE, Node};

/// Waits of which each is for who has the next, and the last for who has the first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cycle {
    /// The waits.
    pub edges: Vec<Edge>,
    /// The process of the session that has to give way; None if none can.
    pub victim: Option<i32>,
}

impl Cycle {
    /// The waits, a line for each, as PostgreSQL's own detector tells them. `name` is that of a
    /// foreign server.
    pub fn detail(&self, name: impl Fn(u32) -> String) -> String {
        let mut text = String::new();
        for edge in &self.edges {
            if !text.is_empty() {
                text.push('\n');
            }
            // Writing to a String does not fail.
            let _ = tell(&mut text, edge, &name);
        }
        text
    }

    /// Whether it is all among the processes of one server, which ends it by itself.
    pub fn is_seen_by_one(&self) -> bool {
        let next = self.edges.iter().cycle().skip(1);
        self.edges
            .iter()
            .zip(next)
            .all(|(edge, next)| edge.server == next.server && edge.blocker == next.process)
    }
}

fn tell(text: &mut String, edge: &Edge, name: impl Fn(u32) -> String) -> std::fmt::Result {
    let Edge { from, to, server, process, blocker, ref lock, .. } = *edge;
    let is_here = server == HERE;
    match from {
        Node::Here(pid) if is_here => write!(text, "Process {pid} waits for {lock}")?,
        Node::Here(pid) => write!(
            text,
            "Process {pid} waits on server \"{}\", as process {process} there, for {lock}",
            name(server)
        )?,
        Node::There(..) => {
            write!(text, "Process {process} of server \"{}\" waits for {lock}", name(server))?;
        }
    }
    match to {
        Node::Here(pid) if is_here => write!(text, "; blocked by process {pid}."),
        Node::Here(pid) if blocker == 0 => {
            write!(text, "; blocked by process {pid}, which has prepared there.")
        }
        Node::Here(pid) => write!(text, "; blocked by process {pid}, process {blocker} there."),
        Node::There(..) => write!(text, "; blocked by process {blocker} there."),
    }
}

impl Graph {
    /// A cycle of each knot of waits.
    pub fn cycles(&self) -> Vec<Cycle> {
        let ways = Ways::of(self);
        let knots = ways.knots();
        knots.into_iter().filter_map(|knot| self.cycle_in(&knot, &ways)).collect()
    }

    /// A shortest cycle in a knot: of those through sessions that can give way, if there are any,
    /// one through the youngest.
    fn cycle_in(&self, knot: &[usize], ways: &Ways) -> Option<Cycle> {
        let age = |place: usize| self.can_give_way(ways.nodes[place]);
        let mut can: Vec<usize> = knot.iter().copied().filter(|n| age(*n).is_some()).collect();
        // The youngest first: an older one has to have a shorter cycle.
        can.sort_by_key(|place| Reverse(age(*place)));
        let through = if can.is_empty() { knot } else { &can };
        let mut best: Option<(Vec<usize>, usize)> = None;
        for &place in through {
            let limit = best.as_ref().map_or(usize::MAX, |(way, _)| way.len() - 1);
            if let Some(way) = ways.shortest(place, limit) {
                best = Some((way, place));
            }
        }
        let (way, place) = best?;
        let edges = way.into_iter().map(|n| self.edges[n].clone()).collect();
        Some(Cycle { edges, victim: age(place).map(|(_, pid)| pid) })
    }
}

/// The edges of a graph by the places of their nodes in a list: with many waiters there are tens of
/// thousands.
struct Ways {
    nodes: Vec<Node>,
    /// Of each node, where it leads, and by which edge; each target once.
    out: Vec<Vec<(usize, usize)>>,
}

impl Ways {
    fn of(graph: &Graph) -> Self {
        let ends = graph.edges.iter().flat_map(|edge| [edge.from, edge.to]);
        let nodes: Vec<Node> = ends.collect::<BTreeSet<Node>>().into_iter().collect();
        let places: BTreeMap<Node, usize> = nodes.iter().copied().zip(0..).collect();
        let mut out = vec![Vec::new(); nodes.len()];
        for (n, edge) in graph.edges.iter().enumerate() {
            out[places[&edge.from]].push((places[&edge.to], n));
        }
        for targets in &mut out {
            targets.sort_unstable();
            targets.dedup_by_key(|(to, _)| *to);
        }
        Self { nodes, out }
    }

    /// A shortest way from a node back to it, of at most so many edges.
    fn shortest(&self, start: usize, limit: usize) -> Option<Vec<usize>> {
        // By which node and edge each was reached.
        let mut by: Vec<Option<(usize, usize)>> = vec![None; self.nodes.len()];
        let mut reached = vec![start];
        for _ in 0..limit {
            let mut next = Vec::new();
            for &node in &reached {
                for &(to, edge) in &self.out[node] {
                    if to == start {
                        let mut way = vec![edge];
                        let mut at = node;
                        while let Some((before, edge)) = by[at].filter(|_| at != start) {
                            way.push(edge);
                            at = before;
                        }
                        way.reverse();
                        return Some(way);
                    }
                    if by[to].is_none() {
                        by[to] = Some((node, edge));
                        next.push(to);
                    }
                }
            }
            if next.is_empty() {
                break;
            }
            reached = next;
        }
        None
    }

    /// The sets of nodes of which each leads to each other, and the single ones that lead to
    /// themselves (Tarjan's strongly connected components).
    fn knots(&self) -> Vec<Vec<usize>> {
        let mut search = Search {
            ways: self,
            numbers: vec![None; self.nodes.len()],
            lowest: vec![0; self.nodes.len()],
            on_stack: vec![false; self.nodes.len()],
            stack: Vec::new(),
            count: 0,
            knots: Vec::new(),
        };
        for root in 0..self.nodes.len() {
            if search.numbers[root].is_none() {
                search.from(root);
            }
        }
        search.knots
    }
}

/// A search for knots.
struct Search<'a> {
    ways: &'a Ways,
    /// In which order each node was reached.
    numbers: Vec<Option<usize>>,
    /// The first of those on the stack that it leads to.
    lowest: Vec<usize>,
    on_stack: Vec<bool>,
    stack: Vec<usize>,
    count: usize,
    knots: Vec<Vec<usize>>,
}

impl Search<'_> {
    /// Does not recurse: a graph may be deep.
    fn from(&mut self, root: usize) {
        self.reach(root);
        // Each with how many of its edges have been followed.
        let mut path = vec![(root, 0)];
        while let Some((node, followed)) = path.last_mut() {
            let node = *node;
            if let Some(&(to, _)) = self.ways.out[node].get(*followed) {
                *followed += 1;
                match self.numbers[to] {
                    None => {
                        self.reach(to);
                        path.push((to, 0));
                    }
                    Some(number) if self.on_stack[to] => {
                        self.lowest[node] = self.lowest[node].min(number);
                    }
                    Some(_) => {}
                }
                continue;
            }
            path.pop();
            if let Some((parent, _)) = path.last() {
                self.lowest[*parent] = self.lowest[*parent].min(self.lowest[node]);
            }
            if self.numbers[node] == Some(self.lowest[node]) {
                self.take(node);
            }
        }
    }

    fn reach(&mut self, node: usize) {
        self.numbers[node] = Some(self.count);
        self.lowest[node] = self.count;
        self.count += 1;
        self.on_stack[node] = true;
        self.stack.push(node);
    }

    /// Takes a whole knot, of which this node was reached first.
    fn take(&mut self, node: usize) {
        let mut knot = Vec::new();
        while let Some(member) = self.stack.pop() {
            self.on_stack[member] = false;
            knot.push(member);
            if member == node {
                break;
            }
        }
        let is_itself = || self.ways.out[node].iter().any(|(to, _)| *to == node);
        if knot.len() > 1 || is_itself() {
            knot.sort_unstable();
            self.knots.push(knot);
        }
    }
}
