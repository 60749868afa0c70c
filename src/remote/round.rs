//! A round: commands that are sent on many connections at once, and their answers, gathered
//! together.

use std::cell::RefCell;
use std::ffi::CStr;
use std::rc::Rc;
use std::time::Instant;

use crate::libpq::PgResult;
use crate::pg::backend_local::BackendLocal;
use crate::pg::error::{Result, SqlState};
use crate::pg::wait_event::WaitEvent;
use crate::protocol::answers::Heard;
use crate::protocol::gid::Command;
use crate::protocol::pipeline::{Answer, Ticket};
use crate::remote::connection::Connection;
use crate::remote::long_wait::LongWait;
use crate::remote::wait::{Interest, Interrupts, WaitEnd, WaitSet};

/// What became of a command.
pub enum Reply {
    /// The server answered with the command's own tag.
    Done,
    /// The server answered with the tag of ROLLBACK, because its transaction had failed.
    OtherTag(Rc<PgResult>),
    /// The server, or libpq in its place, answered with an error.
    Refused(Rc<PgResult>),
    /// The connection broke before the answer, or what came cannot be one.
    Lost,
}

impl Reply {
    /// What it says of a command that ends the transaction of this connection.
    pub fn heard(&self, connection: &Connection) -> Heard {
        match self {
            Self::Done => Heard::Done,
            Self::OtherTag(_) => Heard::OtherTag,
            // Whatever its code: it says that the session ends.
            Self::Refused(failure) if failure.is_fatal() => Heard::Lost,
            Self::Refused(_) if connection.has_skipped_prepare() => Heard::Skipped,
            Self::Refused(failure) => match failure.error_field(b'C') {
                code @ Some(_) if SqlState::parse(code) == SqlState::UNDEFINED_OBJECT => {
                    Heard::NotPrepared
                }
                Some(_) if !connection.is_doomed() => Heard::Refused,
                _ => Heard::Lost,
            },
            Self::Lost => Heard::Lost,
        }
    }
}

/// Commands under way, one per connection, each sent for a member of type `M`.
pub struct Round<'a, M> {
    asked: Vec<Asked<'a, M>>,
    set: Option<SetOf>,
}

struct Asked<'a, M> {
    member: M,
    connection: &'a Connection,
    tag: &'static CStr,
    /// `None` once it is answered, and where it could not be sent.
    ticket: Option<Ticket>,
}

/// A wait set, and the numbers of the connections it was made for.
struct SetOf {
    numbers: Vec<u64>,
    set: WaitSet,
}

/// The set of the last round. Those who prepare together also commit together, and mostly do so in
/// the next transaction again. Using it again is faster, and cannot fail after the decision as
/// making one can.
static LAST: BackendLocal<RefCell<Option<SetOf>>> = BackendLocal::new(RefCell::new(None));

impl<'a, M: Copy> Round<'a, M> {
    /// A round over these connections. What it waits with is there before anything is sent: that
    /// can fail, and a command that is on its way has to be waited for.
    pub fn over(connections: impl IntoIterator<Item = &'a Connection>) -> Self {
        let connections: Vec<&Connection> = connections.into_iter().collect();
        let set = (!connections.is_empty()).then(|| set_of(&connections));
        Self { asked: Vec::new(), set }
    }

    /// A round over the connections on which something will be sent, which are not known yet.
    pub fn new() -> Self {
        Self { asked: Vec::new(), set: None }
    }

    /// Sends a command for a member; `false` if the connection is lost. No reply comes then.
    pub fn send(&mut self, member: M, connection: &'a Connection, command: &Command) -> bool {
        self.was_sent(member, connection, command.tag, connection.send_alone(&command.sql))
    }

    /// Sends PREPARE TRANSACTION for a member, as [`Connection::send_prepare`] does; `false` if the
    /// connection is lost.
    pub fn send_prepare(
        &mut self,
        member: M,
        connection: &'a Connection,
        prepare: &Command,
        is_settled_here: bool,
    ) -> bool {
        let ticket = connection.send_prepare(&prepare.sql, is_settled_here);
        self.was_sent(member, connection, prepare.tag, ticket)
    }

    /// A command for a member was sent with this ticket, which is `None` if the connection is lost.
    pub fn was_sent(
        &mut self,
        member: M,
        connection: &'a Connection,
        tag: &'static CStr,
        ticket: Option<Ticket>,
    ) -> bool {
        self.asked.push(Asked { member, connection, tag, ticket });
        ticket.is_some()
    }

