//! What is in shared memory, and the lock over it. Its size follows from settings that are fixed at the start of the
//! server.

use std::cell::Cell;
use std::ffi::CStr;
use std::ptr::null_mut;

use pgrx::pg_sys::{self, Oid};

use crate::guc;
use crate::pg::backend_local::BackendLocal;
use crate::pg::{globals, layout};
use crate::shared::entry::Entry;
use crate::shared::entry_table::{self, EntryLists, EntryTable};
use crate::shared::label_limit;
use crate::shared::places::Link;
use crate::shared::seen::Seen;
use crate::shared::stats::{self, Statistics, StatsLists};

/// Confirmed transactions that can wait until a resolver notes them; more are found by a scan.
pub const MAX_CONFIRMED: usize = 8192;
/// Length of an error message that is kept.
pub const ERROR_LEN: usize = 256;
/// Length of a label, with its NUL.
pub const LABEL_LEN: usize = crate::protocol::label::MAX_LEN + 1;
/// Length of a database name, with its NUL.
pub const NAME_LEN: usize = 256;

/// Everything shared but the arrays.
#[repr(C)]
pub struct Shared {
    /// Random, drawn at each start of the server: tells our sessions on a participant from those of an
    /// earlier start and of a physical copy.
    pub incarnation: i32,
    /// The last serial number or generation given.
    pub last_serial: u64,
    /// Process of the launcher, 0 while there is none.
    pub launcher: i32,
    /// How many requests wait for a resolver.
    pub waiting: usize,
    /// Transactions confirmed by their owner, for the resolver to forget in time.
    pub confirmed: [Confirmed; MAX_CONFIRMED],
    /// How many of `confirmed` are in use.
    pub confirmed_len: usize,
    /// Which entries are in use.
    pub entry_lists: EntryLists,
    /// Which participants have been asked since the start.
    pub seen: Seen,
    /// How many labels each role uses.
    pub labels: label_limit::Counters,
    /// There was none for something that was prepared before this server's start.
    pub entries_lacked: bool,
    /// When entries of idle sessions were last left to the resolvers to make room, in PostgreSQL's microseconds.
    pub room_made_at: i64,
    /// Which places of statistics are in use.
    pub stats_lists: StatsLists,
}

/// Where a database's resolver is.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WorkerState {
    /// No database.
    Free,
    /// Somebody needs it: the launcher starts it.
    Wanted,
    /// The launcher has started it.
    Starting,
    /// It works; the identity is known.
    Ready,
    /// The database has no extension.
    Absent,
    /// Somebody needs the database for a moment without it.
    Paused,
}

/// A database's resolver.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct WorkerSlot {
    /// Where it is.
    pub state: WorkerState,
    /// The database.
    pub dbid: Oid,
    /// Its process, 0 while there is none.
    pub pid: i32,
    /// Since when it is paused, in PostgreSQL's microseconds.
    pub paused_at: i64,
    /// The backend that has paused it.
    pub paused_by: i32,
    /// The database's identity, once ready.
    pub identity: u64,
    /// Changes whenever a number on the list of participants may have lost its meaning.
    pub generation: u64,
    /// It has looked through the decision table since the start of this server.
    pub has_looked: bool,
    /// Participants that have not been swept clean, on servers for whose statistics there was no place.
    pub unswept_elsewhere: u64,
}

/// Where a request is.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RequestState {
    /// Unused.
    Free,
    /// Waits for the resolver.
    Waiting,
    /// Done, and committed.
    Done,
    /// The resolver could not.
    Failed,
}

/// What is asked.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RequestKind {
    /// Write down a participant before its first PREPARE.
    Register,
    /// Try every participant now.
    Resolve,
    /// Give up one prepared transaction.
    ForgetTransaction,
    /// Give up a server.
    ForgetServer,
    /// Take a label, so that no transaction can use it any more.
    TakeLabel,
}

/// Something that a backend wants of its database's resolver.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Request {
    /// Where it is.
    pub state: RequestState,
    /// What it is.
    pub kind: RequestKind,
    /// Tells it from every other request: places are used again, by the same backend too.
    pub serial: u64,
    /// The backend that waits.
    pub requester: i32,
    /// Its database.
    pub dbid: Oid,
    /// The foreign server.
    pub serverid: Oid,
    /// The local user.
    pub userid: Oid,
    /// The transaction.
    pub nonce: u64,
    /// Fingerprint: the server.
    pub system_identifier: u64,
    /// Fingerprint: the database's name there.
    pub database: [u8; NAME_LEN],
    /// The label, ended by a NUL.
    pub label: [u8; LABEL_LEN],
    /// The answer.
    pub answer: i32,
}

/// A transaction whose participants have all confirmed.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Confirmed {
    /// Its database here.
    pub dbid: Oid,
    /// Its nonce.
    pub nonce: u64,
}

/// What happened on one foreign server since this server's start.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ServerStats {
    /// The database here.
    pub dbid: Oid,
    /// The foreign server.
    pub serverid: Oid,
    /// Confirmed PREPAREs.
    pub prepared: u64,
    /// Prepared transactions that their owner committed.
    pub committed: u64,
    /// Prepared transactions that their owner rolled back.
    pub rolled_back: u64,
    /// Prepared transactions that the resolver settled.
    pub resolved: u64,
    /// Decided commits that somebody there has undone.
    pub heuristic: u64,
    /// Participants on it that have not been swept clean since the start of this server: something may be
    /// left there.
    pub unswept: u64,
    /// Attempts of the resolver.
    pub attempts: u64,
    /// Those that failed.
    pub failures: u64,
    /// When the last one failed.
    pub last_error_at: i64,
    /// Why, in the server's encoding, ended by a NUL.
    pub last_error: [u8; ERROR_LEN],
}

