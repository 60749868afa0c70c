//! The decisions that are visible on the coordinator itself, by the local transaction's xid: for
//! readers of its own tables, whose snapshot is older than everything that is asked of a server.
//! So these are kept whether anybody reads or not.

/// A distributed transaction that has also written here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct LocalCommit {
    /// The database here.
    pub dbid: u32,
    /// The local transaction.
    pub xid: u64,
    /// The number of its decision.
    pub number: u64,
}

/// The last of them. Plain data: it lives in shared memory, where all bytes are 0 at first.
#[derive(Debug)]
#[repr(C)]
pub struct LocalCommits<const LENGTH: usize> {
    /// How many were ever added; the next one's place is this modulo the length.
    added: u64,
    /// The largest xid among those that were overwritten.
    lost_xid: u64,
    commits: [LocalCommit; LENGTH],
}

impl<const LENGTH: usize> Default for LocalCommits<LENGTH> {
    fn default() -> Self {
        let nothing = LocalCommit { dbid: 0, xid: 0, number: 0 };
        Self { added: 0, lost_xid: 0, commits: [nothing; LENGTH] }
    }
}

impl<const LENGTH: usize> LocalCommits<LENGTH> {
    /// A transaction gets its number.
    pub fn add(&mut self, commit: LocalCommit) {
        let place = &mut self.commits[(self.added % LENGTH as u64) as usize];
        self.lost_xid = self.lost_xid.max(place.xid);
        *place = commit;
        self.added += 1;
    }

    /// Those that a snapshot does not see, or that were decided since `at`. `xmax` is the
    /// snapshot's; `ended` are those that were in progress in it and have committed since,
    /// distributed or not. What still runs is no obstacle, however old it is. `None` if some of
    /// them have been overwritten.
    pub fn since(&self, dbid: u32, xmax: u64, ended: &[u64], at: u64) -> Option<Vec<LocalCommit>> {
        let kept = &self.commits[..self.added.min(LENGTH as u64) as usize];
        let oldest = (self.added > LENGTH as u64).then(|| {
            // The one that will be overwritten next: everything lost has a smaller number.
            self.commits[(self.added % LENGTH as u64) as usize].number
        });
        let may_be_lost =
            |xid: &u64| *xid <= self.lost_xid && !kept.iter().any(|commit| commit.xid == *xid);
        if self.lost_xid >= xmax && self.lost_xid != 0
            || ended.iter().any(may_be_lost)
            || oldest.is_some_and(|number| number > at + 1)
        {
            return None;
        }
        let matters = |commit: &&LocalCommit| {
            let is_unseen = commit.xid >= xmax || ended.contains(&commit.xid);
            commit.dbid == dbid && (is_unseen || commit.number > at)
        };
        Some(kept.iter().filter(matters).copied().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commits(list: &[(u64, u64)]) -> LocalCommits<3> {
        let mut commits = LocalCommits::default();
        for &(xid, number) in list {
            commits.add(LocalCommit { dbid: 1, xid, number });
        }
        commits
    }

    fn xids(found: Option<Vec<LocalCommit>>) -> Option<Vec<u64>> {
        found.map(|found| found.iter().map(|commit| commit.xid).collect())
    }

    #[test]
    fn what_a_snapshot_does_not_see_and_what_was_decided_since() {
        let commits = commits(&[(10, 1), (12, 2)]);
        assert_eq!(xids(commits.since(1, 11, &[], 2)), Some(vec![12]));
        assert_eq!(xids(commits.since(1, 20, &[10], 2)), Some(vec![10]));
        assert_eq!(xids(commits.since(1, 20, &[], 1)), Some(vec![12]));
        assert_eq!(xids(commits.since(1, 20, &[], 2)), Some(vec![]));
        assert_eq!(xids(commits.since(2, 0, &[], 0)), Some(vec![]), "another database");
    }

    #[test]
    fn what_was_lost_is_noticed() {
        let commits = commits(&[(10, 1), (12, 2), (11, 3), (13, 4), (14, 5)]);
        assert_eq!(xids(commits.since(1, 12, &[], 5)), None, "12 was overwritten");
        assert_eq!(xids(commits.since(1, 13, &[], 5)), Some(vec![13, 14]));
        assert_eq!(xids(commits.since(1, 13, &[11], 5)), Some(vec![13, 14, 11]));
        assert_eq!(xids(commits.since(1, 13, &[9], 5)), None, "it may have been one of them");
        assert_eq!(xids(commits.since(1, 20, &[], 2)), Some(vec![13, 14, 11]));
        assert_eq!(xids(commits.since(1, 20, &[], 1)), None, "number 2 was overwritten");
    }
}
