//! The protocol as an application sees it: what commits, what does not, what it costs, and what is
//! seen meanwhile.

mod commit_wait;
mod costs;
mod decisions;
mod explicit;
mod follow_one_gid;
mod leaks;
mod limits;
mod modes;
mod nested;
mod phases;
mod publisher;
mod session_lock;
mod tracking;
mod waits;
mod write_behind;
