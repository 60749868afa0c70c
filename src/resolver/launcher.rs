//! The launcher: one process per server that starts a resolver in each database with the extension.
//!
//! Whether a database has the extension can only be seen from inside. So a resolver is started in
//! each database, a few at a time; if it finds no extension, it says so and ends. A backend that
//! needs a resolver there later asks for it in shared memory, and wakes the launcher.
//!
//! Each resolver takes one of `max_worker_processes`. If there is none left, the launcher warns,
//! once for each database, and goes on trying.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::CStr;
use std::ptr::null_mut;
use std::time::{Duration, Instant};

use pgrx::{PgLogLevel, pg_sys};

use crate::pg::error::{Error, Result, SqlState, boundary, c_string};
use crate::pg::globals::my_pid;
use crate::pg::wait_event::WaitEvent;
use crate::pg::{latch, transaction};
use crate::remote::app_name;
use crate::resolver::process;
use crate::shared::resolvers::State;
use crate::shared::{confirmed, resolvers, seen, stats};

/// How long after its start a resolver that has ended is started again at the earliest.
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
        // SAFETY: called once in a new background worker. Without a database, only shared catalogs
        // can be read.
        unsafe {
            pg_sys::BackgroundWorkerInitializeConnection(std::ptr::null(), std::ptr::null(), 0)
        };
        process::introduce(NAME);
        run()
    });
}

fn run() -> Result<()> {
    resolvers::become_launcher();
    seen::note_start();
    let mut launcher = Launcher::default();
    loop {
        process::attend()?;
        launcher.round()?;
    }
}

/// In how many databases at a time resolvers look for the extension.
const LOOKS: usize = 4;

/// How often the launcher looks for new databases.
const LIST_INTERVAL: Duration = Duration::from_secs(60);

#[derive(Default)]
struct Launcher {
    /// The resolvers that were started and are not known to have ended.
    running: HashMap<pg_sys::Oid, Running>,
    /// Databases that no resolver has looked at yet.
    unseen: VecDeque<pg_sys::Oid>,
    /// Databases that resolvers have looked at, or do now.
    seen: HashSet<pg_sys::Oid>,
    /// Databases for which there was no worker process, since when, and whether a warning was
    /// given.
    refused: HashMap<pg_sys::Oid, (Instant, bool)>,
    next_list: Option<Instant>,
}

impl Launcher {
    fn round(&mut self) -> Result<()> {
        if self.next_list.is_none_or(|next| next <= Instant::now()) {
            self.next_list = Some(Instant::now() + LIST_INTERVAL);
            self.list()?;
        }
        let paused = resolvers::end_pauses(PAUSE);
        resolvers::want_lost();
        // Before the others: a resolver that has ended is started again in the same round.
        self.note_ended();
        self.look_further();
        let refused = self.start_wanted()?;
        process::show(false, &c_string(format!("{} resolvers started", self.running.len())));
        // These have to be tried again soon; everything else sets the latch.
        let soon = paused
            || refused
            || !self.unseen.is_empty()
            || self.running.values().any(Running::has_ended);
        let timeout = if soon { RESTART_AFTER } else { LIST_INTERVAL };
        latch::wait(timeout, WaitEvent::LauncherMain);
        Ok(())
    }

    /// Reads the list of databases.
    fn list(&mut self) -> Result<()> {
        let (all, usable) = transaction::run(|| Ok(databases()))?;
        stats::forget_databases(&all);
        confirmed::keep_databases(&all);
        self.seen.retain(|dbid| usable.contains(dbid));
        self.refused.retain(|dbid, _| usable.contains(dbid));
        self.unseen = usable.into_iter().filter(|dbid| !self.seen.contains(dbid)).collect();
        Ok(())
    }

    fn note_ended(&mut self) {
        self.running.retain(|dbid, worker| {
            if !worker.has_ended() {
                return true;
            }
            if !exists(*dbid) {
                resolvers::forget_database(*dbid);
                seen::forget_database(*dbid);
                return false;
            }
            if resolvers::state(*dbid) == State::Absent {
                return false;
            }
            if worker.since.elapsed() >= RESTART_AFTER {
                resolvers::want_again(*dbid);
                return false;
            }
            true
        });
    }

