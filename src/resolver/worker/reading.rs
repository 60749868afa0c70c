//! What the resolver reads: what backends have left in shared memory, and its tables, a part in each round, so that
//! whoever asks something meanwhile is answered.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::{Worker, pending};
use crate::guc;
use crate::pg::error::Result;
use crate::pg::{syncrep, transaction};
use crate::protocol::gid::{Gid, Nonce};
use crate::protocol::verdict::Decision;
use crate::shared::entry::{Entry, Status};
use crate::shared::entry_change::Why;
use crate::shared::{entries, stats, workers};
use crate::store::decisions::{self, Row};
use crate::store::{identity, labels};

/// How much longer than `commit_timeout` an owner may take to settle before the resolver does.
const OWNER_GRACE: Duration = Duration::from_secs(10);

/// How often is looked for such owners: with the defaults, what they have left is settled within half a minute.
const REAP_INTERVAL: Duration = Duration::from_secs(5);

/// A table that is being read through; the number is the block where the next part begins.
pub(super) enum Reading {
    /// For what nobody has told.
    Look(u32),
    /// To delete decisions.
    Forget(u32, HashSet<Nonce>),
    /// To delete labels.
    Labels(u32),
    /// To delete what is left of labels.
    Traces(u32),
}

/// How often decisions whose time has come are deleted: that reads through the whole table, which grows with the delay.
fn forget_interval(delay: Duration) -> Duration {
    (delay / 10).clamp(Duration::from_secs(1), Duration::from_secs(30))
}

/// The same of labels.
fn expiry_interval(retention: Duration) -> Duration {
    (retention / 10).clamp(Duration::from_secs(1), Duration::from_secs(3600))
}

impl Worker {
    /// When there is something to read again.
    pub(super) fn next_reading(&self) -> Instant {
        if self.reading.is_some() {
            return Instant::now();
        }
        let next = self.next_look.min(self.next_expiry);
        match self.confirmed.front() {
            Some((since, _)) => next.min((*since + guc::forget_delay()).max(self.next_forget)),
            None => next,
        }
    }

    /// Reads the next part of what is being read, or begins what is due.
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
                        self.confirmed.drain(..nonces.len());
                        for nonce in nonces {
                            self.settled.remove(&nonce);
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
        let due = self.confirmed.iter().take_while(|(since, _)| *since + delay <= now);
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

    /// Looks through the decision table for what nobody has told, without answering anybody meanwhile: where somebody asks
    /// for it.
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

    /// What a look begins with; `false`: there is nothing to look at any more.
    fn begin_look(&mut self) -> Result<bool> {
        self.next_look = Instant::now() + guc::resolver_interval();
        if transaction::run(|| Ok(identity::known()))? != Some(self.identity) {
            // The extension has been dropped, and perhaps created again.
            workers::doubt_resolver();
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

    /// Takes over what owners have not settled in time, or could not: an idle session does not read what became of the
    /// commit that it did not wait for.
    pub(super) fn reap(&mut self) {
        let now = Instant::now();
        if now >= self.next_reap {
            self.next_reap = now + REAP_INTERVAL;
            entries::reap(guc::commit_timeout() + OWNER_GRACE);
        }
    }

    /// Notes what is in a part of the decision table and not known yet; returns where the next part begins.
    fn look_at_part(&mut self, first: u32) -> Result<Option<u32>> {
        let known = |nonce: &Nonce| self.settled.contains(nonce) || self.ledger.has(*nonce);
        let (rows, next) = transaction::run(|| Ok(decisions::part(first, known)))?;
        // Who has confirmed since is not left to be asked.
        self.note_confirmed();
        let owned = owned_transactions();
        for row in rows {
            for (id, _) in &row.participants {
                self.participants.note_id(*id);
            }
            if !owned.contains(&row.nonce) && !self.settled.contains(&row.nonce) {
                self.note_row(&row);
            }
        }
        Ok(next)
    }

    fn note_row(&mut self, row: &Row) {
        let open = row.participants.iter().filter(|(id, _)| !self.is_forgotten(row.nonce, *id));
        if row.decision == Decision::Committed {
            // Nobody knows yet whether they have heard. Most have: they are not shown, and take no entry that a running
            // transaction may need.
            let open: Vec<(i32, u64)> = open.copied().collect();
            return self.ledger.add(row.nonce, row.xid.into_inner(), open);
        }
        // Nobody owns it, so it is prepared here: it waits for the application.
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
        workers::report_look();
    }

    /// Something may be left on a participant: has it swept soon.
    pub(super) fn has_work(&mut self, id: i32) {
        self.participants.change(id, |participant| {
            participant.unswept = true;
            participant.make_due();
        });
    }

    /// Makes participants due that a backend has left something on, if any has since the last time.
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
                Status::Committing if self.settled.contains(&gid.nonce) => {
                    entries::end(&gid, Why::Gone);
                }
                Status::Committing => {
                    self.note_committed(&gid, &entry);
                    self.note_work(&entry);
                }
                Status::Aborting => self.note_work(&entry),
                // It waits for the application; the fence is kept meanwhile: a physical copy of this server, which knows
                // nothing of it, would roll it back.
                Status::Prepared => self.guard(&entry),
                Status::Preparing => {}
            }
        }
    }

    /// A committed transaction has been left by its owner. Of its participants those without an entry have confirmed.
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

    /// The participants on which an entry's transaction is.
    fn whose(&self, entry: &Entry) -> Vec<i32> {
        match entry.participant {
            0 => self.participants.with_mapping(entry.serverid, entry.userid),
            id => vec![id],
        }
    }

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

/// The transactions that a living backend looks after.
fn owned_transactions() -> HashSet<Nonce> {
    entries::owned().iter().filter_map(|e| Nonce::new(e.nonce)).collect()
}
