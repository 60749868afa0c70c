//! Wrappers over `pg_sys` that more than one module needs.

pub mod backend_local;
pub mod error;
pub mod frames;
pub mod function;
pub mod latch;
pub mod shared_index;
pub mod shmem_hooks;
pub mod text;
pub mod transaction;
pub mod versions;
pub mod wait_event;
