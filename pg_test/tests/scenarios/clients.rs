//! Real clients as they are: transaction managers, application frameworks, drivers, pgbench. The
//! programs are in `pg_test/clients`; `cargo xtask test` installs what they need.

mod frameworks;
mod managers;
mod pgbench;
mod poolers;
mod rust;
