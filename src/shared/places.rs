//! Lists of places in an array in shared memory: which are free, and which are used for what. What
//! a list costs depends on how many places are on it, not on the length of the array.

/// No place.
const NONE: u32 = u32::MAX;

/// A place's neighbours on the list that it is on.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Link {
    next: u32,
    previous: u32,
}

/// Puts a place at the head of a chain, before the old head.
pub fn chain(links: &mut [Link], place: u32, head: Option<u32>) {
    links[place as usize] = Link { next: head.unwrap_or(NONE), previous: NONE };
    if let Some(head) = head {
        links[head as usize].previous = place;
    }
}

/// Takes a place out of its chain. If it was the head, returns the new one.
pub fn unchain(links: &mut [Link], place: u32) -> Option<NewHead> {
    let Link { next, previous } = links[place as usize];
    if next != NONE {
        links[next as usize].previous = previous;
    }
    if previous != NONE {
        links[previous as usize].next = next;
        return None;
    }
    Some(NewHead((next != NONE).then_some(next)))
}

/// The new head of a chain; `None`: the chain is empty now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NewHead(pub Option<u32>);

/// The places of a chain.
pub fn chained(links: &[Link], head: Option<u32>) -> impl Iterator<Item = usize> {
    follow(links, head.unwrap_or(NONE))
}

fn follow(links: &[Link], first: u32) -> impl Iterator<Item = usize> {
    let mut next = first;
    std::iter::from_fn(move || {
        let place = (next != NONE).then_some(next as usize)?;
        next = links[place].next;
        Some(place)
    })
}

/// A list of places, in the order in which they were added.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct List {
    first: u32,
    last: u32,
    len: u32,
}

impl List {
    /// The empty list.
    pub const EMPTY: Self = Self { first: NONE, last: NONE, len: 0 };

    /// How many places are on it.
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// The first place.
    pub fn first(&self) -> Option<u32> {
        (self.first != NONE).then_some(self.first)
    }

    /// Adds a place that is on no list of these links.
    pub fn push(&mut self, links: &mut [Link], place: u32) {
        links[place as usize] = Link { next: NONE, previous: self.last };
        match self.last {
            NONE => self.first = place,
            last => links[last as usize].next = place,
        }
        self.last = place;
        self.len += 1;
    }

    /// Removes a place that is on it.
    pub fn remove(&mut self, links: &mut [Link], place: u32) {
        let Link { next, previous } = links[place as usize];
        match previous {
            NONE => self.first = next,
            previous => links[previous as usize].next = next,
        }
        match next {
            NONE => self.last = previous,
            next => links[next as usize].previous = previous,
        }
        self.len -= 1;
    }

    /// The places on it.
    pub fn iter<'a>(&self, links: &'a [Link]) -> impl Iterator<Item = usize> + use<'a> {
        follow(links, self.first)
    }
}

/// Which places are free: those that were given back, and those from `untouched` on, which were
/// never used and whose memory was never written.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Free {
    given_back: List,
    untouched: u32,
}

impl Free {
    /// All places are free.
    pub const ALL: Self = Self { given_back: List::EMPTY, untouched: 0 };

    /// How many of the places with these links are free.
    pub fn len(&self, links: &[Link]) -> usize {
        self.given_back.len() + links.len() - self.untouched as usize
    }

    /// Takes a free place.
    pub fn take(&mut self, links: &mut [Link]) -> Option<u32> {
        if let Some(place) = self.given_back.first() {
            self.given_back.remove(links, place);
            return Some(place);
        }
        let place = self.untouched;
        if place as usize == links.len() {
            return None;
        }
        self.untouched += 1;
        Some(place)
    }

    /// Gives back a place that is on no other list of these links.
    pub fn give_back(&mut self, links: &mut [Link], place: u32) {
        self.given_back.push(links, place);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    const PLACES: usize = 5;

    #[test]
    fn a_chain_is_left_from_any_place() {
        for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2], [1, 2, 0], [0, 2, 1], [2, 0, 1]] {
            let mut links = [Link { next: 7, previous: 7 }; 3];
            let mut head = None;
            for place in 0..3 {
                chain(&mut links, place, head);
                head = Some(place);
            }
            let mut left = vec![2, 1, 0];
            for place in order {
                if let Some(NewHead(new)) = unchain(&mut links, place) {
                    head = new;
                }
                left.retain(|p| *p != place as usize);
                assert_eq!(chained(&links, head).collect::<Vec<_>>(), left);
            }
            assert_eq!(head, None);
        }
    }

    proptest! {
        /// Compared with plain lists: each place is on one of two lists, or free.
        #[test]
        fn a_place_is_on_one_list_or_free(steps in proptest::collection::vec((0..3u8, 0..PLACES), 0..80)) {
            let mut links = [Link { next: 7, previous: 7 }; PLACES];
            let (mut lists, mut free) = ([List::EMPTY; 2], Free::ALL);
            let mut model: [VecDeque<usize>; 2] = Default::default();
            for (step, nth) in steps {
                match step {
                    0 => {
                        let taken = free.take(&mut links);
                        prop_assert_eq!(taken.is_some(), model[0].len() + model[1].len() < PLACES);
                        if let Some(place) = taken {
                            let is_used = model.iter().flatten().any(|p| *p == place as usize);
                            prop_assert!(!is_used);
                            lists[0].push(&mut links, place);
                            model[0].push_back(place as usize);
                        }
                    }
                    step => {
                        let from = usize::from(step == 2);
                        if let Some(place) = model[from].remove(nth) {
                            lists[from].remove(&mut links, place as u32);
                            if from == 0 {
                                lists[1].push(&mut links, place as u32);
                                model[1].push_back(place);
                            } else {
                                free.give_back(&mut links, place as u32);
                            }
                        }
                    }
                }
                for (list, model) in lists.iter().zip(&model) {
                    prop_assert_eq!(list.iter(&links).collect::<VecDeque<_>>(), model.clone());
                    prop_assert_eq!(list.len(), model.len());
                }
                prop_assert_eq!(free.len(&links), PLACES - model[0].len() - model[1].len());
            }
        }
    }
}
