//! Connecting to a participant without blocking the backend.

use std::ffi::CStr;
use std::time::{Duration, Instant};

use pgrx::pg_sys;

use crate::libpq::{Conn, Polling};
use crate::pg::error::{Error, Result, SqlState};
use crate::remote::connection::Connection;
use crate::remote::options::{self, Mapping, Server};
use crate::remote::wait::{Woke, socket_once};

/// A place among the backend's file descriptors for libpq's socket.
struct ExternalFd;

impl ExternalFd {
    fn acquire() -> Result<Self> {
        // SAFETY: counts only.
        if unsafe { pg_sys::AcquireExternalFD() } {
            Ok(Self)
        } else {
            Err(Error::new(SqlState::UNABLE_TO_CONNECT, "could not connect to server")
                .detail("There are too many open files on the local server.")
                .hint("Raise the server's \"max_files_per_process\" and/or \"ulimit -n\" limits."))
        }
    }
}

impl Drop for ExternalFd {
    fn drop(&mut self) {
        // SAFETY: one that was acquired.
        unsafe { pg_sys::ReleaseExternalFD() }
    }
}

/// An established connection that gives its file descriptor back.
pub struct Established {
    /// The session; before the descriptor, so that it closes first.
    pub connection: Connection,
    _fd: ExternalFd,
}

/// Connects as the mapping says.
///
/// `deadline` is the caller's; the option `connect_timeout`, in seconds per host as in libpq, can only
/// make it earlier.
///
/// # Errors
/// 08001 with libpq's message as DETAIL, 2F003 where a password is required, a cancel.
pub fn connect(
    server: &Server,
    mapping: &Mapping,
    deadline: Option<Instant>,
) -> Result<Established> {
    options::check_password_given(mapping)?;
    let info = options::conninfo(server, mapping)?;
    let fd = ExternalFd::acquire()?;
    let deadline = earlier(deadline, own_timeout(&info));
    let failed = |detail: &CStr| {
        Error::new(
            SqlState::UNABLE_TO_CONNECT,
            [b"could not connect to server \"", server.name.to_bytes(), b"\""].concat(),
        )
        .detail(detail.to_bytes().trim_ascii_end())
    };
    let conn = Conn::start(&info).ok_or_else(|| failed(c"out of memory"))?;
    if conn.is_bad() {
        return Err(failed(conn.error_message()));
    }
    // libpq wants a first wait for writing before the first poll.
    let mut next = Polling::Writing;
    loop {
        match next {
            Polling::Ok => break,
            Polling::Failed => return Err(failed(conn.error_message())),
            Polling::Reading | Polling::Writing => {
                let write = next == Polling::Writing;
                if socket_once(conn.socket(), write, deadline)? == Woke::Deadline {
                    return Err(failed(c"timeout expired"));
                }
            }
        }
        next = conn.poll_connect();
    }
    if options::password_required(mapping) && !conn.used_password() {
        return Err(Error::new(
            SqlState::S_R_E_PROHIBITED_SQL_STATEMENT_ATTEMPTED,
            "password is required",
        )
        .detail("Non-superuser cannot connect if the server does not request a password.")
        .hint(
            "Target server's authentication method must be changed or password_required=false set in the user mapping attributes.",
        ));
    }
    Ok(Established { connection: Connection::new(server.name.clone(), conn)?, _fd: fd })
}

fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// The deadline that `connect_timeout` gives: at least 2 seconds as in libpq, for each host of the
/// list.
fn own_timeout(info: &[options::OptionPair]) -> Option<Instant> {
    let seconds: i64 =
        options::option(info, c"connect_timeout")?.to_str().ok()?.trim().parse().ok()?;
    let hosts = options::option(info, c"hostaddr")
        .or_else(|| options::option(info, c"host"))
        .map_or(1, |hosts| hosts.to_bytes().split(|&b| b == b',').count());
    let total = Duration::from_secs(seconds.max(2) as u64).saturating_mul(hosts as u32);
    (seconds > 0).then(|| Instant::now() + total)
}
