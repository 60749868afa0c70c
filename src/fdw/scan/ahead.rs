//! A scan that is asked for its first batch before the executor comes to it, which is certain.

use pgrx::pg_sys;

use super::Scan;
use crate::pg::error::Result;

impl Scan {
    /// Whether that can be done: nothing was asked yet, and no other node computes its parameters.
    pub fn can_be_asked_ahead(&self) -> bool {
        self.opening.is_some() && !self.is_open && !self.is_async
    }

    /// How many rows its first batch has at most.
    pub fn first_rows(&self) -> usize {
        self.fetch_size.rows()
    }

    /// Asks for the first batch. If the connection is lost, that is reported when the executor
    /// comes to the scan: another may fail before that.
    ///
    /// # Safety
    /// The node's expression context.
    ///
    /// # Errors
    /// Those of [`Scan::ask`] but the lost connection.
    pub unsafe fn ask_ahead(&mut self, context: *mut pg_sys::ExprContext) -> Result<()> {
        self.ahead = Some(Ok(()));
        // SAFETY: by contract.
        let sent = unsafe { self.send(context) };
        if sent.is_ok() || !self.session.connection().is_doomed() {
            return sent;
        }
        self.ahead = Some(sent);
        Ok(())
    }
}
