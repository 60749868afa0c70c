//! The arrays in shared memory, their sizes, and the lock over all of it. The sizes follow from
//! settings that are fixed at the start of the server.

use std::cell::Cell;
use std::ffi::CStr;
use std::ptr::null_mut;

use pgrx::pg_sys;

use crate::guc;
use crate::pg::backend_local::BackendLocal;
use crate::pg::{globals, layout};
use crate::shared::confirmed::Confirmed;
use crate::shared::entry::Entry;
use crate::shared::entry_table::{self, EntryLists, EntryTable};
use crate::shared::hold::Hold;
use crate::shared::order::{OnePhase, SharedLocalCommits, SharedOrder};
use crate::shared::places::Link;
use crate::shared::reads::Reads;
use crate::shared::seen::Seen;
use crate::shared::stats::{self, ServerStats, Statistics, StatsLists};
use crate::shared::window::Window;
use crate::shared::{incarnation, label_limit, requests, resolvers, wait_rows, waits};

/// What is shared apart from the arrays.
#[repr(C)]
pub struct Shared {
    /// See [`incarnation`].
    pub incarnation: i32,
    /// The last number given to a request or a generation.
    pub last_serial: u64,
    /// The launcher's process, 0 while there is none.
    pub launcher: i32,
    /// How many requests wait for a resolver.
    pub waiting: usize,
    /// Transactions that all participants have confirmed.
    pub confirmed: Confirmed,
    /// Which entries are in use.
    pub entry_lists: EntryLists,
    /// The order of decisions.
    pub order: SharedOrder,
    /// Decisions that are visible here.
    pub local_commits: SharedLocalCommits,
    /// Readers ask those who deliver to wait.
    pub window: Window,
    /// Restore points are being made.
    pub hold: Hold,
    /// How consistent reads have done.
    pub reads: Reads,
    /// Which participants have been asked since the start.
    pub seen: Seen,
    /// How many labels each role uses.
    pub labels: label_limit::Counters,
    /// Something that was prepared before the start of this server got no entry, for lack of room.
    pub entries_lacked: bool,
    /// When entries of idle sessions were last left to the resolvers to make room, in PostgreSQL's
    /// microseconds.
    pub room_made_at: i64,
    /// Which places for statistics are in use.
    pub stats_lists: StatsLists,
    /// How many sessions wait for servers for long.
    pub waits: waits::Published,
    /// How many rows of the view of waits are used.
    pub wait_rows: usize,
}

const TRANCHE: &CStr = c"pg_fdw_xacts";

static SHARED: BackendLocal<Array<Shared>> = BackendLocal::new(Array::new(c"pg_fdw_xacts"));
static RESOLVERS: BackendLocal<Array<resolvers::Slot>> =
    BackendLocal::new(Array::new(c"pg_fdw_xacts resolvers"));
static REQUESTS: BackendLocal<Array<requests::Place>> =
    BackendLocal::new(Array::new(c"pg_fdw_xacts requests"));
static ONE_PHASE: BackendLocal<Array<OnePhase>> =
    BackendLocal::new(Array::new(c"pg_fdw_xacts commits in one phase"));
static WAITS: BackendLocal<Array<waits::Place>> =
    BackendLocal::new(Array::new(c"pg_fdw_xacts waits"));
static WAIT_ROWS: BackendLocal<Array<wait_rows::Row>> =
    BackendLocal::new(Array::new(c"pg_fdw_xacts view of waits"));
static ENTRIES: BackendLocal<Array<Entry>> = BackendLocal::new(Array::new(c"pg_fdw_xacts entries"));
static ENTRY_LINKS: BackendLocal<Array<Link>> =
    BackendLocal::new(Array::new(c"pg_fdw_xacts entries: lists"));
static SIBLINGS: BackendLocal<Array<Link>> =
    BackendLocal::new(Array::new(c"pg_fdw_xacts entries: transactions"));
static STATS: BackendLocal<Array<ServerStats>> =
    BackendLocal::new(Array::new(c"pg_fdw_xacts statistics"));
static STATS_LINKS: BackendLocal<Array<Link>> =
    BackendLocal::new(Array::new(c"pg_fdw_xacts statistics: lists"));
static LOCK: BackendLocal<Cell<*mut pg_sys::LWLock>> = BackendLocal::new(Cell::new(null_mut()));

/// An array in shared memory, as this process is attached to it.
struct Array<T> {
    name: &'static CStr,
    first: Cell<*mut T>,
    len: Cell<usize>,
}

