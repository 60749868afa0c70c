//! What the resolver knows of one participant: when to sweep it, and how the last sweep went.

use std::time::{Duration, Instant};

use pgrx::PgLogLevel;

use crate::guc;
use crate::log::registered::{self, Registered};
use crate::log::stats;
use crate::pg::error::{Error, Result, SqlState};
use crate::protocol::retry;
use crate::resolver::sweep::{Fenced, Sweep, Swept};

/// A participant on the durable list.
pub(super) struct Participant {
    pub(super) registered: Registered,
    /// When to sweep it; None while there is no reason to.
    pub(super) due: Option<Instant>,
    pub(super) failures: u32,
    pub(super) last_error: String,
    /// It has not been swept clean since the start, or something was left there since.
    pub(super) unswept: bool,
    /// The sweep on its way.
    pub(super) sweep: Option<Box<Sweep>>,
    /// The session that holds the fence, kept while something of ours is prepared there.
    pub(super) fenced: Option<Fenced>,
}

/// How often a kept fence is used: well within its lease.
const HEARTBEAT: Duration = Duration::from_secs(10);

impl Participant {
    pub(super) fn new(registered: Registered, due: Option<Instant>) -> Self {
        Self {
            registered,
            due,
            failures: 0,
            last_error: String::new(),
            unswept: due.is_some(),
            sweep: None,
            fenced: None,
        }
    }

    /// As whom to connect: itself, and after a failed attempt in turn as those in the same place too. Its user may have
    /// lost what is needed to connect, or its mapping its password.
    pub(super) fn connect_as<'a>(&'a self, stand_ins: &'a [Registered]) -> &'a Registered {
        match self.failures as usize % (stand_ins.len() + 1) {
            0 => &self.registered,
            turn => &stand_ins[turn - 1],
        }
    }

    /// Notes how a sweep went, and reports that it went well again after one that had not.
    pub(super) fn swept(&mut self, swept: Swept) -> Result<()> {
        let now = Instant::now();
        let heuristic = swept.heuristic.len() as u64;
        stats::attempt(self.registered.serverid, swept.resolved, heuristic, None);
        let failed = !std::mem::take(&mut self.last_error).is_empty();
        self.unswept = swept.again;
        self.fenced = swept.fenced;
        if swept.again {
            self.retry(now);
        } else {
            self.failures = 0;
            if self.fenced.is_some() {
                self.due = Some(self.due.map_or(now + HEARTBEAT, |due| due.min(now + HEARTBEAT)));
            }
        }
        if !failed {
            return Ok(());
        }
        let server = swept.server.to_bytes();
        Error::new(
            SqlState::SUCCESSFUL_COMPLETION,
            [b"the resolver has reached server \"", server, b"\" again"].concat(),
        )
        .log(PgLogLevel::LOG)
    }

    /// Reports an error once, not for each attempt, and tries again later.
    pub(super) fn failed(&mut self, error: Error) -> Result<()> {
        self.retry(Instant::now());
        stats::attempt(self.registered.serverid, 0, 0, Some(&error));
        let text = String::from_utf8_lossy(&error.summary()).into_owned();
        if self.last_error == text {
            return Ok(());
        }
        self.last_error = text;
        error.log(PgLogLevel::LOG)
    }

    /// Has it swept soon, unless that is under way or has failed just now. The heartbeat of a kept fence is not
    /// waited for.
    pub(super) fn make_due(&mut self) {
        if self.sweep.is_none() && (self.failures == 0 || self.due.is_none()) {
            let now = Instant::now();
            self.due = Some(self.due.map_or(now, |due| due.min(now)));
        }
    }

    pub(super) fn retry(&mut self, now: Instant) {
        let (min, max) = guc::resolver_retry();
        // Without randomness all come at the same time, which is no reason to fail.
        let jitter = registered::random().map(u32::from_ne_bytes).unwrap_or(0);
        let wait = retry::delay(self.failures, min, max, jitter);
        self.failures = self.failures.saturating_add(1);
        self.due = Some(now + wait);
    }
}
