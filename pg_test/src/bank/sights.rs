//! What readers have seen, and whether it can be: plain functions over plain data.
//!
//! Each line of a ledger tells at which places its transfer is noted, so a reader sees by itself
//! whether it has half a transfer.

use std::collections::{BTreeMap, HashMap};

use super::places::SHARDS;

/// A set of places, by their [`bit`](super::places::Place::bit)s.
pub(super) type Places = u32;

/// A transfer that some customer was told to be committed.
#[derive(Debug, Clone)]
pub(super) struct Acknowledged {
    pub(super) id: i64,
    pub(super) coordinator: usize,
    pub(super) places: Places,
    /// All shards had confirmed it before.
    pub(super) is_confirmed: bool,
    /// How often coordinators had been stopped and started by then.
    pub(super) stops: u64,
}

/// A transfer as a reader has seen it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    /// Where it is noted.
    places: Places,
    /// Where it was seen.
    at: Places,
}

/// What a reader may read: the coordinator's own tables, number 0, and the shards.
pub(super) const OWN: usize = 1;

/// The sum of the balances at each.
pub(super) type Sums = [i64; OWN + SHARDS];

/// What was read at one place.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Books {
    balances: i64,
    amounts: i64,
}

/// What was read together, of the transfers of one coordinator.
#[derive(Debug, Clone, Default)]
pub(super) struct Sight {
    /// The places that were read.
    pub(super) read_at: Places,
    seen: BTreeMap<i64, Seen>,
    books: [Books; OWN + SHARDS],
}

impl Sight {
    /// A line of the ledger of a shard or, number 0, of the coordinator; `is_ours` unless it is
    /// another coordinator's.
    pub(super) fn note(
        &mut self,
        shard: usize,
        id: i64,
        places: Places,
        amount: i64,
        is_ours: bool,
    ) {
        self.books[shard].amounts += amount;
        if is_ours {
            self.seen.entry(id).or_insert(Seen { places, at: 0 }).at |= 1 << shard;
        }
    }

    /// An account there.
    pub(super) fn add(&mut self, shard: usize, balance: i64) {
        self.books[shard].balances += balance;
    }

    fn is_of_several(&self) -> bool {
        self.read_at.count_ones() > 1
    }

    /// Half a transfer, or balances that are not what the same shard's ledger says; `before` has
    /// the sums of the balances without the ledger's lines.
    pub(super) fn torn(&self, before: &Sums) -> Option<String> {
        for (shard, (books, before)) in self.books.iter().zip(before).enumerate() {
            let changed = books.balances - before;
            if self.read_at & (1 << shard) != 0 && changed != books.amounts {
                let amounts = books.amounts;
                return Some(format!(
                    "balances at place {shard} differ by {changed}, its ledger says {amounts}"
                ));
            }
        }
        let is_half = |seen: &Seen| seen.places & self.read_at != seen.at;
        let half = self.seen.iter().find(|(_, seen)| is_half(seen))?;
        Some(format!("half a transfer among places {:b}: {half:?}", self.read_at))
    }

    /// One that was acknowledged before the reader began, and that it has not seen; `stops`
    /// tells how often coordinators have been stopped and started by now. A shard that is read alone
    /// may lack what was neither confirmed nor asked for since the coordinator started.
    pub(super) fn stale(
        &self,
        coordinator: usize,
        acknowledged: &[Acknowledged],
        stops: u64,
    ) -> Option<String> {
        let is_missing = |transfer: &&Acknowledged| {
            let here = transfer.places & self.read_at;
            let is_recent = transfer.stops == stops && stops.is_multiple_of(2);
            let is_owed = self.is_of_several() || transfer.is_confirmed || is_recent;
            transfer.coordinator == coordinator
                && here != 0
                && is_owed
                && !self.seen.contains_key(&transfer.id)
        };
        let missing = acknowledged.iter().find(is_missing)?;
        Some(format!("not at places {:b}: {missing:?}", self.read_at))
    }
}

/// How many participants take part in a transfer: what is behind shard 1 is shard 1's.
fn participants(places: Places) -> u32 {
    const DEEP: Places = 1 << (SHARDS + 1);
    let behind = if places & DEEP == 0 { 0 } else { 1 << 1 };
    (places & !DEEP | behind).count_ones()
}

/// All that several readers of one coordinator's transfers have seen.
#[derive(Debug, Default)]
pub(super) struct Sights {
    /// Which shards were read, and which transfers over several participants were seen.
    kept: Vec<(Places, Vec<i64>)>,
    /// Where each of them is noted.
    places: HashMap<i64, Places>,
}

impl Sights {
    /// Keeps what was read on several shards.
    pub(super) fn keep(&mut self, sight: &Sight) {
        if !sight.is_of_several() {
            return;
        }
        let several = sight.seen.iter().filter(|(_, seen)| participants(seen.places) > 1);
        self.places.extend(several.clone().map(|(id, seen)| (*id, seen.places)));
        self.kept.push((sight.read_at, several.map(|(id, _)| *id).collect()));
    }

