//! Which database has a resolver, who it is and whether it is up to date; and the confirmed transactions on
//! their way to it.

use std::time::{Duration, Instant};

use pgrx::pg_sys::Oid;

use crate::pg::error::{Error, Result, SqlState, check_for_interrupts};
use crate::pg::globals::{my_database, my_pid, now};
use crate::pg::wait_event::WaitEvent;
use crate::pg::{globals, latch};
use crate::protocol::gid::{Identity, Nonce};
use crate::shared::shmem::{self, Confirmed, MAX_CONFIRMED, WorkerSlot, WorkerState};
use crate::store::identity;

/// How long a backend waits for its database's resolver to come up or to answer.
pub const RESOLVER_DEADLINE: Duration = Duration::from_secs(10);

pub(super) fn is_of(worker: &WorkerSlot, dbid: Oid) -> bool {
    worker.state != WorkerState::Free && worker.dbid == dbid
}

fn place_of(workers: &mut [WorkerSlot], dbid: Oid) -> Option<&mut WorkerSlot> {
    workers.iter_mut().find(|w| is_of(w, dbid))
}

/// A database's place, or one that is `unused`.
fn place_or(
    workers: &mut [WorkerSlot],
    dbid: Oid,
    unused: impl Fn(&WorkerSlot) -> bool,
) -> Option<&mut WorkerSlot> {
    let own = workers.iter().position(|w| is_of(w, dbid));
    let place = own.or_else(|| workers.iter().position(unused))?;
    Some(&mut workers[place])
}

/// The place of this database's resolver as it is now.
fn own_place() -> Option<WorkerSlot> {
    let dbid = my_database();
    shmem::read(|m| m.workers.iter().find(|w| is_of(w, dbid)).copied())
}

/// Wakes the resolver of a database; the launcher starts one where there is none.
pub fn wake_resolver(dbid: Oid) {
    let pid = shmem::write(|m| {
        match place_of(m.workers, dbid) {
            Some(worker) if worker.state != WorkerState::Absent => worker.pid,
            // Its database has an extension now, or nobody has looked yet.
            _ => {
                want(m.workers, dbid);
                m.shared.launcher
            }
        }
    });
    shmem::wake(pid);
}

fn new_place(state: WorkerState, dbid: Oid, pid: i32) -> WorkerSlot {
    WorkerSlot {
        state,
        dbid,
        pid,
        paused_at: 0,
        paused_by: 0,
        identity: 0,
        generation: 0,
        has_looked: false,
        unswept_elsewhere: 0,
    }
}

/// Wants a resolver in a database; tells whether there is a place for it.
fn want(workers: &mut [WorkerSlot], dbid: Oid) -> bool {
    // The place of a database without the extension is free for others.
    let unused = |w: &WorkerSlot| {
        w.state == WorkerState::Free || (w.state == WorkerState::Absent && w.pid == 0)
    };
    let place = place_or(workers, dbid, unused);
    place.map(|place| *place = new_place(WorkerState::Wanted, dbid, 0)).is_some()
}

/// The identity of this database, if its resolver is up; has it started if not, and does not wait.
pub fn identity_if_ready() -> Option<Identity> {
    let identity = own_place().and_then(|worker| Identity::new(worker.identity));
    if identity.is_none() {
        wake_resolver(my_database());
    }
    identity
}

/// Whether this database's resolver works: it has looked through the decision table since the start of this server.
pub fn resolver_is_up() -> bool {
    own_place().is_some_and(|worker| worker.state == WorkerState::Ready && worker.has_looked)
}

/// Whether it is known what of a database may be in doubt: its resolver works, or has found no extension there.
pub fn has_been_looked_at(dbid: Oid) -> bool {
    let looked = |w: &WorkerSlot| match w.state {
        WorkerState::Ready | WorkerState::Absent => true,
        // It had, before it made way.
        WorkerState::Paused => w.identity != 0,
        WorkerState::Free | WorkerState::Wanted | WorkerState::Starting => false,
    };
    shmem::read(|m| m.workers.iter().find(|w| is_of(w, dbid)).is_some_and(looked))
}

