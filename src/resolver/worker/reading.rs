//! Reading the tables. The resolver reads a part of a table in each round, and answers backends in
//! between.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::{Worker, pending};
use crate::guc;
use crate::pg::error::Result;
use crate::pg::{heap, syncrep, transaction};
use crate::protocol::gid::Nonce;
use crate::protocol::ledger::has_much_room;
use crate::protocol::verdict::Decision;
use crate::shared::{entries, left, resolvers, stats};
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
        let now = Instant::now();
        let next = self.next_look(now).min(self.next_expiry(now));
        match self.to_delete.front() {
            Some((since, _)) => next.min((*since + guc::forget_delay()).max(self.next_forget)),
            None => next,
        }
    }

    // By the settings as they are now: they may have been made shorter meanwhile.
    fn next_look(&self, now: Instant) -> Instant {
        self.last_look.map_or(now, |last| last + guc::resolver_interval())
    }

    fn next_expiry(&self, now: Instant) -> Instant {
        self.last_expiry.map_or(now, |last| last + expiry_interval(guc::track_retention()))
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
                        self.give_back_room();
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

    /// Gives memory back after many decisions were deleted, as those of before a crash are.
    fn give_back_room(&mut self) {
        let left = self.to_delete.len();
        if has_much_room(left, self.to_delete.capacity()) {
            self.to_delete.shrink_to(2 * left);
            self.confirmed.shrink_to(2 * left);
            heap::trim();
        }
    }

    fn next_table(&mut self) -> Result<Option<Reading>> {
        let now = Instant::now();
        if now >= self.next_look(now) {
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
        if now >= self.next_expiry(now) {
            self.last_expiry = Some(now);
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
        self.last_look = Some(Instant::now());
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
        // One that is not on the list any more was given up, and has no entry.
        let all_listed = row.participants.iter().all(|(id, _)| self.participants.has(*id));
        let count = if all_listed { row.participants.len() } else { 0 };
        for member in open {
            if let Some(participant) = self.participants.get(member.0) {
                let gid = participant.registered.gid(self.identity, row.nonce);
                pending::adopt(&gid, &participant.registered, member.1, row, count);
            }
        }
    }

    fn end_look(&mut self) {
        self.has_looked = true;
        left::note_ended();
        let open: Vec<i32> = self.ledger.participants().collect();
        for id in open {
            self.has_work(id);
        }
        self.left_seen = None;
        self.note_handed_over();
        resolvers::report_look();
    }
}

/// The transactions that a backend settles.
fn owned_transactions() -> HashSet<Nonce> {
    entries::owned().iter().filter_map(|e| Nonce::new(e.nonce)).collect()
}
