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