/// Has somebody look, and waits for it, for a moment.
///
/// # Errors
/// A cancel.
pub fn await_look_at(dbid: Oid) -> Result<()> {
    let deadline = Instant::now() + RESOLVER_DEADLINE;
    wake_resolver(dbid);
    while !has_been_looked_at(dbid) && Instant::now() < deadline {
        check_for_interrupts()?;
        latch::wait(Duration::from_millis(20), WaitEvent::Resolver);
    }
    Ok(())
}

/// The random number of this start of the server.
pub fn incarnation() -> i32 {
    shmem::read(|m| m.shared.incarnation)
}

/// The identity of this database, for which its resolver must be up: waits for it.
///
/// # Errors
/// 55000 when it does not come up; 25006 on a standby.
pub fn identity() -> Result<Identity> {
    can_have_resolver()?;
    let mut tried = false;
    wait_for("the resolver of this database is not running", RESOLVER_DEADLINE, || {
        let worker = own_place();
        match worker.map_or(WorkerState::Free, |worker| worker.state) {
            WorkerState::Ready => {
                // Only what is stored here and now outlives a crash.
                let identity = worker.and_then(|worker| Identity::new(worker.identity));
                let stored = identity.filter(|i| identity::is_stored(*i));
                if stored.is_none() {
                    doubt_resolver();
                }
                Ok(stored)
            }
            WorkerState::Absent if tried => Err(Error::new(
                SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
                "extension pg_fdw_xacts is not committed in this database yet",
            )
            .hint(
                "Commit CREATE EXTENSION pg_fdw_xacts before the first distributed transaction.",
            )),
            WorkerState::Absent | WorkerState::Free => {
                tried = true;
                wake_resolver(my_database());
                Ok(None)
            }
            WorkerState::Wanted | WorkerState::Starting | WorkerState::Paused => Ok(None),
        }
    })
}

/// Nobody is to wait for a resolver where there never is one.
fn can_have_resolver() -> Result<()> {
    let (sqlstate, place) = match (globals::in_recovery(), globals::is_single_user()) {
        (true, _) => (SqlState::READ_ONLY_SQL_TRANSACTION, "on a standby"),
        (_, true) => (SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, "in single-user mode"),
        (false, false) => return Ok(()),
    };
    Err(Error::new(sqlstate, format!("there is no resolver {place}")).detail(
        "It takes one to commit on several servers at once, and to settle what is in doubt.",
    ))
}

/// The resolver's idea of this database is out of date: the extension has been dropped and created again.
/// It reads everything anew.
pub fn doubt_resolver() {
    let dbid = my_database();
    let pid = shmem::write(|m| {
        let worker = place_of(m.workers, dbid)?;
        if worker.state == WorkerState::Ready {
            worker.state = WorkerState::Starting;
            worker.identity = 0;
        }
        Some(worker.pid)
    });
    shmem::wake(pid.unwrap_or(0));
}

/// Has the resolver of a database leave it for a moment, in which somebody needs it alone.
pub fn pause(dbid: Oid) {
    let (now, paused_by) = (now(), my_pid());
    let pid = shmem::write(|m| {
        let worker = place_of(m.workers, dbid)?;
        if worker.state != WorkerState::Absent {
            worker.state = WorkerState::Paused;
            worker.paused_at = now;
            worker.paused_by = paused_by;
        }
        Some(worker.pid)
    });
    shmem::wake(pid.unwrap_or(0));
}

/// This backend does not need the database alone any more. Unless another one does now, the resolver goes on, or a new
/// one is started.
pub fn end_pause(dbid: Oid) {
    let own_pid = my_pid();
    let launcher = shmem::write(|m| {
        let worker = place_of(m.workers, dbid)?;
        if worker.state == WorkerState::Paused && worker.paused_by == own_pid {
            // One that is leaving already is wanted again when it has left.
            worker.state = match (worker.pid, worker.identity) {
                (0, _) => WorkerState::Wanted,
                (_, 0) => WorkerState::Starting,
                _ => WorkerState::Ready,
            };
        }
        Some(m.shared.launcher)
    });
    shmem::wake(launcher.unwrap_or(0));
}

