//! The resolver, and what an operator sees of it and does with it.

mod after_a_restart;
mod databases;
mod following;
mod large_table;
mod many_unasked;
mod monitoring;
mod monitoring_alerts;
mod monitoring_served;
mod operators;
mod pg_upgrade;
mod reasons;
mod security;
mod standby_away;
mod upgrade;
