//! What a run is like, drawn from its seed: plain data, printed as one line before anything
//! happens.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::random::Random;

/// Which sessions wait for the shards once a transaction is decided (`pg_fdw_xacts.commit_wait`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum CommitWait {
    /// All of them.
    On,
    /// None of them.
    Off,
    /// Every other one.
    Mixed,
}

/// A run, but for its faults.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// Where all of it comes from.
    pub seed: u64,
    /// Sessions that make transfers.
    pub customers: u64,
    /// Accounts at each place: with few of them everybody waits for everybody.
    pub accounts: u64,
    /// The largest amount.
    pub amount: u64,
    /// All servers have a `lock_timeout`. Without it, whoever waits for what nobody settles waits
    /// for ever.
    pub lock_timeout: bool,
    /// Transfers lock rows in any order. The deadlocks over several servers that come of it end by
    /// themselves, unless they may go through another coordinator or a shard's own foreign tables:
    /// then these sessions have a `statement_timeout`. Otherwise all lock them in the same order.
    pub disorder: bool,
    /// Who waits for the shards.
    pub commit_wait: CommitWait,
    /// How many sessions of a hundred do not wait for INSERTs (`pg_fdw_xacts.write_behind`).
    pub write_behind: u64,
    /// The transfers' isolation level.
    pub isolation: &'static str,
    /// How many transfers of a hundred are by PREPARE TRANSACTION and COMMIT PREPARED.
    pub explicit: u64,
    /// How many transfers of a hundred leave hundreds of rows, which go by COPY.
    pub slips: u64,
    /// The longest a transfer pauses before its COMMIT, in milliseconds.
    pub dawdling: u64,
    /// Sessions that run long statements on the shards.
    pub sleepers: u64,
    /// Tables, servers and mappings are changed beside the transfers.
    pub changes: bool,
    /// A second coordinator has tables of its own and uses the same shards.
    pub two_coordinators: bool,
    /// Shard 1 has tables that are foreign tables of shard 2.
    pub nested: bool,
    /// The coordinator has a synchronous standby, which comes and goes.
    pub standby: bool,
    /// `pg_fdw_xacts.commit_timeout`.
    pub commit_timeout: &'static str,
    /// `pg_fdw_xacts.resolver_interval`.
    pub resolver_interval: &'static str,
    /// `pg_fdw_xacts.resolver_retry_max`.
    pub resolver_retry_max: &'static str,
    /// In a rest, sessions do nothing at all: what they have not confirmed yet is then the
    /// resolver's.
    pub silent: bool,
    /// For how long there are faults before everything must be settled, in seconds.
    pub phase: u64,
    /// Each transfer has a label, by which one whose answer was lost is asked after
    /// (`pg_fdw_xacts_track`).
    pub labels: bool,
    /// Sessions that read what the transfers change.
    pub readers: u64,
    /// Their reads are consistent. Always so when drawn: without it they are wrong, and counted.
    pub consistent_reads: bool,
    /// So are the customers'.
    pub consistent_customers: bool,
    /// `pg_fdw_xacts.remote_isolation` of the customers, and of those who are recorded.
    pub remote_isolation: &'static str,
    /// Sessions whose transactions are recorded, for a check of their history. None when drawn.
    pub recorders: u64,
}

