//! Where a foreign server leads: xids of one place can be compared with its snapshots, and with
//! those of no other.
//!
//! Two foreign servers, or two user mappings, may lead to one place. Copies of one cluster have the
//! same system identifier and the same database names; only their servers' start times tell them
//! apart.

use std::hash::{DefaultHasher, Hash, Hasher};

/// A database of a server, as one foreign server leads there.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[repr(C)]
pub struct Place {
    /// The foreign server's OID.
    server: u32,
    /// System identifier and database name; 0 where they are not known.
    cluster: u64,
    /// The same with the server's start time; 0 where that is not known.
    instance: u64,
}

impl Place {
    /// Where a foreign server leads to a database of a cluster, whose server was started at
    /// `started`, in microseconds since 1970.
    pub fn new(server: u32, cluster: &impl Hash, started: Option<i64>) -> Self {
        let number = |started: Option<i64>| {
            let mut hasher = DefaultHasher::new();
            cluster.hash(&mut hasher);
            started.hash(&mut hasher);
            hasher.finish().max(1)
        };
        let instance = started.map_or(0, |started| number(Some(started)));
        Self { server, cluster: number(None), instance }
    }

    /// Whether xids of one can be compared with snapshots of the other. A foreign server leads to
    /// the same cluster after that was restarted.
    pub fn is_same(&self, other: &Self) -> bool {
        let has_started = |at: &Self| at.instance != 0;
        if has_started(self) && self.instance == other.instance {
            return true;
        }
        // What is not known is not taken for another cluster: a row too many only costs time.
        self.cluster != 0
            && self.cluster == other.cluster
            && (self.server == other.server || !has_started(self) || !has_started(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: (u64, &str) = (7, "db");

    #[test]
    fn two_servers_may_lead_to_one_place() {
        let (a, b) = (Place::new(1, &CLUSTER, Some(7)), Place::new(2, &CLUSTER, Some(7)));
        assert!(a.is_same(&b) && b.is_same(&a));
    }

    #[test]
    fn copies_of_a_cluster_are_two_places() {
        let (a, b) = (Place::new(1, &CLUSTER, Some(7)), Place::new(2, &CLUSTER, Some(8)));
        assert!(!a.is_same(&b));
        assert!(!a.is_same(&Place::new(1, &(7, "other"), Some(7))));
    }

    #[test]
    fn a_server_stays_where_it_is_when_it_is_restarted() {
        let (a, b) = (Place::new(1, &CLUSTER, Some(7)), Place::new(1, &CLUSTER, Some(8)));
        assert!(a.is_same(&b));
        // Recorded before this server's start.
        assert!(a.is_same(&Place::new(2, &CLUSTER, None)));
        assert!(!a.is_same(&Place::default()) && !Place::default().is_same(&Place::default()));
    }
}
