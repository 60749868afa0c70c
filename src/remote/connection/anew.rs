//! Beginning a transaction anew on another connection, where the one it was begun on turns out to
//! have ended meanwhile.
//!
//! An idle connection can be cut without notice, and only its next use finds out. As long as
//! nothing of the new transaction has been answered, nothing is known of it here and nothing of it
//! is left there: whatever followed START TRANSACTION has ended with the session. So the same
//! segments are sent again on a new connection, under the same tickets, and whoever waits for the
//! answers notices nothing. It is done once in a transaction, and only if the connection had worked
//! before: one that ends as soon as it is made would end again.

use std::ffi::{CStr, CString};
use std::rc::Rc;

use super::modes::Modes;
use super::sending::{Isolation, Manner, Message};
use super::state::{Broken, State};
use super::{Connection, Opening};
use crate::protocol::order::Opened;
use crate::protocol::pipeline::{Control, Ticket};
use crate::protocol::plan::Access;

/// A transaction that has sent more than this is not kept to be sent again.
const MOST_BYTES: usize = 1 << 20;

/// What was sent of a transaction of which nothing has been answered yet.
pub struct Unanswered {
    segments: Vec<Segment>,
    bytes: usize,
    /// The ticket that the next statement gets.
    next: Ticket,
}

struct Segment {
    isolation: Isolation,
    modes: Modes,
    opened_at: Option<Opened>,
    owner: u32,
    level: u32,
    access: Access,
    /// The cursors that were opened in it, before the messages.
    opened: Vec<Rc<Opening>>,
    /// The one that the messages are about.
    opening: Option<Rc<Opening>>,
    messages: Vec<Owned>,
    query: Option<Rc<CStr>>,
}

/// A [`Message`] that is kept.
enum Owned {
    Query(CString, Vec<Option<CString>>),
    Prepare(CString, CString),
    Execute(CString, Vec<Option<CString>>),
}

impl Owned {
    /// A copy and its size; `None` for a message that continues what was answered.
    fn of(message: &Message) -> Option<(Self, usize)> {
        let keep = |params: &[Option<&CStr>]| -> (Vec<Option<CString>>, usize) {
            let bytes = params.iter().flatten().map(|p| p.to_bytes().len()).sum();
            (params.iter().map(|p| p.map(CStr::to_owned)).collect(), bytes)
        };
        match *message {
            Message::Query(sql, params) => {
                let (params, bytes) = keep(params);
                Some((Self::Query(sql.to_owned(), params), bytes + sql.to_bytes().len()))
            }
            Message::Prepare(name, sql) => Some((
                Self::Prepare(name.to_owned(), sql.to_owned()),
                name.to_bytes().len() + sql.to_bytes().len(),
            )),
            Message::Execute(name, params) => {
                let (params, bytes) = keep(params);
                Some((Self::Execute(name.to_owned(), params), bytes + name.to_bytes().len()))
            }
            Message::FetchMore(_) => None,
        }
    }

    fn params(&self) -> Vec<Option<&CStr>> {
        match self {
            Self::Query(_, params) | Self::Execute(_, params) => {
                params.iter().map(|p| p.as_deref()).collect()
            }
            Self::Prepare(..) => Vec::new(),
        }
    }

    fn message<'a>(&'a self, params: &'a [Option<&'a CStr>]) -> Message<'a> {
        match self {
            Self::Query(sql, _) => Message::Query(sql, params),
            Self::Prepare(name, sql) => Message::Prepare(name, sql),
            Self::Execute(name, _) => Message::Execute(name, params),
        }
    }
}

impl State {
    /// A transaction is about to begin: what is sent of it is kept, if the session has worked
    /// before.
    pub(super) fn keep_unanswered(&mut self) {
        let next = self.fifo.next_ticket();
        let works = self.session.fingerprint.is_some();
        self.transaction.unanswered =
            works.then(|| Unanswered { segments: Vec::new(), bytes: 0, next });
    }

