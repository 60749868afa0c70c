//! Faults at named points of the protocol, crashes, copies, fail-overs, and what others do in the
//! middle of it.

mod bad_input;
mod bulk;
mod bulk_source;
mod commit;
mod copies;
mod crash;
mod durable_list;
mod failover;
mod gxid;
mod hostile;
mod idle_connection;
mod image;
mod interrupt;
mod locks;
mod orphans;
mod permissions;
mod pooled_sessions;
mod poolers;
mod prepare;
mod reach;
mod replication;
mod resolver;
mod schema;
mod set_up;
mod several_coordinators;
mod slow_prepare;
mod whole_statement;
mod workers;
mod write_behind;