    /// Has resolvers look at the next databases, a few at a time.
    fn look_further(&mut self) {
        let looks = self.running.iter().filter(|(dbid, worker)| worker.is_looking(**dbid)).count();
        let mut room = LOOKS.saturating_sub(looks);
        while room > 0
            && let Some(dbid) = self.unseen.pop_front()
        {
            if !resolvers::want_to_look(dbid) {
                self.unseen.push_front(dbid);
                return;
            }
            self.seen.insert(dbid);
            room -= 1;
        }
    }

    /// Starts the resolvers that are wanted; returns whether one could not be started.
    fn start_wanted(&mut self) -> Result<bool> {
        let mut refused = Vec::new();
        for dbid in resolvers::take_wanted() {
            if !exists(dbid) {
                resolvers::forget_database(dbid);
                continue;
            }
            match start(dbid) {
                Some(worker) => {
                    self.refused.remove(&dbid);
                    self.running.insert(dbid, worker);
                }
                None => refused.push(dbid),
            }
        }
        for dbid in &refused {
            resolvers::want_again(*dbid);
        }
        // Resolvers that only look at a database soon leave their worker processes to others.
        let now = Instant::now();
        for dbid in &refused {
            let (since, told) = self.refused.entry(*dbid).or_insert((now, false));
            if !*told && now.duration_since(*since) >= LONG_LOOK {
                *told = true;
                self.warn(*dbid)?;
            }
        }
        Ok(!refused.is_empty())
    }

    fn warn(&self, dbid: pg_sys::Oid) -> Result<()> {
        Error::new(
            SqlState::CONFIGURATION_LIMIT_EXCEEDED,
            format!("could not start a resolver in database {dbid}"),
        )
        .detail(format!(
            "All worker processes are in use. If the extension is there, transactions in doubt are not settled, and \
             commits on more than one server fail. {} more databases have not been looked at.",
            self.unseen.len()
        ))
        .hint("Raise \"max_worker_processes\" and restart the server.")
        .log(PgLogLevel::WARNING)
    }
}

struct Running {
    handle: *mut pg_sys::BackgroundWorkerHandle,
    since: Instant,
}

/// If a look takes longer, because somebody has locked a catalog there, others do not wait for it.
const LONG_LOOK: Duration = Duration::from_secs(5);

impl Running {
    /// Whether it has not found out yet if its database has the extension.
    fn is_looking(&self, dbid: pg_sys::Oid) -> bool {
        !self.has_ended()
            && resolvers::state(dbid) == State::Starting
            && self.since.elapsed() < LONG_LOOK
    }

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
        app_name::RESOLVER,
        c"pg_fdw_xacts_resolver_main",
        pg_sys::Datum::from(dbid),
        pg_sys::BGW_NEVER_RESTART,
    );
    // SAFETY: the description is copied; the handle lives in TopMemoryContext, as long as we do.
    unsafe {
        worker.bgw_notify_pid = my_pid();
        let mut handle = null_mut();
        let context = pg_sys::MemoryContextSwitchTo(pg_sys::TopMemoryContext);
        let registered = pg_sys::RegisterDynamicBackgroundWorker(&mut worker, &mut handle);
        pg_sys::MemoryContextSwitchTo(context);
        registered.then(|| Running { handle, since: Instant::now() })
    }
}

fn exists(dbid: pg_sys::Oid) -> bool {
    transaction::run(|| Ok(databases())).is_ok_and(|(_, usable)| usable.contains(&dbid))
}

/// All databases, and those among them that can be connected to. Templates and databases that allow
/// no connections are among these, because they may have something in doubt too.
fn databases() -> (Vec<pg_sys::Oid>, Vec<pg_sys::Oid>) {
    let (mut all, mut usable) = (Vec::new(), Vec::new());
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
            all.push(database.oid);
            // An interrupted DROP DATABASE leaves a number below -1.
            if database.datconnlimit >= -1 {
                usable.push(database.oid);
            }
        }
        pg_sys::heap_endscan(scan);
        pg_sys::table_close(relation, pg_sys::AccessShareLock as i32);
    }
    (all, usable)
}
