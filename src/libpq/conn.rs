//! A connection of libpq that closes itself, in non-blocking pipeline mode once it is established.
//! Only a COPY leaves that mode: libpq has none in a pipeline.

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::{NonNull, null};
use std::time::Instant;

use super::unasked::Unasked;
use super::{Cancel, PgResult};

/// A connection. Dropping it closes the socket.
#[derive(Debug)]
pub struct Conn {
    raw: Cell<NonNull<pq_sys::PGconn>>,
    /// When the last segment was queued.
    asked: Cell<Option<Instant>>,
    /// What the server has said unasked. libpq keeps its address.
    unasked: RefCell<Box<Unasked>>,
}

/// What [`Conn::poll_connect`] wants next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Polling {
    /// Wait until the socket can be read.
    Reading,
    /// Wait until the socket can be written.
    Writing,
    /// Established.
    Ok,
    /// Failed; [`Conn::error_message`] says why.
    Failed,
}

/// What [`Conn::flush`] left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flush {
    /// The kernel has taken everything.
    Done,
    /// Something is left: wait until the socket can be written, and read meanwhile.
    Pending,
    /// The connection is broken.
    Failed,
}

/// The server's transaction state, from its last ReadyForQuery.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transaction {
    /// No transaction.
    Idle,
    /// A command is under way.
    Active,
    /// In a transaction.
    Open,
    /// In a failed transaction.
    Failed,
    /// The connection is broken.
    Unknown,
}

/// Every connection option of this libpq with its display character: `'D'` marks those that users
/// do not set.
pub fn connection_options() -> Vec<(CString, char)> {
    let mut options = Vec::new();
    // SAFETY: the array ends with a NULL keyword and is freed once.
    unsafe {
        let first = pq_sys::PQconndefaults();
        if first.is_null() {
            return options;
        }
        let mut option = first;
        while !(*option).keyword.is_null() {
            let shown = *(*option).dispchar as u8 as char;
            options.push((CStr::from_ptr((*option).keyword).to_owned(), shown));
            option = option.add(1);
        }
        pq_sys::PQconninfoFree(first);
    }
    options
}

impl Conn {
    /// Starts to connect; `None` if memory ran out. Resolving a host name may block (libpq).
    pub fn start(options: &[(CString, CString)]) -> Option<Self> {
        let mut keywords: Vec<*const c_char> = options.iter().map(|(k, _)| k.as_ptr()).collect();
        let mut values: Vec<*const c_char> = options.iter().map(|(_, v)| v.as_ptr()).collect();
        keywords.push(null());
        values.push(null());
        // SAFETY: two NULL-terminated arrays of the same length that outlive the call.
        let raw = unsafe { pq_sys::PQconnectStartParams(keywords.as_ptr(), values.as_ptr(), 0) };
        let raw = NonNull::new(raw)?;
        // SAFETY: the connection is alive, and what hears lives as long as it does.
        let unasked = unsafe { Unasked::hear(raw) };
        Some(Self { raw: Cell::new(raw), asked: Cell::new(None), unasked: RefCell::new(unasked) })
    }

    fn raw(&self) -> *mut pq_sys::PGconn {
        self.raw.get().as_ptr()
    }

    /// Exchanges the connections of two. No text of either may be held.
    pub fn swap(&self, other: &Self) {
        self.raw.swap(&other.raw);
        self.asked.swap(&other.asked);
        self.unasked.swap(&other.unasked);
    }

    /// Takes the next step of connecting.
    pub fn poll_connect(&self) -> Polling {
        use pq_sys::PostgresPollingStatusType as P;
        // SAFETY: the connection is alive.
        match unsafe { pq_sys::PQconnectPoll(self.raw()) } {
            P::PGRES_POLLING_READING => Polling::Reading,
            P::PGRES_POLLING_WRITING => Polling::Writing,
            P::PGRES_POLLING_OK => Polling::Ok,
            _ => Polling::Failed,
        }
    }

    /// Whether the connection is broken (or was never made).
    pub fn is_bad(&self) -> bool {
        // SAFETY: the connection is alive.
        unsafe { pq_sys::PQstatus(self.raw()) == pq_sys::ConnStatusType::CONNECTION_BAD }
    }

    /// The socket, -1 if there is none.
    pub fn socket(&self) -> c_int {
        // SAFETY: the connection is alive.
        unsafe { pq_sys::PQsocket(self.raw()) }
    }

    /// libpq's last message.
    pub fn error_message(&self) -> &CStr {
        // SAFETY: a string inside the connection.
        unsafe { CStr::from_ptr(pq_sys::PQerrorMessage(self.raw())) }
    }

    /// The host that it leads to, or is tried: by its name, or by its address if it has none.
    pub fn host(&self) -> &CStr {
        // SAFETY: a string inside the connection, which is not NULL.
        unsafe { CStr::from_ptr(pq_sys::PQhost(self.raw())) }
    }

