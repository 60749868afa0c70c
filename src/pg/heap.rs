//! The memory that is allocated outside of memory contexts.

/// Gives what is free back to the operating system, where the C library knows how: small pieces
/// that were freed between others would stay with the process.
pub fn trim() {
    // SAFETY: only touches memory that is free.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}
