//! One participant's part of a distributed transaction: its gid and its state. [`Member::apply`] is
//! the only way to move the state, and keeps the entry in shared memory in step with it.

use std::cell::{Cell, OnceCell};
use std::fmt::Display;
use std::rc::Rc;

use crate::pg::debug::debug;
use crate::pg::error::{Error, Result, SqlState};
use crate::pg::text;
use crate::protocol::gid::{Gid, Prepared};
use crate::protocol::participant::{Event, State};
use crate::remote::cache::Cached;
use crate::shared::entries;
use crate::shared::entry_change::Change;

/// A participant's gid and state.
pub struct Branch {
    state: Cell<State>,
    prepared: OnceCell<Prepared>,
}

impl Branch {
    /// That of a session that has just been attached.
    pub fn new() -> Self {
        Self { state: Cell::new(State::Active), prepared: OnceCell::new() }
    }

    /// One that is prepared, and waits for the application's 'gxid'.
    pub fn waiting(gid: Gid) -> Self {
        Self { state: Cell::new(State::Waiting), prepared: Prepared::new(gid).into() }
    }
}

/// A participant, as those see it that end the transaction.
pub trait Member {
    /// Its part of the transaction.
    fn branch(&self) -> &Branch;

    /// The connection to it; `None` where it could not be reached.
    fn connection(&self) -> Option<&Rc<Cached>>;

    /// The server's name as a part of messages.
    fn server(&self) -> String;

    /// Where it is.
    fn state(&self) -> State {
        self.branch().state.get()
    }

    /// Its gid with the commands that carry it, once it has one.
    fn prepared(&self) -> Option<&Prepared> {
        self.branch().prepared.get()
    }

    /// Gives it its gid, for which shared memory has an entry already.
    ///
    /// # Errors
    /// Those of [`Member::apply`].
    fn reserve(&self, gid: Gid) -> Result<()> {
        self.branch().prepared.get_or_init(|| Prepared::new(gid));
        self.apply(Event::Reserve)
    }

    /// Moves it, and has its entry follow.
    ///
    /// # Errors
    /// XX000: the state does not allow the event, which is a bug. Neither state nor entry is
    /// changed, so that nothing prepared is forgotten.
    fn apply(&self, event: Event) -> Result<()> {
        if let Some((gid, change)) = self.step(event)? {
            entries::follow(&gid, change);
        }
        Ok(())
    }

    /// Moves it; the caller has its entry follow as told.
    ///
    /// # Errors
    /// Those of [`Member::apply`].
    fn step(&self, event: Event) -> Result<Option<(Gid, Change)>> {
        let was = self.state();
        let now = was
            .on(event)
            .map_err(|illegal| Error::new(SqlState::INTERNAL_ERROR, illegal.to_string()))?;
        self.branch().state.set(now);
        let Some(prepared) = self.prepared() else { return Ok(None) };
        if was != now {
            self.log_step(&prepared.gid, describe(event, now));
        }
        Ok(Some((prepared.gid, Change::between(was, now))))
    }

    /// Logs a step of the protocol at DEBUG1, with the gid.
    fn log_step(&self, gid: &Gid, step: impl Display) {
        debug(|| format!("'{gid}' on server \"{}\": {step}", text::in_ascii(&self.server())));
    }
}

/// What has happened, in the log's words.
fn describe(event: Event, now: State) -> &'static str {
    match (event, now) {
        (Event::NotBegun, _) => "no transaction was begun",
        (Event::SendCommit, _) => "sending COMMIT",
        (Event::Reserve, _) => "gid reserved",
        (Event::SendPrepare, _) => "sending PREPARE TRANSACTION",
        (Event::PrepareConfirmed, _) => "prepared",
        (Event::PrepareRefused, _) => "PREPARE TRANSACTION was refused",
        (Event::PrepareSkipped, _) => "PREPARE TRANSACTION was not executed",
        (Event::DecidedCommit, _) => "decided to commit",
        (Event::DecidedLater, _) => "left to COMMIT PREPARED or ROLLBACK PREPARED here",
        (Event::DecidedAbort, State::Aborting) => "decided to roll back",
        (Event::DecidedAbort, _) => "decided to roll back; nothing was prepared",
        (Event::Confirmed, _) => "confirmed",
        (Event::Unawaited, _) => "not waiting for the confirmation",
        (Event::Unconfirmed, State::Settled) => "the end of the connection rolls back",
        (Event::Unconfirmed, _) => "not confirmed; handed over to the resolver",
    }
}

impl<M: Member> Member for Rc<M> {
    fn branch(&self) -> &Branch {
        (**self).branch()
    }

    fn connection(&self) -> Option<&Rc<Cached>> {
        (**self).connection()
    }

    fn server(&self) -> String {
        (**self).server()
    }
}
