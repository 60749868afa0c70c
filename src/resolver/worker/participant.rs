//! What the resolver knows of one participant: when to sweep it, and how the last sweep went.

use std::collections::HashSet;
use std::ffi::CStr;
use std::time::{Duration, Instant};

use crate::guc;
use crate::log::left::{self, Left};
use crate::log::registered::{self, Registered};
use crate::log::shmem::Entry;
use crate::log::{seen, stats};
use crate::pg::error::{Result, c_string};
use crate::pg::transaction;
use crate::protocol::gid::Gid;
use crate::protocol::retry;
use crate::protocol::verdict::Reason;
use crate::remote::options::Server;
use crate::resolver::sweep::failure::Failure;
use crate::resolver::sweep::{Fenced, Sweep, Swept};
use crate::resolver::worker::telling::{self, Told};

/// A participant on the durable list.
pub(super) struct Participant {
    pub(super) registered: Registered,
    /// When to sweep it; None while there is no reason to.
    pub(super) due: Option<Instant>,
    pub(super) failures: u32,
    /// What the log has been told.
    told: Told,
    /// It has been asked since the start of this server.
    asked: bool,
    /// What was found prepared there last, and left.
    pub(super) seen: HashSet<Gid>,
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
    pub(super) fn new(registered: Registered, due: Option<Instant>, asked: bool) -> Self {
        Self {
            registered,
            due,
            failures: 0,
            told: Told::default(),
            asked,
            seen: HashSet::new(),
            unswept: due.is_some(),
            sweep: None,
            fenced: None,
        }
    }

    /// Notes how a sweep went. What it has left is no success: it is counted, shown and logged with its reason.
    pub(super) fn swept(
        &mut self,
        swept: Swept,
        noted: bool,
        elsewhere: &HashSet<Gid>,
    ) -> Result<()> {
        let now = Instant::now();
        self.note_asked(noted);
        let failure = telling::failure(&swept, elsewhere);
        stats::attempt(self.registered.serverid, swept.resolved, swept.heuristic, failure.as_ref());
        let is_done = |l: &Left| l.reason == Reason::Undecided || elsewhere.contains(&l.gid);
        self.unswept = swept.strangers || !swept.left.iter().all(is_done);
        self.seen = swept.left.iter().filter(|l| l.listed).map(|l| l.gid).collect();
        self.fenced = swept.fenced;
        if self.unswept {
            self.retry(now);
        } else {
            self.failures = 0;
            if self.fenced.is_some() {
                self.due = Some(self.due.map_or(now + HEARTBEAT, |due| due.min(now + HEARTBEAT)));
            }
        }
        if swept.more {
            self.unswept = true;
            self.due = Some(now);
        }
        let left = swept.left.iter().filter(|l| !l.reason.is_expected());
        let left: Vec<(Gid, Reason)> =
            left.filter(|l| !elsewhere.contains(&l.gid)).map(|l| (l.gid, l.reason)).collect();
        self.told.about(&swept.server, &left, swept.refusal.as_ref())?;
        match failure {
            Some(failure) => self.told.failed(&failure, left.is_empty()),
            None => self.told.succeeded(&swept.server),
        }
    }

    /// Notes that it was swept with another one. `left`: something is left here that is not done with.
    pub(super) fn swept_beside(&mut self, server: &CStr, noted: bool, left: bool) -> Result<()> {
        self.note_asked(noted);
        // It has become due again since.
        if self.due.is_some() {
            return Ok(());
        }
        self.unswept = left;
        if left {
            self.retry(Instant::now());
            return Ok(());
        }
        self.failures = 0;
        self.told.succeeded(server)
    }

    /// With an entry for whatever is left, nobody has to guess any more.
    fn note_asked(&mut self, noted: bool) {
        if noted && !std::mem::replace(&mut self.asked, true) {
            seen::add(self.registered.id);
        }
    }

    /// What was decided before the start counts as in doubt here until it has been asked for.
    pub(super) fn is_unasked(&self) -> bool {
        !self.asked
    }

    /// Reports a failure once, not for each attempt, and tries again later. `undelivered` counts as in doubt, too.
    pub(super) fn failed(&mut self, failure: Failure, undelivered: Vec<Gid>) -> Result<()> {
        let Failure { reason, error } = failure;
        self.retry(Instant::now());
        stats::attempt(self.registered.serverid, 0, 0, Some(&error));
        let left = left::handed_over(&std::iter::once(&self.registered).collect());
        left::note_failure(&left, reason);
        let mut left: HashSet<Gid> = left.iter().filter_map(Entry::gid).collect();
        left.extend(undelivered);
        let left: Vec<(Gid, Reason)> = left.into_iter().map(|gid| (gid, reason)).collect();
        if !left.is_empty() {
            let serverid = self.registered.serverid;
            let server = transaction::run(|| Ok(Server::find(serverid)))?;
            let server = server.map_or_else(|| c_string(serverid.to_u32().to_string()), |s| s.name);
            self.told.about(&server, &left, Some(&error))?;
        }
        self.told.failed(&error, left.is_empty())
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
