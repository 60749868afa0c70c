//! Which scans of a query are asked for their first rows when it begins, all at once, instead of
//! each when the executor comes to it: only those that it is certain to come to, so that nothing is
//! ever asked in vain.

use std::collections::BTreeMap;

/// What is asked ahead together may be expected to have so many bytes.
const MOST_BYTES: usize = 8 << 20;

/// Behind scans that are expected to take so many fetches, one wait is not worth a transaction that
/// stays open on another server meanwhile.
const MOST_FETCHES: u128 = 100;

/// A plan, as far as it says which of its scans are executed, and in which order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Node<S> {
    /// A foreign scan.
    Scan(S),
    /// Anything of which it is not known.
    Other,
    /// A row of what is below it is needed for its first row, and all of them for all of its own.
    Through(Box<Self>),
    /// All rows of what is below it are needed for its first row.
    Whole(Box<Self>),
    /// A row of what is below it is needed, and perhaps not all of them.
    Part(Box<Self>),
    /// A row of each is needed for its first row.
    Together(Vec<Self>),
    /// One after the other, each in full for all of its own rows.
    InTurn(Vec<Self>),
}

/// A scan that is certain to be asked for a row.
#[derive(PartialEq, Eq, Debug)]
pub struct Certain<S> {
    /// The scan.
    pub scan: S,
    /// The node that needs a row of it together with those of others, before it asks any of them
    /// for more.
    pub together: Option<usize>,
}

/// How much of a node is certain to be needed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    OneRow,
    AllRows,
}

/// The scans that are certain to be asked for a row, in the order in which they are.
/// `is_run_to_end`: all rows of the query are asked for, and not only one or more.
pub fn certain<S>(plan: Node<S>, is_run_to_end: bool) -> Vec<Certain<S>> {
    let mut walk = Walk { found: Vec::new(), nodes: 0 };
    walk.visit(plan, if is_run_to_end { Need::AllRows } else { Need::OneRow }, None);
    walk.found
}

struct Walk<S> {
    found: Vec<Certain<S>>,
    /// The number of nodes that need rows of several together.
    nodes: usize,
}

impl<S> Walk<S> {
    fn visit(&mut self, plan: Node<S>, need: Need, together: Option<usize>) {
        match plan {
            Node::Scan(scan) => self.found.push(Certain { scan, together }),
            Node::Other => {}
            Node::Through(below) => self.visit(*below, need, together),
            Node::Whole(below) => self.visit(*below, Need::AllRows, None),
            Node::Part(below) => self.visit(*below, Need::OneRow, together),
            Node::Together(all) => {
                self.nodes += 1;
                let together = together.or(Some(self.nodes));
                let last = all.len().saturating_sub(1);
                for (n, plan) in all.into_iter().enumerate() {
                    // Which of them it asks for a second row first depends on the rows. What the
                    // last has behind its first row comes behind the first rows of all.
                    let need = if n == last { need } else { Need::OneRow };
                    self.visit(plan, need, together);
                }
            }
            Node::InTurn(all) => {
                let mut all = all.into_iter();
                if let Some(first) = all.next() {
                    self.visit(first, need, together);
                }
                if need == Need::AllRows {
                    all.for_each(|plan| self.visit(plan, need, None));
                }
            }
        }
    }
}

/// A scan that is certain to be asked, in the order of [`certain`].
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// The connection that it runs on.
    pub connection: usize,
    /// How many scans have begun on that connection, whether they are certain to be asked or not.
    pub begun: usize,
    /// As in [`Certain`].
    pub together: Option<usize>,
    /// Whether its first rows can be asked for when the query begins.
    pub can_be_asked: bool,
    /// How many bytes those are expected to have.
    pub bytes: usize,
    /// How many fetches all of its rows are expected to take.
    pub fetches: usize,
}

/// Which of these are asked ahead, by their positions; none if there is nothing to gain.
///
/// On each connection that is the first only, because the answers come in the order of the
/// questions: another one's rows would have to be kept until the first has all of its own, and its
/// failure would be that of the first. Those that are needed together are kept together in any
/// case; behind one that is not asked, none is. None where others have begun on the connection:
/// they may come first, and would be overtaken. `consents`: whether the user wants it of a scan; it
/// is asked only of those that would be chosen, because it looks into the catalog.
pub fn choose(scans: &[Candidate], mut consents: impl FnMut(usize) -> bool) -> Vec<usize> {
    let mut known: BTreeMap<usize, usize> = BTreeMap::new();
    scans.iter().for_each(|scan| *known.entry(scan.connection).or_default() += 1);
    // Of each connection: what a further scan there must be needed together with to be asked.
    let mut open: BTreeMap<usize, Option<usize>> = BTreeMap::new();
    // Sums that cannot overflow.
    let (mut fetches, mut fetches_together) = (0_u128, BTreeMap::<Option<usize>, u128>::new());
    let mut chosen = Vec::new();
    let mut bytes = 0_usize;
    for (n, scan) in scans.iter().enumerate() {
        let may_follow = match open.get(&scan.connection) {
            Some(together) => together.is_some() && *together == scan.together,
            None => true,
        };
        let with_it = match scan.together {
            Some(_) => fetches_together.get(&scan.together).copied().unwrap_or(0),
            None => 0,
        };
        let is_soon = fetches - with_it <= MOST_FETCHES;
        // The first of all is not asked earlier than it would be.
        let sum = if n == 0 { 0 } else { bytes.saturating_add(scan.bytes) };
        let is_overtaking = known[&scan.connection] < scan.begun;
        let is_possible =
            scan.can_be_asked && !is_overtaking && may_follow && is_soon && sum <= MOST_BYTES;
        let is_chosen = is_possible && consents(n);
        open.insert(scan.connection, if is_chosen { scan.together } else { None });
        if is_chosen {
            bytes = sum;
            chosen.push(n);
        }
        fetches += scan.fetches as u128;
        *fetches_together.entry(scan.together).or_default() += scan.fetches as u128;
    }
    if chosen == [0] { Vec::new() } else { chosen }
}

#[cfg(test)]
mod tests;
