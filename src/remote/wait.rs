//! Waiting for participants' sockets through PostgreSQL's latch, so that cancel, termination, a
//! deadline and many connections work together.

use std::ffi::{c_int, c_long};
use std::time::Instant;

use pgrx::pg_sys;

use crate::pg::error::{Error, Result, SqlState, check_for_interrupts};
use crate::pg::wait_event::{self, WaitEvent};
use crate::pg::{globals, latch, versions};

/// What a cancel or a termination does during a wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Interrupts {
    /// It raises an error.
    Raise,
    /// It ends the wait, without an error: after the decision, and in abort.
    Return,
    /// Nothing, the wait goes on to its deadline: a one-phase COMMIT is on its way.
    Ignore,
}

/// Why a wait ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WaitEnd {
    /// A socket is ready, or may be: look again.
    Ready,
    /// The deadline has passed.
    Deadline,
    /// Under [`Interrupts::Return`] a cancel or a termination; there and under
    /// [`Interrupts::Ignore`] the postmaster's death.
    Interrupted,
}

/// What a socket is waited for. To be readable is always part of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Interest {
    /// The socket.
    pub socket: c_int,
    /// Also wait until it can be written.
    pub write: bool,
}

/// A set of sockets to wait for, together with the latch and the postmaster's death.
pub struct WaitSet {
    set: *mut pg_sys::WaitEventSet,
    members: Vec<Member>,
    /// Room for the events of a wait.
    events: Vec<pg_sys::WaitEvent>,
}

struct Member {
    socket: c_int,
    position: c_int,
    write: bool,
    /// The last wait found it ready.
    ready: bool,
}

const FOREVER: c_long = -1;

impl WaitSet {
    /// A set of these sockets, each once. It lives until it is dropped, beyond transactions.
    pub fn new(sockets: &[c_int]) -> Self {
        wait_event::prepare();
        let count = sockets.len() as c_int + 2;
        // SAFETY: it lives until it is freed; a socket is added once (epoll refuses twice).
        let set = unsafe {
            let set = versions::CreateWaitEventSet(count);
            pg_sys::AddWaitEventToSet(
                set,
                pg_sys::WL_LATCH_SET,
                pg_sys::PGINVALID_SOCKET,
                pg_sys::MyLatch,
                std::ptr::null_mut(),
            );
            // In single-user mode there is no postmaster.
            if !globals::is_single_user() {
                pg_sys::AddWaitEventToSet(
                    set,
                    pg_sys::WL_POSTMASTER_DEATH,
                    pg_sys::PGINVALID_SOCKET,
                    std::ptr::null_mut(),
                    std::ptr::null_mut(),
                );
            }
            set
        };
        let mut this = Self {
            set,
            members: Vec::with_capacity(sockets.len()),
            events: vec![pg_sys::WaitEvent::default(); sockets.len() + 2],
        };
        for &socket in sockets {
            // SAFETY: the set has room for it.
            let position = unsafe {
                pg_sys::AddWaitEventToSet(
                    set,
                    pg_sys::WL_SOCKET_READABLE,
                    socket,
                    std::ptr::null_mut(),
                    std::ptr::null_mut(),
                )
            };
            this.members.push(Member { socket, position, write: false, ready: false });
        }
        this
    }

    /// Waits once. Every socket in the set is waited for, named in `interests` or not: a caller
    /// that is woken for nothing should make a smaller set. [`Self::is_ready`] then tells which
    /// sockets are ready.
    ///
    /// # Errors
    /// A cancel, under [`Interrupts::Raise`].
    pub fn wait(
        &mut self,
        interests: &[Interest],
        deadline: Option<Instant>,
        interrupts: Interrupts,
        event: WaitEvent,
    ) -> Result<WaitEnd> {
        self.members.iter_mut().for_each(|member| member.ready = false);
        if let Some(woke) = interrupted(interrupts)? {
            return Ok(woke);
        }
        // A socket that libpq has closed has left the set and would never wake it.
        if interests.iter().any(|interest| interest.socket < 0) {
            return Ok(WaitEnd::Ready);
        }
        self.set_interests(interests);
        let Some(timeout) = milliseconds_until(deadline) else {
            return Ok(WaitEnd::Deadline);
        };
        let room = self.events.len() as c_int;
        // SAFETY: room for as many events as are asked for.
        let count = unsafe {
            pg_sys::WaitEventSetWait(
                self.set,
                timeout,
                self.events.as_mut_ptr(),
                room,
                event.number(),
            )
        };
        if count == 0 {
            return Ok(if milliseconds_until(deadline).is_none() {
                WaitEnd::Deadline
            } else {
                WaitEnd::Ready
            });
        }
        let mut latch = false;
        for event in &self.events[..count as usize] {
            if event.events & pg_sys::WL_POSTMASTER_DEATH != 0 {
                return postmaster_died(interrupts);
            }
            latch |= event.events & pg_sys::WL_LATCH_SET != 0;
            if let Some(member) = self.members.iter_mut().find(|m| m.position == event.pos) {
                member.ready = true;
            }
        }
        if latch {
            latch::reset();
            if let Some(woke) = interrupted(interrupts)? {
                return Ok(woke);
            }
        }
        Ok(WaitEnd::Ready)
    }

