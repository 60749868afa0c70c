//! Scenarios on real clusters: a test names what is done and what must come of it.
//!
//! The fault matrix: each row of what can go wrong, and where it is tried. Each test ends with: all agree with the
//! coordinator's decision, nothing is prepared, shown or locked anywhere, sessions commit again.
//!
//! | fault | tests |
//! |---|---|
//! | cut before PREPARE, or before its answer; an error in one of two | `fault_prepare`, `commit::a_remote_error_in_prepare…` |
//! | PREPARE that lands after abort and sweeps, after a crash | `fault_prepare::a_prepare_that_lands…` |
//! | local failure after all have prepared: serialization, 'gxid' in use, no room for it | `fault_prepare` |
//! | … a deferred constraint | `commit::a_failing_deferred_constraint…` (fails before the first PREPARE) |
//! | … NOTIFY's queue full | not tried: it takes 8 GB of notifications; the same path as a serialization failure |
//! | cut before COMMIT PREPARED, or before its answer; the same with 'gxid' | `fault_commit` |
//! | cancel, statement_timeout, termination, shutdown at every wait | `fault_interrupt` |
//! | a shard takes long to prepare or to commit | `fault_slow_prepare` |
//! | a shard hangs in phase one or two | `fault_commit::a_shard_that_hangs…` |
//! | SIGKILL for the coordinator, a backend, the resolver, a shard | `crash`, `fault_gxid`, `commit` |
//! | 'gxid' pending over crash, checkpoint, restart | `explicit`, `fault_gxid`, `clients::managers` |
//! | synchronous_commit = off, no local write | `crash` |
//! | fail-over of the coordinator or a shard | `fault_failover` |
//! | synchronous standbys of the coordinator; no room in shared memory | `fault_replication` |
//! | resolver beside busy sessions | `fault_resolver::beside_busy_sessions…`, `bank` |
//! | two databases, a copied database, a physical copy | `fault_copies` |
//! | settled by hand on a shard; names that look like ours | `fault_resolver` |
//! | hung or unreachable servers beside healthy ones | `fault_commit::the_resolver_settles_healthy_servers…` |
//! | wrong password, changed address | `fault_resolver` |
//! | connection lost inside a savepoint; readers under SERIALIZABLE | `fault_prepare` |
//! | a connection cut in the moment in which it is used again | `fault_idle_connection` |
//! | a connection pooler between coordinator and shard | `poolers` |
//! | permission that is taken away while a connection is open | `fault_permissions` |
//! | a shard that writes on another through foreign tables of its own | `nested` |
//! | a session's advisory lock released by a trigger | `session_lock` |
//! | an error in a cursor from before the savepoint; writes before the first FETCH | `cursors` |
//! | 10,000 in doubt | `fault_resolver::ten_thousand…` |
//! | processes that a dead coordinator leaves on a shard | `fault_orphans` |
//! | workers end in any order, mappings share a database | `fault_workers` |
//!
//! They need a PostgreSQL with the extension installed and are run by `cargo xtask test`.

#![allow(missing_docs, reason = "a test's name is its documentation")]

mod after_a_restart;
mod bad_input;
mod bank;
mod clients;
mod command_log;
mod commit;
mod commit_wait;
mod costs;
mod crash;
mod cursors;
mod databases;
mod decisions;
mod docs;
mod docs_page;
mod docs_reference;
mod docs_run;
mod doubt;
mod encodings;
mod exec;
mod exec_query;
mod exec_session;
mod explicit;
mod fault_commit;
mod fault_copies;
mod fault_durable_list;
mod fault_failover;
mod fault_gxid;
mod fault_idle_connection;
mod fault_image;
mod fault_interrupt;
mod fault_locks;
mod fault_orphans;
mod fault_permissions;
mod fault_prepare;
mod fault_reach;
mod fault_replication;
mod fault_resolver;
mod fault_schema;
mod fault_slow_prepare;
mod fault_workers;
mod fdw_analyze;
mod fdw_async;
mod fdw_async_faults;
mod fdw_batch;
mod fdw_connections;
mod fdw_credentials;
mod fdw_errors;
mod fdw_estimates;
mod fdw_explain;
mod fdw_long_scans;
mod fdw_memory;
mod fdw_modify;
mod fdw_scan;
mod fdw_security;
mod fdw_standby;
mod fdw_subtransactions;
mod fdw_switch;
mod fdw_utility;
mod fdw_values;
mod harness;
mod large_table;
mod limits;
mod modes;
mod monitoring;
mod monitoring_alerts;
mod nested;
mod operators;
mod poolers;
mod reasons;
mod security;
mod session_lock;
mod side_by_side;
mod standby_away;
mod support;
mod tracking;
mod upgrade;
mod waits;
mod workflow;
