//! The servers, the transactions and what the coordinator knows of them.

use std::collections::{BTreeMap, BTreeSet};

use super::Without;
use crate::protocol::cut::{NOT_YET, Row, Snapshot, Taken, Verdict, check};
use crate::protocol::order::{Opened, Order};
use crate::protocol::place::Place;

/// How many servers there are.
pub(super) const SERVERS: usize = 3;

/// With a past that is long enough for every schedule.
pub(super) type World = Simulation<64>;

/// Where a server is.
pub(super) fn at(server: usize) -> Place {
    Place::new(server as u32, &server, Some(1))
}

/// A small generator, so that a schedule is a number.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    pub(super) fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub(super) fn shuffled(&mut self, mut list: Vec<usize>) -> Vec<usize> {
        for i in (1..list.len()).rev() {
            list.swap(i, self.below(i + 1));
        }
        list
    }

    pub(super) fn servers(&mut self, count: usize) -> Vec<usize> {
        let mut all = self.shuffled((0..SERVERS).collect());
        all.truncate(count);
        all
    }
}

/// Which transaction; those that prepare come first.
pub(super) type Name = usize;

pub(super) struct Transaction {
    pub(super) prepares: bool,
    pub(super) servers: Vec<usize>,
    /// What it may have seen.
    pub(super) depends_on: BTreeSet<Name>,
    /// What was acknowledged before it began.
    pub(super) begun_after: BTreeSet<Name>,
}

/// What a reader has accepted.
pub(super) struct Accepted {
    pub(super) snapshots: BTreeMap<usize, BTreeSet<Name>>,
    pub(super) begun_after: BTreeSet<Name>,
}

pub(super) struct Simulation<const HISTORY: usize> {
    pub(super) random: Random,
    pub(super) without: Without,
    pub(super) order: Order<HISTORY>,
    pub(super) transactions: BTreeMap<Name, Transaction>,
    pub(super) next_xid: u64,
    /// The xids of each server, with whose they are and whether they have committed.
    pub(super) xids: [BTreeMap<u64, (Name, bool)>; SERVERS],
    /// Decided and not confirmed.
    pub(super) entries: BTreeMap<(Name, usize), u64>,
    /// COMMIT in one phase is sent and not answered.
    pub(super) pending: BTreeMap<Name, u64>,
    pub(super) acknowledged: BTreeSet<Name>,
    pub(super) accepted: Vec<Accepted>,
}

impl<const HISTORY: usize> Simulation<HISTORY> {
    pub(super) fn xid(&self, name: Name, server: usize) -> u64 {
        let mut xids = self.xids[server].iter();
        *xids.find(|(_, (whose, _))| *whose == name).expect("assigned when it began").0
    }

    pub(super) fn commit(&mut self, name: Name, server: usize) {
        let xid = self.xid(name, server);
        self.xids[server].insert(xid, (name, true));
    }

    pub(super) fn committed(&self, server: usize) -> BTreeSet<Name> {
        self.xids[server].values().filter(|(_, committed)| *committed).map(|(n, _)| *n).collect()
    }

    pub(super) fn begin(&mut self, name: Name, prepares: bool, servers: Vec<usize>) {
        for server in &servers {
            self.next_xid += 1;
            self.xids[*server].insert(self.next_xid, (name, false));
        }
        let begun_after = self.acknowledged.clone();
        let depends_on = begun_after.clone();
        let transaction = Transaction { prepares, servers, depends_on, begun_after };
        self.transactions.insert(name, transaction);
    }

    pub(super) fn snapshot(&self, server: usize) -> Snapshot {
        let open = self.xids[server].iter().filter(|(_, (_, committed))| !committed);
        let in_progress: Vec<String> = open.map(|(xid, _)| xid.to_string()).collect();
        let xmax = self.next_xid + 1;
        let text = format!("1:{xmax}:{}", in_progress.join(","));
        Snapshot::parse(&text).expect("as a server tells it")
    }

    pub(super) fn rows(&self, opened: Opened) -> Option<Vec<Row>> {
        let mut rows = self.order.since(opened)?;
        rows.extend(self.entries.iter().map(|((name, server), number)| Row {
            place: at(*server),
            xid: self.xid(*name, *server),
            from: *number,
            to: *number,
        }));
        rows.extend(self.pending.iter().map(|(name, sent)| {
            let server = self.transactions[name].servers[0];
            Row { place: at(server), xid: self.xid(*name, server), from: *sent, to: NOT_YET }
        }));
        Some(rows)
    }

    /// The check with a rule left out.
    pub(super) fn check(&self, opened: Opened, rows: &[Row], taken: &[Taken]) -> Verdict {
        if self.without == Without::Order {
            let sees = |row: &Row| {
                let mut at = taken.iter().filter(|t| t.place == row.place);
                at.any(|t| t.snapshot.sees(row.xid))
            };
            let here = |row: &&Row| taken.iter().any(|t| t.place == row.place);
            let half = rows.iter().filter(here).find(|row| {
                let parts = || rows.iter().filter(here).filter(|r| r.from == row.from);
                !sees(row) && row.from == row.to && parts().any(sees)
            });
            return half.map_or(Verdict::Cut(0), |row| Verdict::Again(*row));
        }
        let at = if self.without == Without::Beginning { 0 } else { opened.at };
        check(at, rows, taken)
    }
}
