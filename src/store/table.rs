//! Reading and writing our tables below SQL: no privileges, row security, `search_path`, triggers or READ ONLY
//! mode come between, and no planning happens inside a transaction callback (postgres_fdw would open a
//! connection there and raise after the decision).

use std::ffi::{CStr, CString};
use std::ptr::null_mut;
use std::time::{Duration, Instant};

use pgrx::pg_sys::{self, Datum, Oid};

use crate::pg::error::{Error, Result, SqlState, catch, check_for_interrupts};
use crate::pg::wait_event::WaitEvent;
use crate::pg::{latch, raw, versions};
use crate::store::trusted;

/// How often it is looked whether a lock is free.
const LOOK: Duration = Duration::from_millis(10);

/// One of our tables, open and locked until the transaction ends.
pub struct Table {
    relation: pg_sys::Relation,
}

/// Which rows a scan sees.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum See {
    /// Committed ones, and those of this transaction.
    Committed,
    /// Also those that a running or locally prepared transaction inserted.
    Dirty,
}

/// Blocks of a table that are scanned at once where others wait meanwhile: a few milliseconds.
const PART: u32 = 32;

#[derive(Clone, Copy)]
struct Part {
    first: u32,
    blocks: u32,
}

/// What a row is looked for by.
pub enum Key<'a> {
    /// A text.
    Text(&'a CStr),
    /// A bigint.
    Number(i64),
}

/// A row of a scan.
pub struct Row<'a> {
    values: &'a [Datum],
    nulls: &'a [bool],
    /// The transaction that inserted it.
    pub xid: pg_sys::TransactionId,
    /// That transaction still runs or is prepared.
    pub in_progress: bool,
    tuple: pg_sys::HeapTuple,
}

impl Row<'_> {
    /// How many columns it has.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether nothing is there.
    pub fn is_null(&self, column: usize) -> bool {
        self.nulls[column]
    }

    /// A bigint.
    pub fn int8(&self, column: usize) -> i64 {
        self.values[column].value() as i64
    }

    /// An integer.
    pub fn int4(&self, column: usize) -> i32 {
        self.values[column].value() as i32
    }

    /// A boolean.
    pub fn boolean(&self, column: usize) -> bool {
        self.values[column].value() != 0
    }

    /// An OID.
    pub fn oid(&self, column: usize) -> Oid {
        Oid::from_u32(self.values[column].value() as u32)
    }

    /// A text, in the server's encoding.
    pub fn text(&self, column: usize) -> CString {
        if self.nulls[column] {
            return CString::default();
        }
        // SAFETY: the column is of type text, which was checked.
        unsafe {
            let text = pg_sys::text_to_cstring(self.values[column].cast_mut_ptr());
            CStr::from_ptr(text).to_owned()
        }
    }

    /// An array of bigint without NULLs.
    pub fn int8_array(&self, column: usize) -> Vec<i64> {
        if self.nulls[column] {
            return Vec::new();
        }
        let (mut elements, mut count) = (null_mut(), 0);
        // SAFETY: the column is of type bigint[], which was checked; a NULL element raises.
        unsafe {
            let array = pg_sys::pg_detoast_datum(self.values[column].cast_mut_ptr());
            pg_sys::deconstruct_array(
                array.cast(),
                pg_sys::INT8OID,
                8,
                true,
                pg_sys::TYPALIGN_DOUBLE as i8,
                &mut elements,
                null_mut(),
                &mut count,
            );
            (0..count as usize).map(|i| (*elements.add(i)).value() as i64).collect()
        }
    }
}

/// An array of bigint as a value to insert.
pub fn int8_array(numbers: &[i64]) -> Datum {
    let mut elements: Vec<Datum> = numbers.iter().map(|n| Datum::from(*n)).collect();
    // SAFETY: as many elements as told, of a type passed by value.
    unsafe {
        Datum::from(pg_sys::construct_array(
            elements.as_mut_ptr(),
            elements.len() as i32,
            pg_sys::INT8OID,
            8,
            true,
            pg_sys::TYPALIGN_DOUBLE as i8,
        ))
    }
}

/// A text, in the server's encoding, as a value to insert.
pub fn text(text: &CStr) -> Datum {
    // SAFETY: the bytes are copied.
    unsafe { Datum::from(pg_sys::cstring_to_text(text.as_ptr())) }
}

