//! The participants that the resolver looks after, found by number, by user mapping, by place and by time, so that a
//! round costs what there is to do in it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::CString;
use std::time::Instant;

use pgrx::pg_sys::Oid;

use crate::resolver::sweep::Sweep;
use crate::resolver::worker::participant::Participant;
use crate::store::participant_list::ParticipantRecord;

/// A database of a server, as participants are recorded. Only one session of ours can hold the fence there.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Site {
    system_identifier: u64,
    database: CString,
}

impl Site {
    fn of(registered: &ParticipantRecord) -> Self {
        let ParticipantRecord { system_identifier, database, .. } = registered;
        Self { system_identifier: *system_identifier, database: database.clone() }
    }
}

/// What of a participant is found by the indexes.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Traits {
    due: Option<Instant>,
    unswept: bool,
    sweeps: bool,
    fenced: bool,
}

impl Traits {
    fn of(participant: &Participant) -> Self {
        Self {
            due: participant.due,
            unswept: participant.unswept,
            sweeps: participant.sweep.is_some(),
            fenced: participant.fenced.is_some(),
        }
    }

    const NONE: Self = Self { due: None, unswept: false, sweeps: false, fenced: false };
}

struct Indexed {
    participant: Participant,
    /// As the indexes have it.
    traits: Traits,
}

#[derive(Default)]
struct AtSite {
    participants: BTreeSet<i32>,
    sweeps: BTreeSet<i32>,
    fenced: BTreeSet<i32>,
}

fn set<T: Ord>(among: &mut BTreeSet<T>, one: T, is: bool) {
    if is {
        among.insert(one);
    } else {
        among.remove(&one);
    }
}

/// All participants.
#[derive(Default)]
pub(super) struct Roster {
    participants: HashMap<i32, Indexed>,
    by_mapping: HashMap<(Oid, Oid), BTreeSet<i32>>,
    sites: HashMap<Site, AtSite>,
    /// Those that are not being swept and have a time, unless another sweep at their site is under way.
    due: BTreeSet<(Instant, i32)>,
    sweeping: BTreeSet<i32>,
    /// How many are unswept on each server, and on how many servers that has changed.
    unswept: HashMap<Oid, u64>,
    changed: HashSet<Oid>,
    all_unswept: usize,
    /// The highest number given so far.
    last_id: i32,
}

impl Roster {
    pub(super) fn len(&self) -> usize {
        self.participants.len()
    }

    pub(super) fn has(&self, id: i32) -> bool {
        self.participants.contains_key(&id)
    }

