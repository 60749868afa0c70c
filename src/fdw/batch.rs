//! How many rows one INSERT carries, and the text of an INSERT for more rows than its plan is for.

use std::ffi::{CString, c_int};

use pgrx::pg_sys::{self, Relation, ResultRelInfo};

use crate::fdw::modify::Modification;
use crate::fdw::names::Table;
use crate::fdw::state;
use crate::guc;
use crate::pg::error::{boundary, c_string};
use crate::pg::node;

/// The protocol counts a message's parameters in 16 bits.
pub(super) const MAX_PARAMETERS: usize = 65535;

/// `GetForeignModifyBatchSize`: at least 1. Plain EXPLAIN calls it too, without a state.
///
/// # Safety
/// Called by the executor.
pub unsafe extern "C-unwind" fn size(target: *mut ResultRelInfo) -> c_int {
    // SAFETY: a valid target of an INSERT, with our state or none.
    boundary(|| unsafe {
        let info = &*target;
        let row_triggers = info
            .ri_TrigDesc
            .as_ref()
            .is_some_and(|t| t.trig_insert_before_row || t.trig_insert_after_row);
        let row_by_row = row_triggers
            // Each of these reads the rows that come back.
            || !info.ri_projectReturning.is_null()
            || !info.ri_WithCheckOptions.is_null()
            // DEFAULT VALUES inserts one row.
            || node::live_columns((*info.ri_RelationDesc).rd_att).next().is_none();
        if row_by_row {
            return Ok(1);
        }
        let modification = state::get::<Modification>(info.ri_FdwState);
        let asked = match asked_for(info.ri_RelationDesc) {
            Some(size) => size,
            None if modification.as_ref().is_some_and(|m| m.has_volatile_source()) => 1,
            None => guc::batch_size(),
        };
        let most = match modification {
            Some(modification) => MAX_PARAMETERS / modification.parameters().max(1),
            None => usize::MAX,
        };
        Ok(asked.min(most).max(1) as c_int)
    })
}

/// The option `batch_size` of the table, or else of the server.
pub(super) unsafe fn asked_for(relation: Relation) -> Option<usize> {
    // SAFETY: an open foreign table; parse_int gets a C string and room for the answer.
    unsafe {
        let table = Table::read(relation);
        let text = table.options.get(c"batch_size")?;
        let mut size: c_int = 1;
        pg_sys::parse_int(text.as_ptr(), &mut size, 0, std::ptr::null_mut());
        Some(size.max(1) as usize)
    }
}

/// What a target column gets in VALUES.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Slot {
    /// A parameter.
    Parameter,
    /// `DEFAULT`: the column is generated.
    Default,
}

/// The INSERT of a plan, for one row, from which INSERTs for more rows are made.
pub struct Template {
    sql: CString,
    values_end: usize,
    columns: Vec<Slot>,
}

impl Template {
    /// `values_end` lies inside of `sql`.
    pub fn new(sql: CString, values_end: usize, columns: Vec<Slot>) -> Self {
        Self { sql, values_end, columns }
    }

    /// Whether something follows the rows: ON CONFLICT or RETURNING.
    pub fn has_tail(&self) -> bool {
        self.sql.as_bytes().len() > self.values_end
    }

    /// The INSERT for `rows` rows.
    pub fn text(&self, rows: usize) -> CString {
        let (head, tail) = self.sql.as_bytes().split_at(self.values_end);
        let mut text = head.to_vec();
        // The plan's own row has the first parameters.
        let mut parameter = self.columns.iter().filter(|&&c| c == Slot::Parameter).count();
        for _ in 1..rows {
            for (n, column) in self.columns.iter().enumerate() {
                text.extend_from_slice(if n == 0 { b", (" } else { b", " });
                match column {
                    Slot::Default => text.extend_from_slice(b"DEFAULT"),
                    Slot::Parameter => {
                        parameter += 1;
                        text.extend_from_slice(format!("${parameter}").as_bytes());
                    }
                }
            }
            text.push(b')');
        }
        text.extend_from_slice(tail);
        c_string(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn further_rows_come_behind_the_first() {
        let sql = c"INSERT INTO s.t(a, g, b) VALUES ($1, DEFAULT, $2) ON CONFLICT DO NOTHING";
        let end = sql.to_bytes().iter().position(|&b| b == b')').unwrap();
        let end = end + 1 + sql.to_bytes()[end + 1..].iter().position(|&b| b == b')').unwrap() + 1;
        let template = Template::new(
            sql.to_owned(),
            end,
            vec![Slot::Parameter, Slot::Default, Slot::Parameter],
        );
        assert_eq!(template.text(1).as_c_str(), sql);
        assert_eq!(
            template.text(3).as_c_str(),
            c"INSERT INTO s.t(a, g, b) VALUES ($1, DEFAULT, $2), ($3, DEFAULT, $4), \
              ($5, DEFAULT, $6) ON CONFLICT DO NOTHING"
        );
    }
}