impl Table {
    /// Opens a table of the extension with a lock; `None` where the extension does not exist.
    ///
    /// Raises where the extension exists and the table is not as it made it: then nothing can be said of its rows.
    pub fn open_if_exists(name: &CStr, lock: u32) -> Option<Self> {
        let oid = trusted::oid(name).unwrap_or_else(|error| error.raise_in_pgrx())?;
        // SAFETY: the OID was found just now and opening it locks it.
        let relation = unsafe { pg_sys::try_table_open(oid, lock as i32) };
        let table = (!relation.is_null()).then_some(Self { relation })?;
        // SAFETY: open.
        let checked = unsafe { trusted::check_columns(name, relation) };
        checked.unwrap_or_else(|error| error.raise_in_pgrx());
        Some(table)
    }

    /// The OID of a table of the extension; `None` where the extension does not exist. Raises as
    /// [`open_if_exists`](Self::open_if_exists) does.
    pub fn oid(name: &CStr) -> Option<Oid> {
        trusted::oid(name).unwrap_or_else(|error| error.raise_in_pgrx())
    }

    /// Opens a table of the extension with a lock.
    ///
    /// # Errors
    /// 55000 where the extension has not been created, or has been tampered with.
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

    /// Opens a table of the extension as [`open`](Self::open) does, with a lock that is there by `deadline`.
    ///
    /// # Errors
    /// Those of [`open`](Self::open), and 55P03 where others keep the lock away.
    pub fn open_by(name: &CStr, lock: u32, deadline: Instant) -> Result<Self> {
        while let Some(oid) = trusted::oid(name)? {
            // SAFETY: the OID of a table; a lock that is not there is not waited for in the queue.
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
            latch::wait(LOOK, WaitEvent::Prepare);
        }
        Self::open(name, lock)
    }

    /// Closes it and gives the lock back that [`open_by`](Self::open_by) has taken, as PostgreSQL does with its catalogs: what
    /// the transaction has written stays, and who rewrites the table meanwhile (VACUUM FULL) does not wait for its end.
    pub fn release(self, lock: u32) {
        // SAFETY: open, with that lock.
        unsafe {
            let oid = (*self.relation).rd_id;
            drop(self);
            pg_sys::UnlockRelationOid(oid, lock as i32);
        }
    }

    /// Whether it has a column of that type there: one that an upgrade adds.
    pub fn has_column(&self, column: usize, of: Oid) -> bool {
        // SAFETY: an open relation has a descriptor, of which no more is read than there is.
        self.columns() > column
            && unsafe { (*versions::TupleDescAttr((*self.relation).rd_att, column)).atttypid == of }
    }

    fn columns(&self) -> usize {
        // SAFETY: an open relation has a descriptor.
        unsafe { (*(*self.relation).rd_att).natts as usize }
    }

    /// Inserts a row without NULLs, as [`insert`](Self::insert), and its first column into a unique index of that
    /// name.
    ///
    /// # Errors
    /// 23505 from PostgreSQL, once no running transaction can undo the row that is in the way.
    pub fn insert_unique(&self, values: &mut [Datum], index: &CStr) -> Result<()> {
        let unique = pg_sys::IndexUniqueCheck::UNIQUE_CHECK_YES;
        self.insert_into(trusted::unique_index(index, self.relation)?, values, unique)
    }

    /// The same where the index is not unique, and need not be there.
    ///
    /// # Errors
    /// Those of PostgreSQL.
    pub fn insert_indexed(&self, values: &mut [Datum], index: &CStr) -> Result<()> {
        match trusted::index(index, self.relation) {
            Ok(index) => self.insert_into(index, values, pg_sys::IndexUniqueCheck::UNIQUE_CHECK_NO),
            Err(_) => {
                self.insert(values);
                Ok(())
            }
        }
    }

    fn insert_into(
        &self,
        index: Oid,
        values: &mut [Datum],
        check: pg_sys::IndexUniqueCheck::Type,
    ) -> Result<()> {
        let relation = self.relation;
        let key = values.as_mut_ptr();
        let tuple = self.insert_tuple(values);
        // SAFETY: an index on the first column alone; the tuple has just got its place.
        unsafe {
            let index = pg_sys::index_open(index, pg_sys::RowExclusiveLock as i32);
            let info = pg_sys::BuildIndexInfo(index);
            let mut null = false;
            let null = &raw mut null;
            catch(|| {
                raw::index_insert(
                    index,
                    key,
                    null,
                    &raw mut (*tuple).t_self,
                    relation,
                    check,
                    false,
                    info,
                )
            })?;
            pg_sys::index_close(index, pg_sys::NoLock as i32);
        }
        Ok(())
    }

