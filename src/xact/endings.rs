//! `COMMIT` of participants that have only read, which nobody waits for: the answers are read when
//! the session next uses its connections. A participant that has only read may still have written
//! on a third server, by functions in a view of its own. So an error in such an answer becomes a
//! WARNING, to the client or, when the session has ended, to the log.

use std::cell::{Cell, RefCell};
use std::ffi::CStr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use pgrx::{PgLogLevel, pg_sys};

use crate::pg::backend_local::BackendLocal;
use crate::pg::error::{Error, Result, SqlState, shielded};
use crate::pg::globals;
use crate::remote::cache::Cached;
use crate::remote::wait::Interrupts;

/// How long a session that ends waits for all such answers together. Most have come by then.
const PARTING: Duration = Duration::from_secs(1);

static PENDING: BackendLocal<RefCell<Vec<Rc<Cached>>>> =
    BackendLocal::new(RefCell::new(Vec::new()));

/// Whether no answer is awaited.
pub fn is_empty() -> bool {
    PENDING.get().borrow().is_empty()
}

/// Notes that `COMMIT` was sent on this connection.
pub fn sent(connection: &Rc<Cached>) {
    static AT_EXIT: BackendLocal<Cell<bool>> = BackendLocal::new(Cell::new(false));
    if !AT_EXIT.get().replace(true) {
        // SAFETY: the callback lives as long as the process and raises nothing.
        unsafe { pg_sys::before_shmem_exit(Some(at_exit), pg_sys::Datum::from(0)) };
    }
    let mut pending = PENDING.get().borrow_mut();
    if !pending.iter().any(|other| Rc::ptr_eq(other, connection)) {
        pending.push(Rc::clone(connection));
    }
}

/// Reads the answers that have come, without waiting, and reports errors in them.
///
/// # Errors
/// Only out of memory and the like.
pub fn collect() -> Result<()> {
    let count = PENDING.get().borrow().len();
    for _ in 0..count {
        // One at a time: whatever happens to one, the others stay.
        let connection = PENDING.get().borrow_mut().remove(0);
        connection.pump();
        let failure = connection.take_failed_ending();
        let is_due = connection.has_ending();
        let is_lost = is_due && connection.is_doomed();
        if is_due && !is_lost {
            PENDING.get().borrow_mut().push(Rc::clone(&connection));
        }
        if let Some(failure) = failure {
            let error = connection.error_of(&failure, Some(c"COMMIT"));
            // What a server says as it ends the session is no answer to COMMIT.
            let is_last =
                matches!(failure.error_field(b'V').map(CStr::to_bytes), Some(b"FATAL" | b"PANIC"));
            let level = if is_last { PgLogLevel::LOG } else { PgLogLevel::WARNING };
            tell(&connection, error.message().to_bytes(), level)?;
        } else if is_lost {
            // What was only read is not lost.
            let error = connection.doom_error();
            tell(&connection, error.message().to_bytes(), PgLogLevel::LOG)?;
        }
    }
    Ok(())
}

fn tell(connection: &Cached, reason: &[u8], level: PgLogLevel) -> Result<()> {
    let server = connection.server_name.to_bytes();
    Error::new(
        SqlState::WARNING,
        [b"server \"", server, b"\" has not confirmed COMMIT of a transaction that has only read there"]
            .concat(),
    )
    .detail(reason)
    .hint("What the functions of a view have changed by such a query is not part of the atomic commit.")
    .log(level)
}

/// The session ends: waits briefly for the answers that have not come, unless the session is being
/// terminated.
unsafe extern "C-unwind" fn at_exit(_: i32, _: pg_sys::Datum) {
    shielded("at the end of the session", || {
        if !globals::is_termination_pending() {
            let deadline = Instant::now() + PARTING;
            let pending = PENDING.get().borrow().clone();
            for connection in pending {
                connection.drain(deadline, Interrupts::Return)?;
            }
        }
        collect()
    });
}