impl<T> Array<T> {
    const fn new(name: &'static CStr) -> Self {
        Self { name, first: Cell::new(null_mut()), len: Cell::new(0) }
    }

    /// Makes it, or attaches to it; returns whether it was there.
    fn attach(&self, len: usize) -> bool {
        let mut found = false;
        // SAFETY: called in the start-up hook, under the lock that PostgreSQL keeps for this.
        let first = unsafe {
            pg_sys::ShmemInitStruct(self.name.as_ptr(), len * size_of::<T>(), &mut found)
        };
        self.first.set(first.cast());
        self.len.set(len);
        found
    }

    /// Sets all bytes to 0.
    ///
    /// # Safety
    /// Zero bytes are a value of `T`, and no other process is attached yet.
    unsafe fn clear(&self) {
        // SAFETY: by contract; the array has that many elements.
        unsafe { std::ptr::write_bytes(self.first.get(), 0, self.len.get()) }
    }

    /// # Safety
    /// It is attached and locked, and this process has no other reference into it.
    #[allow(clippy::mut_from_ref)]
    unsafe fn get<'a>(&self) -> &'a mut [T] {
        // SAFETY: by contract. Memory is written before it is read first (`places::Free`).
        unsafe { std::slice::from_raw_parts_mut(self.first.get(), self.len.get()) }
    }
}

/// As many databases as can have a resolver's process at a time, and some more for databases of
/// which it is not known yet whether they have the extension.
fn resolver_slots() -> usize {
    globals::max_worker_processes() + 32
}

/// One per backend: it waits for one request, or for servers, at a time.
fn request_places() -> usize {
    globals::max_backends()
}

fn size() -> usize {
    let entry = size_of::<Entry>() + 2 * size_of::<Link>();
    let stats = size_of::<ServerStats>() + size_of::<Link>();
    // Each structure is aligned to a cache line.
    11 * 128
        + size_of::<Shared>()
        + wait_rows::ROWS * size_of::<wait_rows::Row>()
        + resolver_slots() * size_of::<resolvers::Slot>()
        + request_places() * (size_of::<requests::Place>() + size_of::<waits::Place>())
        + request_places() * size_of::<OnePhase>()
        + guc::max_foreign_xacts() * entry
        + entry_table::index_size(guc::max_foreign_xacts())
        + guc::max_servers() * stats
        + stats::index_size(guc::max_servers())
}

/// Asks for the memory; called in `shmem_request_hook`.
pub fn request() {
    // SAFETY: called in the hook, where asking is allowed.
    unsafe {
        pg_sys::RequestAddinShmemSpace(size());
        pg_sys::RequestNamedLWLockTranche(TRANCHE.as_ptr(), 1);
    }
}

/// Makes the structures, or attaches to them; called in `shmem_startup_hook`.
pub fn start_up() {
    // SAFETY: under the lock that PostgreSQL keeps for this; what is not cleared is written before
    // it is read.
    unsafe {
        let lock = layout::addin_shmem_init_lock();
        pg_sys::LWLockAcquire(lock, pg_sys::LWLockMode::LW_EXCLUSIVE);
        let (entries, servers) = (guc::max_foreign_xacts(), guc::max_servers());
        let found = SHARED.get().attach(1);
        RESOLVERS.get().attach(resolver_slots());
        REQUESTS.get().attach(request_places());
        ONE_PHASE.get().attach(request_places());
        WAITS.get().attach(request_places());
        WAIT_ROWS.get().attach(wait_rows::ROWS);
        ENTRIES.get().attach(entries);
        ENTRY_LINKS.get().attach(entries);
        SIBLINGS.get().attach(entries);
        entry_table::attach(entries);
        STATS.get().attach(servers);
        STATS_LINKS.get().attach(servers);
        stats::attach(servers);
        if !found {
            // The first variant of every state is 0: Free.
            SHARED.get().clear();
            RESOLVERS.get().clear();
            REQUESTS.get().clear();
            ONE_PHASE.get().clear();
            WAITS.get().clear();
            WAIT_ROWS.get().clear();
            let shared = &mut SHARED.get().get()[0];
            shared.entry_lists = EntryLists::NONE_USED;
            shared.stats_lists = StatsLists::NONE_USED;
            shared.incarnation = incarnation::draw().unwrap_or_else(|error| error.raise_in_pgrx());
        }
        LOCK.get().set(&raw mut (*pg_sys::GetNamedLWLockTranche(TRANCHE.as_ptr())).lock);
        pg_sys::LWLockRelease(lock);
    }
}

/// The lock, held until dropped.
struct Held(*mut pg_sys::LWLock);

