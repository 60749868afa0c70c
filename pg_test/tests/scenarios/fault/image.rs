//! Two servers of one image have the same fingerprint: which one it is that is asked, the address
//! tells. What was settled by others may come back: its decision is kept. And what a role that may
//! not connect any more has prepared is settled through other roles.

use pg_test::oracle::{
    assert_settled, expect_error, one, prepared_gids, statistic, wait_for_attempts,
};
use pg_test::proxy::NewConnections;
use pg_test::{Cluster, DEADLINE, Fault, Fleet, FleetOptions, Installation, Point, wait_until};

use crate::support::{
    Outcome, assert_commits, assert_everywhere, begin_everywhere, commit_held_at,
};

fn start() -> anyhow::Result<Fleet> {
    Fleet::start_with(&FleetOptions {
        proxied: true,
        coordinator: vec![("pg_fdw_xacts.forget_delay", "0")],
        ..FleetOptions::default()
    })
}

/// Another server of the image that shard 1 was made from, with the same table.
fn twin_of_shard_1(fleet: &Fleet) -> anyhow::Result<Cluster> {
    let mut twin = Cluster::create(&Installation::from_env()?, fleet.shard(1).name())?;
    twin.start()?;
    twin.client()?.batch_execute("CREATE TABLE t (id int PRIMARY KEY, v text)")?;
    let identifier = "SELECT system_identifier FROM pg_control_system()";
    assert_eq!(
        one::<i64>(&mut twin.client()?, identifier)?,
        one::<i64>(&mut fleet.shard(1).client()?, identifier)?
    );
    Ok(twin)
}

fn point_shard_1_to(fleet: &Fleet, port: u16) -> Outcome {
    fleet.session()?.batch_execute(&format!("ALTER SERVER shard1 OPTIONS (SET port '{port}')"))?;
    Ok(())
}

/// Red on 0.2.0: a heuristic outcome was reported, the decision deleted, and shard 1 rolled back
/// when it was seen again.
#[test]
fn a_commit_is_not_looked_for_on_another_server_of_the_same_image() -> Outcome {
    let fleet = start()?;
    assert_commits(&fleet, &mut fleet.session()?, 9)?;
    let twin = twin_of_shard_1(&fleet)?;
    fleet.in_doubt(1)?;
    point_shard_1_to(&fleet, twin.port())?;
    wait_for_attempts(&fleet, 1, 3)?;
    let error: String = one(
        &mut fleet.session()?,
        "SELECT last_error FROM pg_stat_fdw_xacts WHERE server = 'shard1'",
    )?;
    assert!(error.contains("is not where it was"), "{error}");
    assert!(error.contains(&twin.port().to_string()), "{error}");
    // Meanwhile the twin is a server like any other.
    let mut session = fleet.session()?;
    session.batch_execute(
        "BEGIN; INSERT INTO ft1 VALUES (3, 'x'); INSERT INTO ft2 VALUES (3, 'x'); COMMIT",
    )?;
    expect_error(session.batch_execute("DROP SERVER shard1 CASCADE"), "55006");
    assert_eq!(statistic(&fleet, 1, "heuristic")?, 0);
    assert_eq!(prepared_gids(fleet.shard(1))?.len(), 1);

    fleet.proxy(1).set_new_connections(NewConnections::Served);
    point_shard_1_to(&fleet, fleet.port_of_shard(1))?;
    assert_settled(&fleet);
    assert_everywhere(&fleet, 1, true)?;
    assert_eq!(statistic(&fleet, 1, "heuristic")?, 0);
    Ok(())
}

