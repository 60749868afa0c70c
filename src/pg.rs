//! PostgreSQL behind safe functions: the only room that declares what pgrx does not bind.
//!
//! * [`error`]: PostgreSQL's ERROR as a `Result`, and back; [`debug`]: messages at DEBUG1;
//! * [`frames`], [`function`]: C functions of ours that PostgreSQL calls;
//! * [`globals`]: its variables; [`catalog`]: look-ups in its catalog;
//! * [`portal`]: the command that the client has sent; [`executor_run`]: a query that is run;
//! * [`raw`]: its functions and variables that pgrx does not bind, or guards;
//! * [`layout`]: layouts and numbers copied from its sources;
//! * [`node`]: its nodes and lists; [`text`]: texts in the server's encoding;
//! * [`versions`]: what differs between major versions;
//! * [`transaction`]: a background worker's own transactions;
//! * [`syncrep`]: whether something is where the synchronous standbys need it; [`wal`]: the WAL;
//! * [`shmem_hooks`], [`shared_index`]: shared memory; [`backend_local`]: statics of one process;
//! * [`latch`], [`alarm`], [`wait_event`]: waiting; [`random`]: random bytes;
//! * [`heap`]: memory outside of memory contexts;
//! * [`heavy_locks`]: what this server's processes wait for;
//! * [`preload`]: whether the library was loaded as it must be.

pub mod alarm;
pub mod backend_local;
pub mod catalog;
pub mod debug;
pub mod error;
pub mod executor_run;
pub mod frames;
pub mod function;
pub mod globals;
pub mod heap;
pub mod heavy_locks;
pub mod latch;
pub mod layout;
pub mod node;
pub mod portal;
pub mod preload;
pub mod random;
pub mod raw;
pub mod shared_index;
pub mod shmem_hooks;
pub mod snapshot;
pub mod syncrep;
pub mod text;
pub mod transaction;
pub mod versions;
pub mod wait_event;
pub mod wal;
