//! Waiting until a connection is quiet: everything answered, or a command that nobody waits for, or
//! everything sent.

use std::time::{Duration, Instant};

use super::{Asked, Connection};
use crate::pg::error::{Result, check_for_interrupts};
use crate::pg::globals::is_termination_pending;
use crate::pg::latch;
use crate::pg::wait_event::WaitEvent;
use crate::protocol::pipeline::Control;
use crate::remote::long_wait::LongWait;
use crate::remote::wait::{Interrupts, WaitEnd};

/// How long the end of the stream may take to follow the server's last message.
const PARTING: Duration = Duration::from_secs(5);

impl Connection {
    /// Waits until everything asked has been answered. `Ok(false)` if it was not by then.
    ///
    /// # Errors
    /// A cancel, under [`Interrupts::Raise`].
    pub fn drain(&self, deadline: Instant, interrupts: Interrupts) -> Result<bool> {
        let mut long = LongWait::begin(interrupts);
        loop {
            self.pump();
            if self.inner.borrow().fifo.is_idle() {
                return Ok(true);
            }
            let sleep = |until| self.wait_once(until, interrupts, WaitEvent::Cleanup);
            if self.is_doomed()
                || long.sleep(Some(deadline), sleep, || vec![self])? != WaitEnd::Ready
            {
                return Ok(false);
            }
        }
    }

    /// Waits until a statement is answered, or cannot be, in a wait that began at `begin`. A
    /// termination ends the wait, and not the process from inside of it.
    ///
    /// # Errors
    /// A cancel, a verdict.
    pub fn wait_or_be_terminated(
        &self,
        asked: &Asked,
        deadline: Option<Instant>,
        begin: Instant,
    ) -> Result<WaitEnd> {
        let mut long = LongWait::since(begin, Interrupts::Raise);
        self.take_note();
        while self.is_due(asked.ticket()) && !self.is_doomed() {
            if is_termination_pending() {
                return Ok(WaitEnd::Interrupted);
            }
            check_for_interrupts()?;
            let sleep = |until| self.wait_once(until, Interrupts::Ignore, WaitEvent::Result);
            match long.sleep(deadline, sleep, || vec![self])? {
                WaitEnd::Ready => self.pump(),
                end => return Ok(end),
            }
        }
        Ok(WaitEnd::Ready)
    }

    /// Whether everything asked has been answered, as far as it has been read.
    pub fn is_drained(&self) -> bool {
        self.inner.borrow().fifo.is_idle()
    }

    /// How many answers are still to come.
    pub fn unanswered(&self) -> usize {
        self.inner.borrow().fifo.unanswered()
    }

    /// Whether a statement has still to be answered: what only the connection itself has asked
    /// takes no time.
    pub fn is_at_work(&self) -> bool {
        self.inner.borrow().fifo.expects_statements()
    }

    /// Waits until a `COMMIT PREPARED` that nobody has waited for is answered, or the deadline has
    /// come.
    ///
    /// # Errors
    /// A cancel.
    pub fn pass_deliveries(&self, deadline: Instant) -> Result<()> {
        loop {
            self.pump();
            let is_underway = self.inner.borrow().fifo.awaits(Control::Delivery);
            if !is_underway || self.is_doomed() {
                return Ok(());
            }
            if self.wait_once(Some(deadline), Interrupts::Raise, WaitEvent::Settle)?
                != WaitEnd::Ready
            {
                return Ok(());
            }
        }
    }

    /// Waits until nothing is on its way any more that a cancel of a statement must not hit: the
    /// end of an earlier transaction, and what begins the session, without which it could not be
    /// used after a savepoint. `false` if something still is when the deadline has come or the wait
    /// is interrupted.
    pub(super) fn pass_spared(&self, deadline: Instant) -> bool {
        const SPARED: [Control; 4] =
            [Control::Delivery, Control::Ending, Control::Setup, Control::SessionLock];
        loop {
            let underway = {
                let fifo = &self.inner.borrow().fifo;
                SPARED.into_iter().any(|control| fifo.awaits(control))
            };
            if !underway || self.is_doomed() {
                return !underway;
            }
            let end = self.wait_once(Some(deadline), Interrupts::Return, WaitEvent::Settle);
            if !matches!(end, Ok(WaitEnd::Ready)) {
                return false;
            }
            self.pump();
        }
    }

    /// Waits until the server says, unasked, that it ends the session because it was idle. `false`
    /// if it has not by then, or the connection has ended otherwise.
    ///
    /// # Errors
    /// A cancel.
    pub fn hears_of_idle_end(&self, deadline: Instant) -> Result<bool> {
        loop {
            self.pump();
            if self.conn.ended_idle() {
                return Ok(true);
            }
            let end = self.wait_once(Some(deadline), Interrupts::Raise, WaitEvent::Connect)?;
            if end == WaitEnd::Deadline || self.is_doomed() {
                return Ok(false);
            }
        }
    }

    /// Reads the end of the stream, which follows the server's last message.
    ///
    /// # Errors
    /// A cancel, under [`Interrupts::Raise`].
    pub(super) fn read_to_end(&self, interrupts: Interrupts) -> Result<()> {
        let deadline = Instant::now() + PARTING;
        while !self.conn.is_bad() {
            self.pump();
            if !self.conn.is_bad()
                && self.wait_once(Some(deadline), interrupts, WaitEvent::Result)? != WaitEnd::Ready
            {
                break;
            }
        }
        Ok(())
    }

    /// Waits until everything that was sent has left; whether it had to wait. A caller that then
    /// waits only for the socket to be readable is sure that the server has been asked.
    ///
    /// # Errors
    /// A cancel.
    pub fn flush_out(&self) -> Result<bool> {
        let mut waited = false;
        let mut long = LongWait::begin(Interrupts::Raise);
        while self.interest().write {
            let sleep = |until| self.wait_once(until, Interrupts::Raise, WaitEvent::Result);
            long.sleep(None, sleep, || vec![self])?;
            // A server that sends does not read: its answers are taken meanwhile.
            self.pump();
            waited = true;
        }
        Ok(waited)
    }

    /// With `true`, a caller is going to sleep until the socket is readable or the latch is set.
    /// Whoever reads from the socket before that sets the latch, because input that was read no
    /// longer wakes the sleeper.
    pub fn watch(&self, watched: bool) {
        self.watched.set(watched);
    }

    pub(super) fn wake_watcher(&self) {
        if self.watched.replace(false) {
            latch::set();
        }
    }
}
