//! Every small plan is executed with every small number of rows, and asks all scans that are said
//! to be certain; and what is asked ahead in plans as PostgreSQL makes them.

use super::Node::*;
use super::*;

/// No scan.
const NONE: [usize; 0] = [];

fn through(below: Node<usize>) -> Node<usize> {
    Through(Box::new(below))
}

fn whole(below: Node<usize>) -> Node<usize> {
    Whole(Box::new(below))
}

fn part(below: Node<usize>) -> Node<usize> {
    Part(Box::new(below))
}

/// All plans of at most this height, with `Scan(0)` for each scan.
fn plans(height: usize) -> Vec<Node<usize>> {
    let mut all = vec![Scan(0), Other];
    if height > 1 {
        let lower = plans(height - 1);
        for one in &lower {
            all.extend([through(one.clone()), whole(one.clone()), part(one.clone())]);
            for other in &lower {
                let both = || vec![one.clone(), other.clone()];
                all.extend([Together(both()), InTurn(both())]);
            }
        }
    }
    all
}

/// Numbers the scans of a plan.
fn number(plan: &mut Node<usize>, scans: &mut usize) {
    match plan {
        Scan(scan) => {
            *scan = *scans;
            *scans += 1;
        }
        Other => {}
        Through(below) | Whole(below) | Part(below) => number(below, scans),
        Together(all) | InTurn(all) => all.iter_mut().for_each(|plan| number(plan, scans)),
    }
}

/// A plan that is executed.
enum Running {
    /// With so many rows left. `None`: of no interest.
    Rows(Option<usize>, u32),
    /// It drops every row but each second one if it says so, as a condition may.
    Through(Box<Self>, bool),
    /// With the rows that it has read.
    Whole(Box<Self>, Option<u32>),
    /// With how many more it takes.
    Part(Box<Self>, u32),
    /// With the rows that each is ahead.
    Together(Vec<Self>, Option<Vec<bool>>),
    InTurn(Vec<Self>, usize),
}

impl Running {
    fn begin(plan: &Node<usize>, rows: u32, drops: bool) -> Self {
        let begin = |plan: &Node<usize>| Self::begin(plan, rows, drops);
        let below = |plan: &Node<usize>| Box::new(begin(plan));
        match plan {
            // A digit to the base 3 for each scan.
            Scan(scan) => Self::Rows(Some(*scan), rows / 3_u32.pow(*scan as u32) % 3),
            Other => Self::Rows(None, rows % 2),
            Through(plan) => Self::Through(below(plan), drops),
            Whole(plan) => Self::Whole(below(plan), None),
            Part(plan) => Self::Part(below(plan), 1 + u32::from(drops)),
            Together(all) => Self::Together(all.iter().map(begin).collect(), None),
            InTurn(all) => Self::InTurn(all.iter().map(begin).collect(), 0),
        }
    }

    /// Whether there is another row; notes the scans that are asked.
    fn next(&mut self, asked: &mut Vec<usize>) -> bool {
        match self {
            Self::Rows(scan, left) => {
                asked.extend(*scan);
                let is_one = *left > 0;
                *left = left.saturating_sub(1);
                is_one
            }
            Self::Through(below, drops) => (!*drops || below.next(asked)) && below.next(asked),
            Self::Whole(below, read) => {
                let left = read
                    .get_or_insert_with(|| (0..).take_while(|_| below.next(asked)).count() as u32);
                let is_one = *left > 0;
                *left = left.saturating_sub(1);
                is_one
            }
            Self::Part(below, left) => {
                let is_one = *left > 0 && below.next(asked);
                *left = left.saturating_sub(1);
                is_one
            }
            Self::Together(all, ahead) => {
                let ahead = ahead
                    .get_or_insert_with(|| all.iter_mut().map(|one| one.next(asked)).collect());
                let Some(n) = ahead.iter().position(|is_one| *is_one) else { return false };
                ahead[n] = all[n].next(asked);
                true
            }
            Self::InTurn(all, current) => {
                while let Some(one) = all.get_mut(*current) {
                    if one.next(asked) {
                        return true;
                    }
                    *current += 1;
                }
                false
            }
        }
    }
}

