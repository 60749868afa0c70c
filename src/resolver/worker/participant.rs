//! One participant as the resolver knows it: when to sweep it, and how the last sweep went.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use crate::guc;
use crate::pg::debug::debug;
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
    /// How many attempts in a row have failed or left something.
    pub(super) failures: u32,
    /// The last attempt has failed.
    has_failed: bool,
    /// What the log says of it.
    told: Told,
    /// It has been asked since the start of this server what is prepared there.
    asked: bool,
    /// Its server or user mapping no longer exists.
    gone: bool,
    /// Why the last attempt failed, and how many transactions it left, if none of them has an
    /// entry.
    failed_for: Option<(Reason, usize)>,
    /// What the last sweep found prepared there, and left.
    pub(super) listed: HashSet<Gid>,
    /// Something may be left there: it has not been swept since the start, or the last sweep has
    /// left something, or a backend has since.
    pub(super) unsettled: bool,
    /// The last sweep has left nothing but what sessions were about to settle: what sessions leave
    /// has an entry or a line in the ledger.
    is_swept: bool,
    /// What a sweep that is under way finds left does not tell of all: something was given up since
    /// it began, or the address is another.
    is_doubted: bool,
    /// The sweep that is under way.
    pub(super) sweep: Option<Box<Sweep>>,
    /// The session that holds the fence, kept while something of ours is prepared there.
    pub(super) fenced: Option<Fenced>,
}

/// How often a session that holds the fence is used, which renews the lease.
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
            listed: HashSet::new(),
            unsettled: due.is_some(),
            is_swept: due.is_none(),
            is_doubted: false,
            sweep: None,
            fenced: None,
        }
    }

    /// Reads its address from the durable list again.
    pub(super) fn read_address(&mut self) -> Result<()> {
        let list = transaction::run(|| Ok(participant_list::all()))?;
        let written = list.into_iter().find(|r| r.id == self.registered.id);
        if let Some(written) = written.filter(|w| w.address != self.registered.address) {
            self.registered = written;
            self.due = Some(Instant::now());
        }
        Ok(())
    }

    /// With whose user mapping to connect: with its own, and after failed attempts in turn also
    /// with those of others in the same place. Its user may have lost the right to connect, or its
    /// mapping the password. `is_gone`: its server or its mapping no longer exists.
    pub(super) fn connect_as<'a>(
        &'a self,
        stand_ins: &'a [ParticipantRecord],
        is_gone: bool,
    ) -> &'a ParticipantRecord {
        let own = usize::from(!is_gone || stand_ins.is_empty());
        let turn = self.failures as usize % (own + stand_ins.len());
        turn.checked_sub(own).map_or(&self.registered, |turn| &stand_ins[turn])
    }

    /// Takes in the result of a sweep. `noted`: there is an entry for whatever it has left.
    /// `elsewhere`: what other participants will settle. A sweep that has left something counts as
    /// a failure, and the reason is shown and logged.
    pub(super) fn swept(
        &mut self,
        swept: Swept,
        noted: bool,
        elsewhere: &HashSet<Gid>,
    ) -> Result<()> {
        let now = Instant::now();
        // From now on the entries tell what is left there.
        if noted {
            self.note_asked();
        }
        self.gone = false;
        self.failed_for = None;
        let failure = telling::failure(&swept, elsewhere);
        let heuristic = swept.heuristic.len() as u64;
        stats::attempt(self.registered.serverid, swept.resolved, heuristic, failure.as_ref());
        let is_done = |l: &Left| l.reason == Reason::Undecided || elsewhere.contains(&l.gid);
        self.unsettled = swept.other_incarnations || !swept.left.iter().all(is_done);
        self.is_swept = !self.is_doubted && swept.leaves_only_to_sessions();
        self.listed = swept.left.iter().filter(|l| l.listed).map(|l| l.gid).collect();
        self.fenced = swept.fenced;
        if std::mem::take(&mut self.has_failed) {
            // The server is back: begin again with the shortest delay.
            self.failures = 0;
        }
        if self.unsettled {
            self.retry(now);
        } else {
            self.failures = 0;
            if self.fenced.is_some() {
                self.due = Some(self.due.map_or(now + HEARTBEAT, |due| due.min(now + HEARTBEAT)));
            }
        }
        if swept.more {
            self.unsettled = true;
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

    /// Takes in the result of a sweep for another participant in the same place. `left`: something
    /// is left here.
    pub(super) fn swept_beside(&mut self, swept: &Swept, noted: bool, left: bool) -> Result<()> {
        if noted {
            self.note_asked();
        }
        // What the other has found prepared stands there.
        self.listed.clear();
        self.is_swept = !self.is_doubted && swept.leaves_only_to_sessions();
        // It has become due again meanwhile.
        if self.due.is_some() {
            return Ok(());
        }
        self.unsettled = left;
        if left {
            self.retry(Instant::now());
            return Ok(());
        }
        self.failures = 0;
        self.told.succeeded(&swept.server)
    }

    /// Whether something counts as left there only because of what sessions were to settle.
    pub(super) fn is_left_to_sessions(&self) -> bool {
        self.unsettled && self.is_swept
    }

    /// A sweep begins.
    pub(super) fn begin_sweep(&mut self) {
        self.due = None;
        self.is_doubted = false;
    }

    /// What is left there is not known any more: something was given up, or the address is another.
    pub(super) fn has_to_be_swept(&mut self) {
        self.is_swept = false;
        self.is_doubted = true;
    }

    /// Publishes that it is known what is left there of what was decided before the start. Any
    /// participant in the same database may have been asked: the list is the same for all of them.
    pub(super) fn note_asked(&mut self) {
        if !std::mem::replace(&mut self.asked, true) {
            seen::add(self.registered.id);
        }
    }

    /// Whether its server or user mapping no longer exists.
    pub(super) fn is_gone(&self) -> bool {
        self.gone
    }

    /// Whether it has not been asked since the start, and cannot be with its own user mapping.
    pub(super) fn cannot_be_asked(&self) -> bool {
        self.gone && !self.asked
    }

    /// Whether it has been asked since the start. Until then, what was decided before the start
    /// counts as in doubt there.
    pub(super) fn is_asked(&self) -> bool {
        self.asked
    }

    /// Takes in that a sweep has failed, and tries again later. `undelivered` are the `count`
    /// committed transactions that the participant has not confirmed: they count as in doubt until
    /// it has been asked. The log is told once of a failure, not for each attempt.
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
        // Does not make the list when nothing has changed.
        let known = left.is_empty() && self.failed_for == Some((reason, count));
        self.failed_for = left.is_empty().then_some((reason, count));
        if known {
            return self.told.failed(&error, count == 0);
        }
        if count > 0 {
            left.extend(undelivered());
        }
        for gid in &left {
            debug(|| format!("'{gid}': left in doubt: {}", reason.text()));
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

    /// Has it swept again after a delay that grows with each failure.
    pub(super) fn retry(&mut self, now: Instant) {
        let (min, max) = guc::resolver_retry();
        // Without random bytes all are tried at the same time, which does no harm.
        let jitter = random().map(u32::from_ne_bytes).unwrap_or(0);
        let wait = retry::delay(self.failures, min, max, jitter);
        self.failures = self.failures.saturating_add(1);
        self.due = Some(now + wait);
    }
}
