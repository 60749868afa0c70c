//! COPY into a table of a participant.

use std::ffi::CStr;
use std::rc::Rc;

use super::Attachment;
use crate::pg::error::Result;
use crate::remote::connection::Asked;

impl Attachment {
    /// Sends a COPY command with data, in a transaction that has been written in, and its end
    /// unless more follows. It waits for what was asked before, and not for what becomes of this.
    ///
    /// # Errors
    /// Those of [`Attachment::submit`].
    pub fn copy(&self, sql: &Rc<CStr>, data: Vec<u8>, ends: bool) -> Result<Asked> {
        let manner = self.manner(sql, None)?;
        let ticket = self.connection.copy(manner, sql, data, ends)?;
        self.sent.set(ticket);
        Ok(Asked::about(ticket, sql, sql))
    }
}
