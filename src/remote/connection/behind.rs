//! Statements whose owners have gone on without their answers (`pg_fdw_xacts.write_behind`). What
//! they have to answer is *owed*. It is judged before any later answer of the connection is handed
//! out, before the next statement is sent as far as it has come, and at the latest at the end of
//! the (sub)transaction that the statements belong to. From the first failure on, that
//! (sub)transaction cannot go on: whatever is tried in it fails with the same error.

use std::collections::VecDeque;
use std::ffi::CStr;
use std::rc::Rc;

use super::Connection;
use super::answers::Asked;
use crate::libpq::PgResult;
use crate::pg::error::{Error, Result, SqlState};
use crate::pg::wait_event::WaitEvent;
use crate::protocol::pipeline::Ticket;
use crate::remote::long_wait::LongWait;
use crate::remote::report;
use crate::remote::wait::Interrupts;

/// With more than this owed, some answers are waited for: both ends would have to keep what the
/// other does not read.
const MOST_STATEMENTS: usize = 1000;
const MOST_BYTES: usize = 1 << 20;

/// What is owed on a connection, in the order in which it was sent.
#[derive(Default)]
pub(super) struct Behind {
    owed: VecDeque<Owed>,
    bytes: usize,
    failed: Option<Failed>,
}

#[derive(Clone)]
struct Owed {
    ticket: Ticket,
    /// The nesting level of the owner.
    level: u32,
    /// How many rows it was said to insert.
    rows: u64,
    sql: Rc<CStr>,
    bytes: usize,
}

/// The first failure of what was owed.
#[derive(Clone)]
struct Failed {
    level: u32,
    cause: Cause,
    sql: Rc<CStr>,
}

#[derive(Clone)]
enum Cause {
    Refused(Rc<PgResult>),
    /// The server has inserted another number of rows than was said.
    Count {
        said: u64,
        is: u64,
    },
}

impl Behind {
    /// Whether the answer to this statement is owed.
    pub fn owes(&self, ticket: Ticket) -> bool {
        self.owed.binary_search_by_key(&ticket, |owed| owed.ticket).is_ok()
    }

    /// The subtransaction at this nesting level committed.
    pub fn hand_up(&mut self, level: u32) {
        let failed = self.failed.iter_mut().map(|failed| &mut failed.level);
        let levels = self.owed.iter_mut().map(|owed| &mut owed.level).chain(failed);
        levels.for_each(|own| *own = (*own).min(level - 1));
    }

    /// The subtransaction at this nesting level aborted.
    pub fn abandon_from(&mut self, level: u32) {
        self.owed.retain(|owed| owed.level < level);
        self.bytes = self.owed.iter().map(|owed| owed.bytes).sum();
        self.failed.take_if(|failed| failed.level >= level);
    }

    fn is_clear(&self) -> bool {
        self.owed.is_empty() && self.failed.is_none()
    }

    fn add(&mut self, owed: Owed) {
        self.bytes += owed.bytes;
        self.owed.push_back(owed);
    }

    /// Takes the first statement, whose answer has been read.
    fn take_first(&mut self) -> Option<Owed> {
        let first = self.owed.pop_front()?;
        self.bytes -= first.bytes;
        Some(first)
    }

    /// The first failure makes all that follows fail.
    fn fail(&mut self, failed: Failed) {
        self.failed = Some(failed);
        self.owed.clear();
        self.bytes = 0;
    }

    /// The statement whose answer has to come before more is sent, if too much is owed.
    fn excess(&self) -> Option<Ticket> {
        let is_too_much = self.owed.len() > MOST_STATEMENTS || self.bytes > MOST_BYTES;
        is_too_much.then(|| self.owed[self.owed.len() / 2].ticket)
    }
}

impl Connection {
    /// The owner of a statement goes on without its answer. `rows`: how many it has said to have
    /// inserted; `bytes`: about how much was sent.
    pub fn owe(&self, asked: Asked, level: u32, rows: u64, bytes: usize) {
        let Asked { ticket, query: sql, .. } = asked;
        let behind = &mut self.inner.borrow_mut().transaction.behind;
        behind.add(Owed { ticket, level, rows, sql, bytes });
    }

    /// Whether answers to owners at this nesting level or deeper are owed.
    pub fn owes_from(&self, level: u32) -> bool {
        // Those of the deepest level were sent last.
        let behind = &self.inner.borrow().transaction.behind;
        behind.owed.back().is_some_and(|last| last.level >= level)
    }

    /// Whether a statement at this nesting level, if it is sent now, follows a new savepoint.
    pub fn needs_savepoint(&self, level: u32) -> bool {
        let depth = self.inner.borrow().transaction.depth;
        depth > 0 && depth < level
    }

