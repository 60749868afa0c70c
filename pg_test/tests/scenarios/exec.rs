//! `pg_fdw_xacts_exec()` and `pg_fdw_xacts_query()`.

mod commands;
mod migrations;
mod query;
mod session;
