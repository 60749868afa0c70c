//! What the resolver reads: what backends have left in shared memory, and its tables. It reads a
//! part of a table in each round, and answers backends in between.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use pgrx::pg_sys::TransactionId;

use super::{Worker, pending};
use crate::guc;
use crate::pg::error::Result;
use crate::pg::{syncrep, transaction};
use crate::protocol::gid::{Gid, Nonce};
use crate::protocol::verdict::Decision;
use crate::resolver::sweep::Decisions;
use crate::shared::entry::{Entry, Status};
use crate::shared::entry_change::Why;
use crate::shared::{entries, resolvers, stats};
use crate::store::decisions::{self, Row};
use crate::store::{identity, labels};

/// How much longer than `commit_timeout` an owner may take to settle before the resolver takes
/// over.
const OWNER_GRACE: Duration = Duration::from_secs(10);

/// How often the resolver looks for such owners. With the default settings, what they have left is
/// settled within half a minute.
const REAP_INTERVAL: Duration = Duration::from_secs(5);

/// A table that is being read; the number is the block where the next part begins.
pub(super) enum Reading {
    /// The decision table, for what the resolver was not told.
    Look(u32),
    /// The decision table, to delete these decisions.
    Forget(u32, HashSet<Nonce>),
    /// The table of labels, to delete those that have expired.
    Labels(u32),
    /// The table of traces of labels, to delete those that have expired.
    Traces(u32),
}

/// How often decisions are deleted: that reads the whole table, which is larger the longer the
/// delay.
fn forget_interval(delay: Duration) -> Duration {
    (delay / 10).clamp(Duration::from_secs(1), Duration::from_secs(30))
}

/// How often labels are deleted.
fn expiry_interval(retention: Duration) -> Duration {
    (retention / 10).clamp(Duration::from_secs(1), Duration::from_secs(3600))
}

impl Worker {
    /// When there is something to read next.
    pub(super) fn next_reading(&self) -> Instant {
        if self.reading.is_some() {
            return Instant::now();
        }
        let next = self.next_look.min(self.next_expiry);
        match self.to_delete.front() {
            Some((since, _)) => next.min((*since + guc::forget_delay()).max(self.next_forget)),
            None => next,
        }
    }

    /// Reads the next part of the table that is being read, or begins with one that is due.
    pub(super) fn read_on(&mut self) -> Result<()> {
        self.reading = match self.reading.take() {
            None => self.next_table()?,
            Some(Reading::Look(first)) => match self.look_at_part(first)? {
                Some(next) => Some(Reading::Look(next)),
                None => {
                    self.end_look();
                    None
                }
            },
            Some(Reading::Forget(first, nonces)) => {
                match syncrep::run_here(|| decisions::delete_part(first, &nonces))?.0 {
                    Some(next) => Some(Reading::Forget(next, nonces)),
                    None => {
                        self.to_delete.drain(..nonces.len());
                        for nonce in nonces {
                            self.confirmed.remove(&nonce);
                        }
                        None
                    }
                }
            }
            Some(Reading::Labels(first)) => {
                let expire = || labels::expire_part(first, guc::track_retention());
                Some(match syncrep::run_here(expire)?.0 {
                    Some(next) => Reading::Labels(next),
                    None => Reading::Traces(0),
                })
            }
            Some(Reading::Traces(first)) => {
                let expire = || labels::expire_traces_part(first, guc::track_retention());
                syncrep::run_here(expire)?.0.map(Reading::Traces)
            }
        };
        Ok(())
    }

    fn next_table(&mut self) -> Result<Option<Reading>> {
        let now = Instant::now();
        if now >= self.next_look {
            return Ok(self.begin_look()?.then_some(Reading::Look(0)));
        }
        let delay = guc::forget_delay();
        let due = self.to_delete.iter().take_while(|(since, _)| *since + delay <= now);
        if now >= self.next_forget {
            let nonces: HashSet<Nonce> = due.map(|(_, nonce)| *nonce).collect();
            if !nonces.is_empty() {
                self.next_forget = now + forget_interval(delay);
                return Ok(Some(Reading::Forget(0, nonces)));
            }
        }
        if now >= self.next_expiry {
            self.next_expiry = now + expiry_interval(guc::track_retention());
            return Ok(Some(Reading::Labels(0)));
        }
        Ok(None)
    }

    /// Reads the whole decision table at once, for a backend that waits for it.
    pub(super) fn look_at_all(&mut self) -> Result<()> {
        if !self.begin_look()? {
            return Ok(());
        }
        let mut next = Some(0);
        while let Some(first) = next {
            next = self.look_at_part(first)?;
        }
        self.end_look();
        Ok(())
    }

    /// Prepares to read the whole decision table; `false` if the extension no longer exists, or is
    /// another one.
    fn begin_look(&mut self) -> Result<bool> {
        self.next_look = Instant::now() + guc::resolver_interval();
        if transaction::run(|| Ok(identity::known()))? != Some(self.identity) {
            // It was dropped, and perhaps created again.
            resolvers::doubt();
            return Ok(false);
        }
        self.next_reap = Instant::now();
        self.reap();
        transaction::run(|| {
            stats::forget_dropped();
            Ok(())
        })?;
        Ok(true)
    }

    /// Takes over what owners have not settled in time, or could not: an idle session does not read
    /// the answer to a COMMIT PREPARED that it did not wait for.
    pub(super) fn reap(&mut self) {
        let now = Instant::now();
        if now >= self.next_reap {
            self.next_reap = now + REAP_INTERVAL;
            entries::reap(guc::commit_timeout() + OWNER_GRACE);
        }
    }

