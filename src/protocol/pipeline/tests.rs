//! The queue of expected answers, with texts for results.

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
    assert!(fifo.expects_from(2, |_| true) && !fifo.expects_from(2, |ticket| ticket != deeper));
    fifo.abandon_from(2);
    assert!(!fifo.expects_from(2, |_| true) && !fifo.expects(deeper));
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

#[test]
fn what_was_sent_outside_of_a_pipeline_ends_when_it_has_been_answered() {
    let mut fifo = Fifo::default();
    let copy = fifo.statement(1, None);
    fifo.sync();
    fifo.answer(Kind::Failed, "no").unwrap();
    assert_eq!(fifo.segment_ended(), Ok(()));
    assert!(fifo.is_idle() && fifo.failure().is_none());
    assert_eq!(fifo.take(copy), failed("no"));
    fifo.statement(1, None);
    fifo.sync();
    assert_eq!(fifo.segment_ended(), Err(OutOfStep));
}
