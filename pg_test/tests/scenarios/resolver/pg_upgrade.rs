//! `pg_upgrade` of a coordinator with a transaction in doubt. Both clusters are of one version, which
//! it allows: what it does to them is the same.

use std::os::unix::fs::PermissionsExt;

use anyhow::{Context, Result};
use pg_test::install::finish;
use pg_test::oracle::{assert_settled, prepared_gids};
use pg_test::{Cluster, Fleet, Installation, StopMode};

use crate::support::{Outcome, assert_everywhere, begin_everywhere};

/// Upgrades the coordinator, which does not run, into a new cluster, which takes its place and does
/// not run yet either. Returns the old one, and which background workers both have started.
fn upgrade(fleet: &mut Fleet) -> Result<(Cluster, String)> {
    let installation = Installation::from_env()?;
    let new = Cluster::create(&installation, "coordinator")?;
    new.configure(&[("shared_preload_libraries", "pg_fdw_xacts")])?;
    // The sockets of both servers are there.
    let directory = tempfile::tempdir()?;
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o777))?;
    let mut program = installation.command("pg_upgrade");
    program.current_dir(directory.path()).args(["--retain", "--username", "postgres"]);
    for (options, cluster) in [
        (["--old-bindir", "--old-datadir"], &fleet.coordinator),
        (["--new-bindir", "--new-datadir"], &new),
    ] {
        // The log names each process that is started.
        cluster.configure(&[("log_min_messages", "debug1")])?;
        program.arg(options[0]).arg(installation.bindir()).arg(options[1]).arg(cluster.data());
    }
    finish(&mut program)?;
    new.configure(&[("log_min_messages", "warning")])?;
    let mut find = std::process::Command::new("find");
    find.arg(new.data().join("pg_upgrade_output.d")).args(["-name", "*.log", "-exec", "sed", "-n"]);
    let started = finish(find.args(["/starting background worker process/p", "{}", "+"]))?;
    Ok((std::mem::replace(&mut fleet.coordinator, new), started))
}

/// The next transaction id of a cluster that does not run.
fn next_xid(cluster: &Cluster) -> Result<String> {
    let said = Installation::from_env()?.run("pg_controldata", [cluster.data()])?;
    let line = said.lines().find_map(|line| line.strip_prefix("Latest checkpoint's NextXID:"));
    Ok(line.context("pg_controldata says no NextXID")?.trim().to_owned())
}

/// Red before: resolvers ran in both clusters. pg_upgrade reads the old one's next transaction id
/// before it starts it, so what they write there has ids that the new one gives to others. And the
/// servers, which have other OIDs then, were not found before somebody wrote on them again.
#[test]
fn pg_upgrade_takes_along_what_is_in_doubt() -> Outcome {
    let mut fleet = Fleet::start_proxied()?;
    fleet.in_doubt(1)?;
    fleet.coordinator.stop(StopMode::Fast)?;
    // Whoever wants to settle it now, can.
    fleet.reconnect(1);
    let before = next_xid(&fleet.coordinator)?;
    let (old, started) = upgrade(&mut fleet)?;
    assert_eq!(next_xid(&old)?, before);
    assert!(!started.contains("pg_fdw_xacts"), "{started}");
    assert_eq!(prepared_gids(fleet.shard(1))?.len(), 1);

    fleet.coordinator.start()?;
    assert_settled(&fleet);
    assert_everywhere(&fleet, 1, true)?;
    let mut session = fleet.session()?;
    begin_everywhere(&mut session, 2)?;
    session.batch_execute("COMMIT")?;
    assert_everywhere(&fleet, 2, true)?;
    session.batch_execute(
        "SELECT * FROM pg_fdw_xacts_resolve(); DROP EXTENSION pg_fdw_xacts CASCADE",
    )?;
    Ok(())
}
