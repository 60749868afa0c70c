//! All participants of this database, found by number, by user mapping, by site and by the time at
//! which they are due: so that a round of the resolver costs what there is to do in it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::CString;
use std::time::Instant;

use pgrx::pg_sys::Oid;

use crate::resolver::sweep::Sweep;
use crate::resolver::worker::participant::Participant;
use crate::store::participant_list::ParticipantRecord;

/// The server and database that a participant is recorded to be on. Only one session of ours can
/// hold the fence there.
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

/// What the indexes hold of a participant.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Traits {
    due: Option<Instant>,
    unsettled: bool,
    sweeps: bool,
    fenced: bool,
}

impl Traits {
    fn of(participant: &Participant) -> Self {
        Self {
            due: participant.due,
            unsettled: participant.unsettled,
            sweeps: participant.sweep.is_some(),
            fenced: participant.fenced.is_some(),
        }
    }

    const NONE: Self = Self { due: None, unsettled: false, sweeps: false, fenced: false };
}

struct Indexed {
    participant: Participant,
    /// As the indexes hold them.
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
    /// Participants that are due at a time, without those at a site where a sweep is under way.
    due: BTreeSet<(Instant, i32)>,
    sweeping: BTreeSet<i32>,
    /// How many participants of each server may have something left there.
    unsettled: HashMap<Oid, u64>,
    /// The servers of which that number has changed.
    changed: HashSet<Oid>,
    /// The sum of the numbers.
    all_unsettled: usize,
    /// The highest number of a participant so far.
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

    /// A decision contains this number, so no other participant may get it.
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
        self.unsettled.entry(registered.serverid).or_default();
        self.participants.insert(id, Indexed { participant, traits: Traits::NONE });
        self.index(id);
    }

    pub(super) fn remove(&mut self, id: i32) {
        self.change(id, |p| (p.due, p.unsettled, p.sweep, p.fenced) = (None, false, None, None));
        let Some(Indexed { participant, .. }) = self.participants.remove(&id) else { return };
        let registered = &participant.registered;
        if let Some(ids) = self.by_mapping.get_mut(&(registered.serverid, registered.userid)) {
            ids.remove(&id);
        }
        if let Some(site) = self.sites.get_mut(&Site::of(registered)) {
            site.participants.remove(&id);
        }
    }

    /// Changes a participant, and the indexes with it. Participants are changed in no other way.
    pub(super) fn change<T>(
        &mut self,
        id: i32,
        f: impl FnOnce(&mut Participant) -> T,
    ) -> Option<T> {
        let value = f(&mut self.participants.get_mut(&id)?.participant);
        self.index(id);
        Some(value)
    }

    /// Takes the sweep of a participant, which counts as being swept until it is changed.
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
        if was.unsettled != now.unsettled {
            let by = if now.unsettled { 1 } else { -1 };
            let unsettled = self.unsettled.entry(registered.serverid).or_default();
            *unsettled = unsettled.wrapping_add_signed(by);
            self.all_unsettled = self.all_unsettled.wrapping_add_signed(by as isize);
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
            // The others at the site wait for the sweep to end, and are not looked at until then.
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

    /// The participants with a user mapping.
    pub(super) fn with_mapping(&self, serverid: Oid, userid: Oid) -> Vec<i32> {
        self.by_mapping.get(&(serverid, userid)).into_iter().flatten().copied().collect()
    }

    /// The participants on a foreign server.
    pub(super) fn on_server(&self, serverid: Oid) -> Vec<i32> {
        let all = self.participants.values().map(|indexed| &indexed.participant.registered);
        all.filter(|r| r.serverid == serverid).map(|r| r.id).collect()
    }

    /// The participants at the site of one, itself included.
    pub(super) fn beside(
        &self,
        registered: &ParticipantRecord,
    ) -> impl Iterator<Item = &Participant> {
        let ids =
            self.sites.get(&Site::of(registered)).into_iter().flat_map(|site| &site.participants);
        ids.filter_map(|id| self.get(*id))
    }

    /// The participants at its site that keep a session with the fence.
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

    /// Whether a participant is due, and no sweep is under way at its site.
    pub(super) fn is_startable(&self, id: i32, now: Instant) -> bool {
        let due = self.get(id).and_then(|p| p.due).filter(|due| *due <= now);
        due.is_some_and(|due| self.due.contains(&(due, id)))
    }

    /// The participants that are being swept.
    pub(super) fn sweeping(&self) -> Vec<i32> {
        self.sweeping.iter().copied().collect()
    }

    /// When the next participant is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(due, _)| *due)
    }

    /// The participants that are due, longest overdue first.
    pub(super) fn due(&self, now: Instant) -> Vec<i32> {
        self.due.iter().take_while(|(due, _)| *due <= now).map(|(_, id)| *id).collect()
    }

    /// On how many participants something may be left.
    pub(super) fn unsettled(&self) -> usize {
        self.all_unsettled
    }

    /// The servers whose number of participants with something left may have changed since the last
    /// call, with that number.
    pub(super) fn take_changed(&mut self) -> Vec<(Oid, u64)> {
        let changed = std::mem::take(&mut self.changed);
        changed.into_iter().map(|id| (id, self.unsettled.get(&id).copied().unwrap_or(0))).collect()
    }
}
