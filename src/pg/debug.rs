//! Messages that follow one transaction through the steps of the protocol.

use pgrx::{PgLogLevel, pg_sys};

use crate::pg::error::{Error, SqlState};

/// Logs a message at DEBUG1. It is only made if it goes anywhere, and never raises: the protocol
/// goes on whatever happens to it.
pub fn debug(message: impl FnOnce() -> String) {
    // SAFETY: compares settings.
    if unsafe { pg_sys::message_level_is_interesting(PgLogLevel::DEBUG1 as i32) } {
        let _ = Error::new(SqlState::SUCCESSFUL_COMPLETION, message()).log(PgLogLevel::DEBUG1);
    }
}
