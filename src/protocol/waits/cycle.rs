//! Cycles of waits, and who has to give way.
//!
//! Of each knot of waits one cycle is taken at a time: a shortest one, because the longer ones go
//! through sessions that only stand in a queue, whose end would help nobody. Its youngest
//! transaction that can gives way, which loses the least.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, VecDeque};
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
        let mut out: BTreeMap<Node, Vec<usize>> = BTreeMap::new();
        for (n, edge) in self.edges.iter().enumerate() {
            out.entry(edge.from).or_default().push(n);
        }
        let knots = knots(self, &out);
        knots.into_iter().filter_map(|knot| self.cycle_in(&knot, &out)).collect()
    }

    /// A shortest cycle in a knot: of those through sessions that can give way, if there are any,
    /// one through the youngest.
    fn cycle_in(&self, knot: &[Node], out: &BTreeMap<Node, Vec<usize>>) -> Option<Cycle> {
        let inside: HashMap<Node, usize> = knot.iter().enumerate().map(|(n, k)| (*k, n)).collect();
        let can: Vec<Node> =
            knot.iter().copied().filter(|n| self.can_give_way(*n).is_some()).collect();
        let through = if can.is_empty() { knot } else { &can };
        let cycles = through.iter().filter_map(|node| {
            let edges = self.shortest(*node, &inside, out)?;
            Some((edges.len(), Reverse(self.can_give_way(*node)), *node, edges))
        });
        let (.., node, edges) = cycles.min_by_key(|(length, age, ..)| (*length, *age))?;
        let victim = self.can_give_way(node).map(|(_, pid)| pid);
        Some(Cycle { edges: edges.into_iter().map(|n| self.edges[n].clone()).collect(), victim })
    }

    /// A shortest way from a node back to it.
    fn shortest(
        &self,
        start: Node,
        inside: &HashMap<Node, usize>,
        out: &BTreeMap<Node, Vec<usize>>,
    ) -> Option<Vec<usize>> {
        let mut by: HashMap<Node, usize> = HashMap::new();
        let mut next = VecDeque::from([start]);
        while let Some(node) = next.pop_front() {
            for &n in out.get(&node).into_iter().flatten() {
                let to = self.edges[n].to;
                if to == start {
                    let mut way = vec![n];
                    let mut at = node;
                    while at != start {
                        let edge = by[&at];
                        way.push(edge);
                        at = self.edges[edge].from;
                    }
                    way.reverse();
                    return Some(way);
                }
                if inside.contains_key(&to) && !by.contains_key(&to) {
                    by.insert(to, n);
                    next.push_back(to);
                }
            }
        }
        None
    }
}

/// The sets of nodes of which each leads to each other, and the single ones that lead to
/// themselves (Tarjan's strongly connected components).
fn knots(graph: &Graph, out: &BTreeMap<Node, Vec<usize>>) -> Vec<Vec<Node>> {
    #[derive(Clone, Copy)]
    struct Seen {
        number: usize,
        lowest: usize,
        on_stack: bool,
    }
    let targets = |node: Node| -> &[usize] { out.get(&node).map_or(&[], Vec::as_slice) };
    let mut seen: HashMap<Node, Seen> = HashMap::new();
    let mut stack = Vec::new();
    let mut knots = Vec::new();
    for &root in out.keys() {
        if seen.contains_key(&root) {
            continue;
        }
        // Each with how many of its edges have been followed: a graph may be too deep to recurse.
        let mut path: Vec<(Node, usize)> = vec![(root, 0)];
        while let Some((node, followed)) = path.last_mut() {
            let node = *node;
            let number = seen.len();
            seen.entry(node).or_insert_with(|| {
                stack.push(node);
                Seen { number, lowest: number, on_stack: true }
            });
            if let Some(&edge) = targets(node).get(*followed) {
                *followed += 1;
                let to = graph.edges[edge].to;
                match seen.get(&to) {
                    None => path.push((to, 0)),
                    Some(other) if other.on_stack => {
                        let reached = other.number;
                        seen.entry(node).and_modify(|own| own.lowest = own.lowest.min(reached));
                    }
                    Some(_) => {}
                }
                continue;
            }
            path.pop();
            let own = seen[&node];
            if let Some((parent, _)) = path.last() {
                seen.entry(*parent).and_modify(|p| p.lowest = p.lowest.min(own.lowest));
            }
            if own.lowest != own.number {
                continue;
            }
            let mut knot = Vec::new();
            while let Some(member) = stack.pop() {
                seen.entry(member).and_modify(|m| m.on_stack = false);
                knot.push(member);
                if member == node {
                    break;
                }
            }
            let is_itself = || targets(node).iter().any(|n| graph.edges[*n].to == node);
            if knot.len() > 1 || is_itself() {
                knot.sort_unstable();
                knots.push(knot);
            }
        }
    }
    knots
}
