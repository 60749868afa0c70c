//! What the resolver knows of one participant: when to sweep it, and how the last sweep went.

use std::collections::HashSet;
use std::ffi::CStr;
use std::time::{Duration, Instant};

use crate::guc;
use crate::pg::error::{Result, c_string};
use crate::pg::random::random;
use crate::pg::transaction;
use crate::protocol::gid::Gid;
use crate::protocol::retry;
use crate::protocol::verdict::Reason;
use crate::remote::options::Server;
use crate::resolver::sweep::failure::Failure;
use crate::resolver::sweep::{Fenced, Sweep, Swept};
use crate::resolver::worker::telling::{self, Told};
use crate::shared::entry::Entry;
use crate::shared::left::{self, Left};
use crate::shared::{seen, stats};
use crate::store::participant_list::{self, ParticipantRecord};

/// A participant on the durable list.
pub(super) struct Participant {
    pub(super) registered: ParticipantRecord,
    /// When to sweep it; None while there is no reason to.
    pub(super) due: Option<Instant>,
    pub(super) failures: u32,
    /// The last attempt came to nothing.
    has_failed: bool,
    /// What the log has been told.
    told: Told,
    /// It has been asked since the start of this server.
    asked: bool,
    /// Its server or user mapping has gone: nobody can ask by it any more.
    gone: bool,
    /// Why the last attempt failed, with so many undelivered; None where it did not, or something was handed over.
    failed_for: Option<(Reason, usize)>,
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
    pub(super) fn new(registered: ParticipantRecord, due: Option<Instant>, asked: bool) -> Self {
        Self {
            registered,
            due,
            failures: 0,
            has_failed: false,
            told: Told::default(),
            asked,
            gone: false,
            failed_for: None,
            seen: HashSet::new(),
            unswept: due.is_some(),
            sweep: None,
            fenced: None,
        }
    }

    /// Reads where it is written down to be.
    pub(super) fn read_address(&mut self) -> Result<()> {
        let list = transaction::run(|| Ok(participant_list::all()))?;
        let written = list.into_iter().find(|r| r.id == self.registered.id);
        if let Some(written) = written.filter(|w| w.address != self.registered.address) {
            self.registered = written;
            self.due = Some(Instant::now());
        }
        Ok(())
    }

    /// As whom to connect: itself, and after a failed attempt in turn as those in the same place too. Its user may have
    /// lost what is needed to connect, or its mapping its password.
    pub(super) fn connect_as<'a>(
        &'a self,
        stand_ins: &'a [ParticipantRecord],
    ) -> &'a ParticipantRecord {
        match self.failures as usize % (stand_ins.len() + 1) {
            0 => &self.registered,
            turn => &stand_ins[turn - 1],
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
        // With an entry for whatever is left, nobody has to guess any more.
        if noted {
            self.note_asked();
        }
        self.gone = false;
        self.failed_for = None;
        let failure = telling::failure(&swept, elsewhere);
        let heuristic = swept.heuristic.len() as u64;
        stats::attempt(self.registered.serverid, swept.resolved, heuristic, failure.as_ref());
        let is_done = |l: &Left| l.reason == Reason::Undecided || elsewhere.contains(&l.gid);
        self.unswept = swept.strangers || !swept.left.iter().all(is_done);
        self.seen = swept.left.iter().filter(|l| l.listed).map(|l| l.gid).collect();
        self.fenced = swept.fenced;
        if std::mem::take(&mut self.has_failed) {
            // The server is back: what is left there has not been waited for yet.
            self.failures = 0;
        }
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
        if noted {
            self.note_asked();
        }
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

    /// It is known, from now on and to everybody, what is left there of what was decided before the start. Another one in
    /// the same database may have been asked, which lists what is prepared there for all of them.
    pub(super) fn note_asked(&mut self) {
        if !std::mem::replace(&mut self.asked, true) {
            seen::add(self.registered.id);
        }
    }

    /// Whether its server or user mapping has gone.
    pub(super) fn is_gone(&self) -> bool {
        self.gone
    }

    /// Whether nobody can ask by it any more, nor has since the start.
    pub(super) fn cannot_be_asked(&self) -> bool {
        self.gone && !self.asked
    }

    /// Whether it has been asked since the start: until then, what was decided before counts as in doubt.
    pub(super) fn is_asked(&self) -> bool {
        self.asked
    }

    /// Reports a failure once, not for each attempt, and tries again later. What is `undelivered`, so many, was decided
    /// before the start or since, and counts as in doubt, too, until it has been asked for.
    pub(super) fn failed(
        &mut self,
        failure: Failure,
        count: usize,
        undelivered: impl FnOnce() -> Vec<Gid>,
    ) -> Result<()> {
        let Failure { reason, error } = failure;
        self.gone = reason == Reason::Gone;
        self.has_failed = true;
        self.retry(Instant::now());
        stats::attempt(self.registered.serverid, 0, 0, Some(&error));
        let left = left::handed_over(&std::iter::once(&self.registered).collect());
        left::note_failure(&left, reason);
        let mut left: HashSet<Gid> = left.iter().filter_map(Entry::gid).collect();
        let count = if self.asked { 0 } else { count };
        // The same again is not worth the list.
        let known = left.is_empty() && self.failed_for == Some((reason, count));
        self.failed_for = left.is_empty().then_some((reason, count));
        if known {
            return self.told.failed(&error, count == 0);
        }
        if count > 0 {
            left.extend(undelivered());
        }
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
        let jitter = random().map(u32::from_ne_bytes).unwrap_or(0);
        let wait = retry::delay(self.failures, min, max, jitter);
        self.failures = self.failures.saturating_add(1);
        self.due = Some(now + wait);
    }
}
