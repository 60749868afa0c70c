//! The shared-memory structure and the lock over it.

use std::cell::Cell;
use std::ptr::null_mut;

use pgrx::pg_sys::{self, Oid};

use crate::guc;
use crate::log::seen::Seen;
use crate::pg::backend_local::BackendLocal;
use crate::protocol::verdict::Reason;

/// Databases that can have a resolver at a time.
pub const MAX_WORKERS: usize = 64;
/// Requests that can wait for a resolver at a time.
pub const MAX_REQUESTS: usize = 32;
/// Confirmed transactions that can wait until a resolver notes them; more are found by a scan.
pub const MAX_CONFIRMED: usize = 8192;
/// Foreign servers whose statistics are kept.
pub const MAX_SERVERS: usize = 256;
/// Length of an error message that is kept.
pub const ERROR_LEN: usize = 256;
/// Length of a label, with its NUL.
pub const LABEL_LEN: usize = crate::protocol::label::MAX_LEN + 1;
/// Length of a database name, with its NUL.
pub const NAME_LEN: usize = 64;

/// Everything shared, followed by the entries.
#[repr(C)]
pub struct Shared {
    /// Random, drawn at each start of the server: tells our sessions on a participant from those of an
    /// earlier start and of a physical copy.
    pub incarnation: i32,
    /// The last serial number or generation given.
    pub last_serial: u64,
    /// Process of the launcher, 0 while there is none.
    pub launcher: i32,
    /// A resolver per database.
    pub workers: [WorkerSlot; MAX_WORKERS],
    /// What backends ask of a resolver.
    pub requests: [Request; MAX_REQUESTS],
    /// Transactions confirmed by their owner, for the resolver to forget in time.
    pub confirmed: [Confirmed; MAX_CONFIRMED],
    /// How many of `confirmed` are in use.
    pub confirmed_len: usize,
    /// What happened, per foreign server.
    pub stats: [ServerStats; MAX_SERVERS],
    /// How many entries follow.
    pub entries_len: usize,
    /// Which participants have been asked since the start.
    pub seen: Seen,
    /// There was none for something that was prepared before this server's start.
    pub entries_lacked: bool,
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
    /// The database's identity, once ready.
    pub identity: u64,
    /// Changes whenever a number on the list of participants may have lost its meaning.
    pub generation: u64,
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
    /// The database here; invalid where unused.
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

/// Status of a participant as the view shows it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Status {
    /// Unused entry.
    Free,
    /// PREPARE was or will be sent.
    Preparing,
    /// PREPARE was confirmed; not decided.
    Prepared,
    /// Decided: COMMIT PREPARED has to be delivered.
    Committing,
    /// ROLLBACK PREPARED has to be delivered.
    Aborting,
}

/// One participant that is prepared or about to be.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Entry {
    /// What the view shows.
    pub status: Status,
    /// The backend that settles it, 0 where the resolver does.
    pub owner: i32,
    /// The server process on the participant that ran PREPARE; 0 if it was prepared before this server's
    /// start.
    pub remote_pid: i32,
    /// When it was made, and then when it was decided, in PostgreSQL's microseconds.
    pub since: i64,
    /// The database here.
    pub dbid: Oid,
    /// The local transaction.
    pub xid: pg_sys::TransactionId,
    /// The foreign server.
    pub serverid: Oid,
    /// The local user.
    pub userid: Oid,
    /// Identity of the database here.
    pub identity: u64,
    /// The transaction's nonce.
    pub nonce: u64,
    /// How many participants the transaction has; each has an entry, or had one until it was settled.
    pub participants: u32,
    /// The participant's number on the list; 0 where it is not known.
    pub participant: i32,
    /// Why the resolver has left it, once it is the resolver's.
    pub reason: Reason,
}

const TRANCHE: &std::ffi::CStr = c"pg_fdw_xacts";

static SHARED: BackendLocal<Cell<*mut Shared>> = BackendLocal::new(Cell::new(null_mut()));
static LOCK: BackendLocal<Cell<*mut pg_sys::LWLock>> = BackendLocal::new(Cell::new(null_mut()));

fn size() -> usize {
    size_of::<Shared>() + guc::max_foreign_xacts() * size_of::<Entry>()
}

/// Asks for the memory; in `shmem_request_hook`.
pub fn request() {
    // SAFETY: called in the hook, where asking is allowed.
    unsafe {
        pg_sys::RequestAddinShmemSpace(size());
        pg_sys::RequestNamedLWLockTranche(TRANCHE.as_ptr(), 1);
    }
}

/// Finds or makes the structure; in `shmem_startup_hook`.
pub fn start_up() {
    // SAFETY: under the lock that PostgreSQL keeps for this; the memory is zeroed or initialized.
    unsafe {
        let lock = &raw mut (*pg_sys::MainLWLockArray.add(ADDIN_SHMEM_INIT_LOCK)).lock;
        pg_sys::LWLockAcquire(lock, pg_sys::LWLockMode::LW_EXCLUSIVE);
        let mut found = false;
        let shared: *mut Shared =
            pg_sys::ShmemInitStruct(TRANCHE.as_ptr(), size(), &mut found).cast();
        if !found {
            // All states' first variant is 0: Free.
            std::ptr::write_bytes(shared.cast::<u8>(), 0, size());
            (*shared).entries_len = guc::max_foreign_xacts();
            let mut incarnation = [0u8; 4];
            if !pg_sys::pg_strong_random(incarnation.as_mut_ptr().cast(), incarnation.len()) {
                pgrx::error!("could not generate random values");
            }
            (*shared).incarnation = i32::from_ne_bytes(incarnation);
        }
        LOCK.get().set(&raw mut (*pg_sys::GetNamedLWLockTranche(TRANCHE.as_ptr())).lock);
        SHARED.get().set(shared);
        pg_sys::LWLockRelease(lock);
    }
}

/// `AddinShmemInitLock` in `lwlocknames.txt`.
const ADDIN_SHMEM_INIT_LOCK: usize = 21;

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

/// The shared structure and its entries, to read. `f` calls nothing of PostgreSQL.
pub fn read<T>(f: impl FnOnce(&Shared, &[Entry]) -> T) -> T {
    let _held = Held::acquire(pg_sys::LWLockMode::LW_SHARED);
    // SAFETY: initialized at start-up, and locked against writers.
    unsafe {
        let shared = &*SHARED.get().get();
        f(shared, std::slice::from_raw_parts(entries_of(shared), shared.entries_len))
    }
}

/// The shared structure and its entries, to change. `f` calls nothing of PostgreSQL.
pub fn write<T>(f: impl FnOnce(&mut Shared, &mut [Entry]) -> T) -> T {
    let _held = Held::acquire(pg_sys::LWLockMode::LW_EXCLUSIVE);
    // SAFETY: initialized at start-up, and locked against everybody.
    unsafe {
        let shared = &mut *SHARED.get().get();
        let entries =
            std::slice::from_raw_parts_mut(entries_of(shared).cast_mut(), shared.entries_len);
        f(shared, entries)
    }
}

fn entries_of(shared: &Shared) -> *const Entry {
    // SAFETY: the entries follow the structure in the same allocation.
    unsafe { std::ptr::from_ref(shared).add(1).cast() }
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
