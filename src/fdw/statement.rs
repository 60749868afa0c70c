//! The remote statement of a modification. Executed once it is sent as it is; the second execution prepares
//! it in the same segment, so that no execution ever costs more than one wait.

use std::ffi::{CStr, CString};
use std::rc::Rc;

use crate::libpq::PgResult;
use crate::pg::error::Result;
use crate::remote::connection::{Connection, Message};
use crate::xact::Attachment;

/// A statement that may be executed many times.
pub struct Statement {
    sql: CString,
    stage: Stage,
}

enum Stage {
    New,
    Once,
    /// Prepared under this name, and the participant has confirmed it.
    Prepared(CString),
}

impl Statement {
    /// A statement that has not been executed yet.
    pub fn new(sql: CString) -> Self {
        Self { sql, stage: Stage::New }
    }

    /// The same where it has been executed once before, by another.
    pub fn executed_once(self) -> Self {
        Self { stage: Stage::Once, ..self }
    }

    /// Executes it and waits for the result.
    ///
    /// # Errors
    /// The remote's error, the lost connection, a cancel.
    pub fn run(&mut self, session: &Attachment, values: &[Option<&CStr>]) -> Result<Rc<PgResult>> {
        match &self.stage {
            Stage::New => {
                let result = session.run(&self.sql, values)?;
                self.stage = Stage::Once;
                Ok(result)
            }
            Stage::Once => {
                let name = session.connection().new_statement_name();
                let ticket = session.submit(&[
                    Message::Prepare(&name, &self.sql),
                    Message::Execute(&name, values),
                ])?;
                session.answer(ticket, &self.sql)?;
                self.stage = Stage::Prepared(name);
                session.answer(ticket + 1, &self.sql)
            }
            Stage::Prepared(name) => {
                let ticket =
                    session.submit_for(&[Message::Execute(name, values)], Some(&self.sql))?;
                session.answer(ticket, &self.sql)
            }
        }
    }

    /// Has it deallocated after the transaction. A failed PREPARE leaves nothing behind; one whose answer
    /// was not waited for may leave a name that is not used again.
    pub fn deallocate(&mut self, connection: &Connection) {
        if let Stage::Prepared(name) = std::mem::replace(&mut self.stage, Stage::Once) {
            connection.deallocate(&name);
        }
    }
}
