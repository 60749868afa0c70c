//! Committed transactions that not all of their participants have confirmed: what the resolver
//! still has to deliver, or to find delivered.
//!
//! A transaction that is not in the ledger may be committed all the same: whether one has aborted
//! is read from the decision table.

use std::collections::{BTreeMap, HashMap};

use crate::protocol::gid::Nonce;

#[derive(Debug)]
struct Transaction {
    xid: u32,
    /// The participants that have not confirmed it.
    members: Vec<i32>,
}

/// What an entry in shared memory says of one participant of a committed transaction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Noted {
    /// The participant's number; 0 where it is not on the list any more.
    pub participant: i32,
    /// The transaction's xid there; 0 where it is not known.
    pub xid: u64,
    /// How many participants the transaction has; 0 where the entry was made without knowing.
    pub participants: usize,
}

/// Who has not confirmed a committed transaction, as far as all its entries tell; `None`: they do
/// not tell, and its decision row has to be read. `lacked`: there was no room for some entry.
///
/// Entries that are made together, one for each participant, end one by one as these confirm. One
/// that is made for what a sweep has left, after a start, says nothing of the others.
pub fn open_by_entries(entries: &[Noted], lacked: bool) -> Option<Vec<(i32, u64)>> {
    let all_known = entries.iter().all(|e| e.participants > 0);
    let is_whole = entries.first().is_some_and(|e| e.participants == entries.len());
    let tell = all_known && (is_whole || !lacked);
    // What is not on the list any more confirms nothing: its decision is kept.
    (tell && !entries.is_empty()).then(|| entries.iter().map(|e| (e.participant, e.xid)).collect())
}

/// Whether something that has grown, as after a crash, takes much more room than it needs now, and
/// more than a little.
pub fn has_much_room(len: usize, capacity: usize) -> bool {
    capacity > 1024 && len < capacity / 8
}

/// The transactions that are open.
#[derive(Default, Debug)]
pub struct Ledger {
    transactions: HashMap<Nonce, Transaction>,
    /// By participant: what is open there, with the transaction's xid there; 0 where it is not
    /// known.
    open: HashMap<i32, BTreeMap<Nonce, u64>>,
}

impl Ledger {
    /// Whether a transaction is open.
    pub fn has(&self, nonce: Nonce) -> bool {
        self.transactions.contains_key(&nonce)
    }

    /// The local xid of an open transaction.
    pub fn xid(&self, nonce: Nonce) -> Option<u32> {
        self.transactions.get(&nonce).map(|transaction| transaction.xid)
    }

    /// Adds a committed transaction with its local xid, and its participants with its xids there.
    /// Does nothing if it is open already.
    pub fn add(&mut self, nonce: Nonce, xid: u32, members: impl IntoIterator<Item = (i32, u64)>) {
        if self.has(nonce) {
            return;
        }
        let members = members.into_iter().map(|(id, xid)| {
            self.open.entry(id).or_default().insert(nonce, xid);
            id
        });
        let members = members.collect();
        self.transactions.insert(nonce, Transaction { xid, members });
    }

    /// A participant has confirmed a transaction; returns whether it was the last one.
    pub fn confirmed_by(&mut self, nonce: Nonce, id: i32) -> bool {
        self.close(nonce, id);
        let Some(transaction) = self.transactions.get_mut(&nonce) else { return false };
        transaction.members.retain(|member| *member != id);
        let last = transaction.members.is_empty();
        if last {
            self.transactions.remove(&nonce);
            self.give_back_room();
        }
        last
    }

    /// All participants have confirmed a transaction.
    pub fn confirmed_by_all(&mut self, nonce: Nonce) {
        for id in self.transactions.remove(&nonce).into_iter().flat_map(|t| t.members) {
            self.close(nonce, id);
        }
        self.give_back_room();
    }

    fn give_back_room(&mut self) {
        let transactions = &mut self.transactions;
        if has_much_room(transactions.len(), transactions.capacity()) {
            transactions.shrink_to(2 * transactions.len());
        }
    }

    /// A participant was taken off the list: nothing is delivered there any more.
    pub fn remove(&mut self, id: i32) {
        self.open.remove(&id);
    }

    fn close(&mut self, nonce: Nonce, id: i32) {
        if let Some(open) = self.open.get_mut(&id) {
            open.remove(&nonce);
            if open.is_empty() {
                self.open.remove(&id);
            }
        }
    }

    /// The participants at which something is open.
    pub fn participants(&self) -> impl Iterator<Item = i32> {
        self.open.keys().copied()
    }

    /// The xid of a transaction at a participant where it is open; 0 where it is not known.
    pub fn remote_xid(&self, nonce: Nonce, id: i32) -> Option<u64> {
        self.open.get(&id)?.get(&nonce).copied()
    }

    /// How many transactions are open at a participant.
    pub fn count_at(&self, id: i32) -> usize {
        self.open.get(&id).map_or(0, BTreeMap::len)
    }

