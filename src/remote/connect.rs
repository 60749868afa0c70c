//! Connecting to a participant without blocking the backend.

use std::ffi::{CStr, CString};
use std::time::{Duration, Instant};

use pgrx::pg_sys;

use crate::libpq::{Conn, Polling};
use crate::pg::error::{Error, Result, SqlState};
use crate::remote::connection::Connection;
use crate::remote::credentials::{self, Credentials, Used};
use crate::remote::hosts;
use crate::remote::options::{self, Mapping, OptionPair, Purpose, Server};
use crate::remote::pooler;
use crate::remote::wait::{Interest, WaitEnd, socket_once};

/// One of the backend's file descriptors, reserved for libpq's socket.
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

/// An established connection, which releases its file descriptor when dropped.
pub struct Established {
    /// The session. It stands before the descriptor, so that it is closed first.
    pub connection: Connection,
    /// The credentials that it was made with.
    pub used: Used,
    /// The options of server and mapping that it was made with.
    options: Vec<OptionPair>,
    _fd: ExternalFd,
}

impl std::borrow::Borrow<Connection> for Established {
    fn borrow(&self) -> &Connection {
        &self.connection
    }
}

impl Established {
    /// Whether connecting anew would lead to the same: server and mapping have the same options,
    /// and their user still needs no other credentials.
    ///
    /// # Errors
    /// libpq's list of options cannot be had.
    pub fn is_current(&self, server: &Server, mapping: &Mapping, purpose: Purpose) -> Result<bool> {
        Ok(self.options == options::conninfo(server, mapping, purpose)?
            && credentials::check_shared(mapping, self.used).is_ok())
    }
}

/// A connection that is being established.
pub struct Connecting {
    conn: Conn,
    next: Polling,
    server_name: CString,
    credentials: Credentials,
    options: Vec<OptionPair>,
    /// What libpq was given: `options` with credentials, and without hosts that did not answer.
    info: Vec<OptionPair>,
    /// The host that is tried, and its port.
    tried: (CString, CString),
    /// When that is given up.
    host_deadline: Option<Instant>,
    deadline: Option<Instant>,
    fd: ExternalFd,
}

/// The result of a step of connecting.
pub enum Step {
    /// Wait for the socket, then take the next.
    Waits(Connecting),
    /// Done.
    Established(Box<Established>),
}

impl Connecting {
    /// Starts to connect as the mapping says. The option `connect_timeout`, in seconds per host as
    /// in libpq, can only make the caller's `deadline` earlier, of which each of several hosts gets
    /// its share.
    ///
    /// # Errors
    /// 08001 with libpq's message as DETAIL; 2F003 where credentials are required and not given.
    pub fn start(
        server: &Server,
        mapping: &Mapping,
        purpose: Purpose,
        deadline: Option<Instant>,
    ) -> Result<Self> {
        let options = options::conninfo(server, mapping, purpose)?;
        let mut info = options.clone();
        let credentials = Credentials::check(server, mapping, &mut info)?;
        let fd = ExternalFd::acquire()?;
        let conn = begin(&server.name, &info)?;
        Ok(Self {
            tried: tried(&conn),
            conn,
            // libpq requires a wait for writing before the first poll.
            next: Polling::Writing,
            server_name: server.name.clone(),
            credentials,
            options,
            host_deadline: host_deadline(&info, deadline),
            deadline,
            info,
            fd,
        })
    }

    /// The foreign server that it leads to.
    pub fn server_name(&self) -> &CStr {
        &self.server_name
    }

    /// The socket to wait for, which may change with each step.
    pub fn interest(&self) -> Interest {
        Interest { socket: self.conn.socket(), write: self.next == Polling::Writing }
    }

    /// Whether the socket is ready for the next step. If it is not, libpq would wait without a
    /// limit.
    pub fn is_ready(&self) -> bool {
        let Interest { socket, write } = self.interest();
        let events = if write { libc::POLLOUT } else { libc::POLLIN };
        let mut poll = libc::pollfd { fd: socket, events, revents: 0 };
        // SAFETY: one valid pollfd, no wait.
        socket >= 0 && unsafe { libc::poll(&mut poll, 1, 0) } > 0
    }

    /// When to give up, or to go on to another host.
    pub fn deadline(&self) -> Option<Instant> {
        earlier(self.deadline, self.host_deadline)
    }

    /// Whether the deadline has passed.
    pub fn is_overdue(&self) -> bool {
        self.deadline().is_some_and(|deadline| Instant::now() >= deadline)
    }

