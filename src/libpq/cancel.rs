//! Cancelling a running command, within a deadline.
//!
//! libpq before 17 has only `PQcancel`, which connects and waits for the server without any limit:
//! a host that does not answer would block the backend for ever, with interrupts off. So a child
//! process sends the request (`PQcancel` may be called even from a signal handler, libpq
//! documentation, "Canceling Queries in Progress"), and is killed when it takes too long.
//!
//! The postmaster cancels a backend with a signal to it and then one to its process group, which
//! reaches the child. From 17 on PostgreSQL's handlers end a child that does not expect them, so
//! its signals stay blocked.

use std::ffi::{c_char, c_int};
use std::ptr::NonNull;
use std::time::Instant;

/// What a cancel request needs. It stays valid after the connection is closed.
#[derive(Debug)]
pub struct Cancel(NonNull<pq_sys::PGcancel>);

impl Cancel {
    pub(super) fn from_raw(raw: *mut pq_sys::PGcancel) -> Option<Self> {
        NonNull::new(raw).map(Self)
    }

    /// Starts to send the request; `None` if that is not possible.
    pub fn start(&self) -> Option<Sending> {
        // SAFETY: the child calls PQcancel and `_exit`, nothing that shares state with the parent:
        // no destructor, no exit handler, no memory of PostgreSQL.
        match unsafe { fork_with_signals_blocked() } {
            0 => {
                let mut message = [0 as c_char; 256];
                // SAFETY: the buffer's true length is passed.
                unsafe {
                    let sent = pq_sys::PQcancel(
                        self.0.as_ptr(),
                        message.as_mut_ptr(),
                        message.len() as c_int,
                    );
                    libc::_exit(c_int::from(sent != 1))
                }
            }
            failed if failed < 0 => None,
            child => Some(Sending { child }),
        }
    }
}

/// A cancel request on its way. Dropping it abandons the request.
#[must_use = "dropping it abandons the request"]
#[derive(Debug)]
pub struct Sending {
    child: libc::pid_t,
}

impl Sending {
    /// Waits until the server has accepted the request, at most until `deadline`; whether it has.
    pub fn wait_until(self, deadline: Instant) -> bool {
        let child = self.child;
        std::mem::forget(self);
        wait_for(child, deadline)
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        wait_for(self.child, Instant::now());
    }
}

/// `fork()`; the child starts with all signals blocked, and the parent's are as before.
///
/// # Safety
/// The child may do only what is safe in a signal handler.
unsafe fn fork_with_signals_blocked() -> libc::pid_t {
    let mut all = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    let mut before = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: each set is filled before it is read; a valid request cannot fail. The rest by
    // contract.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
        let child = libc::fork();
        if child != 0 {
            libc::sigprocmask(libc::SIG_SETMASK, before.as_ptr(), std::ptr::null_mut());
        }
        child
    }
}

/// Waits for the child, kills it when the deadline has come, and returns whether it was successful.
fn wait_for(child: libc::pid_t, deadline: Instant) -> bool {
    // SAFETY: our own child, not waited for yet, so its pid cannot have been given to another
    // process.
    unsafe {
        let handle = libc::syscall(libc::SYS_pidfd_open, child, 0) as c_int;
        let ended = handle >= 0
            && loop {
                let mut poll = libc::pollfd { fd: handle, events: libc::POLLIN, revents: 0 };
                let left = deadline.saturating_duration_since(Instant::now());
                // A signal for the backend ends a poll early.
                match libc::poll(&mut poll, 1, left.as_millis().min(60_000) as c_int) {
                    1 => break true,
                    _ if left.is_zero() => break false,
                    _ => {}
                }
            };
        if !ended {
            libc::kill(child, libc::SIGKILL);
        }
        if handle >= 0 {
            libc::close(handle);
        }
        let mut status = 0;
        while libc::waitpid(child, &mut status, 0) < 0 {
            if *libc::__errno_location() != libc::EINTR {
                return false;
            }
        }
        libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0
    }
}

impl Drop for Cancel {
    fn drop(&mut self) {
        // SAFETY: owned, freed once.
        unsafe { pq_sys::PQfreeCancel(self.0.as_ptr()) }
    }
}

#[cfg(test)]
mod tests {
    use super::{fork_with_signals_blocked, wait_for};
    use std::time::{Duration, Instant};

    #[test]
    fn a_signal_to_the_process_group_does_not_end_the_child() {
        // SAFETY: both are safe in a signal handler.
        let child = unsafe {
            let child = fork_with_signals_blocked();
            if child == 0 {
                libc::raise(libc::SIGINT);
                libc::_exit(0);
            }
            child
        };
        assert!(wait_for(child, Instant::now() + Duration::from_secs(60)));
    }
}