impl Held {
    fn acquire(mode: pg_sys::LWLockMode::Type) -> Self {
        let lock = LOCK.get().get();
        // SAFETY: the lock exists since start-up.
        unsafe { pg_sys::LWLockAcquire(lock, mode) };
        Self(lock)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // SAFETY: taken by `acquire`.
        unsafe { pg_sys::LWLockRelease(self.0) }
    }
}

/// All of it, locked.
pub struct Memory<'a> {
    /// What is not in an array.
    pub shared: &'a mut Shared,
    /// The resolvers, one per database.
    pub resolvers: &'a mut [resolvers::Slot],
    /// What backends ask of a resolver, each at its own place.
    pub requests: &'a mut [requests::Place],
    /// The commits in one phase that are under way, each backend's at its own place.
    pub one_phase: &'a mut [OnePhase],
    /// What backends wait for, each at its own place.
    pub waits: &'a mut [waits::Place],
    /// What the view of waits shows.
    pub wait_rows: &'a mut [wait_rows::Row],
    entries: &'a mut [Entry],
    entry_links: &'a mut [Link],
    siblings: &'a mut [Link],
    stats: &'a mut [ServerStats],
    stats_links: &'a mut [Link],
}

impl Memory<'_> {
    /// One entry per participant that is prepared or about to be.
    pub fn entries(&mut self) -> EntryTable<'_> {
        EntryTable {
            lists: &mut self.shared.entry_lists,
            entries: self.entries,
            links: self.entry_links,
            siblings: self.siblings,
        }
    }

    /// What happened, per foreign server.
    pub fn stats(&mut self) -> Statistics<'_> {
        Statistics {
            lists: &mut self.shared.stats_lists,
            stats: self.stats,
            links: self.stats_links,
        }
    }
}

fn locked<T>(mode: pg_sys::LWLockMode::Type, f: impl FnOnce(&mut Memory<'_>) -> T) -> T {
    let _held = Held::acquire(mode);
    // SAFETY: attached at start-up, and locked. `f` has the only references of this process: none
    // outlives the call, and `f` does not call this function.
    unsafe {
        f(&mut Memory {
            shared: &mut SHARED.get().get()[0],
            resolvers: RESOLVERS.get().get(),
            requests: REQUESTS.get().get(),
            one_phase: ONE_PHASE.get().get(),
            waits: WAITS.get().get(),
            wait_rows: WAIT_ROWS.get().get(),
            entries: ENTRIES.get().get(),
            entry_links: ENTRY_LINKS.get().get(),
            siblings: SIBLINGS.get().get(),
            stats: STATS.get().get(),
            stats_links: STATS_LINKS.get().get(),
        })
    }
}

/// Locks the shared structures to read them, as other processes may at the same time: `f` must not
/// change anything. It calls nothing of PostgreSQL that can raise.
pub fn read<T>(f: impl FnOnce(&mut Memory<'_>) -> T) -> T {
    locked(pg_sys::LWLockMode::LW_SHARED, f)
}

/// Locks the shared structures to change them. `f` calls nothing of PostgreSQL that can raise.
pub fn write<T>(f: impl FnOnce(&mut Memory<'_>) -> T) -> T {
    locked(pg_sys::LWLockMode::LW_EXCLUSIVE, f)
}

/// Whether a unit of readers is open, without the lock.
pub fn is_read() -> bool {
    // SAFETY: attached at start-up; only an atomic number of it is read.
    unsafe { (*SHARED.get().first.get()).order.is_read() }
}

/// The window, without the lock.
pub fn window() -> &'static Window {
    // SAFETY: attached at start-up, and never detached; only its atomic numbers are used, by
    // everybody.
    unsafe { &(*SHARED.get().first.get()).window }
}

/// The counters of consistent reads, without the lock.
pub fn reads() -> &'static Reads {
    // SAFETY: as for the window.
    unsafe { &(*SHARED.get().first.get()).reads }
}

/// Whether a process of this server with a latch exists.
pub fn is_alive(pid: i32) -> bool {
    // SAFETY: looks through shared memory.
    pid != 0 && unsafe { !pg_sys::BackendPidGetProc(pid).is_null() }
}

/// Sets the latch of a process, if it is still there.
pub fn wake(pid: i32) {
    if pid == 0 {
        return;
    }
    // SAFETY: the latch stays valid when the process ends; a late wake-up does no harm.
    unsafe {
        let process = pg_sys::BackendPidGetProc(pid);
        if !process.is_null() {
            pg_sys::SetLatch(&raw mut (*process).procLatch);
        }
    }
}
