//! Whether the library is in `shared_preload_libraries`. If not, it has no shared memory, no hooks
//! and no workers.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::pg::error::{Error, Result, SqlState};
use crate::pg::globals;

static PRELOADED: AtomicBool = AtomicBool::new(false);

/// Whether the library is being loaded by `shared_preload_libraries`; remembers it.
pub fn note() -> bool {
    let preloading = globals::is_preloading();
    PRELOADED.fetch_or(preloading, Ordering::Relaxed);
    preloading
}

/// Refuses to work if the library is not in `shared_preload_libraries`.
///
/// # Errors
/// 55000: it is not.
pub fn require() -> Result<()> {
    if PRELOADED.load(Ordering::Relaxed) {
        return Ok(());
    }
    Err(Error::new(
        SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
        "pg_fdw_xacts must be loaded via shared_preload_libraries",
    )
    .hint(
        "Add pg_fdw_xacts to shared_preload_libraries in postgresql.conf and restart the server.",
    ))
}
