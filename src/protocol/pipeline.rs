//! Which answer on a pipelined connection belongs to whom.
//!
//! A connection answers in the order in which it was asked. [`Fifo`] remembers what was asked and hands
//! each answer to its owner. Commands travel in *segments*, each ended by a `Sync`: when a command fails,
//! the server skips the rest of its segment, and those that were skipped fail with the same error.
//!
//! It is generic over the result type, so that it is tested without a connection.

use std::collections::{HashMap, VecDeque};
use std::ffi::CStr;
use std::rc::Rc;

/// Names one statement whose answer somebody will ask for.
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
    /// `SAVEPOINT`, with the nesting level it opens.
    Savepoint(u32),
    /// `RELEASE SAVEPOINT`.
    EndSavepoint,
    /// `ROLLBACK TO SAVEPOINT`, and `RELEASE SAVEPOINT` behind it.
    UndoSavepoint,
    /// `CLOSE`, `DEALLOCATE`: its failure matters to nobody but the segment.
    Cleanup,
    /// The question whether the transaction has an xid.
    XidProbe,
    /// What has to succeed in the segment of PREPARE before that: deferred constraints.
    Constraints,
    /// The same: the session's advisory lock is still held.
    LockCheck,
    /// `COMMIT` of a transaction that has only read: nobody waits for the answer.
    Ending,
    /// `COMMIT PREPARED` that nobody waits for.
    Delivery,
}

/// A statement that somebody asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Asked {
    ticket: Ticket,
    /// The nesting level of its owner.
    level: u32,
    /// What its failure is reported for, when somebody else has to.
    sql: Option<Rc<CStr>>,
    /// Its owner still waits for the answer. If not, only a failure is of interest.
    wanted: bool,
}

#[derive(PartialEq, Eq, Debug)]
enum Expected {
    Statement(Asked),
    /// A statement whose (sub)transaction has gone away.
    Abandoned,
    Control(Control),
    Sync,
}

/// How an answer looks to the queue.
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

/// What the connection has to note when an answer came.
#[derive(Debug, PartialEq, Eq)]
pub enum Effect<R> {
    /// Nothing: a statement's answer waits for its owner.
    None,
    /// A command of the connection's own was done.
    Done(Control, Rc<R>),
    /// A command of the connection's own failed or was skipped, because of this answer.
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
    answers: HashMap<Ticket, (Asked, Answer<R>)>,
    failure: Option<Rc<R>>,
    next: Ticket,
}

impl<R> Default for Fifo<R> {
    fn default() -> Self {
        Self { expected: VecDeque::new(), answers: HashMap::new(), failure: None, next: 1 }
    }
}