    /// The port there.
    pub fn port(&self) -> &CStr {
        // SAFETY: a string inside the connection, which is not NULL.
        unsafe { CStr::from_ptr(pq_sys::PQport(self.raw())) }
    }

    /// The process that the server announced when the connection was made.
    pub fn backend_pid(&self) -> c_int {
        // SAFETY: the connection is alive.
        unsafe { pq_sys::PQbackendPID(self.raw()) }
    }

    /// Whether the server asked for a password and got one.
    pub fn used_password(&self) -> bool {
        // SAFETY: the connection is alive.
        unsafe { pq_sys::PQconnectionUsedPassword(self.raw()) != 0 }
    }

    /// Whether the user's GSSAPI credentials were used to connect; known from libpq 16 on.
    pub fn used_gss(&self) -> bool {
        type Used = unsafe extern "C" fn(*const pq_sys::PGconn) -> c_int;
        const { assert!(size_of::<Option<Used>>() == size_of::<*mut c_void>()) };
        // SAFETY: the function's own type, where the loaded libpq has it; the connection is alive.
        unsafe {
            let found = libc::dlsym(libc::RTLD_DEFAULT, c"PQconnectionUsedGSSAPI".as_ptr());
            let used = std::mem::transmute::<*mut c_void, Option<Used>>(found);
            used.is_some_and(|used| used(self.raw()) != 0)
        }
    }

    /// The server's transaction state.
    pub fn transaction(&self) -> Transaction {
        use pq_sys::PGTransactionStatusType as T;
        // SAFETY: the connection is alive.
        match unsafe { pq_sys::PQtransactionStatus(self.raw()) } {
            T::PQTRANS_IDLE => Transaction::Idle,
            T::PQTRANS_ACTIVE => Transaction::Active,
            T::PQTRANS_INTRANS => Transaction::Open,
            T::PQTRANS_INERROR => Transaction::Failed,
            _ => Transaction::Unknown,
        }
    }

    /// Switches to non-blocking pipeline mode; `false` if libpq refuses.
    pub fn enter_pipeline(&self) -> bool {
        // SAFETY: the connection is alive.
        unsafe {
            pq_sys::PQsetnonblocking(self.raw(), 1) == 0
                && pq_sys::PQenterPipelineMode(self.raw()) == 1
        }
    }

    /// Leaves pipeline mode; `false` if something is still to be answered.
    pub fn exit_pipeline(&self) -> bool {
        // SAFETY: the connection is alive.
        unsafe { pq_sys::PQexitPipelineMode(self.raw()) == 1 }
    }

    /// Sends a command by the simple protocol, outside of pipeline mode.
    pub fn send_simple(&self, sql: &CStr) -> bool {
        // SAFETY: libpq copies before it returns.
        unsafe { pq_sys::PQsendQuery(self.raw(), sql.as_ptr()) == 1 }
    }

    /// Queues data for the COPY that the server has begun to take.
    pub fn put_copy(&self, data: &[u8]) -> bool {
        // The server works on a message when it has all of it.
        const MESSAGE: usize = 1 << 16;
        // SAFETY: pointer and length of each part; libpq copies before it returns.
        unsafe {
            data.chunks(MESSAGE).all(|part| {
                pq_sys::PQputCopyData(self.raw(), part.as_ptr().cast(), part.len() as c_int) == 1
            })
        }
    }

    /// Queues the end of the COPY that the server has begun to take.
    pub fn end_copy(&self) -> bool {
        // SAFETY: without a reason to fail, nothing is read.
        unsafe { pq_sys::PQputCopyEnd(self.raw(), null()) == 1 }
    }

    /// Lets the COPY that the server has begun to take fail.
    pub fn fail_copy(&self, reason: &CStr) -> bool {
        // SAFETY: libpq copies before it returns.
        unsafe { pq_sys::PQputCopyEnd(self.raw(), reason.as_ptr()) == 1 }
    }

    /// Queues a statement with text parameters, parsed anew.
    pub fn send_query(&self, sql: &CStr, params: &[Option<&CStr>]) -> bool {
        let values = pointers(params);
        // SAFETY: the array's true length is passed; libpq copies before it returns.
        unsafe {
            pq_sys::PQsendQueryParams(
                self.raw(),
                sql.as_ptr(),
                values.len() as c_int,
                null(),
                values.as_ptr(),
                null(),
                null(),
                0,
            ) == 1
        }
    }

    /// Queues the preparation of a statement under a name; the server infers the parameters' types.
    pub fn send_prepare(&self, name: &CStr, sql: &CStr) -> bool {
        // SAFETY: libpq copies before it returns.
        unsafe { pq_sys::PQsendPrepare(self.raw(), name.as_ptr(), sql.as_ptr(), 0, null()) == 1 }
    }

