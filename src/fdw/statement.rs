//! The remote statement of a modification. The first execution sends its text; the second prepares
//! it in the same segment, so that no execution costs more than one wait.

use std::ffi::{CStr, CString};
use std::rc::Rc;

use crate::libpq::PgResult;
use crate::pg::error::Result;
use crate::remote::connection::{Connection, Message};
use crate::xact::Attachment;

/// A statement that may be executed many times.
pub struct Statement {
    sql: Rc<CStr>,
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
    pub fn new(sql: impl Into<Rc<CStr>>) -> Self {
        Self { sql: sql.into(), stage: Stage::New }
    }

    /// The same, as if it had been executed once.
    pub fn executed_once(self) -> Self {
        Self { stage: Stage::Once, ..self }
    }

    /// Its text.
    pub fn sql(&self) -> Rc<CStr> {
        Rc::clone(&self.sql)
    }

    /// Executes it and waits for the result.
    ///
    /// # Errors
    /// The remote's error, the lost connection, a cancel.
    pub fn run(&mut self, session: &Attachment, values: &[Option<&CStr>]) -> Result<Rc<PgResult>> {
        match &self.stage {
            Stage::New => {
                let result = session.run(Rc::clone(&self.sql), values)?;
                self.stage = Stage::Once;
                Ok(result)
            }
            Stage::Once => {
                let name = session.connection().new_statement_name();
                let both = [
                    (Message::Prepare(&name, &self.sql), &self.sql),
                    (Message::Execute(&name, values), &self.sql),
                ];
                let asked = session.submit_all(&both)?;
                session.wait(&asked[0])?;
                self.stage = Stage::Prepared(name);
                session.wait(&asked[1])
            }
            Stage::Prepared(name) => {
                session.wait(&session.submit(Message::Execute(name, values), &self.sql)?)
            }
        }
    }

    /// Has it deallocated after the transaction. A failed PREPARE leaves nothing behind; one whose
    /// answer was not waited for may leave a statement whose name is not used again.
    pub fn deallocate(&mut self, connection: &Connection) {
        if let Stage::Prepared(name) = std::mem::replace(&mut self.stage, Stage::Once) {
            connection.deallocate(&name);
        }
    }
}
