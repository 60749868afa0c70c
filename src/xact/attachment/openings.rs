//! Cursors, and what decides in which transaction there, and in which savepoint, statements run.

use std::cell::Cell;
use std::ffi::CStr;
use std::rc::Rc;

use pgrx::pg_sys::EState;

use super::Attachment;
use crate::pg::error::Result;
use crate::pg::globals::nest_level;
use crate::protocol::plan::Access;
use crate::remote::connection::Opening;
use crate::xact::unit::{Member, Unit};
use crate::xact::{cut, renewal};

impl Attachment {
    /// A cursor for `query` that this session will open.
    pub fn opening(
        &self,
        cursor: u32,
        declare: &Rc<CStr>,
        params: &[Option<&CStr>],
        query: &Rc<CStr>,
    ) -> Opening {
        Opening {
            cursor,
            declare: Rc::clone(declare),
            params: params.iter().map(|param| param.map(CStr::to_owned)).collect(),
            query: Rc::clone(query),
            level: Rc::clone(&self.level),
            access: self.access,
            sent: Cell::new(None),
        }
    }

    /// Opens a cursor now, unless that was done.
    ///
    /// # Errors
    /// Those of [`Attachment::submit`].
    pub fn open(&self, opening: &Rc<Opening>) -> Result<()> {
        self.send(&[], &opening.declare, &opening.query, Some(opening)).map(drop)
    }

    /// Opens a cursor when all nodes of its query have begun, because it depends on all of them in
    /// which transaction.
    ///
    /// # Errors
    /// Those of [`Attachment::submit`].
    pub fn open_at_start(&self, opening: &Rc<Opening>) -> Result<()> {
        let Some(unit) = &self.unit else { return self.open(opening) };
        self.connection.announce(opening);
        let connection = Rc::clone(&self.connection);
        unit.opens(Member { connection, userid: self.userid }, opening);
        Ok(())
    }

    /// The next statements are a user's own commands. Behind them the transaction there cannot be
    /// begun again, so that is done now if they are to see more than it does.
    ///
    /// # Errors
    /// The connection is lost, a cancel; those of taking the snapshots of the query that calls
    /// them.
    pub fn taint(&self) -> Result<()> {
        cut::settle_another(self.unit.as_ref())?;
        renewal::renew(&self.connection, self.unit.as_ref(), false)?;
        self.connection.taint();
        Ok(())
    }

    /// Whether rows that are locked now may be given up before their owner ends: with a later
    /// savepoint than the owner's.
    pub fn locks_for_less(&self) -> bool {
        self.access == Access::Modifies && nest_level() > self.level.get()
    }
}

/// All nodes of a query have begun: opens the cursors that were left for that.
///
/// # Errors
/// Those of [`Attachment::submit`].
pub fn open_all_of(estate: *const EState) -> Result<()> {
    let Some(unit) = Unit::of_known_query(estate) else { return Ok(()) };
    for (Member { connection, userid }, opening) in unit.take_to_open() {
        let Some(opening) = opening.upgrade().filter(|o| o.sent.get().is_none()) else { continue };
        let level = Rc::clone(&opening.level);
        let (access, unit) = (opening.access, Some(Rc::clone(&unit)));
        let session = Attachment { userid, level, access, unit, ..Attachment::of(&connection) };
        session.open(&opening)?;
    }
    Ok(())
}
