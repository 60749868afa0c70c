//! Where entries are: each is found by its gid and by its local transaction, and is on one of two
//! lists, of those that a backend settles or of those that are left to the resolver. Nothing here
//! costs time in proportion to the number of places.

use pgrx::pg_sys::{self, Oid};

use crate::pg::backend_local::BackendLocal;
use crate::pg::shared_index::{Key, SharedIndex};
use crate::protocol::gid::Gid;
use crate::shared::entry::Entry;
use crate::shared::places::{self, Free, Link, List, NewHead};

/// Which entries are in use.
#[repr(C)]
pub struct EntryLists {
    free: Free,
    /// Those that a backend settles.
    owned: List,
    /// Those that are left to the resolver.
    left: List,
    /// How often an entry has come onto that list, or changed its status there.
    left_changes: u64,
    /// How many are not decided.
    open: usize,
    /// How many are acknowledged and not confirmed.
    acknowledged: usize,
}

impl EntryLists {
    /// None is, when the server starts.
    pub const NONE_USED: Self = Self {
        free: Free::ALL,
        owned: List::EMPTY,
        left: List::EMPTY,
        left_changes: 0,
        open: 0,
        acknowledged: 0,
    };
}

#[repr(C)]
#[derive(Clone, Copy)]
struct GidKey {
    identity: u64,
    nonce: u64,
    serverid: u32,
    userid: u32,
}

// SAFETY: 24 bytes of integers.
unsafe impl Key for GidKey {}

impl From<&Gid> for GidKey {
    fn from(gid: &Gid) -> Self {
        let Gid { identity, nonce, serverid, userid } = *gid;
        Self { identity: identity.number(), nonce: nonce.number(), serverid, userid }
    }
}

impl From<&Entry> for GidKey {
    fn from(entry: &Entry) -> Self {
        let Entry { identity, nonce, serverid, userid, .. } = *entry;
        Self { identity, nonce, serverid: serverid.to_u32(), userid: userid.to_u32() }
    }
}

/// A local transaction. Its entries form a chain, of which the index has the first.
#[repr(C)]
#[derive(Clone, Copy)]
struct TransactionKey {
    dbid: u32,
    xid: u32,
}

// SAFETY: 8 bytes of integers.
unsafe impl Key for TransactionKey {}

impl From<&Entry> for TransactionKey {
    fn from(entry: &Entry) -> Self {
        Self { dbid: entry.dbid.to_u32(), xid: entry.xid.into_inner() }
    }
}

static BY_GID: BackendLocal<SharedIndex<GidKey>> = BackendLocal::new(SharedIndex::new());
static BY_TRANSACTION: BackendLocal<SharedIndex<TransactionKey>> =
    BackendLocal::new(SharedIndex::new());

/// The memory that the indexes over so many entries need.
pub fn index_size(entries: usize) -> usize {
    SharedIndex::<GidKey>::size(entries) + SharedIndex::<TransactionKey>::size(entries)
}

/// Makes the indexes, or attaches to them.
pub fn attach(entries: usize) {
    BY_GID.get().attach(c"pg_fdw_xacts entries by gid", entries);
    BY_TRANSACTION.get().attach(c"pg_fdw_xacts entries by transaction", entries);
}

/// The entries, locked.
pub struct EntryTable<'a> {
    pub(super) lists: &'a mut EntryLists,
    pub(super) entries: &'a mut [Entry],
    pub(super) links: &'a mut [Link],
    pub(super) siblings: &'a mut [Link],
}

