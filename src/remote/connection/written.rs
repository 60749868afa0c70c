//! Whether the remote transaction has written, which the server is asked behind each statement:
//! does the transaction have an xid?

use crate::protocol::plan::Xid;

/// What is known of the remote transaction's xid.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Written {
    /// It had none when the server last answered, and whatever was sent since is followed by the
    /// question.
    #[default]
    No,
    /// A statement was sent without the question behind it.
    Unasked,
    /// The question failed, with the statement before it or by itself.
    Unanswered,
    /// It has this one.
    Yes(u64),
}

impl Written {
    /// Whether the question still has to be sent behind a statement.
    pub fn needs_question(self) -> bool {
        !matches!(self, Self::Yes(_))
    }

    /// The question is sent behind all statements so far.
    pub fn ask(&mut self) {
        if *self == Self::Unasked {
            *self = Self::No;
        }
    }

    /// A statement is sent without the question.
    pub fn omit_question(&mut self) {
        if self.needs_question() {
            *self = Self::Unasked;
        }
    }

    /// The server answers the question. What was sent since without the question stays unknown.
    pub fn answer(&mut self, xid: Option<u64>) {
        *self = match (*self, xid) {
            (Self::Yes(xid), _) | (_, Some(xid)) => Self::Yes(xid),
            (Self::Unasked, None) => Self::Unasked,
            (Self::No | Self::Unanswered, None) => Self::No,
        }
    }

    /// The question has failed.
    pub fn fail(&mut self) {
        if *self == Self::No {
            *self = Self::Unanswered;
        }
    }

    /// The xid, if it is known.
    pub fn xid(self) -> Option<u64> {
        match self {
            Self::Yes(xid) => Some(xid),
            _ => None,
        }
    }

    /// The same for the decision how to commit.
    pub fn state(self) -> Xid {
        match self {
            Self::No => Xid::None,
            Self::Unasked | Self::Unanswered => Xid::Unknown,
            Self::Yes(_) => Xid::Assigned,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_xid_stays() {
        let mut written = Written::No;
        written.answer(Some(7));
        written.answer(None);
        written.omit_question();
        written.fail();
        written.ask();
        assert_eq!((written, written.xid()), (Written::Yes(7), Some(7)));
        assert!(!written.needs_question());
    }

    #[test]
    fn what_was_sent_without_the_question_is_unknown_until_it_is_asked_and_answered() {
        let mut written = Written::No;
        written.omit_question();
        // The answer to a question that was sent before says nothing of it.
        written.answer(None);
        assert_eq!(written.state(), Xid::Unknown);
        written.ask();
        written.answer(None);
        assert_eq!(written.state(), Xid::None);
    }

    #[test]
    fn after_a_question_that_failed_it_is_unknown_until_another_is_answered() {
        let mut written = Written::No;
        written.fail();
        written.ask();
        assert_eq!(written.state(), Xid::Unknown);
        written.answer(None);
        assert_eq!(written.state(), Xid::None);
        written.fail();
        written.answer(Some(9));
        assert_eq!(written.state(), Xid::Assigned);
    }

    #[test]
    fn a_failed_question_does_not_hide_that_another_is_missing() {
        let mut written = Written::Unasked;
        written.fail();
        assert_eq!(written, Written::Unasked);
        written.fail();
        written.omit_question();
        assert_eq!(written, Written::Unasked);
    }
}