/// The databases whose resolver has been paused for long enough; they are wanted again. Also tells whether
/// there are others.
pub fn end_pauses(pause: Duration) -> bool {
    let now = now();
    shmem::write(|m| {
        let mut waiting = false;
        for worker in m.workers.iter_mut() {
            if worker.state == WorkerState::Paused && worker.pid == 0 {
                if now - worker.paused_at >= pause.as_micros() as i64 {
                    worker.state = WorkerState::Wanted;
                } else {
                    waiting = true;
                }
            }
        }
        waiting
    })
}

/// Whether this resolver has to leave its database.
pub fn is_paused() -> bool {
    own_place().is_some_and(|worker| worker.state == WorkerState::Paused)
}

/// As long as it is the same, numbers on this database's list of participants mean the same.
pub fn generation() -> u64 {
    own_place().map_or(0, |worker| worker.generation)
}

/// Numbers on the list of participants lose their meaning.
pub fn new_generation() {
    let dbid = my_database();
    shmem::write(|m| {
        m.shared.last_serial += 1;
        if let Some(worker) = place_of(m.workers, dbid) {
            worker.generation = m.shared.last_serial;
        }
    });
}

/// Whether nobody doubts this resolver.
pub fn is_trusted() -> bool {
    let pid = my_pid();
    own_place().is_some_and(|worker| worker.state == WorkerState::Ready && worker.pid == pid)
}

pub(super) fn wait_for<T>(
    failure: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        check_for_interrupts()?;
        if Instant::now() >= deadline {
            return Err(Error::new(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, failure.as_bytes())
                .hint("See the server log; \"max_worker_processes\" must leave room for one worker per database that has the extension, and one launcher."));
        }
        latch::wait(Duration::from_millis(20), WaitEvent::Resolver);
    }
}

/// All participants of a transaction have confirmed: its decision may be forgotten in time. Without
/// room the resolver finds out by itself.
pub fn confirmed(nonce: Nonce) {
    let dbid = my_database();
    let wake = shmem::write(|m| {
        if m.shared.confirmed_len < MAX_CONFIRMED {
            m.shared.confirmed[m.shared.confirmed_len] = Confirmed { dbid, nonce: nonce.number() };
            m.shared.confirmed_len += 1;
        }
        // The resolver need not hurry, but the room is shared by all databases.
        m.shared.confirmed_len % (MAX_CONFIRMED / 4) == 0
    });
    if wake {
        wake_resolver(dbid);
    }
}

/// Takes this database's confirmed transactions.
pub fn take_confirmed() -> Vec<Nonce> {
    let dbid = my_database();
    shmem::write(|m| {
        let mut taken = Vec::new();
        let mut kept = 0;
        for i in 0..m.shared.confirmed_len {
            let one = m.shared.confirmed[i];
            if one.dbid == dbid {
                taken.extend(Nonce::new(one.nonce));
            } else {
                m.shared.confirmed[kept] = one;
                kept += 1;
            }
        }
        m.shared.confirmed_len = kept;
        taken
    })
}

/// This process is the launcher.
pub fn become_launcher() {
    let pid = my_pid();
    shmem::write(|m| m.shared.launcher = pid);
    want_lost();
}

/// A resolver's process has gone: another is wanted, unless there is nothing for it to do.
fn process_ended(worker: &mut WorkerSlot) {
    worker.pid = 0;
    if !matches!(worker.state, WorkerState::Absent | WorkerState::Paused) {
        worker.state = WorkerState::Wanted;
    }
}

/// Wants a resolver again where one should be and its process has gone, whoever started it.
pub fn want_lost() {
    let places: Vec<(Oid, i32)> = shmem::read(|m| {
        let held = m.workers.iter().filter(|w| w.pid != 0);
        held.map(|w| (w.dbid, w.pid)).collect()
    });
    let lost: Vec<(Oid, i32)> =
        places.into_iter().filter(|(_, pid)| !shmem::is_alive(*pid)).collect();
    shmem::write(|m| {
        for worker in m.workers.iter_mut() {
            if lost.contains(&(worker.dbid, worker.pid)) {
                process_ended(worker);
            }
        }
    });
}

