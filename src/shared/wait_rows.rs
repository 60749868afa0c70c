//! What the resolvers have last seen of who waits for whom, for the view `pg_fdw_xacts_waits`.

use pgrx::pg_sys::Oid;

use crate::pg::globals::my_database;
use crate::shared::shmem;

/// How many rows there are, for all databases. What has no place is not shown.
pub const ROWS: usize = 512;

/// The longest text of a lock, with the NUL that ends it.
const TEXT_LEN: usize = 128;

/// One wait for one blocker.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The database.
    pub dbid: Oid,
    /// The number of the session's wait; 0 where it has published none.
    pub number: u64,
    /// The process here that waits; 0: of no session of this database.
    pub pid: i32,
    /// The foreign server on which the lock is; invalid: this server.
    pub serverid: Oid,
    /// The process there that waits.
    pub process: i32,
    /// When the wait for the lock began, in PostgreSQL's microseconds.
    pub since: i64,
    /// The process here that blocks it; 0: of no session of this database.
    pub blocked_by: i32,
    /// The process there that blocks it; 0: a prepared transaction.
    pub blocker: i32,
    /// The lock in words, in ASCII, ended by a NUL.
    pub lock: [u8; TEXT_LEN],
}

impl Row {
    /// A row without its lock.
    pub const EMPTY: Self = Self {
        dbid: Oid::INVALID,
        number: 0,
        pid: 0,
        serverid: Oid::INVALID,
        process: 0,
        since: 0,
        blocked_by: 0,
        blocker: 0,
        lock: [0; TEXT_LEN],
    };

    /// The same row with this lock.
    pub fn with_lock(mut self, lock: &str) -> Self {
        let len = lock.len().min(TEXT_LEN - 1);
        self.lock[..len].copy_from_slice(&lock.as_bytes()[..len]);
        self
    }

    /// The lock, in words.
    pub fn lock(&self) -> String {
        let end = self.lock.iter().position(|byte| *byte == 0).unwrap_or(TEXT_LEN);
        String::from_utf8_lossy(&self.lock[..end]).into_owned()
    }
}

/// Replaces what is shown of this database.
pub fn show(rows: &[Row]) {
    let dbid = my_database();
    shmem::write(|m| {
        let used = &mut m.shared.wait_rows;
        let mut n = 0;
        while n < *used {
            if m.wait_rows[n].dbid == dbid {
                *used -= 1;
                m.wait_rows[n] = m.wait_rows[*used];
            } else {
                n += 1;
            }
        }
        for row in rows.iter().take(ROWS - *used) {
            m.wait_rows[*used] = Row { dbid, ..*row };
            *used += 1;
        }
    });
}

/// What is shown of this database.
pub fn shown() -> Vec<Row> {
    let dbid = my_database();
    shmem::read(|m| {
        let rows = &m.wait_rows[..m.shared.wait_rows];
        rows.iter().filter(|row| row.dbid == dbid).copied().collect()
    })
}
