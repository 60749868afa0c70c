//! A lock as a server's `pg_locks` shows it.

/// What a lock is on, as far as that matters here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A transaction, for whose end its waiters wait.
    Transaction,
    /// A place in the queue for a row.
    Tuple,
    /// Anything else that may be held until a transaction or session ends.
    Lasting,
    /// What is released before its transaction ends, whoever waits for that: no deadlock can come
    /// of it alone.
    Brief,
}

impl Kind {
    /// By the name of `locktype`.
    pub fn named(locktype: &str) -> Self {
        match locktype {
            "transactionid" => Self::Transaction,
            "tuple" => Self::Tuple,
            "extend" | "page" | "spectoken" | "frozenid" => Self::Brief,
            _ => Self::Lasting,
        }
    }
}

/// A lock that is waited for, or one of a prepared transaction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lock {
    /// What it is on.
    pub kind: Kind,
    /// What it is on, in words: the same words for the same thing.
    pub target: String,
    /// Its mode, such as `ShareLock`.
    pub mode: String,
    /// The virtual transaction to which it belongs.
    pub transaction: String,
    /// When the wait for it began, by the server's clock.
    pub since: i64,
}

/// The words for a lock on a transaction, before its xid.
const TRANSACTION: &str = "transaction ";

/// The modes from the weakest to the strongest, each with those that it conflicts with, as bits.
const MODES: [(&str, u8); 8] = [
    ("AccessShareLock", 0b1000_0000),
    ("RowShareLock", 0b1100_0000),
    ("RowExclusiveLock", 0b1111_0000),
    ("ShareUpdateExclusiveLock", 0b1111_1000),
    ("ShareLock", 0b1110_1100),
    ("ShareRowExclusiveLock", 0b1111_1100),
    ("ExclusiveLock", 0b1111_1110),
    ("AccessExclusiveLock", 0b1111_1111),
];

/// Whether two modes conflict. A mode that is not known conflicts with all.
fn conflict(one: &str, other: &str) -> bool {
    let place = |mode: &str| MODES.iter().position(|(name, _)| *name == mode);
    match (place(one), place(other)) {
        (Some(one), Some(other)) => MODES[one].1 & (1 << other) != 0,
        _ => true,
    }
}

impl Lock {
    /// In words, as PostgreSQL's own detector tells it.
    pub fn describe(&self) -> String {
        format!("{} on {}", self.mode, self.target)
    }

    /// Whether `wait` has to wait for who holds it.
    pub(super) fn blocks(&self, wait: &Self) -> bool {
        self.target == wait.target && conflict(&self.mode, &wait.mode)
    }

    /// The transaction that it is on, if it is on one.
    pub(super) fn xid(&self) -> Option<u64> {
        self.target.strip_prefix(TRANSACTION)?.parse().ok()
    }
}

/// A lock's columns in `pg_locks`, as texts.
#[derive(Clone, Copy, Default, Debug)]
#[allow(missing_docs, reason = "named as PostgreSQL names them")]
pub struct Columns<'a> {
    pub locktype: &'a str,
    pub database: &'a str,
    pub relation: &'a str,
    pub page: &'a str,
    pub tuple: &'a str,
    pub virtualxid: &'a str,
    pub transactionid: &'a str,
    pub classid: &'a str,
    pub objid: &'a str,
    pub objsubid: &'a str,
}

/// What a lock is on, in PostgreSQL's words.
pub fn target(columns: Columns<'_>) -> String {
    let Columns { locktype, database, relation, page, tuple, .. } = columns;
    let Columns { virtualxid, transactionid, classid, objid, objsubid, .. } = columns;
    let of = format!("relation {relation} of database {database}");
    match locktype {
        "relation" => of,
        "extend" => format!("extension of {of}"),
        "page" => format!("page {page} of {of}"),
        "tuple" => format!("tuple ({page},{tuple}) of {of}"),
        "transactionid" => format!("{TRANSACTION}{transactionid}"),
        "virtualxid" => format!("virtual transaction {virtualxid}"),
        "object" => format!("object {objid} of class {classid} of database {database}"),
        "userlock" | "advisory" => {
            format!("{locktype} lock [{database},{classid},{objid},{objsubid}]")
        }
        _ => format!("{locktype} [{database},{relation},{classid},{objid},{objsubid}]"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conflicts_go_both_ways_and_are_those_of_the_manual() {
        for (n, (one, _)) in MODES.iter().enumerate() {
            for (m, (other, _)) in MODES.iter().enumerate() {
                assert_eq!(conflict(one, other), conflict(other, one), "{one}, {other}");
                assert!(m > n || conflict(MODES[7].0, other), "{other}");
            }
        }
        assert!(!conflict("ShareLock", "ShareLock"));
        assert!(!conflict("RowExclusiveLock", "RowExclusiveLock"));
        assert!(!conflict("ExclusiveLock", "AccessShareLock"));
        assert!(conflict("ShareUpdateExclusiveLock", "ShareUpdateExclusiveLock"));
        assert!(conflict("RowShareLock", "ExclusiveLock"));
        assert!(conflict("SIReadLock", "SIReadLock"));
    }

    #[test]
    fn a_lock_is_told_as_postgresql_tells_it() {
        let columns = Columns {
            locktype: "tuple",
            database: "5",
            relation: "16385",
            page: "0",
            tuple: "1",
            ..Columns::default()
        };
        assert_eq!(target(columns), "tuple (0,1) of relation 16385 of database 5");
        let columns =
            Columns { locktype: "transactionid", transactionid: "745", ..Columns::default() };
        assert_eq!(target(columns), "transaction 745");
    }
}