    /// Waits until every command is answered, and hands each reply to `on` as it comes. What has
    /// not been answered at the end of the wait can be waited for again.
    ///
    /// # Errors
    /// A cancel, under [`Interrupts::Raise`]; those of `on`, which end the wait.
    pub fn wait(
        &mut self,
        deadline: Instant,
        interrupts: Interrupts,
        event: WaitEvent,
        mut on: impl FnMut(M, &Reply) -> Result<()>,
    ) -> Result<WaitEnd> {
        if self.asked.is_empty() {
            return Ok(WaitEnd::Ready);
        }
        let asked = &mut self.asked;
        let of_asked = || set_of(&asked.iter().map(|a| a.connection).collect::<Vec<_>>());
        let set = &mut self.set.get_or_insert_with(of_asked).set;
        let mut first = true;
        let mut long = match event {
            WaitEvent::Commit => LongWait::of_commit(),
            _ => LongWait::begin(interrupts),
        };
        loop {
            let mut interests = Vec::with_capacity(asked.len());
            for Asked { member, connection, tag, ticket } in &mut *asked {
                // Also those that are answered: unread input would end every wait at once.
                if first {
                    connection.take_note();
                } else if set.is_ready(connection.socket()) {
                    connection.pump();
                }
                let Some(awaited) = *ticket else { continue };
                let reply = match connection.take(awaited) {
                    Some(Ok(Answer::Ok(result))) if result.command_tag() == *tag => Reply::Done,
                    Some(Ok(Answer::Ok(result))) if result.command_tag() == c"ROLLBACK" => {
                        Reply::OtherTag(result)
                    }
                    Some(Ok(Answer::Ok(_))) => {
                        connection.distrust();
                        Reply::Lost
                    }
                    Some(Ok(Answer::Err(failure))) => Reply::Refused(failure),
                    Some(Err(_)) => Reply::Lost,
                    None => {
                        interests.push(connection.interest());
                        continue;
                    }
                };
                *ticket = None;
                on(*member, &reply)?;
            }
            if interests.is_empty() {
                return Ok(WaitEnd::Ready);
            }
            first = false;
            let sleep = |until| set.wait(&interests, until, interrupts, event);
            let awaited = || asked.iter().filter(|a| a.ticket.is_some()).map(|a| a.connection);
            match long.sleep(Some(deadline), sleep, || awaited().collect())? {
                WaitEnd::Ready => {}
                ended => return Ok(ended),
            }
        }
    }
}

/// Waits until something holds of every connection.
///
/// # Errors
/// A cancel, under [`Interrupts::Raise`].
pub fn wait_for(
    connections: &[&Connection],
    is_so: impl Fn(&Connection) -> bool,
    interrupts: Interrupts,
    event: WaitEvent,
) -> Result<()> {
    let waiting = |pump: bool| -> Vec<Interest> {
        let still = connections.iter().filter(|connection| {
            if pump {
                connection.pump();
            } else {
                connection.take_note();
            }
            !is_so(connection)
        });
        still.map(|connection| connection.interest()).collect()
    };
    let mut interests = waiting(false);
    if interests.is_empty() {
        return Ok(());
    }
    let mut set = set_of(connections);
    // Cursors may be opened there, which wait for locks.
    let mut long = LongWait::begin(interrupts);
    while !interests.is_empty() {
        let sleep = |until| set.set.wait(&interests, until, interrupts, event);
        long.sleep(None, sleep, || connections.iter().copied().filter(|c| !is_so(c)).collect())?;
        interests = waiting(true);
    }
    LAST.get().replace(Some(set));
    Ok(())
}

/// The set of the last round if it is of the same connections, or a new one.
fn set_of(connections: &[&Connection]) -> SetOf {
    // libpq has closed the socket of a broken connection, which has thereby left every set.
    let alive = || connections.iter().filter(|c| c.socket() >= 0);
    let numbers: Vec<u64> = alive().map(|c| c.number()).collect();
    LAST.get().take().filter(|last| last.numbers == numbers).unwrap_or_else(|| {
        let sockets: Vec<_> = alive().map(|c| c.socket()).collect();
        SetOf { numbers, set: WaitSet::new(&sockets) }
    })
}

impl<M> Drop for Round<'_, M> {
    fn drop(&mut self) {
        // If one of its connections has broken since, the set no longer matches and is made again.
        if let Some(set) = self.set.take() {
            LAST.get().replace(Some(set));
        }
    }
}