impl<R> Fifo<R> {
    /// A statement of an owner at this nesting level was queued; its answer can be asked for by the
    /// ticket. `sql` is for [`Fifo::failure_before`].
    pub fn statement(&mut self, level: u32, sql: Option<&Rc<CStr>>) -> Ticket {
        let ticket = self.next;
        self.next += 1;
        let asked = Asked { ticket, level, sql: sql.cloned(), wanted: true };
        self.expected.push_back(Expected::Statement(asked));
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

    /// Whether all that is still to be answered has ended a transaction, so that another may begin behind it.
    pub fn is_ending(&self) -> bool {
        self.failure.is_none()
            && self.expected.iter().all(|expected| {
                matches!(
                    expected,
                    Expected::Control(Control::Ending | Control::Delivery) | Expected::Sync
                )
            })
    }

    /// Whether such a command's answer is still to come.
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

    /// The next answer came.
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
            (Expected::Statement(asked), answer) => {
                if asked.wanted || answer.is_err() {
                    self.answers.insert(asked.ticket, (asked, answer));
                }
                Effect::None
            }
            (Expected::Control(control), Ok(result)) => Effect::Done(control, result),
            (Expected::Control(control), Err(cause)) => Effect::Failed(control, cause),
            (Expected::Abandoned | Expected::Sync, _) => Effect::None,
        })
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
        self.statements().any(|asked| asked.ticket == ticket)
    }

    /// Whether an answer to an owner at this nesting level or deeper is still to come.
    pub fn expects_from(&self, level: u32) -> bool {
        self.statements().any(|asked| asked.level >= level)
    }

    /// Whether the answer to any statement is still to come, wanted or not.
    pub fn expects_statements(&self) -> bool {
        let mut expected = self.expected.iter();
        expected.any(|expected| matches!(expected, Expected::Statement(_) | Expected::Abandoned))
    }

    /// The earliest failure before a statement that nobody has taken yet, with what its owner gave as SQL: the
    /// reason why the transaction had failed when the statement came.
    pub fn failure_before(&self, ticket: Ticket) -> Option<(Rc<R>, Option<Rc<CStr>>)> {
        let failures = self.answers.values().filter_map(|(asked, answer)| {
            answer.as_ref().err().filter(|_| asked.ticket < ticket).map(|cause| (asked, cause))
        });
        let (asked, cause) = failures.min_by_key(|(asked, _)| asked.ticket)?;
        Some((Rc::clone(cause), asked.sql.clone()))
    }

    /// The owner of a statement does not want its answer any more. A failure is kept, because it is why
    /// what follows fails.
    pub fn abandon(&mut self, ticket: Ticket) {
        if self.answers.get(&ticket).is_some_and(|(_, answer)| answer.is_ok()) {
            self.answers.remove(&ticket);
        }
        for asked in self.statements_mut().filter(|asked| asked.ticket == ticket) {
            asked.wanted = false;
        }
    }

    /// The subtransaction at this nesting level aborted: its owners will not ask any more, nor those of
    /// deeper levels.
    pub fn abandon_from(&mut self, level: u32) {
        self.answers.retain(|_, (asked, _)| asked.level < level);
        for expected in &mut self.expected {
            if matches!(expected, Expected::Statement(asked) if asked.level >= level) {
                *expected = Expected::Abandoned;
            }
        }
    }

    /// The subtransaction at this nesting level committed: what it owns is its parent's.
    pub fn hand_up(&mut self, level: u32) {
        let answered = self.answers.values_mut().map(|(asked, _)| asked);
        for asked in answered.filter(|asked| asked.level >= level) {
            asked.level = level - 1;
        }
        for asked in self.statements_mut().filter(|asked| asked.level >= level) {
            asked.level = level - 1;
        }
    }

    /// The ticket that the next statement gets.
    pub fn next_ticket(&self) -> Ticket {
        self.next
    }

    /// Nothing that was asked is answered any more: it is asked elsewhere, from `next` on under the same tickets.
    pub fn begin_anew(&mut self, next: Option<Ticket>) {
        self.expected.clear();
        self.failure = None;
        if let Some(next) = next {
            self.answers.retain(|ticket, _| *ticket < next);
            self.next = next;
        }
    }

    /// Nobody will ask any more: the transaction ended.
    pub fn abandon_all(&mut self) {
        self.abandon_from(0);
    }

    fn statements(&self) -> impl Iterator<Item = &Asked> {
        self.expected.iter().filter_map(|expected| match expected {
            Expected::Statement(asked) => Some(asked),
            _ => None,
        })
    }

    fn statements_mut(&mut self) -> impl Iterator<Item = &mut Asked> {
        self.expected.iter_mut().filter_map(|expected| match expected {
            Expected::Statement(asked) => Some(asked),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ok(text: &'static str) -> Option<Answer<&'static str>> {
        Some(Ok(Rc::new(text)))
    }

    fn failed(text: &'static str) -> Option<Answer<&'static str>> {
        Some(Err(Rc::new(text)))
    }

    #[test]
    fn answers_go_to_their_owners_in_order() {
        let mut fifo = Fifo::default();
        fifo.control(Control::Begin);
        let a = fifo.statement(1, None);
        let b = fifo.statement(1, None);
        fifo.sync();
        assert_eq!(
            fifo.answer(Kind::Done, "begin"),
            Ok(Effect::Done(Control::Begin, Rc::new("begin")))
        );
        fifo.answer(Kind::Done, "a").unwrap();
        fifo.answer(Kind::Done, "b").unwrap();
        fifo.answer(Kind::Sync, "sync").unwrap();
        assert!(fifo.is_idle());
        assert_eq!(fifo.take(b), ok("b"));
        assert_eq!(fifo.take(a), ok("a"));
        assert_eq!(fifo.take(a), None);
    }

    #[test]
    fn a_failure_skips_the_rest_of_its_segment_only() {
        let mut fifo = Fifo::default();
        fifo.control(Control::Savepoint(2));
        let a = fifo.statement(1, None);
        fifo.control(Control::XidProbe);
        fifo.sync();
        let b = fifo.statement(1, None);
        fifo.sync();
        assert_eq!(
            fifo.answer(Kind::Failed, "no savepoint"),
            Ok(Effect::Failed(Control::Savepoint(2), Rc::new("no savepoint")))
        );
        fifo.answer(Kind::Skipped, "").unwrap();
        assert_eq!(
            fifo.answer(Kind::Skipped, ""),
            Ok(Effect::Failed(Control::XidProbe, Rc::new("no savepoint")))
        );
        fifo.answer(Kind::Sync, "").unwrap();
        fifo.answer(Kind::Failed, "25P02").unwrap();
        assert_eq!(fifo.take(a), failed("no savepoint"));
        assert_eq!(fifo.take(b), failed("25P02"));
    }

    #[test]
    fn an_abandoned_statement_still_takes_its_place() {
        let mut fifo = Fifo::default();
        let a = fifo.statement(1, None);
        let b = fifo.statement(1, None);
        fifo.answer(Kind::Done, "a").unwrap();
        fifo.abandon_all();
        let c = fifo.statement(1, None);
        fifo.answer(Kind::Done, "b").unwrap();
        fifo.answer(Kind::Done, "c").unwrap();
        assert_eq!(fifo.take(a), None);
        assert_eq!(fifo.take(b), None);
        assert_eq!(fifo.take(c), ok("c"));
    }

    #[test]
    fn what_is_still_to_come_is_known() {
        let mut fifo = Fifo::default();
        assert_eq!(fifo.awaited_savepoint(), None);
        fifo.control(Control::UndoSavepoint);
        fifo.control(Control::Savepoint(2));
        fifo.control(Control::Savepoint(3));
        assert!(fifo.awaits(Control::UndoSavepoint));
        assert_eq!(fifo.awaited_savepoint(), Some(2));
        fifo.answer(Kind::Done, "undone").unwrap();
        fifo.answer(Kind::Done, "s2").unwrap();
        assert!(!fifo.awaits(Control::UndoSavepoint));
        assert_eq!(fifo.awaited_savepoint(), Some(3));
    }

    #[test]
    fn what_is_asked_again_elsewhere_has_the_same_tickets() {
        let mut fifo = Fifo::default();
        fifo.control(Control::Ending);
        fifo.control(Control::Begin);
        let (a, b) = (fifo.statement(1, None), fifo.statement(1, None));
        fifo.sync();
        for _ in 0..3 {
            fifo.answer(Kind::Failed, "lost").unwrap();
        }
        fifo.begin_anew(Some(a));
        fifo.control(Control::Begin);
        assert_eq!((fifo.statement(1, None), fifo.statement(1, None)), (a, b));
        for answer in ["begin", "a", "b"] {
            fifo.answer(Kind::Done, answer).unwrap();
        }
        assert_eq!((fifo.take(a), fifo.take(b)), (ok("a"), ok("b")));
    }

    #[test]
    fn what_nobody_asked_for_is_noticed() {
        let mut fifo = Fifo::default();
        assert_eq!(fifo.answer(Kind::Done, ""), Err(OutOfStep));
        fifo.statement(1, None);
        assert_eq!(fifo.answer(Kind::Sync, ""), Err(OutOfStep));
        fifo.sync();
        assert_eq!(fifo.answer(Kind::Done, ""), Err(OutOfStep));
        fifo.statement(1, None);
        assert_eq!(fifo.answer(Kind::Skipped, ""), Err(OutOfStep));
    }

    #[test]
    fn what_a_subtransaction_asked_is_abandoned_with_it() {
        let mut fifo = Fifo::default();
        let outer = fifo.statement(1, None);
        let inner = fifo.statement(2, None);
        let deeper = fifo.statement(3, None);
        fifo.answer(Kind::Done, "outer").unwrap();
        fifo.answer(Kind::Done, "inner").unwrap();
        assert!(fifo.expects_from(2));
        fifo.abandon_from(2);
        assert!(!fifo.expects_from(2) && !fifo.expects(deeper));
        fifo.answer(Kind::Done, "deeper").unwrap();
        assert_eq!(fifo.take(outer), ok("outer"));
        assert_eq!(fifo.take(inner), None);
        assert_eq!(fifo.take(deeper), None);
    }

    #[test]
    fn what_a_committed_subtransaction_asked_is_its_parents() {
        let mut fifo = Fifo::default();
        let answered = fifo.statement(2, None);
        let due = fifo.statement(2, None);
        fifo.answer(Kind::Done, "answered").unwrap();
        fifo.hand_up(2);
        fifo.abandon_from(2);
        fifo.answer(Kind::Done, "due").unwrap();
        assert_eq!(fifo.take(answered), ok("answered"));
        assert_eq!(fifo.take(due), ok("due"));
    }

    #[test]
    fn a_failure_that_nobody_took_explains_the_later_ones() {
        let mut fifo = Fifo::default();
        let sql: Rc<CStr> = c"SELECT 1".into();
        let early = fifo.statement(1, Some(&sql));
        fifo.sync();
        let unwanted = fifo.statement(1, Some(&sql));
        fifo.sync();
        let late = fifo.statement(1, None);
        fifo.abandon(early);
        fifo.abandon(unwanted);
        fifo.answer(Kind::Done, "early").unwrap();
        fifo.answer(Kind::Sync, "").unwrap();
        assert!(fifo.expects(unwanted));
        fifo.answer(Kind::Failed, "the reason").unwrap();
        fifo.answer(Kind::Sync, "").unwrap();
        fifo.answer(Kind::Failed, "25P02").unwrap();
        assert_eq!(fifo.take(early), None);
        assert_eq!(fifo.take(late), failed("25P02"));
        assert_eq!(fifo.failure_before(late), Some((Rc::new("the reason"), Some(sql))));
        assert_eq!(fifo.failure_before(unwanted), None);
    }
}