/// The same for a rollback, and across a crash of the coordinator. Red on 0.2.0: DROP SERVER was
/// executed.
#[test]
fn a_rollback_is_not_looked_for_on_another_server_of_the_same_image() -> Outcome {
    let mut fleet = start()?;
    assert_commits(&fleet, &mut fleet.session()?, 9)?;
    let twin = twin_of_shard_1(&fleet)?;
    let mut session = fleet.session()?;
    begin_everywhere(&mut session, 1)?;
    let (_commit, hit) = commit_held_at(&fleet, session, 1, Point::Answer, "PREPARE TRANSACTION")?;
    fleet.coordinator.kill9()?;
    fleet.proxy(1).set_new_connections(NewConnections::Refused);
    hit.release();
    fleet.coordinator.start()?;
    point_shard_1_to(&fleet, twin.port())?;
    wait_for_attempts(&fleet, 1, 3)?;
    expect_error(fleet.session()?.batch_execute("DROP SERVER shard1 CASCADE"), "55006");
    assert_eq!(prepared_gids(fleet.shard(1))?.len(), 1);
    fleet.proxy(1).set_new_connections(NewConnections::Served);
    point_shard_1_to(&fleet, fleet.port_of_shard(1))?;
    assert_settled(&fleet);
    assert_everywhere(&fleet, 1, false)
}

/// A server that moves while nothing is in doubt is followed, also after a restart.
#[test]
fn a_server_that_moves_while_nothing_is_in_doubt() -> Outcome {
    let mut fleet = start()?;
    assert_commits(&fleet, &mut fleet.session()?, 1)?;
    let mut session = fleet.session()?;
    session.batch_execute("SELECT * FROM pg_fdw_xacts_resolve()")?;
    session.batch_execute("ALTER SERVER shard1 OPTIONS (SET host 'localhost')")?;
    assert_commits(&fleet, &mut session, 2)?;
    session.batch_execute("SELECT * FROM pg_fdw_xacts_resolve()")?;
    let known = "SELECT string_agg(address, ',' ORDER BY address) FROM fdw_xacts.participant";
    let addresses: String = one(&mut session, known)?;
    assert_eq!(addresses.matches("host='localhost'").count(), 1, "{addresses}");
    assert_eq!(addresses.matches("host=").count(), 2, "{addresses}");
    let cut = fleet.proxy(1).inject(Fault::cut(Point::Statement, "COMMIT PREPARED"));
    begin_everywhere(&mut session, 3)?;
    session.batch_execute("COMMIT")?;
    cut.wait()?;
    fleet.coordinator.kill9()?;
    fleet.coordinator.start()?;
    assert_settled(&fleet);
    assert_everywhere(&fleet, 3, true)?;
    let mut session = fleet.session()?;
    session.batch_execute("SELECT * FROM pg_fdw_xacts_resolve(); DROP SERVER shard1 CASCADE")?;
    Ok(())
}

/// What is prepared proves that a server at another address is the one that was used: the whole of
/// it is believed.
#[test]
fn a_standby_that_takes_over_at_another_address() -> Outcome {
    let mut fleet = start()?;
    assert_commits(&fleet, &mut fleet.session()?, 9)?;
    fleet.in_doubt(1)?;
    let mut standby = Cluster::standby_of(fleet.shard(1), "shard1-standby")?;
    standby.start()?;
    fleet.shard_mut(1).kill9()?;
    standby.promote()?;
    let port = standby.port();
    drop(fleet.replace_shard(1, standby));
    point_shard_1_to(&fleet, port)?;
    assert_settled(&fleet);
    assert_everywhere(&fleet, 1, true)?;
    let mut session = fleet.session()?;
    session.batch_execute("SELECT * FROM pg_fdw_xacts_resolve()")?;
    let addresses: String =
        one(&mut session, "SELECT string_agg(address, ',') FROM fdw_xacts.participant")?;
    assert!(addresses.contains(&port.to_string()), "{addresses}");
    fleet.coordinator.kill9()?;
    fleet.coordinator.start()?;
    let mut session = fleet.session()?;
    session.batch_execute("SELECT * FROM pg_fdw_xacts_resolve(); DROP SERVER shard1 CASCADE")?;
    Ok(())
}

