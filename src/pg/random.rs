//! Random bytes.

use pgrx::pg_sys;

use crate::pg::error::{Error, Result, SqlState};

/// Random bytes that nobody can predict or repeat.
///
/// # Errors
/// XX000 when the system gives none.
pub fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    // SAFETY: as many bytes as told.
    if unsafe { pg_sys::pg_strong_random(bytes.as_mut_ptr().cast(), N) } {
        Ok(bytes)
    } else {
        Err(Error::new(SqlState::INTERNAL_ERROR, "could not generate random values"))
    }
}
