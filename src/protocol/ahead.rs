//! Which scans of a query are asked for their first rows when it begins, before the executor comes
//! to them: those that it is certain to come to, and those that it comes to unless another scan has
//! no row.

/// Whether the executor will ask a scan for a row.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Use {
    /// It may, and there is no reason to expect it.
    Unknown,
    /// It will, unless another scan, which is asked before, returns no row.
    Likely,
    /// It will, unless the query fails.
    Certain,
}

/// A plan, as far as it says in which order its scans are executed.
#[derive(PartialEq, Eq, Debug)]
pub enum Node<S> {
    /// A foreign scan.
    Scan(S),
    /// Anything of which this is not known.
    Other,
    /// The first row of what is below it is needed for its own first row, and a further one for
    /// each further one.
    Through(Box<Self>),
    /// All rows of what is below it are needed for its first row.
    Whole(Box<Self>),
    /// It takes a row or more, and not all of them.
    Part(Box<Self>),
    /// The first row of each is needed for its own first row.
    Together(Vec<Self>),
    /// One after the other, each in full.
    InTurn(Vec<Self>),
    /// Two, of which the second is left out if the first has no row.
    Join {
        /// What is executed first.
        first: Box<Self>,
        /// Whether the rest of it, behind the first row, is needed.
        rest: Use,
        /// What is executed then.
        second: Box<Self>,
        /// Whether that is needed, and all of it.
        then: Use,
    },
}

/// The scans that will be executed, in that order, each with how certain that is. `is_run_to_end`:
/// all rows of the query are asked for, and not only some.
pub fn scans<S>(plan: Node<S>, is_run_to_end: bool) -> Vec<(S, Use)> {
    let mut found = Vec::new();
    let rest = if is_run_to_end { Use::Certain } else { Use::Unknown };
    visit(plan, Use::Certain, rest, &mut found);
    found
}

/// `first`: whether a row of this plan is needed; `rest`: whether all of them are.
fn visit<S>(plan: Node<S>, first: Use, rest: Use, found: &mut Vec<(S, Use)>) {
    if first == Use::Unknown {
        return;
    }
    match plan {
        Node::Scan(scan) => found.push((scan, first)),
        Node::Other => {}
        Node::Through(below) => visit(*below, first, rest, found),
        Node::Whole(below) => visit(*below, first, first, found),
        Node::Part(below) => visit(*below, first, Use::Unknown, found),
        Node::Together(all) => {
            all.into_iter().for_each(|plan| visit(plan, first, rest, found));
        }
        Node::InTurn(all) => {
            for (n, plan) in all.into_iter().enumerate() {
                visit(plan, if n == 0 { first } else { first.min(rest) }, rest, found);
            }
        }
        Node::Join { first: one, rest: rest_of_one, second, then } => {
            let before = found.len();
            visit(*one, first, rest.min(rest_of_one), found);
            // Where no server has to answer before it is executed, it need not be asked before.
            if then == Use::Certain || found.len() > before {
                visit(*second, first.min(then), rest.min(then), found);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Node::*;
    use super::Use::*;
    use super::*;

    fn join(first: Node<u8>, rest: Use, second: Node<u8>, then: Use) -> Node<u8> {
        Join { first: Box::new(first), rest, second: Box::new(second), then }
    }

    fn whole(below: Node<u8>) -> Node<u8> {
        Whole(Box::new(below))
    }

    fn part(below: Node<u8>) -> Node<u8> {
        Part(Box::new(below))
    }

    #[test]
    fn of_a_join_the_second_is_likely() {
        let inner = || join(Scan(1), Likely, whole(Scan(2)), Likely);
        assert_eq!(scans(inner(), true), [(1, Certain), (2, Likely)]);
        // Its first row needs both.
        assert_eq!(scans(part(inner()), true), [(1, Certain), (2, Likely)]);
        assert_eq!(scans(whole(join(inner(), Likely, Scan(3), Likely)), false)[2], (3, Likely));
    }

    #[test]
    fn a_second_that_is_always_executed_is_certain() {
        let full = join(whole(Other), Certain, Scan(2), Certain);
        assert_eq!(scans(full, true), [(2, Certain)]);
    }

    #[test]
    fn what_waits_for_no_server_is_not_asked_ahead() {
        assert_eq!(scans(join(Other, Certain, Scan(2), Likely), true), []);
    }

    #[test]
    fn one_after_the_other_only_where_all_rows_are_needed() {
        let append = || InTurn(vec![Scan(1), Scan(2), Other, Scan(3)]);
        let certain = [(1, Certain), (2, Certain), (3, Certain)];
        assert_eq!(scans(append(), true), certain);
        assert_eq!(scans(append(), false), [(1, Certain)]);
        assert_eq!(scans(part(append()), true), [(1, Certain)]);
        assert_eq!(scans(part(whole(append())), false), certain);
        assert_eq!(scans(part(Through(Box::new(append()))), true), [(1, Certain)]);
        assert_eq!(scans(part(Together(vec![Scan(1), Scan(2)])), true), certain[..2]);
    }

    #[test]
    fn the_rest_of_a_side_that_a_join_may_leave_is_likely_at_most() {
        let outer = || InTurn(vec![Scan(1), Scan(2)]);
        let ends = |plan| scans(plan, true);
        assert_eq!(
            ends(join(outer(), Likely, whole(Scan(3)), Likely)),
            [(1, Certain), (2, Likely), (3, Likely)]
        );
        assert_eq!(
            ends(join(outer(), Certain, whole(outer()), Likely)),
            [(1, Certain), (2, Certain), (1, Likely), (2, Likely)]
        );
        assert_eq!(ends(join(outer(), Unknown, Scan(3), Likely)), [(1, Certain), (3, Likely)]);
    }
}