    /// Queues a prepared statement's execution.
    pub fn send_prepared(&self, name: &CStr, params: &[Option<&CStr>]) -> bool {
        let values = pointers(params);
        // SAFETY: as in `send_query`.
        unsafe {
            pq_sys::PQsendQueryPrepared(
                self.raw(),
                name.as_ptr(),
                values.len() as c_int,
                values.as_ptr(),
                null(),
                null(),
                0,
            ) == 1
        }
    }

    /// Queues a `Sync`, the end of a segment.
    pub fn send_sync(&self) -> bool {
        self.asked.set(Some(Instant::now()));
        // SAFETY: the connection is alive.
        unsafe { pq_sys::PQpipelineSync(self.raw()) == 1 }
    }

    /// When the last segment was queued.
    pub fn asked(&self) -> Option<Instant> {
        self.asked.get()
    }

    /// Hands what is queued to the kernel, as far as that takes it.
    pub fn flush(&self) -> Flush {
        // SAFETY: the connection is alive.
        match unsafe { pq_sys::PQflush(self.raw()) } {
            0 => Flush::Done,
            1 => Flush::Pending,
            _ => Flush::Failed,
        }
    }

    /// Reads what has arrived, without waiting; `false` if the connection broke.
    pub fn consume_input(&self) -> bool {
        // SAFETY: the connection is alive.
        unsafe { pq_sys::PQconsumeInput(self.raw()) == 1 }
    }

    /// Whether [`Conn::result`] would wait.
    pub fn is_busy(&self) -> bool {
        // SAFETY: the connection is alive.
        unsafe { pq_sys::PQisBusy(self.raw()) == 1 }
    }

    /// The next result; `None` ends the results of a command. Call it only when not
    /// [`Conn::is_busy`].
    pub fn result(&self) -> Option<PgResult> {
        // SAFETY: the result is ours to free.
        PgResult::from_raw(unsafe { pq_sys::PQgetResult(self.raw()) })
    }

    /// Whether there is something to read, or the end of the stream; reads nothing, never waits.
    pub fn has_input(&self) -> bool {
        let mut poll = libc::pollfd { fd: self.socket(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd, no wait.
        poll.fd < 0 || unsafe { libc::poll(&mut poll, 1, 0) } != 0
    }

    /// Whether the other end hung up or sent something unasked while the connection was idle. Reads
    /// what has arrived, never waits.
    pub fn hung_up(&self) -> bool {
        // A shutdown arrives as an error message followed by the end of the stream, and each read
        // takes one of them: hence the loop.
        for _ in 0..8 {
            let mut poll = libc::pollfd { fd: self.socket(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one valid pollfd, no wait.
            if poll.fd < 0 || unsafe { libc::poll(&mut poll, 1, 0) } < 0 {
                return true;
            }
            if poll.revents == 0 {
                return self.is_bad();
            }
            if !self.consume_input() || self.is_bad() {
                return true;
            }
        }
        true
    }

    /// Whether the other end has closed, as far as the kernel knows; reads nothing.
    #[cfg(not(pre_pg18))]
    pub fn is_closed_by_peer(&self) -> bool {
        let events = libc::POLLRDHUP;
        let mut poll = libc::pollfd { fd: self.socket(), events, revents: 0 };
        // SAFETY: one valid pollfd, no wait.
        let polled = unsafe { libc::poll(&mut poll, 1, 0) };
        let ended = events | libc::POLLHUP | libc::POLLERR | libc::POLLNVAL;
        self.is_bad() || poll.fd < 0 || polled < 0 || poll.revents & ended != 0
    }

    /// Whether the server has said, unasked, that it ends the session. The end of the stream
    /// follows, on a busy machine some time later. Only what has been read counts. Call it only
    /// when nothing is to be answered.
    pub fn is_told_of_end(&self) -> bool {
        self.hear_unasked();
        self.unasked.borrow().ends()
    }

    /// The same, because the session was idle for too long.
    pub fn ended_idle(&self) -> bool {
        self.hear_unasked();
        self.unasked.borrow().was_idle()
    }

    /// libpq handles unasked messages when no command is under way, which it notices when it is
    /// asked for a result.
    fn hear_unasked(&self) {
        if !self.is_busy() && self.result().is_none() {
            self.is_busy();
        }
    }

    /// What is needed to cancel the running command; `None` without a connection.
    pub fn cancel(&self) -> Option<Cancel> {
        // SAFETY: the connection is alive; the returned object is ours.
        Cancel::from_raw(unsafe { pq_sys::PQgetCancel(self.raw()) })
    }
}

fn pointers(params: &[Option<&CStr>]) -> Vec<*const c_char> {
    params.iter().map(|p| p.map_or(null(), CStr::as_ptr)).collect()
}

impl Drop for Conn {
    fn drop(&mut self) {
        // SAFETY: owned, closed once.
        unsafe { pq_sys::PQfinish(self.raw()) }
    }
}
