//! The launcher: one process per server that starts a resolver in each database with the extension.
//!
//! A worker that finds no extension in its database says so and ends. A backend that needs one there later
//! asks for it again in shared memory and wakes the launcher.

use std::collections::HashMap;
use std::ffi::CStr;
use std::ptr::null_mut;
use std::time::{Duration, Instant};

use pgrx::{PgLogLevel, pg_sys};

use crate::log::{seen, workers};
use crate::pg::error::{Error, Result, SqlState, boundary, c_string};
use crate::pg::wait_event::WaitEvent;
use crate::pg::{latch, transaction};
use crate::resolver::process;

/// How long after its end a worker is started again.
const RESTART_AFTER: Duration = Duration::from_secs(1);

/// How long a command that needs a database alone may take to get it.
const PAUSE: Duration = Duration::from_secs(10);

/// Name and `backend_type` of the process.
const NAME: &CStr = c"pg_fdw_xacts launcher";

/// Registers the launcher; called while the server loads the library.
pub fn register() {
    let mut worker =
        process::describe(NAME, NAME, c"pg_fdw_xacts_launcher_main", pg_sys::Datum::from(0), 1);
    // SAFETY: called during start-up; the description is copied.
    unsafe { pg_sys::RegisterBackgroundWorker(&mut worker) };
}

/// The launcher's process.
#[unsafe(no_mangle)]
pub extern "C-unwind" fn pg_fdw_xacts_launcher_main(_argument: pg_sys::Datum) {
    boundary(|| {
        process::take_signals();
        // SAFETY: no database: only shared catalogs are read.
        unsafe {
            pg_sys::BackgroundWorkerInitializeConnection(std::ptr::null(), std::ptr::null(), 0)
        };
        process::introduce(NAME);
        run()
    });
}

fn run() -> Result<()> {
    workers::become_launcher();
    seen::note_start();
    workers::want_all(&transaction::run(|| Ok(databases()))?);
    let mut running: HashMap<pg_sys::Oid, Running> = HashMap::new();
    loop {
        process::attend()?;
        let paused = workers::end_pauses(PAUSE);
        workers::want_lost();
        // First: what has ended is wanted again, and started in the same round.
        running.retain(|dbid, worker| {
            let ended = worker.has_ended();
            if ended && !exists(*dbid) {
                workers::forget_database(*dbid);
                seen::forget_database(*dbid);
                return false;
            }
            if ended && worker.since.elapsed() >= RESTART_AFTER {
                workers::want_again(*dbid);
                return false;
            }
            true
        });
        for dbid in workers::take_wanted() {
            if !exists(dbid) {
                workers::forget_database(dbid);
                continue;
            }
            match start(dbid) {
                Some(worker) => {
                    running.insert(dbid, worker);
                }
                None => {
                    Error::new(
                        SqlState::new(b"53400"),
                        format!("could not start the resolver of database {dbid}"),
                    )
                    .hint("Raise \"max_worker_processes\".")
                    .log(PgLogLevel::WARNING)?;
                    workers::want_again(dbid);
                    latch::wait(RESTART_AFTER, WaitEvent::LauncherMain);
                }
            }
        }
        // A worker that ended too soon has to be looked at again; everything else wakes the latch.
        let soon = paused || running.values().any(Running::has_ended);
        process::show(false, &c_string(format!("{} resolvers started", running.len())));
        let timeout = if soon { RESTART_AFTER } else { Duration::from_secs(60) };
        latch::wait(timeout, WaitEvent::LauncherMain);
    }
}

struct Running {
    handle: *mut pg_sys::BackgroundWorkerHandle,
    since: Instant,
}

impl Running {
    fn has_ended(&self) -> bool {
        let mut pid = 0;
        // SAFETY: the handle came from the registration and is never freed.
        let status = unsafe { pg_sys::GetBackgroundWorkerPid(self.handle, &mut pid) };
        status == pg_sys::BgwHandleStatus::BGWH_STOPPED
    }
}

fn start(dbid: pg_sys::Oid) -> Option<Running> {
    let name = c_string(format!("pg_fdw_xacts resolver for database {dbid}"));
    let mut worker = process::describe(
        &name,
        process::RESOLVER,
        c"pg_fdw_xacts_resolver_main",
        pg_sys::Datum::from(dbid),
        pg_sys::BGW_NEVER_RESTART,
    );
    // SAFETY: the description is copied; the handle lives in TopMemoryContext, as long as we do.
    unsafe {
        worker.bgw_notify_pid = pg_sys::MyProcPid;
        let mut handle = null_mut();
        let context = pg_sys::MemoryContextSwitchTo(pg_sys::TopMemoryContext);
        let registered = pg_sys::RegisterDynamicBackgroundWorker(&mut worker, &mut handle);
        pg_sys::MemoryContextSwitchTo(context);
        registered.then(|| Running { handle, since: Instant::now() })
    }
}

fn exists(dbid: pg_sys::Oid) -> bool {
    transaction::run(|| Ok(databases())).is_ok_and(|all| all.contains(&dbid))
}

/// The databases one can connect to, templates apart.
fn databases() -> Vec<pg_sys::Oid> {
    let mut found = Vec::new();
    // SAFETY: a scan of a shared catalog in a transaction, as the autovacuum launcher does it.
    unsafe {
        let relation =
            pg_sys::table_open(pg_sys::DatabaseRelationId, pg_sys::AccessShareLock as i32);
        let scan = pg_sys::table_beginscan_catalog(relation, 0, null_mut());
        loop {
            let tuple = pg_sys::heap_getnext(scan, pg_sys::ScanDirection::ForwardScanDirection);
            if tuple.is_null() {
                break;
            }
            let database = &*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_database>();
            if database.datallowconn && !database.datistemplate {
                found.push(database.oid);
            }
        }
        pg_sys::heap_endscan(scan);
        pg_sys::table_close(relation, pg_sys::AccessShareLock as i32);
    }
    found
}
