//! Statics of a backend. A backend is one thread and never shares them; unlike `thread_local!` they run no
//! destructor at exit, when PostgreSQL's memory is already gone.

/// A static value of this backend.
pub struct BackendLocal<T>(T);

// SAFETY: PostgreSQL runs all of a backend's code, this library's included, on one thread.
unsafe impl<T> Sync for BackendLocal<T> {}

impl<T> BackendLocal<T> {
    /// For a `static`.
    pub const fn new(value: T) -> Self {
        Self(value)
    }

    /// The value.
    pub fn get(&self) -> &T {
        &self.0
    }
}