    /// Has the kernel report writable sockets where that is of interest.
    fn set_interests(&mut self, interests: &[Interest]) {
        for member in &mut self.members {
            let write =
                interests.iter().any(|interest| interest.socket == member.socket && interest.write);
            if member.write == write {
                continue;
            }
            let mut events = pg_sys::WL_SOCKET_READABLE;
            if write {
                events |= pg_sys::WL_SOCKET_WRITEABLE;
            }
            // SAFETY: the position is one that the set gave.
            unsafe {
                pg_sys::ModifyWaitEvent(self.set, member.position, events, std::ptr::null_mut());
            }
            member.write = write;
        }
    }

    /// Whether the last wait found this socket ready. One that is not in the set always is.
    pub fn is_ready(&self, socket: c_int) -> bool {
        self.members.iter().find(|m| m.socket == socket).is_none_or(|m| m.ready)
    }
}

impl Drop for WaitSet {
    fn drop(&mut self) {
        // SAFETY: owned, freed once; it raises nothing.
        unsafe { pg_sys::FreeWaitEventSet(self.set) }
    }
}

/// Waits once for one socket, which may change between calls while a connection is being made.
///
/// # Errors
/// A cancel.
pub fn socket_once(socket: c_int, write: bool, deadline: Option<Instant>) -> Result<WaitEnd> {
    check_for_interrupts()?;
    let Some(timeout) = milliseconds_until(deadline) else {
        return Ok(WaitEnd::Deadline);
    };
    let mut events = pg_sys::WL_LATCH_SET | pg_sys::WL_EXIT_ON_PM_DEATH;
    events |= if write { pg_sys::WL_SOCKET_WRITEABLE } else { pg_sys::WL_SOCKET_READABLE };
    if timeout != FOREVER {
        events |= pg_sys::WL_TIMEOUT;
    }
    // SAFETY: our own latch and an open socket.
    let woke = unsafe {
        pg_sys::WaitLatchOrSocket(
            pg_sys::MyLatch,
            events as c_int,
            socket,
            timeout,
            WaitEvent::Connect.number(),
        )
    } as u32;
    if woke & pg_sys::WL_LATCH_SET != 0 {
        latch::reset();
        check_for_interrupts()?;
    }
    Ok(if woke & pg_sys::WL_TIMEOUT != 0 { WaitEnd::Deadline } else { WaitEnd::Ready })
}

/// The time left in whole milliseconds, rounded up; `None` when there is none.
fn milliseconds_until(deadline: Option<Instant>) -> Option<c_long> {
    let Some(deadline) = deadline else { return Some(FOREVER) };
    let left = deadline.saturating_duration_since(Instant::now());
    (!left.is_zero()).then(|| (left.as_micros().div_ceil(1000)).min(3_600_000) as c_long)
}

fn interrupted(interrupts: Interrupts) -> Result<Option<WaitEnd>> {
    match interrupts {
        Interrupts::Raise => check_for_interrupts().map(|()| None),
        Interrupts::Ignore => Ok(None),
        Interrupts::Return => {
            let pending = globals::is_cancel_pending() || globals::is_termination_pending();
            Ok(pending.then_some(WaitEnd::Interrupted))
        }
    }
}

fn postmaster_died(interrupts: Interrupts) -> Result<WaitEnd> {
    match interrupts {
        Interrupts::Return | Interrupts::Ignore => Ok(WaitEnd::Interrupted),
        Interrupts::Raise => {
            Err(Error::new(SqlState::new(b"57P01"), "terminating because the postmaster has gone"))
        }
    }
}
