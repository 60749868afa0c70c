//! A scan that is asked for its first batch before the executor comes to it.

use pgrx::pg_sys;

use super::Scan;
use crate::pg::error::Result;
use crate::protocol::ahead::Use;
use crate::remote::connection::Asked;

impl Scan {
    /// Asks for the first batch, if that can be done now. What is only likely to be needed is asked
    /// for only where it can be taken back. `is_alone`: the query has no other scan on the
    /// connection.
    ///
    /// # Safety
    /// The node's expression context.
    ///
    /// # Errors
    /// Those of [`Scan::ask`], if the rows are certain to be needed; a cancel.
    pub unsafe fn ask_ahead(
        &mut self,
        context: *mut pg_sys::ExprContext,
        needed: Use,
        is_alone: bool,
    ) -> Result<()> {
        // Without an opening, other nodes compute its parameters.
        let Some(opening) = self.opening.clone().filter(|_| !self.is_open) else { return Ok(()) };
        if needed == Use::Certain {
            // SAFETY: by contract.
            return unsafe { self.send(context) };
        }
        if !is_alone || !self.session.may_ask_ahead()? {
            return Ok(());
        }
        // SAFETY: by contract.
        match unsafe { self.send(context) } {
            Ok(()) => {
                self.is_ahead = true;
                self.session.connection().note_asked_ahead(&opening);
                Ok(())
            }
            // The executor may never come to it.
            Err(_) if self.session.connection().is_doomed() => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The executor has come to it.
    pub(super) fn need_what_was_asked_ahead(&mut self) {
        if !std::mem::take(&mut self.is_ahead) {
            return;
        }
        let (Some(opening), Some(under_way)) = (&self.opening, &self.under_way) else { return };
        if opening.sent.get() == under_way.declare.as_ref().map(Asked::ticket) {
            self.session.connection().need(opening);
        } else {
            // It was taken back. The cursor may have been opened again since.
            self.under_way = None;
            self.is_open = false;
            self.fetch_size.restart();
        }
    }

    /// The query ends. If the executor has not come to it, it is as if it had not been asked.
    pub(super) fn give_up_ahead(&mut self) -> Result<()> {
        if !std::mem::take(&mut self.is_ahead) {
            return Ok(());
        }
        if let (Some(opening), Some(under_way)) = (&self.opening, &self.under_way) {
            self.session.give_up_ahead(opening, under_way.since)?;
        }
        self.last_asked = None;
        self.is_open &= !self.session.connection().is_doomed();
        Ok(())
    }
}
