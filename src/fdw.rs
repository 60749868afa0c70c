//! The foreign data wrapper: planning is postgres_fdw's, everything that executes is here.
//!
//! * [`handler`], [`validator`]: the two functions that SQL knows;
//! * [`stock`]: the functions of postgres_fdw's library that are called;
//! * [`plan`]: the plans of postgres_fdw's planner, checked;
//! * [`estimates`]: how the planner's own connections are kept from blocking ours;
//! * [`scan`], [`modify`], [`direct`], [`insert`]: the execution callbacks, a file per kind of
//!   plan; many rows of an INSERT go by COPY (`modify/bulk.rs`), where nobody notices
//!   (`modify/eligible.rs`);
//! * [`ahead`]: which scans are asked for rows when the query begins;
//! * [`fetch_size`]: how many rows a scan asks for at once;
//! * [`rescans`]: whether it may begin again;
//! * [`async_scan`]: the same scans below an Append that runs many at once;
//! * [`explain`]: what EXPLAIN prints of them;
//! * [`truncate`], [`analyze`], [`import`]: the callbacks of utility commands, with SQL of our own;
//! * `statistics`: from PostgreSQL 19 on, postgres_fdw's import of statistics;
//! * [`names`]: the remote names of tables and columns, and quoting;
//! * [`targets`]: what a modification sets; [`answer`]: who needs the server's answer to it;
//! * [`statement`]: the remote statement of a modification, and when it is prepared;
//! * [`batch`]: how many rows an INSERT carries, and its text; [`volatility`]: whether they may go
//!   together;
//! * [`params`], [`rows`]: values out, rows in;
//! * [`state`]: execution state that is freed after an ERROR, too.

mod ahead;
mod analyze;
mod answer;
mod async_scan;
mod batch;
mod direct;
pub mod estimates;
mod explain;
mod fetch_size;
mod handler;
mod import;
mod insert;
mod modify;
mod names;
mod params;
mod plan;
mod query;
mod rescans;
pub mod rows;
mod scan;
mod state;
mod statement;
#[cfg(feature = "pg19")]
mod statistics;
mod stock;
mod targets;
mod truncate;
mod validator;
mod volatility;

pub use handler::is_ours;

/// Installs the hooks; called while the server loads the library.
pub fn install() {
    modify::install();
    ahead::install();
}