    /// Looks at what was owed and has been answered.
    ///
    /// # Errors
    /// The first failure, whenever it was found: of a statement, by its number of rows, or because
    /// the connection was lost.
    pub fn judge_owed(&self) -> Result<()> {
        if self.inner.borrow().transaction.behind.is_clear() {
            return Ok(());
        }
        // Then all of it is asked again.
        if self.may_begin_anew() {
            return Ok(());
        }
        loop {
            let first = self.inner.borrow().transaction.behind.owed.front().cloned();
            let Some(Owed { ticket, level, rows, sql, .. }) = first else { break };
            let Some(answer) = self.take(ticket) else { break };
            self.inner.borrow_mut().transaction.behind.take_first();
            let cause = match answer {
                Ok(Ok(result)) => match result.rows_affected() {
                    is if is != rows => Cause::Count { said: rows, is },
                    _ => continue,
                },
                Ok(Err(failure)) if failure.is_fatal() => {
                    self.read_to_end(Interrupts::Raise)?;
                    return Err(self.error_of(&failure, Some(&sql)));
                }
                Ok(Err(failure)) => Cause::Refused(failure),
                Err(error) => return Err(report::with_sql(error, Some(&sql))),
            };
            self.inner.borrow_mut().transaction.behind.fail(Failed { level, cause, sql });
        }
        let failed = self.inner.borrow().transaction.behind.failed.clone();
        failed.map_or(Ok(()), |Failed { cause, sql, .. }| match cause {
            Cause::Refused(failure) => Err(self.error_of(&failure, Some(&sql))),
            Cause::Count { said, is } => Err(self.other_count(said, is, &sql)),
        })
    }

    /// Waits until at most half of what may be owed is, if it is more than that.
    ///
    /// # Errors
    /// Those of [`Connection::settle_owed`].
    pub fn limit_owed(&self) -> Result<()> {
        let excess = self.inner.borrow().transaction.behind.excess();
        excess.map_or(Ok(()), |ticket| self.wait_for_owed(ticket))
    }

    /// Waits for everything that is owed.
    ///
    /// # Errors
    /// Those of [`Connection::judge_owed`], a cancel; and the lost connection also where the
    /// transaction may begin anew.
    pub fn settle_owed(&self) -> Result<()> {
        self.wait_for_owed(Ticket::MAX)
    }

    fn wait_for_owed(&self, last: Ticket) -> Result<()> {
        let is_owed = || {
            let behind = &self.inner.borrow().transaction.behind;
            behind.owed.front().is_some_and(|first| first.ticket <= last)
        };
        self.take_note();
        let mut long = LongWait::begin(Interrupts::Raise);
        loop {
            self.judge_owed()?;
            if !is_owed() {
                return Ok(());
            }
            if self.may_begin_anew() {
                return Err(self.doom_error());
            }
            let sleep = |until| self.wait_once(until, Interrupts::Raise, WaitEvent::Result);
            long.sleep(None, sleep, || vec![self])?;
            self.pump();
        }
    }

    fn other_count(&self, said: u64, is: u64, sql: &CStr) -> Error {
        let server = self.server_name.to_string_lossy();
        let error = Error::new(
            SqlState::FDW_ERROR,
            format!("server \"{server}\" has inserted {is} rows instead of {said}"),
        )
        .detail("The statement had not waited for the server's answer, and its number of rows was told before.")
        .hint("Something on the server, such as a trigger or a rule, keeps rows out or writes them elsewhere. Turn \"pg_fdw_xacts.write_behind\" off for such a table.");
        report::with_sql(error, Some(sql))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owed(ticket: Ticket, level: u32, bytes: usize) -> Owed {
        Owed { ticket, level, rows: 1, sql: c"INSERT".into(), bytes }
    }

    #[test]
    fn what_a_subtransaction_owes_becomes_its_parents_or_nobodys() {
        let mut behind = Behind::default();
        for (ticket, level) in [(3, 1), (5, 2), (8, 3)] {
            behind.add(owed(ticket, level, 10));
        }
        assert!(behind.owes(5) && !behind.owes(4));
        behind.hand_up(3);
        behind.abandon_from(3);
        assert!(behind.owes(8));
        behind.abandon_from(2);
        assert!(behind.owes(3) && !behind.owes(5) && !behind.owes(8));
        assert_eq!(behind.bytes, 10);
    }

    #[test]
    fn a_failure_stays_until_its_subtransaction_is_undone() {
        let mut behind = Behind::default();
        behind.add(owed(1, 2, 10));
        let cause = Cause::Count { said: 1, is: 0 };
        behind.fail(Failed { level: 2, cause, sql: c"INSERT".into() });
        behind.abandon_from(3);
        assert!(behind.owed.is_empty() && behind.bytes == 0 && !behind.is_clear());
        behind.abandon_from(2);
        assert!(behind.is_clear());
    }

    #[test]
    fn half_of_what_is_too_much_is_waited_for() {
        let mut behind = Behind::default();
        (1..=MOST_STATEMENTS as Ticket).for_each(|ticket| behind.add(owed(ticket, 1, 10)));
        assert_eq!(behind.excess(), None);
        behind.add(owed(MOST_STATEMENTS as Ticket + 1, 1, 10));
        assert_eq!(behind.excess(), Some(MOST_STATEMENTS as Ticket / 2 + 1));
        let mut behind = Behind::default();
        behind.add(owed(1, 1, MOST_BYTES));
        assert_eq!(behind.excess(), None);
        behind.add(owed(2, 1, 1));
        assert_eq!(behind.excess(), Some(2));
    }
}
