//! Foreign tables beside those of postgres_fdw: plans, rows, modifications, connections, errors.

mod analyze;
mod async_faults;
mod async_scan;
mod batch;
mod bulk;
mod command_log;
mod connections;
mod credentials;
mod cursors;
mod encodings;
mod errors;
mod estimates;
mod explain;
mod long_bulk;
mod long_scans;
mod lost_connections;
pub mod memory;
mod modify;
mod parsed;
mod scan;
mod security;
mod side_by_side;
mod standby;
mod subtransactions;
mod switch;
mod utility;
mod values;
