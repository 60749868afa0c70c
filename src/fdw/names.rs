//! The remote names of foreign tables and their columns: the name in an option, or else the local
//! one. They are used only in SQL that postgres_fdw's planner does not write: TRUNCATE, ANALYZE,
//! IMPORT FOREIGN SCHEMA.

use std::ffi::{CStr, c_int};

use pgrx::pg_sys::{self, Relation};

use crate::pg::node;
use crate::remote::options::{self, TableOptions};

/// A foreign table with the options that it and its server have.
pub struct Table {
    relation: Relation,
    /// Its options, and those of its server.
    pub options: TableOptions,
}

impl Table {
    /// Reads the catalog entries of a table.
    ///
    /// # Safety
    /// An open foreign table, which stays open as long as the value is used.
    ///
    /// # Errors
    /// PostgreSQL's own when an entry is missing.
    pub unsafe fn read(relation: Relation) -> Self {
        // SAFETY: by contract.
        let table = unsafe { (*relation).rd_id };
        Self { relation, options: TableOptions::read(table) }
    }

    /// Its qualified remote name, quoted for SQL.
    pub fn remote_name(&self) -> Vec<u8> {
        // SAFETY: the relation is open; the schema's name is palloc'ed, and the schema exists.
        let (local_schema, local_name) = unsafe {
            let schema = pg_sys::get_namespace_name((*(*self.relation).rd_rel).relnamespace);
            (CStr::from_ptr(schema), node::relation_name(self.relation))
        };
        let schema = options::option(&self.options.own, c"schema_name").unwrap_or(local_schema);
        let name = options::option(&self.options.own, c"table_name").unwrap_or(local_name);
        [&identifier(schema), &b"."[..], &identifier(name)].concat()
    }

    /// The remote name of a column, quoted for SQL.
    ///
    /// # Safety
    /// A column of the table.
    pub unsafe fn column(
        &self,
        number: i16,
        attribute: *const pg_sys::FormData_pg_attribute,
    ) -> Vec<u8> {
        // SAFETY: by contract; the catalog's entries live in this call's memory.
        unsafe {
            let of_column =
                options::read_list(pg_sys::GetForeignColumnOptions((*self.relation).rd_id, number));
            let local = CStr::from_ptr((*attribute).attname.data.as_ptr());
            identifier(options::option(&of_column, c"column_name").unwrap_or(local))
        }
    }

    /// The columns as a SELECT list, and the number of each column in it. For a table without
    /// columns these are `NULL` and no number.
    pub fn select_list(&self) -> (Vec<u8>, Vec<c_int>) {
        let mut names = Vec::new();
        let mut columns = Vec::new();
        // SAFETY: the relation is open, so its descriptor and the names in it are valid.
        unsafe {
            for (number, attribute) in node::live_columns((*self.relation).rd_att) {
                names.push(self.column(number, attribute));
                columns.push(number.into());
            }
        }
        if names.is_empty() {
            names.push(b"NULL".to_vec());
        }
        (names.join(&b", "[..]), columns)
    }
}

/// A name for SQL, quoted where it needs quotes.
pub fn identifier(name: &CStr) -> Vec<u8> {
    // SAFETY: a C string gives a C string, its own or a palloc'ed one.
    unsafe { CStr::from_ptr(pg_sys::quote_identifier(name.as_ptr())) }.to_bytes().to_vec()
}
