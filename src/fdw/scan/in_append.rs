//! A scan below an Append that runs many at once, and does not wait for one of them.

use std::rc::Rc;

use super::Scan;
use crate::libpq::PgResult;
use crate::pg::error::Result;

impl Scan {
    /// An Append is about to sleep until the FETCH under way is answered.
    pub fn note_wait(&self) {
        if let Some(under_way) = &self.under_way {
            self.session.note_wait(&under_way.fetch);
        }
    }

    /// Whether the FETCH under way has still to be answered.
    pub fn is_under_way(&self) -> bool {
        self.under_way.is_some()
    }

    /// Takes the batch that was asked for if the connection has read it. Returns whether it has.
    ///
    /// # Errors
    /// The remote's, reported for the query and not for the FETCH; the lost connection; an input
    /// function's.
    pub fn take_batch(&mut self) -> Result<bool> {
        let Some(result) = self.poll().transpose() else { return Ok(false) };
        if self.session.settle_unit()? {
            self.begin_again();
            return Ok(false);
        }
        let result = result?;
        self.under_way.take().map_or(Ok(()), |under_way| self.load(&result, &under_way))?;
        Ok(true)
    }

    /// The answer to the FETCH under way, or a failure of its DECLARE, if it has been read.
    fn poll(&mut self) -> Result<Option<Rc<PgResult>>> {
        let Some(under_way) = &mut self.under_way else { return Ok(None) };
        if let Some(declare) = &under_way.declare {
            if self.session.poll(declare)?.is_none() {
                return Ok(None);
            }
            under_way.declare = None;
        }
        self.session.poll(&under_way.fetch)
    }
}