#[test]
fn what_is_certain_is_asked_whatever_the_rows_are() {
    let mut checked = 0;
    for mut plan in plans(3) {
        let mut scans = 0;
        number(&mut plan, &mut scans);
        for is_run_to_end in [false, true] {
            let expected: Vec<_> =
                certain(plan.clone(), is_run_to_end).into_iter().map(|c| c.scan).collect();
            for rows in 0..3_u32.pow(scans as u32) {
                for drops in [false, true] {
                    let mut running = Running::begin(&plan, rows, drops);
                    let mut asked = Vec::new();
                    while running.next(&mut asked) && is_run_to_end {}
                    let is_asked = |scan: &usize| asked.contains(scan);
                    assert!(expected.iter().all(is_asked), "{plan:?}, {rows}: {expected:?}");
                    checked += expected.len();
                }
            }
        }
    }
    assert!(checked > 30_000, "{checked}");
}

/// Whatever the rows are, and how many of them are dropped.
#[test]
fn they_are_certain_in_the_order_in_which_they_are_asked() {
    for mut plan in plans(3) {
        let mut scans = 0;
        number(&mut plan, &mut scans);
        let found: Vec<_> = certain(plan.clone(), true).into_iter().map(|c| c.scan).collect();
        for rows in 0..3_u32.pow(scans as u32) {
            for drops in [false, true] {
                let mut asked = Vec::new();
                let mut running = Running::begin(&plan, rows, drops);
                while running.next(&mut asked) {}
                let mut in_order = Vec::new();
                for scan in asked {
                    if found.contains(&scan) && !in_order.contains(&scan) {
                        in_order.push(scan);
                    }
                }
                assert_eq!(found, in_order, "{plan:?}, {rows}");
            }
        }
    }
}

/// Of scans that the user wants to be asked.
fn choose(scans: &[Candidate]) -> Vec<usize> {
    super::choose(scans, |_| true)
}

/// A short scan of narrow rows on that connection.
fn short(connection: usize) -> Candidate {
    Candidate { connection, begun: 1, together: None, can_be_asked: true, bytes: 0, fetches: 1 }
}

/// The scans of a plan that are asked ahead, each with the number of its connection.
fn asked(plan: Node<(usize, usize)>, is_run_to_end: bool) -> Vec<usize> {
    let found = certain(plan, is_run_to_end);
    let begun = |connection| found.iter().filter(|c| c.scan.1 == connection).count();
    let candidate = |c: &Certain<(usize, usize)>| Candidate {
        together: c.together,
        begun: begun(c.scan.1),
        ..short(c.scan.1)
    };
    let candidates: Vec<_> = found.iter().map(candidate).collect();
    choose(&candidates).into_iter().map(|n| found[n].scan.0).collect()
}

/// Scans on these connections, numbered.
fn scans<const N: usize>(connections: [usize; N]) -> Vec<Node<(usize, usize)>> {
    connections.into_iter().enumerate().map(Scan).collect()
}

#[test]
fn of_an_append_the_first_scan_on_each_connection() {
    let union = || InTurn(scans([1, 2, 1, 2, 3]));
    assert_eq!(asked(union(), true), [0, 1, 4]);
    assert_eq!(asked(union(), false), NONE);
    assert_eq!(asked(Part(Box::new(union())), true), NONE);
    assert_eq!(asked(Part(Box::new(Whole(Box::new(union())))), false), [0, 1, 4]);
    assert_eq!(asked(InTurn(scans([1, 1, 1])), true), NONE);
}

#[test]
fn of_a_merge_all_scans() {
    let merge = || Together(scans([1, 2, 1, 2]));
    assert_eq!(asked(merge(), true), [0, 1, 2, 3]);
    assert_eq!(asked(Part(Box::new(merge())), true), [0, 1, 2, 3]);
    assert_eq!(asked(merge(), false), [0, 1, 2, 3]);
    // What is sorted here is read to its end before the next is asked.
    let sorted = scans([1, 2, 1, 2]).into_iter().map(|scan| Whole(Box::new(scan))).collect();
    assert_eq!(asked(Together(sorted), true), [0, 1]);
    // The second merge begins when the first has ended.
    assert_eq!(asked(InTurn(vec![merge(), merge()]), true), [0, 1, 2, 3]);
}