    /// A segment has been sent.
    pub(super) fn note_sent(&mut self, manner: Manner, messages: &[Message]) {
        let opened = std::mem::take(&mut self.transaction.opened);
        let Some(mut kept) = self.transaction.unanswered.take() else { return };
        let next = kept.next + (opened.len() + messages.len()) as Ticket;
        if self.transaction.confirmed > 0 || self.fifo.next_ticket() != next {
            return;
        }
        let mut copies = Vec::with_capacity(messages.len());
        for message in messages {
            let Some((copy, bytes)) = Owned::of(message) else { return };
            kept.bytes += bytes;
            if kept.bytes > MOST_BYTES {
                return;
            }
            copies.push(copy);
        }
        let Manner { isolation, modes, owner, level, access, opening, query, .. } = manner;
        let (opening, query) = (opening.cloned(), query.cloned());
        let messages = copies;
        kept.segments.push(Segment {
            isolation,
            modes,
            opened_at: manner.opened,
            owner,
            level,
            access,
            opened,
            opening,
            messages,
            query,
        });
        kept.next = next;
        self.transaction.unanswered = Some(kept);
    }
}

impl Connection {
    /// Whether the transaction can begin anew on another connection.
    pub fn may_begin_anew(&self) -> bool {
        let inner = self.inner.borrow();
        let has_all = match &inner.transaction.unanswered {
            Some(kept) => kept.next == inner.fifo.next_ticket(),
            None => inner.transaction.depth == 0 && inner.session.fingerprint.is_some(),
        };
        has_all
            && matches!(self.broken.get(), Some(Broken::Lost | Broken::LostOpening(_)))
            && inner.transaction.confirmed == 0
            && !inner.transaction.began_anew
            && !self.sealed.get()
            && !self.is_tainted()
            // The previous transaction's COMMIT PREPARED may not have arrived, and this one would
            // not see its rows.
            && !inner.fifo.awaits(Control::Delivery)
            && inner.delivered != Some(false)
    }

    /// Takes over what `fresh` is connected to, and sends again what has been sent of the
    /// transaction.
    ///
    /// No reference to what libpq keeps in the old connection, such as its message, may be held.
    pub fn begin_anew(&self, fresh: &Self) {
        self.conn.swap(&fresh.conn);
        self.wait_set.swap(&fresh.wait_set);
        self.number.swap(&fresh.number);
        self.end.take();
        self.broken.set(None);
        self.answered.set(None);
        self.owns_process.set(fresh.owns_process.get());
        let kept = {
            let mut inner = self.inner.borrow_mut();
            let kept = inner.transaction.unanswered.take();
            let next = kept.as_ref().map(Unanswered::first_ticket);
            inner.change_session(next);
            kept
        };
        let waiting = std::mem::take(&mut self.inner.borrow_mut().transaction.openings);
        for segment in kept.into_iter().flat_map(|kept| kept.segments) {
            let Segment { isolation, modes, opened_at, owner, level, access, opened, .. } = segment;
            let (opening, messages, query) = (segment.opening, segment.messages, segment.query);
            // In each segment the same cursors are opened as before, in the same order.
            for opening in &opened {
                opening.sent.set(None);
            }
            self.inner.borrow_mut().transaction.openings =
                opened.iter().map(Rc::downgrade).collect();
            let params: Vec<_> = messages.iter().map(Owned::params).collect();
            let again: Vec<_> = messages.iter().zip(&params).map(|(m, p)| m.message(p)).collect();
            let (opening, query) = (opening.as_ref(), query.as_ref());
            let opened = opened_at;
            let manner = Manner { isolation, modes, opened, owner, level, access, opening, query };
            if self.queue_segment(manner, &again).is_none() {
                let _ = self.lose();
                break;
            }
        }
        self.inner.borrow_mut().transaction.openings = waiting;
        self.flush();
    }
}

impl Unanswered {
    fn first_ticket(&self) -> Ticket {
        let count: usize = self.segments.iter().map(|s| s.opened.len() + s.messages.len()).sum();
        self.next - count as Ticket
    }
}