    /// Takes in what a part of the decision table says and the resolver does not know yet; returns
    /// where the next part begins.
    fn look_at_part(&mut self, first: u32) -> Result<Option<u32>> {
        let known = |nonce: &Nonce| self.confirmed.contains(nonce) || self.ledger.has(*nonce);
        let (rows, next) = transaction::run(|| Ok(decisions::part(first, known)))?;
        // Those that were confirmed meanwhile have nothing left to ask for.
        self.note_confirmed();
        let owned = owned_transactions();
        for row in rows {
            for (id, _) in &row.participants {
                self.participants.note_id(*id);
            }
            if !owned.contains(&row.nonce) && !self.confirmed.contains(&row.nonce) {
                self.note_row(&row);
            }
        }
        Ok(next)
    }

    fn note_row(&mut self, row: &Row) {
        let open = row.participants.iter().filter(|(id, _)| !self.is_forgotten(row.nonce, *id));
        if row.decision == Decision::Committed {
            // Whether it was delivered is unknown; most were, so it takes no shared entry from
            // running transactions.
            let open: Vec<(i32, u64)> = open.copied().collect();
            return self.ledger.add(row.nonce, row.xid.into_inner(), open);
        }
        // No backend runs it, so it is prepared here and waits for the application.
        for member in open {
            if let Some(participant) = self.participants.get(member.0) {
                let gid = participant.registered.gid(self.identity, row.nonce);
                pending::adopt(&gid, *member, row);
            }
        }
    }

    fn end_look(&mut self) {
        self.has_looked = true;
        pending::note_ended();
        let open: Vec<i32> = self.ledger.participants().collect();
        for id in open {
            self.has_work(id);
        }
        self.left_seen = None;
        self.note_handed_over();
        resolvers::report_look();
    }

    /// What was decided of what is listed. The table is read only for transactions that are neither
    /// known to be committed nor prepared here under the application's 'gxid'.
    pub(super) fn decisions<'a>(&self, listed: impl Iterator<Item = &'a Gid>) -> Result<Decisions> {
        let mut found = Decisions::new();
        let mut wanted = HashSet::new();
        for gid in listed {
            if let Some(xid) = self.ledger.xid(gid.nonce) {
                found.insert(gid.nonce, (Decision::Committed, TransactionId::from(xid)));
                continue;
            }
            let pending = entries::of(gid).filter(|e| e.status == Status::Prepared);
            match pending.map(|entry| (decisions::of(entry.xid), entry.xid)) {
                Some((Decision::Absent, _)) | None => {
                    wanted.insert(gid.nonce);
                }
                Some(known) => {
                    found.insert(gid.nonce, known);
                }
            }
        }
        if !wanted.is_empty() {
            found.extend(transaction::run(|| Ok(decisions::of_all(&wanted)))?);
        }
        Ok(found)
    }

    /// Something may be left on a participant: it is swept soon.
    pub(super) fn has_work(&mut self, id: i32) {
        self.participants.change(id, |participant| {
            participant.unsettled = true;
            participant.make_due();
        });
    }

    /// Has the participants swept on which backends have left something since the last time.
    pub(super) fn note_handed_over(&mut self) {
        let changes = entries::left_changes();
        if self.left_seen.replace(changes) == Some(changes) {
            return;
        }
        for mut entry in entries::left() {
            let Some(gid) = entry.gid() else { continue };
            if entry.participant != 0 && !self.participants.has(entry.participant) {
                entries::release(&gid);
                entry.participant = 0;
            }
            match entry.status {
                Status::Committing if self.confirmed.contains(&gid.nonce) => {
                    entries::end(&gid, Why::Gone);
                }
                Status::Committing => {
                    self.note_committed(&gid, &entry);
                    self.note_work(&entry);
                }
                Status::Aborting => self.note_work(&entry),
                // It waits for the application. Meanwhile this server must hold the fence there: a
                // physical copy of it that does not know the transaction would roll it back.
                Status::Prepared => self.guard(&entry),
                Status::Preparing => {}
            }
        }
    }

    /// The owner of a committed transaction has left it to the resolver. Its participants without
    /// an entry have confirmed.
    fn note_committed(&mut self, gid: &Gid, entry: &Entry) {
        if self.ledger.has(gid.nonce) {
            return;
        }
        let all = entries::of_transaction(entry.xid);
        let of_it = all.iter().filter(|e| e.nonce == entry.nonce && e.participant != 0);
        let open: Vec<(i32, u64)> = of_it
            .map(|e| (e.participant, e.remote_xid))
            .filter(|(id, _)| !self.is_forgotten(gid.nonce, *id))
            .collect();
        if !open.is_empty() {
            self.ledger.add(gid.nonce, entry.xid.into_inner(), open);
        }
    }

    fn note_work(&mut self, entry: &Entry) {
        for id in self.whose(entry) {
            self.has_work(id);
        }
    }

    /// The participants that an entry may be of.
    fn whose(&self, entry: &Entry) -> Vec<i32> {
        match entry.participant {
            0 => self.participants.with_mapping(entry.serverid, entry.userid),
            id => vec![id],
        }
    }

    /// Has the fence taken where an entry's transaction is prepared.
    fn guard(&mut self, entry: &Entry) {
        for id in self.whose(entry) {
            if self
                .participants
                .get(id)
                .is_some_and(|p| !self.participants.is_fenced(&p.registered))
            {
                self.participants.change(id, |participant| participant.make_due());
            }
        }
    }
}

/// The transactions that a backend settles.
fn owned_transactions() -> HashSet<Nonce> {
    entries::owned().iter().filter_map(|e| Nonce::new(e.nonce)).collect()
}
