//! What decides in which transaction there, and in which savepoint, statements run.

use std::ffi::CStr;
use std::rc::Rc;

use pgrx::pg_sys::EState;

use super::Attachment;
use crate::pg::error::Result;
use crate::pg::globals::{lock_timeout, nest_level};
use crate::protocol::plan::Access;
use crate::remote::connection::{Manner, Opening};
use crate::xact::cut::{self, Statement};
use crate::xact::renewal;
use crate::xact::unit::{Member, Unit};

impl Attachment {
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

    /// How a statement is sent now.
    pub(super) fn manner<'a>(
        &self,
        query: &'a Rc<CStr>,
        opening: Option<&'a Rc<Opening>>,
    ) -> Result<Manner<'a>> {
        let (connection, userid, unit) = (&self.connection, self.userid, self.unit.as_ref());
        let scan = opening.filter(|_| self.access == Access::Reads);
        let opened = cut::before_statement(&Statement { connection, userid, unit, scan })?;
        let isolation = renewal::isolation(connection, unit);
        // A cursor may be fetched inside a later savepoint than its own: then a failure is rolled
        // back to that one.
        let level = self.level.get().max(nest_level());
        let (owner, access) = (self.level.get(), self.access);
        self.connection.set_lock_timeout(lock_timeout());
        self.connection.set_idle_timeout();
        let query = Some(query);
        Ok(Manner { isolation, opened, owner, level, access, opening, query })
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