    /// The transactions that are open at a participant, with their xids there.
    pub fn open_at(&self, id: i32) -> impl Iterator<Item = (Nonce, u64)> {
        self.open.get(&id).into_iter().flatten().map(|(nonce, xid)| (*nonce, *xid))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn nonce(number: u64) -> Nonce {
        Nonce::new(number).unwrap()
    }

    fn open_at(ledger: &Ledger, id: i32) -> Vec<(u64, u64)> {
        ledger.open_at(id).map(|(nonce, xid)| (nonce.number(), xid)).collect()
    }

    #[test]
    fn the_last_participant_settles_a_transaction() {
        let mut ledger = Ledger::default();
        ledger.add(nonce(1), 10, [(7, 70), (8, 80)]);
        ledger.add(nonce(2), 20, [(7, 71)]);
        ledger.add(nonce(1), 10, [(5, 50)]);
        assert_eq!(open_at(&ledger, 7), [(1, 70), (2, 71)]);
        assert_eq!(open_at(&ledger, 8), [(1, 80)]);
        assert!(open_at(&ledger, 5).is_empty(), "it was known before");
        assert_eq!(ledger.xid(nonce(1)), Some(10));
        assert!(!ledger.confirmed_by(nonce(1), 7));
        assert_eq!(open_at(&ledger, 7), [(2, 71)]);
        assert!(ledger.confirmed_by(nonce(1), 8));
        assert!(!ledger.has(nonce(1)) && ledger.has(nonce(2)));
        assert!(!ledger.confirmed_by(nonce(1), 8), "only once");
    }

    #[test]
    fn what_many_transactions_took_is_given_back() {
        for all_at_once in [true, false] {
            let mut ledger = Ledger::default();
            (1..=100_000).for_each(|n| ledger.add(nonce(n), 1, [(7, 0)]));
            for n in 1..=99_990 {
                match all_at_once {
                    true => ledger.confirmed_by_all(nonce(n)),
                    false => assert!(ledger.confirmed_by(nonce(n), 7)),
                }
            }
            assert!(ledger.transactions.capacity() < 2048, "{}", ledger.transactions.capacity());
            assert_eq!(ledger.count_at(7), 10);
            assert!((99_991..=100_000).all(|n| ledger.has(nonce(n))));
        }
    }

    #[test]
    fn what_a_removed_participant_has_open_is_never_settled() {
        let mut ledger = Ledger::default();
        ledger.add(nonce(1), 10, [(7, 0), (8, 0)]);
        ledger.remove(7);
        assert!(!ledger.confirmed_by(nonce(1), 8));
        assert!(ledger.has(nonce(1)));
        assert_eq!(ledger.participants().count(), 0);
    }

    #[test]
    fn entries_tell_who_is_left_only_where_each_participant_had_one() {
        let noted = |participant, participants| Noted { participant, xid: 7, participants };
        let (one, both) = ([noted(1, 2)], [noted(1, 2), noted(2, 2)]);
        assert_eq!(open_by_entries(&both, true), Some(vec![(1, 7), (2, 7)]));
        assert_eq!(open_by_entries(&one, false), Some(vec![(1, 7)]), "the other has confirmed");
        assert_eq!(open_by_entries(&one, true), None, "or there was no room for its entry");
        assert_eq!(open_by_entries(&[noted(1, 0)], false), None, "made for what a sweep has left");
        assert_eq!(open_by_entries(&[noted(1, 0), noted(2, 2)], false), None);
        assert_eq!(open_by_entries(&[], false), None);
        assert_eq!(open_by_entries(&[noted(0, 1)], false), Some(vec![(0, 7)]), "is kept");
    }

    proptest! {
        /// In whatever order: open at a participant is exactly what was added, not delivered there
        /// and not settled.
        #[test]
        fn open_is_what_was_added_and_not_delivered(
            steps in proptest::collection::vec((0..3u8, 0..4u64, 0..4i32), 0..60)
        ) {
            let mut ledger = Ledger::default();
            let mut model: HashMap<u64, HashSet<i32>> = HashMap::new();
            for (step, number, id) in steps {
                match step {
                    0 => {
                        ledger.add(nonce(number), 1, [(id, 1), ((id + 1) % 4, 2)]);
                        model.entry(number).or_insert_with(|| [id, (id + 1) % 4].into());
                    }
                    1 => {
                        let was = model.contains_key(&number);
                        if let Some(open) = model.get_mut(&number) {
                            open.remove(&id);
                            if open.is_empty() {
                                model.remove(&number);
                            }
                        }
                        let last = ledger.confirmed_by(nonce(number), id);
                        prop_assert_eq!(last, was && !model.contains_key(&number));
                    }
                    _ => {
                        ledger.confirmed_by_all(nonce(number));
                        model.remove(&number);
                    }
                }
                for id in 0..4 {
                    let mut expected: Vec<u64> =
                        model.iter().filter(|(_, open)| open.contains(&id)).map(|(n, _)| *n).collect();
                    expected.sort_unstable();
                    let open: Vec<u64> = open_at(&ledger, id).iter().map(|(n, _)| *n).collect();
                    prop_assert_eq!(open, expected);
                }
            }
        }
    }
}
