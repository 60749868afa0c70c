//! Finds deadlocks over several servers among the sessions of its database, and has one session of
//! each give way.
//!
//! Nothing is done as long as no session waits for a foreign server for longer than
//! `deadlock_timeout`. From then on it looks every `deadlock_timeout`, and at once when another
//! session has waited so long: each server where somebody waits is asked what keeps him waiting
//! ([`asking`], [`questions`]), and the answers are joined
//! ([`protocol::waits`](crate::protocol::waits)). The servers answer one after the other, so what
//! looks like a cycle may never have been one at any moment. It is one if every wait in it is found
//! again a little later and is still the same.
//!
//! What a look has seen is shown by the view `pg_fdw_xacts_waits` ([`showing`]).
//!
//! No session is signalled: the verdict is left where only that wait reads it.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use pgrx::pg_sys::Oid;

use crate::pg::debug::debug;
use crate::pg::error::{Error, Result, SqlState};
use crate::pg::globals::deadlock_timeout;
use crate::pg::{heavy_locks, text, transaction};
use crate::protocol::gid::Identity;
use crate::protocol::waits::cycle::Cycle;
use crate::protocol::waits::locks::{Kind, Lock};
use crate::protocol::waits::{Graph, HERE, Said, Session};
use crate::remote::wait::Interest;
use crate::shared::wait_rows;
use crate::shared::waits::{self, Wait};

mod asking;
mod questions;
mod showing;

use asking::Asking;

/// After this time a cycle has to be found again.
const AGAIN: Duration = Duration::from_millis(200);

/// How long a look waits for a server. One that has not answered by then is left out, until it
/// does.
const PATIENCE: Duration = Duration::from_millis(500);

/// Between two looks there is at least so much time, in units of how long a look takes: servers
/// where many wait are not kept busy by being asked.
const REST: u32 = 5;

/// But no more than that, so that a deadlock is found in time.
const LONGEST_REST: Duration = Duration::from_millis(300);

/// Finds deadlocks.
#[derive(Default)]
pub struct Detector {
    /// By the OID of the foreign server.
    servers: BTreeMap<u32, Asking>,
    look: Option<Look>,
    /// When to look next; None: nobody waits.
    due: Option<Instant>,
    /// The earliest time for the next look.
    rested: Option<Instant>,
    /// The last number of a wait that it knows of.
    last: u64,
    /// Cycles that were found by the last look.
    found: Vec<Cycle>,
    /// The cycles in which nobody can give way, of which the log has been told.
    told: Vec<Cycle>,
}

/// A look that is under way.
struct Look {
    begin: Instant,
    sessions: Vec<Session>,
}

impl Detector {
    /// Goes on as far as it can without waiting.
    ///
    /// # Errors
    /// Only out of memory and the like.
    pub fn round(&mut self, identity: Identity) -> Result<()> {
        for server in self.servers.values_mut().filter(|server| server.is_under_way()) {
            server.advance(identity);
        }
        self.servers.retain(|_, server| !server.is_expired());
        self.conclude_if_answered()?;
        if self.look.is_none() {
            self.note_published();
            if self.due.is_some_and(|due| due <= Instant::now()) {
                self.begin(identity)?;
                self.conclude_if_answered()?;
            }
        }
        Ok(())
    }

    /// Looks soon if somebody else waits than the last time.
    fn note_published(&mut self) {
        let published = waits::published();
        if published.last != self.last && published.count > 0 {
            self.last = published.last;
            let now = Instant::now();
            let soon = self.rested.map_or(now, |rested| rested.max(now));
            self.due = Some(self.due.map_or(soon, |due| due.min(soon)));
        }
    }

    fn conclude_if_answered(&mut self) -> Result<()> {
        let is_over = |look: &mut Look| {
            !self.servers.values().any(Asking::is_awaited) || look.begin.elapsed() >= PATIENCE
        };
        match self.look.take_if(is_over) {
            Some(look) => self.conclude(look),
            None => Ok(()),
        }
    }

    /// Asks every server where a session of this database waits.
    fn begin(&mut self, identity: Identity) -> Result<()> {
        let waits = waits::all();
        let sessions: Vec<Session> = waits.iter().map(session).collect();
        let mut asked: BTreeMap<u32, (Vec<Oid>, Vec<i32>)> = BTreeMap::new();
        for awaited in waits.iter().flat_map(Wait::servers) {
            let (users, processes) = asked.entry(awaited.serverid.to_u32()).or_default();
            if !users.contains(&awaited.userid) {
                users.push(awaited.userid);
            }
            processes.push(awaited.process);
        }
        for (_, server) in self.servers.iter_mut().filter(|(id, _)| !asked.contains_key(id)) {
            server.is_unused();
        }
        if sessions.is_empty() {
            self.found.clear();
            self.told.clear();
            self.due = None;
            wait_rows::show(&[]);
            return Ok(());
        }
        let servers = &mut self.servers;
        transaction::run(|| {
            for (serverid, (users, processes)) in asked {
                let server = servers.entry(serverid).or_insert_with(|| Asking::new(serverid));
                server.begin(identity, &users, processes);
            }
            Ok(())
        })?;
        self.look = Some(Look { begin: Instant::now(), sessions });
        Ok(())
    }

