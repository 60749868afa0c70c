//! What a modification sets on the foreign table, and how it finds its row.

use std::ffi::{CStr, c_int};

use pgrx::pg_sys::{self, Oid, Plan};

use crate::fdw::batch::Slot;
use crate::pg::error::{Error, Result, SqlState};
use crate::pg::node;

/// The column of the plan's rows that is `ctid`.
///
/// # Safety
/// A valid plan.
///
/// # Errors
/// There is none.
pub unsafe fn row_identifier(source: *const Plan) -> Result<i16> {
    // SAFETY: a valid plan.
    let found = unsafe {
        pg_sys::ExecFindJunkAttributeInTlist((*source).targetlist, c"ctid".as_ptr().cast_mut())
    };
    if found > 0 {
        Ok(found)
    } else {
        Err(Error::new(SqlState::INTERNAL_ERROR, "could not find junk ctid column"))
    }
}

/// More than one row had the `ctid`. They have been changed, so the error has to undo that.
pub fn ambiguous(server: &CStr, rows: usize) -> Error {
    Error::new(
        SqlState::FDW_ERROR,
        [b"server \"", server.to_bytes(), format!("\" has changed {rows} rows instead of one").as_bytes()]
            .concat(),
    )
    .detail("The rows are identified by ctid, which is not unique in a table with partitions or children.")
    .hint("Use a statement that the server can execute as a whole, or foreign tables for the partitions themselves.")
}

/// The target columns with their types, and what stands for them in VALUES.
///
/// # Safety
/// An open relation.
///
/// # Errors
/// The table does not have such a column.
pub unsafe fn columns(
    relation: pg_sys::Relation,
    numbers: &[c_int],
) -> Result<Vec<(i16, Oid, Slot)>> {
    // SAFETY: an open relation.
    let descriptor = unsafe { (*relation).rd_att };
    numbers
        .iter()
        .map(|&number| {
            // SAFETY: as above; the number is inside the descriptor.
            let attribute = unsafe {
                if number < 1 || number > (*descriptor).natts {
                    return Err(Error::new(
                        SqlState::FDW_ERROR,
                        "the plan of a foreign modification sets a column that the table does not have",
                    ));
                }
                &*node::attribute(descriptor, number as usize - 1)
            };
            let slot = if attribute.attgenerated == 0 { Slot::Parameter } else { Slot::Default };
            Ok((number as i16, attribute.atttypid, slot))
        })
        .collect()
}
