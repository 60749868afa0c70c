//! Statements that are not waited for, and when their answers are.

use std::ffi::CStr;
use std::rc::Rc;

use pgrx::pg_sys::Oid;

use super::Attachment;
use crate::pg::error::Result;
use crate::remote::cache::{self, Cached};
use crate::remote::connection::Asked;
use crate::xact::participants;

impl Attachment {
    /// Goes on without the answer to a statement that was sent with these parameters. `rows`: how
    /// many it is said to have affected.
    ///
    /// # Errors
    /// Too much was owed, and what has been waited for has failed; a cancel.
    pub fn leave_behind(&self, asked: Asked, rows: usize, params: &[Option<&CStr>]) -> Result<()> {
        let bytes = params.iter().flatten().map(|param| param.count_bytes()).sum();
        self.connection.owe(asked, self.level.get(), rows as u64, bytes);
        match self.connection.limit_owed() {
            Err(_) if self.begin_anew()? => self.connection.limit_owed(),
            limited => limited,
        }
    }
}

/// Waits for everything that is owed on a connection.
///
/// # Errors
/// The first failure of what was owed, a cancel.
pub fn settle(connection: &Rc<Cached>, userid: Oid) -> Result<()> {
    match connection.settle_owed() {
        Err(_) if userid != Oid::INVALID && cache::begin_anew(connection, userid)? => {
            connection.settle_owed()
        }
        settled => settled,
    }
}

/// Waits for everything that is owed at this nesting level or deeper.
///
/// # Errors
/// Those of [`settle`].
pub fn settle_all(level: u32) -> Result<()> {
    for p in participants::all() {
        if p.connection.owes_from(level) {
            settle(&p.connection, p.userid)?;
        }
    }
    Ok(())
}
