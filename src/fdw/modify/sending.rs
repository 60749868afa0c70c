//! Sending the statement of a modification for a number of rows, whose parameters were evaluated.

use std::rc::Rc;

use super::Modification;
use crate::fdw::statement::Statement;
use crate::libpq::PgResult;
use crate::pg::error::Result;
use crate::remote::connection::Message;

impl Modification {
    /// Executes the statement for this many rows. Row counts alternate when wide rows split a
    /// batch; only a count seen twice in a row is worth preparing.
    pub(super) fn run(&mut self, rows: usize) -> Result<Rc<PgResult>> {
        let comes_again = std::mem::replace(&mut self.last_rows, rows) == rows;
        if rows != self.rows
            && let Some(template) = &self.template
        {
            let mut other = Statement::new(template.text(rows));
            if !comes_again {
                return other.run(&self.session, &self.values);
            }
            self.statement.deallocate(self.session.connection());
            self.statement = other.executed_once();
            self.rows = rows;
        }
        self.statement.run(&self.session, &self.values)
    }

    /// Sends the statement for this many rows, and goes on. It is not prepared: one that has failed
    /// unnoticed could not be deallocated.
    pub(super) fn leave_behind(&self, rows: usize) -> Result<()> {
        let sql = match &self.template {
            Some(template) if rows != self.rows => template.text(rows).into(),
            _ => self.statement.sql(),
        };
        let asked = self.session.submit(Message::Query(&sql, &self.values), &sql)?;
        self.session.leave_behind(asked, rows, &self.values)
    }
}