impl EntryTable<'_> {
    /// How many can be inserted.
    pub fn free(&self) -> usize {
        self.lists.free.len(self.links)
    }

    /// How many are not decided, in all databases.
    pub fn open(&self) -> usize {
        self.lists.open
    }

    /// How many are acknowledged and not confirmed, in all databases.
    pub fn acknowledged(&self) -> usize {
        self.lists.acknowledged
    }

    /// Changes whenever something is left to the resolvers.
    pub fn left_changes(&self) -> u64 {
        self.lists.left_changes
    }

    /// The place of a gid's entry.
    pub fn find(&self, gid: &Gid) -> Option<usize> {
        BY_GID.get().find(&gid.into()).map(|place| place as usize)
    }

    /// The entry at a place that is in use.
    pub fn at(&self, place: usize) -> &Entry {
        &self.entries[place]
    }

    /// The entries of a local transaction.
    pub fn of_transaction(&self, dbid: Oid, xid: pg_sys::TransactionId) -> Vec<Entry> {
        let places = self.places_of_transaction(dbid, xid);
        places.into_iter().map(|place| self.entries[place]).collect()
    }

    /// The places of the entries of a local transaction.
    pub fn places_of_transaction(&self, dbid: Oid, xid: pg_sys::TransactionId) -> Vec<usize> {
        let key = TransactionKey { dbid: dbid.to_u32(), xid: xid.into_inner() };
        let head = BY_TRANSACTION.get().find(&key);
        places::chained(self.siblings, head).collect()
    }

    /// Calls `f` for each entry in use.
    pub fn for_each(&self, mut f: impl FnMut(&Entry)) {
        for list in [&self.lists.owned, &self.lists.left] {
            list.iter(self.links).for_each(|place| f(&self.entries[place]));
        }
    }

    /// The places of those that a backend settles.
    pub fn owned(&self) -> Vec<usize> {
        self.lists.owned.iter(self.links).collect()
    }

    /// The places of those that are left to the resolvers.
    pub fn left(&self) -> Vec<usize> {
        self.lists.left.iter(self.links).collect()
    }

    /// All entries in use.
    pub fn all(&self) -> Vec<Entry> {
        let mut all = Vec::new();
        self.for_each(|entry| all.push(*entry));
        all
    }

    /// Adds the entry of a gid that has none; tells whether there was room.
    pub fn insert(&mut self, entry: Entry) -> bool {
        let Some(place) = self.lists.free.take(self.links) else { return false };
        let transaction = TransactionKey::from(&entry);
        let head = BY_TRANSACTION.get().find(&transaction);
        // Cannot fail: each index has as many elements as there are places.
        if !BY_GID.get().set(&GidKey::from(&entry), place)
            || !BY_TRANSACTION.get().set(&transaction, place)
        {
            BY_GID.get().remove(&GidKey::from(&entry));
            self.lists.free.give_back(self.links, place);
            return false;
        }
        places::chain(self.siblings, place, head);
        self.entries[place as usize] = entry;
        self.count(&entry, 1);
        self.list_of(&entry).push(place);
        self.lists.left_changes += u64::from(entry.is_left());
        true
    }

    /// Changes an entry's owner, status or times.
    pub fn change(&mut self, place: usize, f: impl FnOnce(&mut Entry)) {
        let was = self.entries[place];
        let mut entry = was;
        f(&mut entry);
        self.entries[place] = entry;
        self.count(&was, -1);
        self.count(&entry, 1);
        if was.is_left() != entry.is_left() {
            self.list_of(&was).remove(place as u32);
            self.list_of(&entry).push(place as u32);
        }
        let differs = (was.owner, was.status) != (entry.owner, entry.status);
        self.lists.left_changes += u64::from(entry.is_left() && differs);
    }

    /// Ends an entry.
    pub fn remove(&mut self, place: usize) {
        let entry = self.entries[place];
        self.count(&entry, -1);
        self.list_of(&entry).remove(place as u32);
        BY_GID.get().remove(&GidKey::from(&entry));
        let transaction = TransactionKey::from(&entry);
        match places::unchain(self.siblings, place as u32) {
            // Cannot fail: the key keeps its element.
            Some(NewHead(Some(head))) => {
                BY_TRANSACTION.get().set(&transaction, head);
            }
            Some(NewHead(None)) => BY_TRANSACTION.get().remove(&transaction),
            None => {}
        }
        self.lists.free.give_back(self.links, place as u32);
    }

    fn count(&mut self, entry: &Entry, by: isize) {
        if !entry.status.is_decided() {
            self.lists.open = self.lists.open.wrapping_add_signed(by);
        }
        if entry.is_acknowledged() {
            self.lists.acknowledged = self.lists.acknowledged.wrapping_add_signed(by);
        }
    }

    fn list_of(&mut self, entry: &Entry) -> Linked<'_> {
        let EntryLists { owned, left, .. } = &mut *self.lists;
        Linked { list: if entry.is_left() { left } else { owned }, links: self.links }
    }
}

/// A list with its links.
struct Linked<'a> {
    list: &'a mut List,
    links: &'a mut [Link],
}

impl Linked<'_> {
    fn push(self, place: u32) {
        self.list.push(self.links, place);
    }

    fn remove(self, place: u32) {
        self.list.remove(self.links, place);
    }
}
