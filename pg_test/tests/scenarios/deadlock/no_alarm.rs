//! Waits that are no deadlocks are left alone, and what cannot be seen is said.
