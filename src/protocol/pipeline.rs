//! Which answer on a pipelined connection belongs to whom.
//!
//! A server answers in the order in which it was asked. [`Fifo`] remembers what was asked and
//! assigns each answer to its owner. Commands travel in *segments*, each ended by a `Sync`: when a
//! command fails, the server skips the rest of its segment, and the skipped commands fail with the
//! same error.
//!
//! It is generic over the result type, so that it can be tested without a connection.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::CStr;
use std::rc::Rc;

/// Identifies a statement whose answer somebody will ask for.
pub type Ticket = u64;

/// A command that the connection sends for itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Control {
    /// Session set-up: answers the server's fingerprint.
    Setup,
    /// The advisory lock of the session.
    SessionLock,
    /// `START TRANSACTION`.
    Begin,
    /// The question for the snapshot, directly behind it.
    Snapshot,
    /// `SAVEPOINT`, with the nesting level it opens.
    Savepoint(u32),
    /// `RELEASE SAVEPOINT`, with the nesting level it ends.
    EndSavepoint(u32),
    /// `ROLLBACK TO SAVEPOINT`, and `RELEASE SAVEPOINT` behind it.
    UndoSavepoint,
    /// `CLOSE`, `DEALLOCATE`: its failure only matters because the rest of the segment is skipped.
    Cleanup,
    /// The question whether the transaction has an xid.
    XidProbe,
    /// Before PREPARE, in its segment: deferred constraints are checked.
    Constraints,
    /// The same: the session still holds its advisory lock.
    LockCheck,
    /// `COMMIT` of a transaction that has only read: nobody waits for the answer.
    Ending,
    /// `COMMIT PREPARED` that nobody waits for.
    Delivery,
}

/// A statement whose answer somebody will ask for.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Statement {
    ticket: Ticket,
    /// The nesting level of its owner.
    level: u32,
    /// The query that its failure is reported for, if a later statement has to report it.
    query: Option<Rc<CStr>>,
    /// Its owner still wants the answer. If not, only a failure is kept.
    wanted: bool,
}

#[derive(PartialEq, Eq, Debug)]
enum Expected {
    Statement(Statement),
    /// A statement whose (sub)transaction has gone away.
    Abandoned,
    Control(Control),
    Sync,
}

/// The kinds of answers, as far as the queue is concerned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// The command was done.
    Done,
    /// The command failed.
    Failed,
    /// The command was skipped because of an earlier failure in its segment.
    Skipped,
    /// The segment ended.
    Sync,
}

/// What the connection has to note when an answer has come.
#[derive(Debug, PartialEq, Eq)]
pub enum Effect<R> {
    /// Nothing: a statement's answer waits for its owner.
    None,
    /// A command of the connection's own was done.
    Done(Control, Rc<R>),
    /// A command of the connection's own failed with this answer, or was skipped because of it.
    Failed(Control, Rc<R>),
}

/// An answer that nothing asked for: the connection cannot be trusted any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the server's answers do not match what was sent")]
pub struct OutOfStep;

/// The answer to one statement; a skipped one shares the failure that skipped it.
pub type Answer<R> = Result<Rc<R>, Rc<R>>;

/// The queue of expected answers.
#[derive(Debug)]
pub struct Fifo<R> {
    expected: VecDeque<Expected>,
    answers: BTreeMap<Ticket, (Statement, Answer<R>)>,
    failure: Option<Rc<R>>,
    next: Ticket,
}

impl<R> Default for Fifo<R> {
    fn default() -> Self {
        Self { expected: VecDeque::new(), answers: BTreeMap::new(), failure: None, next: 1 }
    }
}

impl<R> Fifo<R> {
    /// A statement whose owner is at this nesting level was queued; its answer can be asked for by
    /// the ticket. `query` is for [`Fifo::failure_before`].
    pub fn statement(&mut self, level: u32, query: Option<&Rc<CStr>>) -> Ticket {
        let ticket = self.next;
        self.next += 1;
        let statement = Statement { ticket, level, query: query.cloned(), wanted: true };
        self.expected.push_back(Expected::Statement(statement));
        ticket
    }

    /// A command of the connection's own was queued.
    pub fn control(&mut self, control: Control) {
        self.expected.push_back(Expected::Control(control));
    }

    /// The end of a segment was queued.
    pub fn sync(&mut self) {
        self.expected.push_back(Expected::Sync);
    }

    /// Whether everything asked has been answered.
    pub fn is_idle(&self) -> bool {
        self.expected.is_empty()
    }

    /// How many answers are still to come.
    pub fn unanswered(&self) -> usize {
        self.expected.len()
    }

    /// Whether all commands that are still to be answered end transactions, so that another may
    /// begin after them.
    pub fn is_ending(&self) -> bool {
        self.failure.is_none()
            && self.expected.iter().all(|expected| {
                matches!(
                    expected,
                    Expected::Control(Control::Ending | Control::Delivery) | Expected::Sync
                )
            })
    }

    /// Whether the answer to such a command is still to come.
    pub fn awaits(&self, control: Control) -> bool {
        self.expected.contains(&Expected::Control(control))
    }

    /// The level of the first savepoint whose answer is still to come.
    pub fn awaited_savepoint(&self) -> Option<u32> {
        self.expected.iter().find_map(|expected| match expected {
            Expected::Control(Control::Savepoint(level)) => Some(*level),
            _ => None,
        })
    }

    /// The connection's own command that the next answer is for.
    pub fn next_control(&self) -> Option<Control> {
        match self.expected.front() {
            Some(Expected::Control(control)) => Some(*control),
            _ => None,
        }
    }

