//! The advisory lock by which sessions of one coordinator know each other on a participant.

/// The advisory lock that each session holds in shared mode on the participant from before its
/// first PREPARE on: if no session holds it, no PREPARE can still arrive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SessionLock {
    /// Stands for the identity.
    pub key: i32,
    /// Stands for the start of the server.
    pub incarnation: i32,
}

/// Tells the key of the owner locks from that of the session locks.
const OWNER: i32 = 0x6f77_6e65;

impl SessionLock {
    /// The first key of the owner lock, which a session holds beside this one. Its second key is
    /// the process here that the session belongs to, so that the participant's `pg_locks` tells
    /// whose backend holds a lock there. It says so only of a process that also holds this lock.
    pub fn owner_key(self) -> i32 {
        self.key ^ OWNER
    }

    /// A query for the other sessions that hold a lock of this identity, each with its process and
    /// its incarnation.
    pub fn holders(self) -> String {
        format!(
            "SELECT pid, objid::int8 {} AND pid <> pg_catalog.pg_backend_pid()",
            self.held_locks()
        )
    }

    /// A query with a row for each session that holds a lock of this identity and of another
    /// incarnation.
    pub fn other_incarnations(self) -> String {
        format!("SELECT {} AND objid <> {}::oid", self.held_locks(), self.incarnation as u32)
    }

    fn held_locks(self) -> String {
        format!(
            "FROM pg_catalog.pg_locks \
             WHERE locktype = 'advisory' AND objsubid = 2 AND classid = {}::oid \
             AND database = (SELECT oid FROM pg_catalog.pg_database \
                             WHERE datname = pg_catalog.current_database())",
            self.key as u32
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn negative_keys_are_asked_for_as_the_catalog_shows_them() {
        let lock = SessionLock { key: -1, incarnation: i32::MIN };
        assert!(lock.holders().contains("classid = 4294967295::oid"));
        assert!(lock.other_incarnations().ends_with("objid <> 2147483648::oid"));
    }
}