impl Plan {
    /// The plan of `seed`.
    pub fn draw(seed: u64) -> Self {
        let random = &mut Random::new(seed, 0);
        Self {
            seed,
            customers: random.choose(&[4, 6, 8, 12]),
            accounts: random.choose(&[2, 5, 20, 100]),
            amount: random.choose(&[1, 20, 1000]),
            lock_timeout: random.chance(25),
            disorder: random.chance(30),
            commit_wait: random.choose(&[CommitWait::On, CommitWait::Off, CommitWait::Mixed]),
            // Of a sequence of its own: what else a seed draws stays as it was.
            write_behind: Random::new(seed, 610).choose(&[0, 50, 100]),
            isolation: random.choose(&["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]),
            explicit: random.choose(&[0, 12, 50]),
            slips: Random::new(seed, 630).choose(&[0, 5, 20]),
            dawdling: random.choose(&[0, 20, 200]),
            sleepers: random.choose(&[0, 1, 3]),
            changes: random.chance(50),
            two_coordinators: random.chance(40),
            nested: random.chance(40),
            standby: random.chance(40),
            commit_timeout: random.choose(&["2s", "5s"]),
            resolver_interval: random.choose(&["1s", "5s"]),
            resolver_retry_max: random.choose(&["1s", "10s"]),
            silent: random.chance(50),
            phase: random.choose(&[5, 10]),
            labels: random.chance(50),
            readers: random.choose(&[1, 2, 3]),
            consistent_reads: true,
            consistent_customers: random.chance(30),
            remote_isolation: random.choose(&["match", "match", "repeatable read"]),
            recorders: 0,
        }
    }

    /// The plan of `seed` for a run in which most transactions are recorded.
    pub fn with_history(seed: u64) -> Self {
        let random = &mut Random::new(seed, 600);
        let recorders = random.choose(&[4, 6, 8]);
        Self { recorders, customers: 2, readers: 1, ..Self::draw(seed) }
    }

    /// Whether this one of the sessions waits for the shards at each COMMIT.
    pub(super) fn is_patient(&self, session: u64) -> bool {
        match self.commit_wait {
            CommitWait::On => true,
            CommitWait::Off => false,
            CommitWait::Mixed => (session / 2).is_multiple_of(2),
        }
    }

    /// Whether this one of the sessions does not wait for INSERTs.
    pub(super) fn writes_behind(&self, session: u64) -> bool {
        Random::new(self.seed, 620 + session).chance(self.write_behind)
    }

    /// Where the servers' logs, and a history, are kept if the run fails.
    pub(super) fn kept(&self) -> PathBuf {
        std::env::temp_dir().join(format!("torture-{}-{}", self.seed, std::process::id()))
    }

    /// How many coordinators there are.
    pub(super) fn coordinators(&self) -> usize {
        if self.two_coordinators { 2 } else { 1 }
    }

    /// Whether sessions may wait for each other in a circle that nobody sees as a whole.
    pub(super) fn has_blind_deadlocks(&self) -> bool {
        self.disorder && (self.two_coordinators || self.nested)
    }

    /// For how long there are faults before everything must be settled.
    pub(super) fn phase(&self) -> Duration {
        Duration::from_secs(self.phase)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plans() -> impl Iterator<Item = Plan> {
        (0..200).map(Plan::draw)
    }

    #[test]
    fn a_seed_has_one_plan() {
        assert!(plans().zip(plans()).all(|(one, other)| one == other));
        assert_ne!(Plan::draw(1), Plan { seed: 1, ..Plan::draw(2) });
    }

    #[test]
    fn most_shards_have_no_lock_timeout() {
        let share = plans().filter(|plan| !plan.lock_timeout).count();
        assert!((120..180).contains(&share), "{share} of 200");
    }

    #[test]
    fn whatever_can_be_drawn_is_drawn_with_and_without_the_rest() {
        let features: [fn(&Plan) -> bool; 11] = [
            |plan| plan.consistent_customers,
            |plan| plan.disorder,
            |plan| plan.sleepers > 0,
            |plan| plan.changes,
            |plan| plan.two_coordinators,
            |plan| plan.nested,
            |plan| plan.standby,
            |plan| plan.explicit > 0,
            |plan| plan.commit_wait == CommitWait::Off,
            |plan| plan.write_behind > 0,
            |plan| plan.slips > 0,
        ];
        for (number, feature) in features.iter().enumerate() {
            for other in &features[..number] {
                for expected in [(true, true), (true, false), (false, true), (false, false)] {
                    assert!(plans().any(|plan| (feature(&plan), other(&plan)) == expected));
                }
            }
        }
    }
}
