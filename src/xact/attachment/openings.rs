//! What decides in which transaction there, and in which savepoint, statements run.

use std::rc::Rc;

use pgrx::pg_sys::EState;

use super::Attachment;
use crate::pg::error::Result;
use crate::pg::globals::nest_level;
use crate::protocol::plan::Access;
use crate::remote::connection::Opening;
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
    /// The connection is lost, a cancel.
    pub fn taint(&self) -> Result<()> {
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