    /// Goes on to the other hosts, because the deadline has passed. libpq does so by itself only
    /// where it also waits by itself.
    ///
    /// # Errors
    /// There is none, or no time for it.
    pub fn give_up_host(self) -> Result<Self> {
        let has_time = self.deadline.is_none_or(|deadline| Instant::now() < deadline);
        let others = hosts::without(&self.info, &self.tried.0, &self.tried.1);
        let Some(info) = others.filter(|_| has_time) else {
            return Err(failed(&self.server_name, c"timeout expired"));
        };
        let conn = begin(&self.server_name, &info)?;
        Ok(Self {
            tried: tried(&conn),
            conn,
            next: Polling::Writing,
            host_deadline: host_deadline(&info, self.deadline),
            info,
            ..self
        })
    }

    /// The socket is ready: takes the next step.
    ///
    /// # Errors
    /// 08001, or 2F003 where the server did not ask for the credentials that are required.
    pub fn step(mut self) -> Result<Step> {
        self.next = self.conn.poll_connect();
        match self.next {
            Polling::Reading | Polling::Writing => {
                let tried = tried(&self.conn);
                if tried != self.tried {
                    self.tried = tried;
                    self.host_deadline = host_deadline(&self.info, self.deadline);
                }
                return Ok(Step::Waits(self));
            }
            Polling::Failed => return Err(failed(&self.server_name, self.conn.error_message())),
            Polling::Ok => {}
        }
        let used = self.credentials.check_used(&self.conn)?;
        let connection = Connection::new(self.server_name, self.conn)?;
        let options = self.options;
        Ok(Step::Established(Box::new(Established { connection, used, options, _fd: self.fd })))
    }
}

/// Has libpq start.
fn begin(server: &CStr, info: &[OptionPair]) -> Result<Conn> {
    let conn = Conn::start(info).ok_or_else(|| failed(server, c"out of memory"))?;
    if conn.is_bad() {
        return Err(failed(server, conn.error_message()));
    }
    Ok(conn)
}

/// The host and port that libpq is at.
fn tried(conn: &Conn) -> (CString, CString) {
    (conn.host().to_owned(), conn.port().to_owned())
}

fn failed(server: &CStr, detail: &CStr) -> Error {
    Error::new(
        SqlState::UNABLE_TO_CONNECT,
        [b"could not connect to server \"", server.to_bytes(), b"\""].concat(),
    )
    .detail(detail.to_bytes().trim_ascii_end())
}

/// Connects as the mapping says, and waits for it. If there is a pooler in between, a first
/// connection is used to check that the server process stays with its client.
///
/// # Errors
/// Those of [`Connecting`] and of [`pooler::check`], and a cancel.
pub fn connect(
    server: &Server,
    mapping: &Mapping,
    deadline: Option<Instant>,
) -> Result<Established> {
    let established = connect_once(server, mapping, deadline)?;
    if established.connection.may_be_direct() {
        return Ok(established);
    }
    pooler::check(established, || connect_once(server, mapping, deadline), deadline)?;
    let established = connect_once(server, mapping, deadline)?;
    established.connection.owns_process();
    Ok(established)
}

/// Checks that a pooler which was not noticed at the start ([`Connection::is_pooled`]) leaves
/// server processes to their clients.
///
/// # Errors
/// Those of [`connect`].
pub fn check_pooler(server: &Server, mapping: &Mapping, deadline: Instant) -> Result<()> {
    let connect = || connect_once(server, mapping, Some(deadline));
    pooler::check(connect()?, connect, Some(deadline))
}

fn connect_once(
    server: &Server,
    mapping: &Mapping,
    deadline: Option<Instant>,
) -> Result<Established> {
    let mut connecting = Connecting::start(server, mapping, Purpose::Session, deadline)?;
    loop {
        let Interest { socket, write } = connecting.interest();
        if socket_once(socket, write, connecting.deadline())? == WaitEnd::Deadline {
            connecting = connecting.give_up_host()?;
            continue;
        }
        // The latch may have ended the wait.
        if !connecting.is_ready() {
            continue;
        }
        match connecting.step()? {
            Step::Waits(again) => connecting = again,
            Step::Established(established) => return Ok(*established),
        }
    }
}

fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// When a host of the list is given up that is tried from now on: by `connect_timeout`, at least 2
/// seconds as in libpq, and when its share of the time is over.
fn host_deadline(info: &[OptionPair], deadline: Option<Instant>) -> Option<Instant> {
    let now = Instant::now();
    let seconds = options::option(info, c"connect_timeout")
        .and_then(|value| value.to_str().ok()?.trim().parse::<i64>().ok())
        .filter(|seconds| *seconds > 0);
    let own = seconds.map(|seconds| now + Duration::from_secs(seconds.max(2) as u64));
    let share = deadline
        .map(|deadline| now + deadline.saturating_duration_since(now) / hosts::count(info) as u32);
    earlier(own, share)
}