    /// Inserts a row without NULLs, outside of logical decoding: subscribers have no such table.
    pub fn insert(&self, values: &mut [Datum]) {
        self.insert_tuple(values);
    }

    fn insert_tuple(&self, values: &mut [Datum]) -> pg_sys::HeapTuple {
        // Columns that somebody has added stay empty.
        let (given, all) = (values.len(), self.columns());
        assert!(given <= all);
        let mut values: Vec<Datum> = values.to_vec();
        values.resize(all, Datum::from(0));
        let mut nulls: Vec<bool> = (0..all).map(|column| column >= given).collect();
        // SAFETY: as many values as columns, of the columns' types, which were checked. A value stored
        // out of line needs a snapshot, and none is active in a transaction callback.
        unsafe {
            let snapshot = pg_sys::RegisterSnapshot(pg_sys::GetLatestSnapshot());
            let tuple = pg_sys::heap_form_tuple(
                (*self.relation).rd_att,
                values.as_mut_ptr(),
                nulls.as_mut_ptr(),
            );
            pg_sys::heap_insert(
                self.relation,
                tuple,
                pg_sys::GetCurrentCommandId(true),
                pg_sys::HEAP_INSERT_NO_LOGICAL as i32,
                null_mut(),
            );
            pg_sys::UnregisterSnapshot(snapshot);
            tuple
        }
    }

    /// Shows every row that `see` lets through, in no order.
    pub fn scan(&self, see: See, mut f: impl FnMut(&Row)) {
        self.each(see, None, |_, row| f(row));
    }

    /// Shows the rows of a part of the table that begins at a block; returns where the next part begins. What is
    /// inserted meanwhile may be in none of them.
    pub fn scan_part(&self, see: See, first: u32, mut f: impl FnMut(&Row)) -> Option<u32> {
        let part = self.part(first)?;
        self.each(see, Some(part), |_, row| f(row));
        Some(part.first + part.blocks)
    }

    fn part(&self, first: u32) -> Option<Part> {
        // SAFETY: the relation is open.
        let blocks = unsafe {
            let main = pg_sys::ForkNumber::MAIN_FORKNUM;
            pg_sys::RelationGetNumberOfBlocksInFork(self.relation, main)
        };
        (first < blocks).then(|| Part { first, blocks: PART.min(blocks - first) })
    }

    /// Shows every row that `see` lets through whose first column, which has an index of that name, is `key`.
    ///
    /// # Errors
    /// The index is missing.
    pub fn find(
        &self,
        index: &CStr,
        see: See,
        key: &Key<'_>,
        mut f: impl FnMut(&Row),
    ) -> Result<()> {
        let index = trusted::index(index, self.relation)?;
        let mut values = vec![Datum::from(0); self.columns()];
        let mut nulls = vec![false; self.columns()];
        let (equal, value) = match key {
            Key::Text(key) => (pg_sys::F_TEXTEQ, text(key)),
            Key::Number(key) => (pg_sys::F_INT8EQ, Datum::from(*key)),
        };
        // SAFETY: the key and the snapshot outlive the scan. Without a snapshot it is one of what is committed.
        unsafe {
            let mut dirty = dirty_snapshot();
            let snapshot = match see {
                See::Dirty => &raw mut dirty,
                See::Committed => null_mut(),
            };
            let mut condition = pg_sys::ScanKeyData::default();
            pg_sys::ScanKeyInit(
                &mut condition,
                1,
                pg_sys::BTEqualStrategyNumber as u16,
                equal.into(),
                value,
            );
            let scan =
                pg_sys::systable_beginscan(self.relation, index, true, snapshot, 1, &mut condition);
            loop {
                let tuple = pg_sys::systable_getnext(scan);
                if tuple.is_null() {
                    break;
                }
                self.show(tuple, &mut values, &mut nulls, dirty.xmin, &mut |row| f(row));
            }
            pg_sys::systable_endscan(scan);
        }
        Ok(())
    }