#[test]
fn of_a_full_join_both_sides() {
    let [one, two]: [_; 2] = scans([1, 2]).try_into().expect("two scans");
    assert_eq!(asked(Together(vec![Whole(Box::new(one)), two]), false), [0, 1]);
}

#[test]
fn what_is_not_known_yet_is_not_asked_nor_what_comes_behind_it_on_its_connection() {
    let known = |connection| Candidate { together: Some(1), ..short(connection) };
    let unknown = |connection| Candidate { can_be_asked: false, ..known(connection) };
    let two = |scan| Candidate { begun: 2, ..scan };
    assert_eq!(choose(&[two(unknown(1)), known(2), two(known(1)), known(3)]), [1, 3]);
    assert_eq!(choose(&[unknown(1)]), NONE);
    assert_eq!(choose(&[known(1), unknown(2)]), NONE);
    let three = |scan| Candidate { begun: 3, ..scan };
    let others = [three(known(1)), three(unknown(1)), three(known(1)), known(2)];
    assert_eq!(choose(&others), [0, 3]);
}

#[test]
fn nothing_where_another_scan_may_come_first_on_the_connection() {
    let beside = |connection| Candidate { begun: 2, ..short(connection) };
    assert_eq!(choose(&[short(1), beside(2), short(3)]), [0, 2]);
    assert_eq!(choose(&[beside(1), beside(2)]), NONE);
    assert_eq!(choose(&[beside(1), short(2)]), [1]);
    let merged = |scan| Candidate { together: Some(1), ..scan };
    assert_eq!(choose(&[merged(beside(1)), merged(beside(1)), merged(short(2))]), [0, 1, 2]);
    let three = |connection| merged(Candidate { begun: 3, ..short(connection) });
    assert_eq!(choose(&[three(1), three(1), merged(short(2))]), [2]);
}

/// The catalog is not looked into for what is not asked in any case.
#[test]
fn consent_is_asked_of_what_would_be_chosen() {
    let two = |connection| Candidate { begun: 2, ..short(connection) };
    let scans = [two(1), two(2), two(1), two(2), short(3)];
    let mut asked = Vec::new();
    let chosen = super::choose(&scans, |n| {
        asked.push(n);
        n != 1
    });
    assert_eq!((asked, chosen), (vec![0, 1, 4], vec![0, 4]));
}

#[test]
fn no_more_than_has_room() {
    let wide = |connection, bytes| Candidate { bytes, ..short(connection) };
    let most = MOST_BYTES;
    assert_eq!(choose(&[wide(1, usize::MAX), wide(2, most), wide(3, 1), wide(4, 0)]), [0, 1, 3]);
    assert_eq!(choose(&[wide(1, 0), wide(2, most + 1), wide(3, usize::MAX)]), NONE);
    // What comes behind one that has no room does not overtake it.
    let merged =
        |connection, bytes| Candidate { together: Some(1), begun: 2, ..wide(connection, bytes) };
    let behind = [merged(1, 0), merged(2, most + 1), merged(1, 0), merged(2, 0)];
    assert_eq!(choose(&behind), [0, 2]);
}

#[test]
fn nothing_behind_a_long_scan_unless_it_is_needed_with_it() {
    let long = |connection, fetches| Candidate { fetches, ..short(connection) };
    let merged = |scan| Candidate { together: Some(1), ..scan };
    let most = MOST_FETCHES as usize;
    assert_eq!(choose(&[long(1, most), short(2), short(3)]), [0, 1]);
    assert_eq!(choose(&[long(1, usize::MAX), long(2, usize::MAX)]), NONE);
    assert_eq!(choose(&[merged(long(1, usize::MAX)), merged(short(2)), short(3)]), [0, 1]);
    assert_eq!(choose(&[long(1, most + 1), merged(short(2))]), NONE);
}
