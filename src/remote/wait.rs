//! Waiting for participants' sockets through PostgreSQL's latch, so that cancel, termination, a deadline
//! and many connections work together.

use std::ffi::{c_int, c_long};
use std::time::Instant;

use pgrx::pg_sys;

use crate::pg::error::{Error, Result, SqlState, check_for_interrupts};
use crate::pg::wait_event::{self, WaitEvent};
use crate::pg::{globals, latch, versions};

/// What may end a wait besides the socket and the deadline.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Patience {
    /// A cancel or a termination raises.
    Interruptible,
    /// A cancel or a termination ends the wait and nothing raises: after the decision, in abort.
    Settling,
    /// Nothing but the deadline: a one-phase COMMIT is on its way.
    Stubborn,
}

/// Why a wait ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Woke {
    /// A socket is ready, or it is worth looking again.
    Ready,
    /// The deadline has passed.
    Deadline,
    /// A cancel, a termination or the postmaster's death, under [`Patience::Settling`] and
    /// [`Patience::Stubborn`] (there the postmaster's death alone).
    Interrupted,
}

/// What is wanted of a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Want {
    /// The socket.
    pub socket: c_int,
    /// Also wait until it can be written.
    pub write: bool,
}

/// A set of sockets to wait for, with the latch and the postmaster's death.
pub struct WaitSet {
    set: *mut pg_sys::WaitEventSet,
    members: Vec<Member>,
    /// Room for what a wait tells.
    events: Vec<pg_sys::WaitEvent>,
}

struct Member {
    socket: c_int,
    position: c_int,
    write: bool,
    /// The last wait was told of something there.
    ready: bool,
}

const FOREVER: c_long = -1;

impl WaitSet {
    /// A set of these sockets, each once; it lives until dropped, whatever transaction comes and goes.
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
            // In single-user mode there is none to watch.
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

    /// Waits once. Sockets of the set that `wants` does not name are waited for as well; who finds
    /// nothing to do after [`Woke::Ready`] makes a smaller set. [`Self::is_ready`] then tells which they were.
    ///
    /// # Errors
    /// A cancel, under [`Patience::Interruptible`].
    pub fn wait(
        &mut self,
        wants: &[Want],
        deadline: Option<Instant>,
        patience: Patience,
        event: WaitEvent,
    ) -> Result<Woke> {
        self.members.iter_mut().for_each(|member| member.ready = false);
        if let Some(woke) = interrupted(patience)? {
            return Ok(woke);
        }
        // A socket that libpq has closed has left the set, and would never wake it.
        if wants.iter().any(|want| want.socket < 0) {
            return Ok(Woke::Ready);
        }
        for member in &mut self.members {
            let write = wants.iter().any(|want| want.socket == member.socket && want.write);
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
        let Some(timeout) = milliseconds_until(deadline) else {
            return Ok(Woke::Deadline);
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
                Woke::Deadline
            } else {
                Woke::Ready
            });
        }
        let mut latch = false;
        for event in &self.events[..count as usize] {
            if event.events & pg_sys::WL_POSTMASTER_DEATH != 0 {
                return postmaster_died(patience);
            }
            latch |= event.events & pg_sys::WL_LATCH_SET != 0;
            if let Some(member) = self.members.iter_mut().find(|m| m.position == event.pos) {
                member.ready = true;
            }
        }
        if latch {
            latch::reset();
            if let Some(woke) = interrupted(patience)? {
                return Ok(woke);
            }
        }
        Ok(Woke::Ready)
    }

    /// Whether the last wait was told of something on this socket; also of one that is not in the set, on which nothing
    /// is ever told.
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

/// Waits once for one socket that may change between calls, as it does while connecting.
///
/// # Errors
/// A cancel.
pub fn socket_once(socket: c_int, write: bool, deadline: Option<Instant>) -> Result<Woke> {
    check_for_interrupts()?;
    let Some(timeout) = milliseconds_until(deadline) else {
        return Ok(Woke::Deadline);
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
    Ok(if woke & pg_sys::WL_TIMEOUT != 0 { Woke::Deadline } else { Woke::Ready })
}

/// The time left in whole milliseconds, rounded up; `None` when there is none.
fn milliseconds_until(deadline: Option<Instant>) -> Option<c_long> {
    let Some(deadline) = deadline else { return Some(FOREVER) };
    let left = deadline.saturating_duration_since(Instant::now());
    (!left.is_zero()).then(|| (left.as_micros().div_ceil(1000)).min(3_600_000) as c_long)
}

fn interrupted(patience: Patience) -> Result<Option<Woke>> {
    match patience {
        Patience::Interruptible => check_for_interrupts().map(|()| None),
        Patience::Stubborn => Ok(None),
        Patience::Settling => {
            let pending = globals::is_cancel_pending() || globals::is_termination_pending();
            Ok(pending.then_some(Woke::Interrupted))
        }
    }
}

fn postmaster_died(patience: Patience) -> Result<Woke> {
    match patience {
        Patience::Settling | Patience::Stubborn => Ok(Woke::Interrupted),
        Patience::Interruptible => {
            Err(Error::new(SqlState::new(b"57P01"), "terminating because the postmaster has gone"))
        }
    }
}
