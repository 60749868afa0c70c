//! Statics of a backend. A backend is one thread, so nothing shares them. Unlike those of
//! `thread_local!`, their destructors do not run at exit, when PostgreSQL's memory is already gone.

/// A static value of this backend.
pub struct BackendLocal<T>(T);

// SAFETY: PostgreSQL runs all of a backend's code, this library's included, on one thread.
unsafe impl<T> Sync for BackendLocal<T> {}

impl<T> BackendLocal<T> {
    pub const fn new(value: T) -> Self {
        Self(value)
    }

    pub fn get(&self) -> &T {
        &self.0
    }
}
