//! A scan that is asked for rows before anybody knows that they are needed.

use std::rc::Rc;
use std::time::Instant;

use super::Attachment;
use crate::pg::error::Result;
use crate::pg::globals::nest_level;
use crate::protocol::plan::Access;
use crate::remote::connection::Opening;
use crate::xact::{cut, renewal};

impl Attachment {
    /// Whether what is asked now can be taken back, because nothing else is in the transaction
    /// there. One that has nothing to lose gives way to another.
    ///
    /// # Errors
    /// The connection is lost.
    pub fn may_ask_ahead(&self) -> Result<bool> {
        // A snapshot that belongs to a cut cannot be given up.
        if cut::may_be_on() || self.access != Access::Reads || self.level.get() != nest_level() {
            return Ok(false);
        }
        if renewal::follows_statements(&self.connection) && self.connection.has_nothing_to_lose() {
            self.connection.begin_afresh()?;
        }
        Ok(self.connection.may_ask_ahead())
    }

    /// Nobody needs the rows of a cursor that was asked ahead, `since` then.
    ///
    /// # Errors
    /// A cancel.
    pub fn give_up_ahead(&self, opening: &Rc<Opening>, since: Instant) -> Result<()> {
        // Otherwise the server would later be seen as of the time of a statement that was none.
        let is_kept = renewal::follows_statements(&self.connection);
        self.connection.give_up_ahead(opening, since, is_kept)
    }
}
