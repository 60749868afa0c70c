//! Scenarios on real clusters: a test names what is done and what must come of it.
//!
//! The fault matrix: each row of what can go wrong, and where it is tried. Each test ends with: all
//! agree with the coordinator's decision, nothing is prepared, shown or locked anywhere, sessions
//! commit again.
//!
//! | fault | tests |
//! |---|---|
//! | cut before PREPARE, or before its answer; an error in one of two | `fault::prepare`, `commit::phases::a_remote_error_in_prepare…` |
//! | PREPARE that lands after abort and sweeps, after a crash | `fault::prepare::a_prepare_that_lands…` |
//! | local failure after all have prepared: serialization, 'gxid' in use, no room for it | `fault::prepare` |
//! | … a deferred constraint | `commit::phases::a_failing_deferred_constraint…` (fails before the first PREPARE) |
//! | … NOTIFY's queue full | not tried: it takes 8 GB of notifications; the same path as a serialization failure |
//! | cut before COMMIT PREPARED, or before its answer; the same with 'gxid' | `fault::commit` |
//! | cancel, statement_timeout, termination, shutdown at every wait | `fault::interrupt` |
//! | a shard takes long to prepare or to commit | `fault::slow_prepare` |
//! | a shard hangs in phase one or two | `fault::commit::a_shard_that_hangs…` |
//! | SIGKILL for the coordinator, a backend, the resolver, a shard | `fault::crash`, `fault::gxid`, `commit` |
//! | 'gxid' pending over crash, checkpoint, restart | `commit::explicit`, `fault::gxid`, `clients::managers` |
//! | synchronous_commit = off, no local write | `fault::crash` |
//! | fail-over of the coordinator or a shard | `fault::failover` |
//! | `pg_upgrade` of the coordinator with something in doubt | `resolver::pg_upgrade` |
//! | all servers restored to one restore point; points of which one was not made | `restore` |
//! | synchronous standbys of the coordinator; no room in shared memory | `fault::replication` |
//! | resolver beside busy sessions | `fault::resolver::beside_busy_sessions…`, `bank` |
//! | two databases, a copied database, a physical copy | `fault::copies` |
//! | settled by hand on a shard; names that look like ours | `fault::resolver` |
//! | hung or unreachable servers beside healthy ones | `fault::commit::the_resolver_settles_healthy_servers…` |
//! | wrong password, changed address | `fault::resolver` |
//! | connection lost inside a savepoint; readers under SERIALIZABLE | `fault::prepare` |
//! | a statement whose COMMIT travels behind it: cuts, cancels, what fails behind it | `fault::whole_statement` |
//! | what was not waited for when something goes away | `fault::write_behind` |
//! | a connection cut in the moment in which it is used again | `fault::idle_connection` |
//! | several coordinators, of which one is lost | `fault::several_coordinators` |
//! | a connection pooler between coordinator and shard; it dies, or does not reset sessions | `fault::poolers`, `fault::pooled_sessions` |
//! | … in front of the coordinator | `clients::poolers` |
//! | permission that is taken away while a connection is open | `fault::permissions` |
//! | a shard that writes on another through foreign tables of its own | `commit::nested` |
//! | a session's advisory lock released by a trigger | `commit::session_lock` |
//! | an error in a cursor from before the savepoint; writes before the first FETCH | `fdw::cursors` |
//! | deadlocks over several servers, in each shape, and what looks like one | `deadlock` |
//! | cut, cancel, kill in the middle of a COPY; answers that are none | `fault::bulk` |
//! | hosts that vanish, packets that are lost in one direction or both, slow and full networks | `network` |
//! | answers that fit nothing, and lies of a shard | `fault::hostile` |
//! | 10,000 in doubt | `fault::resolver::ten_thousand…` |
//! | a table is spread over shards, or a partition moves, while something dies or is in doubt | `sharding` |
//! | processes that a dead coordinator leaves on a shard | `fault::orphans` |
//! | workers end in any order, mappings share a database | `fault::workers` |
//!
//! They need a PostgreSQL with the extension installed and are run by `cargo xtask test`.

#![allow(missing_docs, reason = "a test's name is its documentation")]

mod bank;
mod clients;
mod commit;
mod cut;
mod deadlock;
mod docs;
mod doubt;
mod exec;
mod fault;
mod fdw;
mod harness;
mod isolation;
mod network;
mod resolver;
mod restore;
mod sharding;
mod support;
mod workflow;