    /// Takes a tuple of a scan apart. `running` is its transaction, where that has not ended.
    ///
    /// # Safety
    /// A tuple of this table, held by its scan; as many values and nulls as columns.
    unsafe fn show(
        &self,
        tuple: pg_sys::HeapTuple,
        values: &mut [Datum],
        nulls: &mut [bool],
        running: pg_sys::TransactionId,
        f: &mut dyn FnMut(&Row),
    ) {
        // SAFETY: by contract.
        unsafe {
            pg_sys::heap_deform_tuple(
                tuple,
                (*self.relation).rd_att,
                values.as_mut_ptr(),
                nulls.as_mut_ptr(),
            );
            let in_progress = running != pg_sys::InvalidTransactionId;
            let xid = (*(*tuple).t_data).t_choice.t_heap.t_xmin;
            f(&Row { values, nulls, xid, in_progress, tuple });
        }
    }

    /// Deletes the rows that `which` picks among the committed ones.
    pub fn delete(&self, which: impl FnMut(&Row) -> bool) -> usize {
        self.delete_of(None, which)
    }

    /// The same in a part of the table that begins at a block; returns where the next part begins.
    pub fn delete_part(&self, first: u32, which: impl FnMut(&Row) -> bool) -> Option<u32> {
        let part = self.part(first)?;
        self.delete_of(Some(part), which);
        Some(part.first + part.blocks)
    }

    fn delete_of(&self, part: Option<Part>, mut which: impl FnMut(&Row) -> bool) -> usize {
        let mut deleted = 0;
        self.each(See::Committed, part, |relation, row| {
            if which(row) {
                // SAFETY: the scan holds the tuple's page; nobody else deletes or updates rows here.
                unsafe { pg_sys::simple_heap_delete(relation, &raw mut (*row.tuple).t_self) };
                deleted += 1;
            }
        });
        deleted
    }

    fn each(&self, see: See, part: Option<Part>, mut f: impl FnMut(pg_sys::Relation, &Row)) {
        let mut values = vec![Datum::from(0); self.columns()];
        let mut nulls = vec![false; self.columns()];
        // SAFETY: the snapshots outlive the scan. A dirty one needs no registration (`InitDirtySnapshot` sets
        // the type alone), but values stored out of line are read through one that has it.
        unsafe {
            let mut dirty = dirty_snapshot();
            let latest = pg_sys::RegisterSnapshot(pg_sys::GetLatestSnapshot());
            let snapshot = match see {
                See::Dirty => &raw mut dirty,
                See::Committed => latest,
            };
            let flags = pg_sys::ScanOptions::SO_TYPE_SEQSCAN
                | pg_sys::ScanOptions::SO_ALLOW_STRAT
                | pg_sys::ScanOptions::SO_ALLOW_PAGEMODE;
            let scan =
                pg_sys::heap_beginscan(self.relation, snapshot, 0, null_mut(), null_mut(), flags);
            if let Some(Part { first, blocks }) = part {
                pg_sys::heap_setscanlimits(scan, first, blocks);
            }
            loop {
                let tuple = pg_sys::heap_getnext(scan, pg_sys::ScanDirection::ForwardScanDirection);
                if tuple.is_null() {
                    break;
                }
                let running = match see {
                    See::Dirty => dirty.xmin,
                    See::Committed => pg_sys::InvalidTransactionId,
                };
                self.show(tuple, &mut values, &mut nulls, running, &mut |row| {
                    f(self.relation, row);
                });
            }
            pg_sys::heap_endscan(scan);
            pg_sys::UnregisterSnapshot(latest);
        }
    }
}

/// A snapshot that also shows what running transactions have inserted (`InitDirtySnapshot`).
fn dirty_snapshot() -> pg_sys::SnapshotData {
    pg_sys::SnapshotData {
        snapshot_type: pg_sys::SnapshotType::SNAPSHOT_DIRTY,
        ..Default::default()
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        // A panic carries an ERROR on its way to PostgreSQL, whose abort closes the relation.
        if !std::thread::panicking() {
            // SAFETY: open; the lock stays until the transaction ends.
            unsafe { pg_sys::table_close(self.relation, pg_sys::NoLock as i32) };
        }
    }
}
