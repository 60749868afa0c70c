//! Inserting and deleting rows of a table.

use std::ffi::CStr;
use std::ptr::null_mut;

use pgrx::pg_sys::{self, Datum, Oid};

use super::scanning::Part;
use super::{Row, See, Table};
use crate::pg::error::{Result, catch};
use crate::pg::raw;
use crate::store::trusted;

/// A bigint[] as a value to insert.
pub fn int8_array(numbers: &[i64]) -> Datum {
    let mut elements: Vec<Datum> = numbers.iter().map(|n| Datum::from(*n)).collect();
    // SAFETY: reads as many elements as there are, of a type passed by value.
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
    /// Inserts a row as [`insert`](Self::insert) does, and its first column into a unique index of
    /// that name.
    ///
    /// # Errors
    /// 23505 if there is such a row already; waits for the transaction that has inserted it to end.
    pub fn insert_unique(&self, values: &mut [Datum], index: &CStr) -> Result<()> {
        let unique = pg_sys::IndexUniqueCheck::UNIQUE_CHECK_YES;
        self.insert_into(trusted::unique_index(index, self.relation)?, values, unique)
    }

    /// Inserts a row as [`insert`](Self::insert) does, and its first column into an index of that
    /// name if there is one.
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
        // SAFETY: an index on the first column only; the tuple's place is set by its insertion.
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

    /// Inserts a row without NULLs. It is not logically decoded: subscribers have no such table.
    pub fn insert(&self, values: &mut [Datum]) {
        self.insert_tuple(values);
    }

    fn insert_tuple(&self, values: &mut [Datum]) -> pg_sys::HeapTuple {
        // Columns that somebody has added are NULL.
        let (given, all) = (values.len(), self.columns());
        assert!(given <= all);
        let mut values: Vec<Datum> = values.to_vec();
        values.resize(all, Datum::from(0));
        let mut nulls: Vec<bool> = (0..all).map(|column| column >= given).collect();
        // SAFETY: as many values as columns, of the columns' types, which were checked when the
        // table was opened. A value stored out of line needs a snapshot, and none is active in a
        // transaction callback.
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
                pg_sys::HEAP_INSERT_NO_LOGICAL as _,
                null_mut(),
            );
            pg_sys::UnregisterSnapshot(snapshot);
            tuple
        }
    }

    /// Deletes the committed rows that `which` picks; returns how many.
    pub fn delete(&self, which: impl FnMut(&Row) -> bool) -> usize {
        self.delete_of(None, which)
    }

    /// Deletes rows as [`delete`](Self::delete) does, in a part of the table that begins at a
    /// block; returns where the next part begins.
    pub fn delete_part(&self, first: u32, which: impl FnMut(&Row) -> bool) -> Option<u32> {
        let part = self.part(first)?;
        self.delete_of(Some(part), which);
        Some(part.first + part.blocks)
    }

    fn delete_of(&self, part: Option<Part>, mut which: impl FnMut(&Row) -> bool) -> usize {
        let mut deleted = 0;
        self.each(See::Committed, part, |relation, row| {
            if which(row) {
                // SAFETY: the scan holds the tuple's page; only the resolver deletes rows of our
                // tables.
                unsafe { pg_sys::simple_heap_delete(relation, &raw mut (*row.tuple).t_self) };
                deleted += 1;
            }
        });
        deleted
    }
}
