//! Waiting for the answers of many connections at once.

use std::rc::Rc;
use std::time::Instant;

use crate::libpq::PgResult;
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

/// The commands under way, one per connection, and what to wait with. It is made before the commit
/// decision, so that nothing has to be allocated after it.
pub struct Together<'a> {
    members: Vec<(&'a Connection, Option<Ticket>, Outcome)>,
    set: WaitSet,
}

impl<'a> Together<'a> {
    /// For these connections.
    pub fn new(connections: impl IntoIterator<Item = &'a Connection>) -> Self {
        let members: Vec<_> =
            connections.into_iter().map(|c| (c, None, Outcome::Pending)).collect();
        let sockets: Vec<_> =
            members.iter().map(|(c, ..)| c.want().socket).filter(|s| *s >= 0).collect();
        Self { members, set: WaitSet::new(&sockets) }
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
        loop {
            let mut wants = Vec::with_capacity(self.members.len());
            for (index, (connection, ticket, outcome)) in self.members.iter_mut().enumerate() {
                let (Some(asked), Outcome::Pending) = (*ticket, &*outcome) else { continue };
                connection.pump();
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
            match self.set.wait(&wants, Some(deadline), patience, event)? {
                Woke::Ready => {}
                ended => return Ok(ended),
            }
        }
    }
}
