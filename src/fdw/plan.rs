//! The contract with postgres_fdw's planner: the `fdw_private` lists of its plans.
//!
//! | plan | items |
//! |---|---|
//! | scan | SQL, retrieved columns, fetch size, and for a join or an aggregate its description |
//! | modification | SQL, target columns, end of the first VALUES row (-1: no INSERT), RETURNING?, retrieved columns |
//! | direct modification | SQL, RETURNING?, retrieved columns, does it count rows? |
//!
//! The layout has been the same from 15 to 18. Each tag and length is checked, and an unknown
//! layout is an error. A direct modification and a join scan both have four items; the caller knows
//! from the plan's operation which of them it has.

use std::ffi::CStr;

use pgrx::pg_sys::{self, NodeTag};

use crate::pg::error::{Error, Result, SqlState};
use crate::pg::node;

mod decode;

pub use decode::{Columns, Direct, Modify, Scan};

use decode::Item;

impl Item {
    /// # Safety
    /// NULL (which is also the empty list) or a node.
    unsafe fn read(item: *mut pg_sys::Node) -> Self {
        // SAFETY: by contract; each cast follows the tag.
        unsafe {
            match item.as_ref().map(|node| node.type_) {
                None => Self::Integers(Columns::new()),
                Some(NodeTag::T_IntList) => Self::Integers(node::integers(item.cast())),
                Some(NodeTag::T_Integer) => Self::Integer((*item.cast::<pg_sys::Integer>()).ival),
                Some(NodeTag::T_Boolean) => {
                    Self::Boolean((*item.cast::<pg_sys::Boolean>()).boolval)
                }
                Some(NodeTag::T_String) => {
                    let text = (*item.cast::<pg_sys::String>()).sval;
                    Self::Text(CStr::from_ptr(text).to_owned())
                }
                Some(_) => Self::Unknown,
            }
        }
    }

    /// # Safety
    /// NIL or a valid list of nodes.
    unsafe fn read_all(list: *const pg_sys::List) -> Vec<Self> {
        // SAFETY: by contract.
        unsafe { node::pointers(list).map(|item| Self::read(item)).collect() }
    }
}

/// Reads the plan of a scan.
///
/// # Safety
/// NIL or a valid list of nodes.
///
/// # Errors
/// The list does not have the known layout.
pub unsafe fn scan(list: *const pg_sys::List) -> Result<Scan> {
    // SAFETY: by contract.
    Scan::decode(&unsafe { Item::read_all(list) }).ok_or_else(|| unknown_layout("scan"))
}

/// Reads the plan of a modification; `insert` says that it is an INSERT.
///
/// # Safety
/// NIL or a valid list of nodes.
///
/// # Errors
/// The list does not have the known layout.
pub unsafe fn modify(list: *const pg_sys::List, insert: bool) -> Result<Modify> {
    // SAFETY: by contract.
    Modify::decode(&unsafe { Item::read_all(list) }, insert)
        .ok_or_else(|| unknown_layout("modification"))
}

/// Reads the plan of a direct modification.
///
/// # Safety
/// NIL or a valid list of nodes.
///
/// # Errors
/// The list does not have the known layout.
pub unsafe fn direct(list: *const pg_sys::List) -> Result<Direct> {
    // SAFETY: by contract.
    Direct::decode(&unsafe { Item::read_all(list) })
        .ok_or_else(|| unknown_layout("direct modification"))
}

#[cold]
fn unknown_layout(kind: &str) -> Error {
    Error::new(
        SqlState::FDW_ERROR,
        format!("the plan of a foreign {kind} is not one that pg_fdw_xacts knows"),
    )
    .detail("postgres_fdw's planner and this version of pg_fdw_xacts do not fit together.")
    .hint("pg_fdw_xacts works with the postgres_fdw of PostgreSQL 15 to 18.")
}
