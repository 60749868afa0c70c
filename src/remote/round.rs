//! Waiting for the answers of many connections at once.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Instant;

use crate::libpq::PgResult;
use crate::pg::backend_local::BackendLocal;
use crate::pg::error::Result;
use crate::pg::wait_event::WaitEvent;
use crate::protocol::pipeline::{Answer, Ticket};
use crate::remote::connection::Connection;
use crate::remote::wait::{Patience, WaitSet, Woke};

/// What became of one command.
pub enum Outcome {
    /// It was done.
    Done(Rc<PgResult>),
    /// The participant answered with an error.
    Failed(Rc<PgResult>),
    /// The connection broke before the answer.
    Lost,
    /// The answer has not come yet.
    Pending,
}

/// The commands under way, one per connection, and what to wait with.
pub struct Together<'a> {
    members: Vec<(&'a Connection, Option<Ticket>, Outcome)>,
    /// `None` once it has been given back.
    set: Option<SetOf>,
}

/// What a wait set was made for.
struct SetOf {
    numbers: Vec<u64>,
    set: WaitSet,
}

/// The set of the last wait. Those who prepare together commit together, and mostly do so in the next transaction again;
/// and what is used again after the decision cannot fail to be made there.
static LAST: BackendLocal<RefCell<Option<SetOf>>> = BackendLocal::new(RefCell::new(None));

/// Those with a socket: libpq has closed that of a broken connection, which has thereby left every set.
fn numbers<'a>(connections: impl Iterator<Item = &'a Connection>) -> impl Iterator<Item = u64> {
    connections.filter(|c| c.socket() >= 0).map(Connection::number)
}

impl<'a> Together<'a> {
    /// For these connections.
    pub fn new(connections: impl IntoIterator<Item = &'a Connection>) -> Self {
        let members: Vec<_> =
            connections.into_iter().map(|c| (c, None, Outcome::Pending)).collect();
        let connections = || members.iter().map(|(c, ..)| *c);
        let is_same = |last: &SetOf| numbers(connections()).eq(last.numbers.iter().copied());
        let set = LAST.get().take().filter(is_same).unwrap_or_else(|| {
            let sockets = connections().map(Connection::socket).filter(|s| *s >= 0);
            SetOf {
                numbers: numbers(connections()).collect(),
                set: WaitSet::new(&sockets.collect::<Vec<_>>()),
            }
        });
        Self { members, set: Some(set) }
    }

    /// Member `index` has sent the command that `ticket` stands for; `None`: it could not.
    pub fn sent(&mut self, index: usize, ticket: Option<Ticket>) {
        let member = &mut self.members[index];
        member.1 = ticket;
        member.2 = if ticket.is_some() { Outcome::Pending } else { Outcome::Lost };
    }

    /// Waits until every command has its outcome, or `stop` says that one outcome is enough.
    ///
    /// # Errors
    /// A cancel, under [`Patience::Interruptible`].
    pub fn wait(
        &mut self,
        deadline: Instant,
        patience: Patience,
        event: WaitEvent,
        mut on: impl FnMut(usize, &Outcome) -> Result<()>,
    ) -> Result<Woke> {
        let Some(SetOf { set, .. }) = &mut self.set else { return Ok(Woke::Ready) };
        let mut first = true;
        loop {
            let mut wants = Vec::with_capacity(self.members.len());
            for (index, (connection, ticket, outcome)) in self.members.iter_mut().enumerate() {
                // Who has been answered is read from as well: it would not let the others sleep.
                if first {
                    connection.take_note();
                } else if set.is_ready(connection.socket()) {
                    connection.pump();
                }
                let (Some(asked), Outcome::Pending) = (*ticket, &*outcome) else { continue };
                *outcome = match connection.take(asked) {
                    Some(Ok(Answer::Ok(result))) => Outcome::Done(result),
                    Some(Ok(Answer::Err(failure))) => Outcome::Failed(failure),
                    Some(Err(_)) => Outcome::Lost,
                    None => {
                        wants.push(connection.want());
                        continue;
                    }
                };
                *ticket = None;
                on(index, outcome)?;
            }
            if wants.is_empty() {
                return Ok(Woke::Ready);
            }
            first = false;
            match set.wait(&wants, Some(deadline), patience, event)? {
                Woke::Ready => {}
                ended => return Ok(ended),
            }
        }
    }
}

impl Drop for Together<'_> {
    fn drop(&mut self) {
        // Without those that have broken meanwhile it would not be found again.
        LAST.get().replace(self.set.take());
    }
}
