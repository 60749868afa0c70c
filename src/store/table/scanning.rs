//! Reading the rows of a table.

use std::ffi::{CStr, CString};
use std::ptr::null_mut;

use pgrx::pg_sys::{self, Datum, Oid};

use super::{Table, text};
use crate::pg::error::Result;
use crate::store::trusted;

/// Which rows a scan shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum See {
    /// Committed rows, and those of this transaction.
    Committed,
    /// Also rows that a transaction has inserted which still runs, or is prepared on this server.
    Dirty,
}

/// Bits of a row's header.
const FROZEN: u16 = pg_sys::HEAP_XMIN_FROZEN as u16;

/// How many blocks are scanned at once where others wait meanwhile: a few milliseconds.
const PART: u32 = 32;

#[derive(Clone, Copy)]
pub(super) struct Part {
    pub(super) first: u32,
    pub(super) blocks: u32,
}

/// The value of the first column by which a row is found.
pub enum Key<'a> {
    Text(&'a CStr),
    /// Of type bigint.
    Number(i64),
}

/// A row of a scan.
pub struct Row<'a> {
    values: &'a [Datum],
    nulls: &'a [bool],
    /// The transaction that inserted it.
    pub xid: pg_sys::TransactionId,
    /// VACUUM has found that to be long ago: the xid may be another transaction's by now.
    pub is_frozen: bool,
    /// That transaction still runs, or is prepared on this server.
    pub in_progress: bool,
    pub(super) tuple: pg_sys::HeapTuple,
}

impl Row<'_> {
    /// How many columns it has.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether a column is NULL.
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
        // SAFETY: the column is of type text, which was checked when the table was opened.
        unsafe {
            let text = pg_sys::text_to_cstring(self.values[column].cast_mut_ptr());
            let owned = CStr::from_ptr(text).to_owned();
            pg_sys::pfree(text.cast());
            owned
        }
    }

    /// An array of bigint without NULLs.
    pub fn int8_array(&self, column: usize) -> Vec<i64> {
        if self.nulls[column] {
            return Vec::new();
        }
        let (mut elements, mut count) = (null_mut(), 0);
        // SAFETY: the column is of type bigint[], which was checked when the table was opened; a
        // NULL element raises.
        unsafe {
            let stored = self.values[column].cast_mut_ptr();
            let array = pg_sys::pg_detoast_datum(stored);
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
            let values = (0..count as usize).map(|i| (*elements.add(i)).value() as i64).collect();
            // One query may read a million rows.
            if count > 0 {
                pg_sys::pfree(elements.cast());
            }
            if array != stored {
                pg_sys::pfree(array.cast());
            }
            values
        }
    }
}

impl Table {
    /// Calls `f` for every row that `see` lets through, in no particular order.
    pub fn scan(&self, see: See, mut f: impl FnMut(&Row)) {
        self.each(see, None, |_, row| f(row));
    }

    /// Calls `f` for the rows of a part of the table that begins at a block; returns where the next
    /// part begins. A row that is inserted meanwhile may be in none of the parts.
    pub fn scan_part(&self, see: See, first: u32, mut f: impl FnMut(&Row)) -> Option<u32> {
        let part = self.part(first)?;
        self.each(see, Some(part), |_, row| f(row));
        Some(part.first + part.blocks)
    }

    pub(super) fn part(&self, first: u32) -> Option<Part> {
        // SAFETY: the relation is open.
        let blocks = unsafe {
            let main = pg_sys::ForkNumber::MAIN_FORKNUM;
            pg_sys::RelationGetNumberOfBlocksInFork(self.relation, main)
        };
        (first < blocks).then(|| Part { first, blocks: PART.min(blocks - first) })
    }

    /// Calls `f` for every row that `see` lets through and whose first column is `key`. `index` is
    /// the name of an index on that column.
    ///
    /// # Errors
    /// 55000 if there is no such index.
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
        // SAFETY: the key and the snapshot outlive the scan. Without a snapshot, PostgreSQL takes
        // one that shows committed rows.
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

    /// Calls `f` for a tuple of a scan. `running` is the transaction that inserted it, if that has
    /// not ended.
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
            let header = &*(*tuple).t_data;
            let xid = header.t_choice.t_heap.t_xmin;
            let is_frozen = header.t_infomask & FROZEN == FROZEN;
            f(&Row { values, nulls, xid, is_frozen, in_progress, tuple });
        }
    }

    /// Calls `f` for every row of a part of the table, or of all of it.
    pub(super) fn each(
        &self,
        see: See,
        part: Option<Part>,
        mut f: impl FnMut(pg_sys::Relation, &Row),
    ) {
        let mut values = vec![Datum::from(0); self.columns()];
        let mut nulls = vec![false; self.columns()];
        // SAFETY: the snapshots outlive the scan. A dirty one needs no registration
        // (`InitDirtySnapshot` sets only the type), but reading values stored out of line needs a
        // registered one.
        unsafe {
            let mut dirty = dirty_snapshot();
            // Of a table that no system cache reads, this is a new one; and unlike the latest one
            // it can be taken while parallel workers run.
            let relid = (*self.relation).rd_id;
            let latest = pg_sys::RegisterSnapshot(pg_sys::GetCatalogSnapshot(relid));
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
