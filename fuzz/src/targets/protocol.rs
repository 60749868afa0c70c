//! Names of prepared transactions, snapshots, and cuts through the order of decisions.

use std::rc::Rc;

use crate::data::Data;
use crate::protocol::cut::{NOT_YET, Row, Snapshot, Taken, Verdict, check};
use crate::protocol::gid::{Gid, Identity, Nonce, Prepared};
use crate::protocol::participant::Outcome;
use crate::protocol::place::Place;

/// The longest gid that PostgreSQL takes.
const GIDSIZE: usize = 200;

pub(super) fn gid(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data)
        && let Some(gid) = Gid::parse(text)
    {
        assert_eq!(gid.to_string(), text, "one gid has two texts");
        carries(gid);
    }
    let mut data = Data(data);
    let (identity, nonce) = (data.number(), data.number());
    let (Some(identity), Some(nonce)) = (Identity::new(identity), Nonce::new(nonce)) else {
        return;
    };
    let gid = Gid { identity, nonce, serverid: data.number() as u32, userid: data.number() as u32 };
    carries(gid);
    // A text with one byte changed is another gid, or none.
    let mut text = gid.to_string().into_bytes();
    let at = usize::from(data.byte()) % text.len();
    text[at] = data.byte();
    if let Ok(text) = String::from_utf8(text)
        && text != gid.to_string()
    {
        assert_ne!(Gid::parse(&text), Some(gid));
    }
}

/// It can be read again, and its commands carry it.
fn carries(gid: Gid) {
    let text = gid.to_string();
    assert_eq!(Gid::parse(&text), Some(gid));
    assert!(text.len() < GIDSIZE && text.starts_with(&gid.identity.gid_prefix()));
    let prepared = Prepared::new(gid);
    for command in
        [&prepared.prepare, prepared.settling(Outcome::Commit), prepared.settling(Outcome::Abort)]
    {
        let tag = command.tag.to_str().expect("ASCII");
        assert_eq!(command.sql.to_str(), Ok(format!("{tag} '{text}'").as_str()));
    }
}

pub(super) fn snapshot(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Some(snapshot) = Snapshot::parse(&text) {
        shows(&text, &snapshot);
    }
    // One that PostgreSQL could have written.
    let mut data = Data(data);
    let xmin = data.number() >> 1;
    let xmax = xmin + u64::from(data.byte());
    let in_progress: Vec<u64> = (xmin..xmax).filter(|_| data.flag()).collect();
    let list: Vec<String> = in_progress.iter().map(u64::to_string).collect();
    let text = format!("{xmin}:{xmax}:{}", list.join(","));
    let snapshot = Snapshot::parse(&text).expect("a snapshot");
    assert_eq!(snapshot, Snapshot::new(xmax, in_progress));
    shows(&text, &snapshot);
}

/// What a snapshot sees is what its text says.
fn shows(text: &str, snapshot: &Snapshot) {
    let numbers: Vec<u64> = text
        .split([':', ','])
        .filter(|word| !word.is_empty())
        .map(|n| n.parse().unwrap())
        .collect();
    let (xmin, xmax, in_progress) = (numbers[0], numbers[1], &numbers[2..]);
    let near = |xid: u64| [xid.saturating_sub(1), xid, xid.saturating_add(1)];
    for xid in numbers.iter().copied().flat_map(near).chain([0, u64::MAX]) {
        let sees = xid < xmin || xid < xmax && !in_progress.contains(&xid);
        assert_eq!(snapshot.sees(xid), sees, "{xid} in {text}");
    }
}

pub(super) fn cut(data: &[u8]) {
    let mut data = Data(data);
    let place = |data: &mut Data| {
        let cluster = data.below(3);
        let started = data.flag().then(|| i64::from(data.below(2)));
        Place::new(data.below(3).into(), &cluster, started)
    };
    let opened = data.below(16).into();
    let rows: Vec<Row> = (0..data.below(12))
        .map(|_| {
            let from = data.below(16).into();
            let to = if data.flag() { from + u64::from(data.below(4)) } else { NOT_YET };
            Row { place: place(&mut data), xid: data.below(16).into(), from, to }
        })
        .collect();
    let taken: Vec<Taken> = (0..data.below(6))
        .map(|_| {
            let xmax = data.below(16).into();
            let in_progress = (0..xmax).filter(|_| data.below(4) == 1).collect();
            let snapshot = Rc::new(Snapshot::new(xmax, in_progress));
            Taken { place: place(&mut data), snapshot, is_fixed: data.flag() }
        })
        .collect();
    let verdict = check(opened, &rows, &taken);
    // The definition: one number, such that what is seen anywhere is up to it, and all that must be
    // seen at it is seen everywhere.
    let pairs = || {
        let of_row = |row| taken.iter().map(move |t| (row, t));
        rows.iter().flat_map(of_row).filter(|(row, t)| t.place.is_same(&row.place))
    };
    let least = pairs()
        .filter(|(row, t)| t.snapshot.sees(row.xid))
        .fold(opened, |least, (row, _)| least.max(row.from));
    let lacking: Vec<_> =
        pairs().filter(|(row, t)| row.to <= least && !t.snapshot.sees(row.xid)).collect();
    match verdict {
        Verdict::Cut(number) => assert!(number == least && lacking.is_empty()),
        Verdict::Again(row) => {
            assert!(lacking.iter().any(|(lacks, t)| **lacks == row && !t.is_fixed));
            assert!(lacking.iter().all(|(_, t)| !t.is_fixed));
        }
        Verdict::TooOld(row) => {
            assert!(lacking.iter().any(|(lacks, t)| **lacks == row && t.is_fixed));
        }
    }
}