    /// How many pairs of readers have seen two transfers in opposite orders, with one of them. Of
    /// the transfers that two readers could both see, one has seen all that the other has.
    pub(super) fn out_of_order(&self) -> (u64, Option<String>) {
        let mut kinds: Vec<Places> = self.kept.iter().map(|(shards, _)| *shards).collect();
        kinds.sort_unstable();
        kinds.dedup();
        let (mut count, mut example) = (0, None);
        for (index, one) in kinds.iter().enumerate() {
            for other in &kinds[index..] {
                let pairs = self.opposite(*one, *other);
                count += pairs.len() as u64;
                example = example.or(pairs.into_iter().next());
            }
        }
        (count, example)
    }

    fn opposite(&self, one: Places, other: Places) -> Vec<String> {
        let is_common = |id: &&i64| {
            let places = self.places[*id];
            places & one != 0 && places & other != 0
        };
        let mut sets: Vec<Vec<i64>> = self
            .kept
            .iter()
            .filter(|(shards, _)| *shards == one || *shards == other)
            .map(|(_, ids)| ids.iter().filter(is_common).copied().collect())
            .collect();
        sets.sort_by_key(Vec::len);
        let only = |a: &[i64], b: &[i64]| a.iter().copied().find(|id| b.binary_search(id).is_err());
        let pairs = sets.windows(2).filter_map(|pair| {
            let (first, second) = (only(&pair[0], &pair[1])?, only(&pair[1], &pair[0])?);
            Some(format!(
                "one reader has seen {first} and not {second}, another {second} and not {first}"
            ))
        });
        pairs.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: Sums = [100; OWN + SHARDS];

    /// A reader of `shards` who sees those transfers at those places.
    fn sight(shards: Places, seen: &[(i64, Places, Places)]) -> Sight {
        let mut sight = Sight { read_at: shards, ..Sight::default() };
        for shard in 0..=SHARDS {
            sight.add(shard, 100);
            for (id, places, at) in seen {
                if at & (1 << shard) != 0 {
                    sight.note(shard, *id, *places, 5, true);
                    sight.add(shard, 5);
                }
            }
        }
        sight
    }

    fn acknowledged(id: i64, places: Places) -> Acknowledged {
        Acknowledged { id, coordinator: 0, places, is_confirmed: false, stops: 6 }
    }

    #[test]
    fn half_a_transfer_is_torn_and_what_was_not_read_is_not() {
        assert_eq!(sight(0b1110, &[(1, 0b0110, 0b0110)]).torn(&BEFORE), None);
        assert!(sight(0b1110, &[(1, 0b0110, 0b0010)]).torn(&BEFORE).is_some());
        // In the coordinator's own table, and on a shard that was not read.
        assert_eq!(sight(0b0110, &[(1, 0b1011, 0b0010)]).torn(&BEFORE), None);
        assert!(sight(0b0011, &[(1, 0b0011, 0b0001)]).torn(&BEFORE).is_some());
    }

    #[test]
    fn books_of_one_shard_that_do_not_fit_are_torn() {
        let mut sight = sight(0b0010, &[]);
        sight.note(1, 1, 0b0010, 5, false);
        assert!(sight.torn(&BEFORE).is_some());
        sight.add(1, 5);
        assert_eq!(sight.torn(&BEFORE), None);
    }

    #[test]
    fn what_was_acknowledged_before_must_be_seen() {
        let told = [acknowledged(1, 0b0110)];
        let (none, one) = (sight(0b1110, &[]), sight(0b1110, &[(1, 0b0110, 0b0110)]));
        assert!(none.stale(0, &told, 6).is_some() && none.stale(0, &told, 8).is_some());
        assert_eq!(none.stale(1, &told, 6), None, "another coordinator's");
        assert_eq!(one.stale(0, &told, 6), None);
        assert_eq!(sight(0b1000, &[]).stale(0, &told, 6), None, "nothing of it is there");
        let alone = sight(0b0010, &[]);
        assert!(alone.stale(0, &told, 6).is_some());
        assert_eq!(alone.stale(0, &told, 8), None, "a coordinator was stopped meanwhile");
        let confirmed = [Acknowledged { is_confirmed: true, ..told[0].clone() }];
        assert!(alone.stale(0, &confirmed, 8).is_some());
    }

    #[test]
    fn opposite_orders_are_found_also_between_readers_of_different_shards() {
        let both = |id| (id, 0b0110, 0b0110);
        let count = |seen: &[Sight]| {
            let mut sights = Sights::default();
            seen.iter().for_each(|sight| sights.keep(sight));
            sights.out_of_order().0
        };
        let all = 0b1110;
        assert_eq!(count(&[sight(all, &[both(1)]), sight(all, &[both(1), both(2)])]), 0);
        assert_eq!(count(&[sight(all, &[both(1)]), sight(all, &[both(2)])]), 1);
        assert_eq!(count(&[sight(0b0110, &[both(1)]), sight(all, &[both(2)])]), 1);
        // The second reader could not see the first transfer.
        let elsewhere = (2, 0b1100, 0b1000);
        assert_eq!(
            count(&[sight(0b0110, &[both(1)]), sight(0b1000 | 1 << 1, &[both(1), elsewhere])]),
            0
        );
        // One participant: no order is promised. What is behind shard 1 is shard 1's.
        for single in [0b0010, 0b1_0010] {
            let alone = |id| (id, single, 0b0010);
            assert_eq!(count(&[sight(all, &[alone(1)]), sight(all, &[alone(2)])]), 0);
        }
    }
}