    /// Takes the next answer.
    ///
    /// # Errors
    /// It does not fit what was asked.
    pub fn answer(&mut self, kind: Kind, result: R) -> Result<Effect<R>, OutOfStep> {
        let expected = self.expected.pop_front().ok_or(OutOfStep)?;
        if (expected == Expected::Sync) != (kind == Kind::Sync) {
            return Err(OutOfStep);
        }
        let result = Rc::new(result);
        let answer = match kind {
            Kind::Sync => {
                self.failure = None;
                return Ok(Effect::None);
            }
            Kind::Done => Ok(result),
            Kind::Failed => {
                self.failure = Some(Rc::clone(&result));
                Err(result)
            }
            Kind::Skipped => Err(Rc::clone(self.failure.as_ref().ok_or(OutOfStep)?)),
        };
        Ok(match (expected, answer) {
            (Expected::Statement(statement), answer) => {
                if statement.wanted || answer.is_err() {
                    self.answers.insert(statement.ticket, (statement, answer));
                }
                Effect::None
            }
            (Expected::Control(control), Ok(result)) => Effect::Done(control, result),
            (Expected::Control(control), Err(cause)) => Effect::Failed(control, cause),
            (Expected::Abandoned | Expected::Sync, _) => Effect::None,
        })
    }

    /// The segment of one command that was sent outside of a pipeline has ended, which no answer of
    /// its own says.
    ///
    /// # Errors
    /// The command has not been answered.
    pub fn segment_ended(&mut self) -> Result<(), OutOfStep> {
        if self.expected.pop_front() != Some(Expected::Sync) {
            return Err(OutOfStep);
        }
        self.failure = None;
        Ok(())
    }

    /// The failure that skips the rest of the current segment.
    pub fn failure(&self) -> Option<Rc<R>> {
        self.failure.clone()
    }

    /// Takes a statement's answer if it has come.
    pub fn take(&mut self, ticket: Ticket) -> Option<Answer<R>> {
        self.answers.remove(&ticket).map(|(_, answer)| answer)
    }

    /// Whether a statement's answer is still to come.
    pub fn expects(&self, ticket: Ticket) -> bool {
        self.statements().any(|statement| statement.ticket == ticket)
    }

    /// Whether an answer to an owner at this nesting level or deeper is still to come, of those
    /// that `counts` picks.
    pub fn expects_from(&self, level: u32, counts: impl Fn(Ticket) -> bool) -> bool {
        self.statements().any(|statement| statement.level >= level && counts(statement.ticket))
    }

    /// Whether the answer to any statement is still to come, wanted or not.
    pub fn expects_statements(&self) -> bool {
        let mut expected = self.expected.iter();
        expected.any(|expected| matches!(expected, Expected::Statement(_) | Expected::Abandoned))
    }

    /// The earliest failure before a statement that nobody has taken yet, with its query: the
    /// reason why the transaction had failed when the statement was executed.
    pub fn failure_before(&self, ticket: Ticket) -> Option<(Rc<R>, Option<Rc<CStr>>)> {
        self.answers.range(..ticket).find_map(|(_, (statement, answer))| {
            let cause = answer.as_ref().err()?;
            Some((Rc::clone(cause), statement.query.clone()))
        })
    }

    /// The owner of a statement does not want its answer any more. A failure is kept, because later
    /// statements fail because of it.
    pub fn abandon(&mut self, ticket: Ticket) {
        if self.answers.get(&ticket).is_some_and(|(_, answer)| answer.is_ok()) {
            self.answers.remove(&ticket);
        }
        for statement in self.statements_mut().filter(|statement| statement.ticket == ticket) {
            statement.wanted = false;
        }
    }

    /// The subtransaction at this nesting level aborted: owners at this or a deeper level will not
    /// ask any more.
    pub fn abandon_from(&mut self, level: u32) {
        self.answers.retain(|_, (statement, _)| statement.level < level);
        for expected in &mut self.expected {
            if matches!(expected, Expected::Statement(statement) if statement.level >= level) {
                *expected = Expected::Abandoned;
            }
        }
    }

    /// The subtransaction at this nesting level committed: what it owns belongs to its parent.
    pub fn hand_up(&mut self, level: u32) {
        let answered = self.answers.values_mut().map(|(statement, _)| statement);
        for statement in answered.filter(|statement| statement.level >= level) {
            statement.level = level - 1;
        }
        for statement in self.statements_mut().filter(|statement| statement.level >= level) {
            statement.level = level - 1;
        }
    }

    /// The ticket that the next statement gets.
    pub fn next_ticket(&self) -> Ticket {
        self.next
    }

    /// Nothing that was asked will be answered: it is asked again on another connection, from
    /// `next` on with the same tickets.
    pub fn begin_anew(&mut self, next: Option<Ticket>) {
        self.expected.clear();
        self.failure = None;
        if let Some(next) = next {
            self.answers.retain(|ticket, _| *ticket < next);
            self.next = next;
        }
    }

    /// The transaction ended: nobody will ask any more.
    pub fn abandon_all(&mut self) {
        self.abandon_from(0);
    }

    fn statements(&self) -> impl Iterator<Item = &Statement> {
        self.expected.iter().filter_map(|expected| match expected {
            Expected::Statement(statement) => Some(statement),
            _ => None,
        })
    }

    fn statements_mut(&mut self) -> impl Iterator<Item = &mut Statement> {
        self.expected.iter_mut().filter_map(|expected| match expected {
            Expected::Statement(statement) => Some(statement),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests;