    pub(super) fn get(&self, id: i32) -> Option<&Participant> {
        self.participants.get(&id).map(|indexed| &indexed.participant)
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = i32> {
        self.participants.keys().copied()
    }

    /// A number that no participant has had.
    pub(super) fn next_id(&self) -> i32 {
        self.last_id + 1
    }

    /// A number stands in a decision: it is not given again.
    pub(super) fn note_id(&mut self, id: i32) {
        self.last_id = self.last_id.max(id);
    }

    pub(super) fn add(&mut self, participant: Participant) {
        let registered = &participant.registered;
        let id = registered.id;
        self.note_id(id);
        self.by_mapping.entry((registered.serverid, registered.userid)).or_default().insert(id);
        self.sites.entry(Site::of(registered)).or_default().participants.insert(id);
        self.changed.insert(registered.serverid);
        self.unswept.entry(registered.serverid).or_default();
        self.participants.insert(id, Indexed { participant, traits: Traits::NONE });
        self.index(id);
    }

    pub(super) fn remove(&mut self, id: i32) {
        self.change(id, |p| (p.due, p.unswept, p.sweep, p.fenced) = (None, false, None, None));
        let Some(Indexed { participant, .. }) = self.participants.remove(&id) else { return };
        let registered = &participant.registered;
        if let Some(ids) = self.by_mapping.get_mut(&(registered.serverid, registered.userid)) {
            ids.remove(&id);
        }
        if let Some(site) = self.sites.get_mut(&Site::of(registered)) {
            site.participants.remove(&id);
        }
    }

    /// Changes a participant; nothing else does.
    pub(super) fn change<T>(
        &mut self,
        id: i32,
        f: impl FnOnce(&mut Participant) -> T,
    ) -> Option<T> {
        let value = f(&mut self.participants.get_mut(&id)?.participant);
        self.index(id);
        Some(value)
    }

    /// Takes the sweep of one that is being swept; it counts as being swept until it is changed.
    pub(super) fn take_sweep(&mut self, id: i32) -> Option<Box<Sweep>> {
        self.participants.get_mut(&id)?.participant.sweep.take()
    }

    /// Brings the indexes up to date with a participant.
    fn index(&mut self, id: i32) {
        let Some(Indexed { participant, traits }) = self.participants.get_mut(&id) else { return };
        let now = Traits::of(participant);
        let was = std::mem::replace(traits, now);
        if was == now {
            return;
        }
        let registered = &participant.registered;
        if was.unswept != now.unswept {
            let by = if now.unswept { 1 } else { -1 };
            let unswept = self.unswept.entry(registered.serverid).or_default();
            *unswept = unswept.wrapping_add_signed(by);
            self.all_unswept = self.all_unswept.wrapping_add_signed(by as isize);
            self.changed.insert(registered.serverid);
        }
        let site = self.sites.entry(Site::of(registered)).or_default();
        let was_busy = !site.sweeps.is_empty();
        set(&mut site.fenced, id, now.fenced);
        set(&mut site.sweeps, id, now.sweeps);
        set(&mut self.sweeping, id, now.sweeps);
        let is_busy = !site.sweeps.is_empty();
        if let Some(due) = was.due {
            self.due.remove(&(due, id));
        }
        if was_busy != is_busy {
            // Those beside it wait for its end, and cost nothing meanwhile.
            for other in &site.participants {
                let due = self.participants.get(other).and_then(|other| other.participant.due);
                if let Some(due) = due {
                    set(&mut self.due, (due, *other), !is_busy);
                }
            }
        }
        if let (Some(due), false) = (now.due, is_busy) {
            self.due.insert((due, id));
        }
    }

    /// Those with a user mapping.
    pub(super) fn with_mapping(&self, serverid: Oid, userid: Oid) -> Vec<i32> {
        self.by_mapping.get(&(serverid, userid)).into_iter().flatten().copied().collect()
    }

    /// Those on a server.
    pub(super) fn on_server(&self, serverid: Oid) -> Vec<i32> {
        let all = self.participants.values().map(|indexed| &indexed.participant.registered);
        all.filter(|r| r.serverid == serverid).map(|r| r.id).collect()
    }

    /// Those at the site of one, and itself.
    pub(super) fn beside(
        &self,
        registered: &ParticipantRecord,
    ) -> impl Iterator<Item = &Participant> {
        let ids =
            self.sites.get(&Site::of(registered)).into_iter().flat_map(|site| &site.participants);
        ids.filter_map(|id| self.get(*id))
    }

    /// Those at its site that keep the fence.
    pub(super) fn fenced_at(&self, registered: &ParticipantRecord) -> Vec<i32> {
        self.sites
            .get(&Site::of(registered))
            .into_iter()
            .flat_map(|site| &site.fenced)
            .copied()
            .collect()
    }

    /// Whether the fence is held, or being taken, at its site.
    pub(super) fn is_fenced(&self, registered: &ParticipantRecord) -> bool {
        let site = self.sites.get(&Site::of(registered));
        site.is_some_and(|site| !site.sweeps.is_empty() || !site.fenced.is_empty())
    }

    /// Whether one is due, and nothing is under way at its site.
    pub(super) fn is_startable(&self, id: i32, now: Instant) -> bool {
        let due = self.get(id).and_then(|p| p.due).filter(|due| *due <= now);
        due.is_some_and(|due| self.due.contains(&(due, id)))
    }

    /// Those that are being swept.
    pub(super) fn sweeping(&self) -> Vec<i32> {
        self.sweeping.iter().copied().collect()
    }

    /// When the next one could be swept.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(due, _)| *due)
    }

    /// Those that are due, the longest first.
    pub(super) fn due(&self, now: Instant) -> Vec<i32> {
        self.due.iter().take_while(|(due, _)| *due <= now).map(|(_, id)| *id).collect()
    }

    /// How many participants have not been swept clean.
    pub(super) fn unswept(&self) -> usize {
        self.all_unswept
    }

    /// The servers on which that number has changed since the last call, with it.
    pub(super) fn take_changed(&mut self) -> Vec<(Oid, u64)> {
        let changed = std::mem::take(&mut self.changed);
        changed.into_iter().map(|id| (id, self.unswept.get(&id).copied().unwrap_or(0))).collect()
    }
}
