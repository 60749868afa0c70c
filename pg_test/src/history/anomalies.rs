//! Each known anomaly as a small history, which the checker has to find or to allow. This is what
//! the figures of a run without anomalies rest on.

use super::*;

/// A list, and a register.
const fn list(number: i64) -> Key {
    Key { kind: Kind::List, place: number as usize, number }
}

const X: Key = list(1);
const Y: Key = list(2);
const R: Key = Key { kind: Kind::Register, place: 3, number: 1 };

fn append(key: Key, element: i64) -> Act {
    Act::Append(key, element)
}

fn sees(key: Key, elements: &[i64]) -> Act {
    Act::Elements(key, elements.to_vec())
}

/// An acknowledged transaction of a process of its own.
fn at(process: u64, began: Time, ended: Time, acts: &[Act]) -> Transaction {
    Transaction {
        process,
        began,
        ended,
        outcome: Outcome::Acknowledged,
        acts: acts.to_vec(),
        note: String::new(),
    }
}

/// All at the same time.
fn together(transactions: &[&[Act]]) -> Vec<Transaction> {
    transactions.iter().zip(0..).map(|(acts, number)| at(number, 0, 10, acts)).collect()
}

fn with(outcome: Outcome, transaction: Transaction) -> Transaction {
    Transaction { outcome, ..transaction }
}

/// The kinds of anomalies that break the promise.
fn found(promise: Promise, history: &[Transaction]) -> Vec<String> {
    let verdict = check(history, promise).unwrap();
    assert_eq!(verdict.anomalies.is_empty(), verdict.smallest.is_none());
    verdict.anomalies.into_keys().collect()
}

/// Found for both promises.
#[track_caller]
fn is_never(kind: &str, history: &[Transaction]) {
    for promise in [Promise::SnapshotIsolation, Promise::Atomicity] {
        let kinds = found(promise, history);
        assert!(kinds.iter().any(|found| found == kind), "{kinds:?}");
    }
}

/// Found where a snapshot is promised, and allowed where it is not.
#[track_caller]
fn is_no_snapshot(kind: &str, history: &[Transaction]) {
    let kinds = found(Promise::SnapshotIsolation, history);
    assert!(kinds.iter().any(|found| found == kind), "{kinds:?}");
    is_allowed(Promise::Atomicity, history);
}

#[track_caller]
fn is_allowed(promise: Promise, history: &[Transaction]) {
    assert_eq!(check(history, promise).unwrap(), Verdict::default());
}

#[test]
fn one_after_the_other_is_allowed() {
    let history = [
        at(0, 0, 10, &[sees(X, &[]), append(X, 1), append(Y, 1)]),
        at(1, 20, 30, &[sees(X, &[1]), sees(Y, &[1]), append(Y, 2)]),
        at(0, 40, 50, &[sees(X, &[1]), sees(Y, &[1, 2])]),
    ];
    is_allowed(Promise::SnapshotIsolation, &history);
}

/// G0: two writers, in one order here and in the other there.
#[test]
fn a_dirty_write() {
    let history = together(&[
        &[append(X, 1), append(Y, 1)],
        &[append(X, 2), append(Y, 2)],
        &[sees(X, &[1, 2]), sees(Y, &[2, 1])],
    ]);
    is_never("G0", &history);
}

/// G1a.
#[test]
fn a_read_of_what_was_refused() {
    let mut history = together(&[&[append(X, 1)], &[sees(X, &[1])]]);
    history[0].outcome = Outcome::Refused;
    is_never("G1a", &history);
}

/// G1b.
#[test]
fn a_read_of_what_was_not_the_last_of_its_transaction() {
    is_never("G1b", &together(&[&[append(X, 1), append(X, 2)], &[sees(X, &[1])]]));
}

/// G1c: each sees what the other has written.
#[test]
fn information_in_a_circle() {
    let history = together(&[&[append(X, 1), sees(Y, &[1])], &[append(Y, 1), sees(X, &[1])]]);
    is_never("G1c", &history);
}

/// G-single: a reader sees one half of a transaction.
#[test]
fn a_torn_read() {
    let history = together(&[&[append(X, 1), append(Y, 1)], &[sees(X, &[1]), sees(Y, &[])]]);
    is_no_snapshot("G-single-item", &history);
}

/// G-single over a third: the reader sees what was built on something that it does not see.
#[test]
fn an_effect_without_its_cause() {
    let history = together(&[
        &[append(X, 1)],
        &[sees(X, &[1]), append(Y, 1)],
        &[sees(Y, &[1]), sees(X, &[])],
    ]);
    is_no_snapshot("G-single-item", &history);
}

/// G-nonadjacent: two readers see two writers in opposite orders.
#[test]
fn a_long_fork() {
    let history = together(&[
        &[append(X, 1)],
        &[append(Y, 1)],
        &[sees(X, &[1]), sees(Y, &[])],
        &[sees(X, &[]), sees(Y, &[1])],
    ]);
    is_no_snapshot("G-nonadjacent-item", &history);
}

/// Two writers have built on the same state.
#[test]
fn a_lost_update() {
    let history = together(&[
        &[sees(X, &[]), append(X, 1)],
        &[sees(X, &[]), append(X, 2)],
        &[sees(X, &[1, 2])],
    ]);
    is_never("lost-update", &history);
}

/// The same with a register, where it shows as two orders of what was written.
#[test]
fn a_lost_update_of_a_register() {
    let update = |value| vec![Act::Value(R, Some(1)), Act::Write(R, value)];
    let history = [
        at(0, 0, 10, &[Act::Value(R, None), Act::Write(R, 1)]),
        at(1, 20, 30, &update(2)),
        at(2, 20, 30, &update(3)),
        at(3, 40, 50, &[Act::Value(R, Some(3))]),
    ];
    is_never("lost-update", &history);
    let mut settled = history[..3].to_vec();
    let wrong = settle(&mut settled, &history[3].acts);
    assert!(wrong.len() == 1 && wrong[0].starts_with("acknowledged and not there"), "{wrong:?}");
}