const TRANCHE: &CStr = c"pg_fdw_xacts";

static SHARED: BackendLocal<Array<Shared>> = BackendLocal::new(Array::new(c"pg_fdw_xacts"));
static WORKERS: BackendLocal<Array<WorkerSlot>> =
    BackendLocal::new(Array::new(c"pg_fdw_xacts workers"));
static REQUESTS: BackendLocal<Array<Request>> =
    BackendLocal::new(Array::new(c"pg_fdw_xacts requests"));
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

    /// Makes it, or attaches to it; tells whether it was there.
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
    /// That is a value of `T`, and nobody else is attached yet.
    unsafe fn clear(&self) {
        // SAFETY: as long as it was made.
        unsafe { std::ptr::write_bytes(self.first.get(), 0, self.len.get()) }
    }

    /// # Safety
    /// It is attached and locked, and this process has no other reference into it.
    #[allow(clippy::mut_from_ref)]
    unsafe fn get<'a>(&self) -> &'a mut [T] {
        // SAFETY: by contract. Memory that nobody has written yet is only read after it has been (`places::Free`).
        unsafe { std::slice::from_raw_parts_mut(self.first.get(), self.len.get()) }
    }
}

/// Databases that can have a resolver at a time: no more have a process. The others are places for databases that
/// somebody asks for, until it is known that they have no extension.
fn worker_places() -> usize {
    globals::max_worker_processes() + 32
}

/// A backend waits for one request at a time.
fn request_places() -> usize {
    globals::max_backends()
}

fn size() -> usize {
    let entry = size_of::<Entry>() + 2 * size_of::<Link>();
    let stats = size_of::<ServerStats>() + size_of::<Link>();
    // Each structure is aligned to a cache line.
    8 * 128
        + size_of::<Shared>()
        + worker_places() * size_of::<WorkerSlot>()
        + request_places() * size_of::<Request>()
        + guc::max_foreign_xacts() * entry
        + entry_table::index_size(guc::max_foreign_xacts())
        + guc::max_servers() * stats
        + stats::index_size(guc::max_servers())
}

/// Asks for the memory; in `shmem_request_hook`.
pub fn request() {
    // SAFETY: called in the hook, where asking is allowed.
    unsafe {
        pg_sys::RequestAddinShmemSpace(size());
        pg_sys::RequestNamedLWLockTranche(TRANCHE.as_ptr(), 1);
    }
}

/// Finds or makes the structures; in `shmem_startup_hook`.
pub fn start_up() {
    // SAFETY: under the lock that PostgreSQL keeps for this; what is not cleared is written before it is read.
    unsafe {
        let lock = layout::addin_shmem_init_lock();
        pg_sys::LWLockAcquire(lock, pg_sys::LWLockMode::LW_EXCLUSIVE);
        let (entries, servers) = (guc::max_foreign_xacts(), guc::max_servers());
        let found = SHARED.get().attach(1);
        WORKERS.get().attach(worker_places());
        REQUESTS.get().attach(request_places());
        ENTRIES.get().attach(entries);
        ENTRY_LINKS.get().attach(entries);
        SIBLINGS.get().attach(entries);
        entry_table::attach(entries);
        STATS.get().attach(servers);
        STATS_LINKS.get().attach(servers);
        stats::attach(servers);
        if !found {
            // All states' first variant is 0: Free.
            SHARED.get().clear();
            WORKERS.get().clear();
            REQUESTS.get().clear();
            let shared = &mut SHARED.get().get()[0];
            shared.entry_lists = EntryLists::NONE_USED;
            shared.stats_lists = StatsLists::NONE_USED;
            let mut incarnation = [0u8; 4];
            if !pg_sys::pg_strong_random(incarnation.as_mut_ptr().cast(), incarnation.len()) {
                pgrx::error!("could not generate random values");
            }
            shared.incarnation = i32::from_ne_bytes(incarnation);
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
        // SAFETY: held by us.
        unsafe { pg_sys::LWLockRelease(self.0) }
    }
}

/// All of it, locked.
pub struct Memory<'a> {
    /// What is not in an array.
    pub shared: &'a mut Shared,
    /// A resolver per database.
    pub workers: &'a mut [WorkerSlot],
    /// What backends ask of a resolver, each at its own place.
    pub requests: &'a mut [Request],
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
    // SAFETY: attached at start-up, and locked. `f` has the only references of this process: none outlives it, and
    // nobody calls this inside of it.
    unsafe {
        f(&mut Memory {
            shared: &mut SHARED.get().get()[0],
            workers: WORKERS.get().get(),
            requests: REQUESTS.get().get(),
            entries: ENTRIES.get().get(),
            entry_links: ENTRY_LINKS.get().get(),
            siblings: SIBLINGS.get().get(),
            stats: STATS.get().get(),
            stats_links: STATS_LINKS.get().get(),
        })
    }
}

/// The shared structures, to read: others do at the same time, so `f` changes nothing. It calls nothing of PostgreSQL
/// that can raise.
pub fn read<T>(f: impl FnOnce(&mut Memory<'_>) -> T) -> T {
    locked(pg_sys::LWLockMode::LW_SHARED, f)
}

/// The shared structures, to change. `f` calls nothing of PostgreSQL that can raise.
pub fn write<T>(f: impl FnOnce(&mut Memory<'_>) -> T) -> T {
    locked(pg_sys::LWLockMode::LW_EXCLUSIVE, f)
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
    // SAFETY: a process that goes away keeps its slot's latch valid; a late wake-up harms nobody.
    unsafe {
        let process = pg_sys::BackendPidGetProc(pid);
        if !process.is_null() {
            pg_sys::SetLatch(&raw mut (*process).procLatch);
        }
    }
}
