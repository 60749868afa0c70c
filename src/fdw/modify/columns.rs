//! The columns of a modification.

use std::ffi::c_int;

use pgrx::pg_sys::{self, Oid, Plan};

use crate::fdw::batch::Slot;
use crate::pg::error::{Error, Result, SqlState};
use crate::pg::node;

/// The column of the plan's rows that is `ctid`.
pub(super) unsafe fn row_identifier(source: *const Plan) -> Result<i16> {
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

/// The target columns with their types, and what stands for them in VALUES.
pub(super) unsafe fn targets(
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
