//! Scenarios on real clusters: a test names what is done and what must come of it.
//!
//! They need a PostgreSQL with the extension installed and are run by `cargo xtask test`.

#![allow(missing_docs, reason = "a test's name is its documentation")]

mod bad_input;
mod commit;
mod crash;
mod explicit;
mod fdw_errors;
mod fdw_modify;
mod fdw_scan;
mod fdw_subtransactions;
mod harness;
mod operators;
mod support;
