//! What a unit has read, where a server may show more to a cursor that is opened later.

use crate::protocol::cut::Taken;
use crate::protocol::order::Opened;

/// A snapshot that was read from, with the time when its unit began.
#[derive(Clone)]
pub struct Shown {
    pub(super) taken: Taken,
    pub(super) opened: Opened,
    pub(super) server: String,
}

impl Shown {
    /// Adds later ones. Of one place the first and the last are enough: what is between them shows
    /// no less than the first and no more than the last.
    pub(super) fn add(known: &mut Vec<Self>, later: Vec<Self>) {
        for shown in later {
            let is_there = |other: &&mut Self| other.taken.place.is_same(&shown.taken.place);
            let mut there: Vec<&mut Self> = known.iter_mut().filter(is_there).collect();
            match there.as_mut_slice() {
                [_, .., last] => **last = shown,
                _ => known.push(shown),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;
    use crate::protocol::cut::Snapshot;
    use crate::protocol::order::Order;
    use crate::protocol::place::Place;

    fn shown(server: u32, xmax: u64) -> Shown {
        let place = Place::new(server, &(u64::from(server), "app".as_bytes()), None);
        let snapshot = Rc::new(Snapshot::new(xmax, Vec::new()));
        Shown {
            taken: Taken { place, snapshot, is_fixed: false },
            opened: Order::<1>::default().now(),
            server: format!("s{server}"),
        }
    }

    #[test]
    fn of_each_place_the_first_and_the_last_are_kept() {
        let mut known = vec![shown(1, 10), shown(1, 11), shown(2, 20)];
        for xmax in 12..20 {
            Shown::add(&mut known, vec![shown(1, xmax), shown(1, xmax + 1)]);
        }
        Shown::add(&mut known, vec![shown(2, 21)]);
        let kept: Vec<(&str, bool, bool)> = known
            .iter()
            .map(|s| (s.server.as_str(), s.taken.snapshot.sees(10), s.taken.snapshot.sees(19)))
            .collect();
        assert_eq!(
            kept,
            [("s1", false, false), ("s1", true, true), ("s2", true, true), ("s2", true, true)]
        );
    }
}
