//! The network loses packets and says nothing: each server is a host of its own, and what connects
//! them is cut, narrowed or thinned out (`pg_test::network`).
//!
//! What has to hold: whoever waits for a host that has vanished ends by a timeout, a cancel or
//! keepalives; nobody else is held up; once the network is back everything is settled.

use std::io::Write;

use pg_test::network::missing;
use pg_test::oracle::one;
use pg_test::{DEADLINE, Fleet, FleetOptions, wait_until};
use postgres::{Client, Error};

use crate::support::{Background, Outcome, in_background};

mod commit;
mod crowded;
mod idle;
mod statements;

/// A fleet of hosts, if there can be one here. Otherwise the test passes and says that it has not
/// been run.
fn hosts(proxied: bool) -> anyhow::Result<Option<Fleet>> {
    if let Some(reason) = missing() {
        // Not by `eprintln!`, which nobody sees of a test that passes.
        writeln!(std::io::stderr(), "skipped, because there can be no hosts here: {reason}")?;
        return Ok(None);
    }
    let options = FleetOptions { hosts: true, proxied, ..FleetOptions::default() };
    Ok(Some(Fleet::start_with(&options)?))
}

/// Connections to shard 2 notice after about three seconds that nobody is there.
fn notice_soon(fleet: &Fleet) -> Outcome {
    let options = "ADD keepalives_idle '1', ADD keepalives_interval '1', ADD keepalives_count '2'";
    fleet.session()?.batch_execute(&format!("ALTER SERVER shard2 OPTIONS ({options})"))?;
    Ok(())
}

/// Waits until the statement has ended: the session, and what came of it.
fn ended(statement: Background) -> anyhow::Result<(Client, Result<(), Error>)> {
    wait_until("the statement ends", DEADLINE, || Ok(statement.is_finished()))?;
    Ok(statement.join())
}

/// A statement of `session` that keeps shard 2 at work for ever.
fn at_work(fleet: &Fleet, session: Client) -> anyhow::Result<Background> {
    let sql =
        "SELECT * FROM pg_fdw_xacts_query('shard2', 'SELECT 1 FROM pg_sleep(6000)') AS q(a int)";
    let statement = in_background(session, sql);
    let mut shard = fleet.shard(2).client()?;
    wait_until("shard 2 is at work", DEADLINE, || {
        one(&mut shard, "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event = 'PgSleep'")
    })?;
    Ok(statement)
}

/// Waits until the coordinator's host has given up all connections to shard 2.
fn wait_until_given_up(fleet: &Fleet) -> Outcome {
    wait_until("the connections to shard 2 are given up", DEADLINE, || {
        Ok(fleet.cable(2).connections()?.is_empty())
    })
}
