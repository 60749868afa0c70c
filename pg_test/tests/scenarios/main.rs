//! Scenarios on real clusters: a test names what is done and what must come of it.
//!
//! They need a PostgreSQL with the extension installed and are run by `cargo xtask test`.

#![allow(missing_docs, reason = "a test's name is its documentation")]

mod bad_input;
mod bank;
mod commit;
mod crash;
mod explicit;
mod fault_commit;
mod fault_copies;
mod fault_failover;
mod fault_gxid;
mod fault_interrupt;
mod fault_prepare;
mod fault_resolver;
mod fdw_errors;
mod fdw_modify;
mod fdw_scan;
mod fdw_subtransactions;
mod harness;
mod operators;
mod support;
