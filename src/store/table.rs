//! The extension's tables, read and written below SQL: no privileges, row security, `search_path`,
//! triggers or READ ONLY mode come between, and nothing is planned inside a transaction callback.
//! (Planning would let postgres_fdw open a connection there, and raise after the decision.)
//!
//! * this file: opening a table, and checking that it is the extension's;
//! * [`scanning`]: reading its rows;
//! * [`writing`]: inserting and deleting rows.

use std::ffi::CStr;
use std::time::{Duration, Instant};

use pgrx::pg_sys::{self, Oid};

use crate::pg::error::{Error, Result, SqlState, check_for_interrupts};
use crate::pg::wait_event::WaitEvent;
use crate::pg::{latch, versions};
use crate::store::trusted;

mod scanning;
mod writing;

pub use scanning::{Key, Row, See};
pub use writing::{int8_array, text};

/// How often a lock that others hold is tried again.
const RETRY_LOCK: Duration = Duration::from_millis(10);

/// One of our tables, open and locked until the transaction ends.
pub struct Table {
    relation: pg_sys::Relation,
}

impl Table {
    /// Opens a table of the extension with a lock; `None` if the extension does not exist.
    ///
    /// Raises if the extension exists and the table is not as the extension made it: then its rows
    /// cannot be trusted.
    pub fn open_if_exists(name: &CStr, lock: u32) -> Option<Self> {
        let oid = trusted::oid(name).unwrap_or_else(|error| error.raise_in_pgrx())?;
        // SAFETY: the OID was found just now and opening it locks it.
        let relation = unsafe { pg_sys::try_table_open(oid, lock as i32) };
        // Not `then_some`: what that drops would be closed.
        let table = (!relation.is_null()).then(|| Self { relation })?;
        // SAFETY: open.
        let checked = unsafe { trusted::check_columns(name, relation) };
        checked.unwrap_or_else(|error| error.raise_in_pgrx());
        Some(table)
    }

    /// The OID of a table of the extension; `None` if the extension does not exist. Raises as
    /// [`open_if_exists`](Self::open_if_exists) does.
    pub fn oid(name: &CStr) -> Option<Oid> {
        trusted::oid(name).unwrap_or_else(|error| error.raise_in_pgrx())
    }

    /// Opens a table of the extension with a lock.
    ///
    /// # Errors
    /// 55000 if the extension has not been created, or its tables have been tampered with.
    pub fn open(name: &CStr, lock: u32) -> Result<Self> {
        trusted::oid(name)?;
        Self::open_if_exists(name, lock).ok_or_else(|| {
            Error::new(
                SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
                "extension pg_fdw_xacts does not exist in this database",
            )
            .hint("Run CREATE EXTENSION pg_fdw_xacts.")
        })
    }

    /// Opens a table of the extension as [`open`](Self::open) does, and waits for the lock until
    /// `deadline`.
    ///
    /// # Errors
    /// Those of [`open`](Self::open), and 55P03 if the lock is not free by then.
    pub fn open_by(name: &CStr, lock: u32, deadline: Instant) -> Result<Self> {
        while let Some(oid) = trusted::oid(name)? {
            // SAFETY: the OID of a table. The lock is not queued for: the deadline has to be kept.
            if unsafe { pg_sys::ConditionalLockRelationOid(oid, lock as i32) } {
                return Self::open(name, pg_sys::NoLock);
            }
            check_for_interrupts()?;
            if Instant::now() >= deadline {
                let name = name.to_string_lossy();
                return Err(Error::new(
                    SqlState::new(b"55P03"),
                    format!("could not lock table \"fdw_xacts.{name}\""),
                )
                .detail("Somebody has locked it, as LOCK TABLE or VACUUM FULL do, or waits for such a lock.")
                .hint("The limit is \"pg_fdw_xacts.prepare_timeout\"."));
            }
            latch::wait(RETRY_LOCK, WaitEvent::Prepare);
        }
        Self::open(name, lock)
    }

    /// Closes the table and releases the lock that [`open_by`](Self::open_by) took, as PostgreSQL
    /// does with its catalogs. What the transaction has written stays, and a command that rewrites
    /// the table (VACUUM FULL) does not have to wait for the transaction to end.
    pub fn release(self, lock: u32) {
        // SAFETY: open, with that lock.
        unsafe {
            let oid = (*self.relation).rd_id;
            drop(self);
            pg_sys::UnlockRelationOid(oid, lock as i32);
        }
    }

    /// Whether it has a column of that type in that place, which an upgrade of the extension adds.
    pub fn has_column(&self, column: usize, of: Oid) -> bool {
        // SAFETY: an open relation has a descriptor, of which no more is read than there is.
        self.columns() > column
            && unsafe { (*versions::TupleDescAttr((*self.relation).rd_att, column)).atttypid == of }
    }

    fn columns(&self) -> usize {
        // SAFETY: an open relation has a descriptor.
        unsafe { (*(*self.relation).rd_att).natts as usize }
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        // A panic carries an ERROR to PostgreSQL, which closes the relation when it aborts.
        if !std::thread::panicking() {
            // SAFETY: open; the lock stays until the transaction ends.
            unsafe { pg_sys::table_close(self.relation, pg_sys::NoLock as i32) };
        }
    }
}
