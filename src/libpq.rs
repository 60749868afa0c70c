//! Safe owning types over libpq: connection, result, cancel.
//!
//! Every connection is non-blocking; a function here never waits, except [`Sending::wait_until`],
//! which has a deadline. Nothing here uses PostgreSQL's backend: this room needs only the client
//! library.

mod cancel;
mod conn;
mod result;
mod unasked;

pub use cancel::{Cancel, Sending};
pub use conn::{Conn, Flush, Polling, Transaction, connection_options};
pub use result::{PgResult, Status};

/// The major version of the libpq that this process has.
pub fn major_version() -> u32 {
    // SAFETY: it has no preconditions.
    let version = unsafe { pq_sys::PQlibVersion() };
    version.unsigned_abs() / 10_000
}
