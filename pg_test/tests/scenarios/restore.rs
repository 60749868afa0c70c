//! Restore points on all servers, and what is restored from them.

mod bank;
mod elsewhere;
mod points;