/// Somebody has rolled back by hand what was decided to commit, and it comes back, as with the
/// restore of a backup. Red on 0.2.0: the decision had been deleted, and it was rolled back.
#[test]
fn the_decision_of_a_heuristic_outcome_is_kept() -> Outcome {
    let mut fleet = start()?;
    fleet.in_doubt(1)?;
    let gid = prepared_gids(fleet.shard(1))?.remove(0);
    let mut shard = fleet.shard(1).client()?;
    shard.batch_execute(&format!("ROLLBACK PREPARED '{gid}'"))?;
    fleet.proxy(1).set_new_connections(NewConnections::Served);
    wait_until("the heuristic outcome is seen", DEADLINE, || {
        Ok(statistic(&fleet, 1, "heuristic")? == 1)
    })?;
    assert_settled(&fleet);
    // Other decisions are forgotten meanwhile.
    let mut session = fleet.session()?;
    begin_everywhere(&mut session, 2)?;
    session.batch_execute("COMMIT")?;
    let decisions = "SELECT count(*) FROM fdw_xacts.decision";
    wait_until("the other decision is deleted", DEADLINE, || {
        session.batch_execute("SELECT * FROM pg_fdw_xacts_resolve()")?;
        Ok(one::<i64>(&mut session, decisions)? == 1)
    })?;
    fleet.coordinator.kill9()?;
    fleet.coordinator.start()?;
    shard.batch_execute(&format!(
        "BEGIN; INSERT INTO t VALUES (1, 'x'); PREPARE TRANSACTION '{gid}'"
    ))?;
    fleet.session()?.batch_execute("SELECT * FROM pg_fdw_xacts_resolve()")?;
    assert_settled(&fleet);
    assert_everywhere(&fleet, 1, true)?;
    assert_eq!(one::<i64>(&mut fleet.session()?, decisions)?, 1);
    Ok(())
}

/// Red on 0.2.0: in doubt for ever with `password is required`.
#[test]
fn a_user_who_may_not_connect_any_more_is_settled_by_another_of_the_same_place() -> Outcome {
    for change in ["DROP ROLE boss", "ALTER ROLE boss NOSUPERUSER"] {
        let mut fleet = start()?;
        assert_commits(&fleet, &mut fleet.session()?, 9)?;
        fleet.session()?.batch_execute(
            "CREATE USER MAPPING FOR PUBLIC SERVER shard1 OPTIONS (user 'postgres');
             CREATE USER MAPPING FOR PUBLIC SERVER shard2 OPTIONS (user 'postgres');
             CREATE ROLE boss SUPERUSER LOGIN",
        )?;
        let mut session = fleet.coordinator.client_for("postgres", "boss")?;
        begin_everywhere(&mut session, 1)?;
        let (commit, hit) =
            commit_held_at(&fleet, session, 1, Point::Statement, "COMMIT PREPARED")?;
        fleet.proxy(1).set_new_connections(NewConnections::Refused);
        fleet.proxy(1).cut_all();
        hit.release();
        let (session, result) = commit.join();
        result?;
        drop(session);
        fleet.coordinator.kill9()?;
        fleet.coordinator.start()?;
        fleet.session()?.batch_execute(change)?;
        fleet.proxy(1).set_new_connections(NewConnections::Served);
        wait_until("nothing is prepared on shard 1", DEADLINE, || {
            Ok(prepared_gids(fleet.shard(1))?.is_empty())
        })?;
        assert_settled(&fleet);
        assert_everywhere(&fleet, 1, true)?;
        wait_until("nothing is left", DEADLINE, || {
            let mut session = fleet.session()?;
            session.batch_execute("SELECT * FROM pg_fdw_xacts_resolve()")?;
            Ok(session.batch_execute("DROP SERVER shard1 CASCADE").is_ok())
        })?;
    }
    Ok(())
}