    /// Judges what the servers have said.
    fn conclude(&mut self, look: Look) -> Result<()> {
        let asked = look.begin.elapsed();
        let said = self.servers.iter_mut();
        let mut said: BTreeMap<u32, Said> =
            said.filter_map(|(id, server)| Some((*id, server.take()?))).collect();
        let mut graph = Graph::join(&look.sessions, &said);
        if !graph.silent().is_empty() {
            said.insert(HERE, here(&graph)?);
            graph = Graph::join(&look.sessions, &said);
        }
        wait_rows::show(&showing::rows(&graph));
        let found = std::mem::take(&mut self.found);
        let (standing, gone): (Vec<Cycle>, Vec<Cycle>) =
            found.into_iter().partition(|cycle| graph.has_all(&cycle.edges));
        if !gone.is_empty() {
            debug(|| format!("{} cycles of waits have ended by themselves", gone.len()));
        }
        for cycle in &standing {
            self.end(cycle, &look.sessions)?;
        }
        // A session that has been told may still be there. Whoever else is in its way is looked for
        // once it has gone.
        if standing.iter().all(|cycle| cycle.victim.is_none()) {
            self.found = graph.cycles();
            self.found.retain(|cycle| !cycle.is_seen_by_one() && !self.told.contains(cycle));
        }
        let now = Instant::now();
        let took = look.begin.elapsed();
        debug(|| {
            let [asked, took] = [asked, took].map(|time| time.as_millis());
            let waits = graph.edges.len();
            format!("looked for deadlocks for {took} ms, {asked} ms of it asking: {waits} waits")
        });
        let pause =
            if standing.is_empty() && self.found.is_empty() { deadlock_timeout() } else { AGAIN };
        self.rested = Some(now + (took * REST).min(LONGEST_REST));
        self.due = Some((now + pause).max(now + took));
        Ok(())
    }

    /// Has a session give way that is part of a cycle.
    fn end(&mut self, cycle: &Cycle, sessions: &[Session]) -> Result<()> {
        let name = |server: u32| {
            let known = self.servers.get(&server);
            known.map_or_else(|| server.to_string(), |server| server.name.clone())
        };
        let detail = cycle.detail(name);
        let victim = sessions.iter().find(|session| Some(session.pid) == cycle.victim);
        let Some(victim) = victim else {
            self.told.retain(|told| told.edges.iter().all(|e| !cycle.edges.contains(e)));
            self.told.push(cycle.clone());
            return Error::new(
                SqlState::DEADLOCK_DETECTED,
                "no session of a deadlock over several servers can be cancelled",
            )
            .detail(detail)
            .hint("Timeouts end it: a COMMIT in one phase is waited for until pg_fdw_xacts.commit_timeout.")
            .log(pgrx::PgLogLevel::LOG);
        };
        if waits::condemn(victim.number, &text::put_back(detail)) {
            debug(|| format!("process {} gives way in a deadlock", victim.pid));
        }
        Ok(())
    }

    /// The sockets to wait for.
    pub fn interests(&self) -> impl Iterator<Item = Interest> {
        self.servers.values().filter_map(Asking::interest)
    }

    /// When to go on even if nothing has come.
    pub fn deadline(&self) -> Option<Instant> {
        let look = self.look.as_ref().map(|look| look.begin + PATIENCE);
        let due = self.due.filter(|_| look.is_none());
        self.servers.values().filter_map(Asking::deadline).chain(look).chain(due).min()
    }
}

fn session(wait: &Wait) -> Session {
    Session {
        pid: wait.pid,
        number: wait.number,
        begun: wait.begun,
        can_be_cancelled: wait.can_be_cancelled,
        needs_all: wait.needs_all,
        awaits: wait.servers().iter().map(|a| (a.serverid.to_u32(), a.process)).collect(),
    }
}

/// What keeps the processes here waiting that block somebody and do not say what they wait for, and
/// the processes that block those.
fn here(graph: &Graph) -> Result<Said> {
    transaction::run(|| {
        let mut said = Said::default();
        let waiting = heavy_locks::waiting()?;
        let waits: HashSet<i32> = waiting.iter().map(|lock| lock.pid).collect();
        let mut next = graph.silent();
        while let Some(pid) = next.pop() {
            if waits.contains(&pid) && !said.blockers.contains_key(&pid) {
                let blockers = heavy_locks::blockers(pid)?;
                next.extend(blockers.iter().copied());
                said.blockers.insert(pid, blockers);
            }
        }
        for lock in waiting.into_iter().filter(|lock| said.blockers.contains_key(&lock.pid)) {
            let heavy_locks::Waiting { pid, locktype, target, mode, since } = lock;
            let kind = Kind::named(&locktype);
            let lock = Lock { kind, target, mode, transaction: String::new(), since };
            said.waits.insert(pid, lock);
        }
        Ok(said)
    })
}