/// Where the resolver of a database is.
pub fn state(dbid: Oid) -> WorkerState {
    let place = shmem::read(|m| m.workers.iter().find(|w| is_of(w, dbid)).copied());
    place.map_or(WorkerState::Free, |worker| worker.state)
}

/// Asks for a resolver in a database that has not been looked at; tells whether there is a place for it.
pub fn want_to_look(dbid: Oid) -> bool {
    shmem::write(|m| place_of(m.workers, dbid).is_some() || want(m.workers, dbid))
}

/// The databases whose resolver has to be started; they count as starting from now on.
pub fn take_wanted() -> Vec<Oid> {
    shmem::write(|m| {
        let wanted = m.workers.iter_mut().filter(|w| w.state == WorkerState::Wanted);
        wanted
            .map(|worker| {
                worker.state = WorkerState::Starting;
                worker.dbid
            })
            .collect()
    })
}

/// A resolver could not be started or has ended without saying so: it is wanted again.
pub fn want_again(dbid: Oid) {
    shmem::write(|m| {
        if let Some(worker) = place_of(m.workers, dbid)
            && worker.pid == 0
            && !matches!(worker.state, WorkerState::Absent | WorkerState::Paused)
        {
            *worker = new_place(WorkerState::Wanted, dbid, 0);
        }
    });
}

/// This process is the resolver of its database: takes the place, unless another has it, or somebody needs the database
/// alone.
pub fn become_resolver() -> bool {
    let dbid = my_database();
    let pid = my_pid();
    shmem::write(|m| {
        let is_free = |w: &WorkerSlot| w.state == WorkerState::Free;
        let place = place_or(m.workers, dbid, is_free);
        // One that comes in the middle of a pause goes again, and is wanted when the pause has ended.
        let is_open =
            |w: &&mut WorkerSlot| [0, pid].contains(&w.pid) && w.state != WorkerState::Paused;
        let Some(place) = place.filter(is_open) else { return false };
        *place = new_place(WorkerState::Starting, dbid, pid);
        true
    })
}

/// The resolver works, with this identity; or its database has no extension.
pub fn report_resolver(identity: Option<Identity>) {
    set_own(|worker| {
        // Somebody may have come to need the database alone meanwhile.
        if worker.state != WorkerState::Paused {
            worker.state =
                if identity.is_some() { WorkerState::Ready } else { WorkerState::Absent };
        }
        worker.identity = identity.map_or(0, Identity::number);
        worker.has_looked = false;
    });
    // It may look at the next database.
    shmem::wake(shmem::read(|m| m.shared.launcher));
}

/// The resolver has looked through the decision table.
pub fn report_look() {
    set_own(|worker| worker.has_looked = true);
}

/// How many participants of this database have not been swept clean on servers for whose statistics there is no place.
pub fn set_unswept_elsewhere(participants: u64) {
    set_own(|worker| worker.unswept_elsewhere = participants);
}

/// The resolver's process ends: another is wanted, unless there is nothing for it to do.
pub fn leave_resolver() {
    set_own(process_ended);
    shmem::wake(shmem::read(|m| m.shared.launcher));
}

fn set_own(f: impl FnOnce(&mut WorkerSlot)) {
    let dbid = my_database();
    let pid = my_pid();
    shmem::write(|m| {
        if let Some(worker) = place_of(m.workers, dbid).filter(|w| w.pid == pid) {
            f(worker);
        }
    });
}

/// Drops what was confirmed in databases that are no more: nobody takes it.
pub fn forget_confirmed(existing: &[Oid]) {
    shmem::write(|m| {
        let mut kept = 0;
        for i in 0..m.shared.confirmed_len {
            let one = m.shared.confirmed[i];
            if existing.contains(&one.dbid) {
                m.shared.confirmed[kept] = one;
                kept += 1;
            }
        }
        m.shared.confirmed_len = kept;
    });
}

/// A database is gone.
pub fn forget_database(dbid: Oid) {
    shmem::write(|m| {
        if let Some(worker) = place_of(m.workers, dbid).filter(|w| w.pid == 0) {
            worker.state = WorkerState::Free;
        }
    });
}