/// G2: each has read what the other overwrites. Snapshot isolation allows it.
#[test]
fn write_skew_is_allowed() {
    let history = together(&[
        &[sees(X, &[]), sees(Y, &[]), append(X, 1)],
        &[sees(X, &[]), sees(Y, &[]), append(Y, 1)],
        &[sees(X, &[1]), sees(Y, &[1])],
    ]);
    is_allowed(Promise::SnapshotIsolation, &history);
}

/// Snapshot isolation in real time: what was acknowledged before is there.
#[test]
fn a_stale_read() {
    let write: &[Act] = &[append(X, 1), append(Y, 1)];
    let stale: &[Act] = &[sees(X, &[]), sees(Y, &[])];
    let last = at(2, 40, 50, &[sees(X, &[1]), sees(Y, &[1])]);
    is_no_snapshot(
        "G-single-item-realtime",
        &[at(0, 0, 10, write), at(1, 20, 30, stale), last.clone()],
    );
    // Begun before the acknowledgment; or there was none.
    is_allowed(
        Promise::SnapshotIsolation,
        &[at(0, 0, 10, write), at(1, 10, 30, stale), last.clone()],
    );
    let unheard = with(Outcome::Committed, at(0, 0, 10, write));
    is_allowed(Promise::SnapshotIsolation, &[unheard, at(1, 20, 30, stale), last]);
}

/// Snapshot isolation in real time: what was once seen does not go again.
#[test]
fn a_reader_behind_an_earlier_reader() {
    let history = [
        at(0, 0, 100, &[append(X, 1), append(Y, 1)]),
        at(1, 20, 30, &[sees(X, &[1]), sees(Y, &[1])]),
        at(2, 40, 50, &[sees(X, &[]), sees(Y, &[])]),
    ];
    is_no_snapshot("G-single-item-realtime", &history);
}

#[test]
fn a_transaction_sees_what_it_did_itself() {
    is_never("internal", &together(&[&[append(X, 1), sees(X, &[])]]));
    is_never("internal", &together(&[&[append(X, 1)], &[sees(X, &[]), sees(X, &[1])]]));
}

/// A register on one server and a list on another.
#[test]
fn a_torn_read_of_a_register_and_a_list() {
    let history = |value| {
        [
            at(0, 0, 10, &[Act::Value(R, None), Act::Write(R, 7), append(X, 1)]),
            at(1, 0, 10, &[Act::Value(R, value), sees(X, &[1])]),
        ]
    };
    is_no_snapshot("G-single-item", &history(None));
    is_allowed(Promise::SnapshotIsolation, &history(Some(7)));
}

/// The same value is read again when the register has had another meanwhile, which cannot be.
#[test]
fn a_register_that_goes_back() {
    let step = |process, began, old, new| {
        at(process, began, began + 10, &[Act::Value(R, old), Act::Write(R, new)])
    };
    let reads = |began, value| at(3, began, began + 10, &[Act::Value(R, Some(value))]);
    let history = [step(0, 0, None, 1), step(1, 20, Some(1), 2), reads(40, 2), reads(60, 1)];
    is_no_snapshot("G-single-item-realtime", &history);
}

#[test]
fn all_or_nothing_in_the_end() {
    let both: &[Act] = &[append(X, 1), append(Y, 1)];
    let whole = [sees(X, &[1]), sees(Y, &[1])];
    let half = [sees(X, &[1]), sees(Y, &[])];
    let nothing = [sees(X, &[]), sees(Y, &[])];
    let outcome = |outcome, last: &[Act]| {
        let mut history = [with(outcome, at(0, 0, 10, both))];
        let wrong = settle(&mut history, last).len();
        (wrong, history[0].outcome)
    };
    use Outcome::{Acknowledged, Committed, Refused, Unknown};
    for told in [Acknowledged, Committed, Refused, Unknown] {
        assert_eq!(outcome(told, &half), (1, told));
    }
    assert_eq!(outcome(Acknowledged, &whole), (0, Acknowledged));
    assert_eq!(outcome(Acknowledged, &nothing), (1, Acknowledged));
    assert_eq!(outcome(Committed, &nothing), (1, Committed));
    assert_eq!(outcome(Refused, &nothing), (0, Refused));
    assert_eq!(outcome(Refused, &whole), (1, Refused));
    assert_eq!(outcome(Unknown, &whole), (0, Committed));
    assert_eq!(outcome(Unknown, &nothing), (0, Refused));
}

#[test]
fn what_is_there_twice_or_is_nobodys() {
    let mut history = [at(0, 0, 10, &[append(X, 1)])];
    assert_eq!(settle(&mut history, &[sees(X, &[1, 1])]).len(), 1);
    assert_eq!(settle(&mut history, &[sees(X, &[1, 2])]).len(), 1);
    assert_eq!(settle(&mut history, &[sees(X, &[1])]).len(), 0);
}

/// The explanation names the transactions, and their times.
#[test]
fn an_anomaly_is_explained() {
    let history = together(&[&[append(X, 1), append(Y, 1)], &[sees(X, &[1]), sees(Y, &[])]]);
    let verdict = check(&history, Promise::SnapshotIsolation).unwrap();
    let text = verdict.smallest.unwrap();
    for part in ["G-single-item", "a contradiction", "process 1, 0.000000 s to 0.000000 s"] {
        assert!(text.contains(part), "{text}");
    }
}
