//! While the synchronous standby is away, what needs no decision of its own goes on: the resolver
//! waits for no standby itself. And what does wait for the standby says so.

use pg_test::oracle::{assert_settled, expect_error, one, prepared_gids};
use pg_test::{Cluster, DEADLINE, Fleet, wait_until};
use postgres::Client;

use crate::doubt::{leave_orphan, told};
use crate::support::{Outcome, assert_commits, assert_everywhere, begin_everywhere, in_background};

/// A coordinator that has just committed with its synchronous standby, which is then lost.
fn start() -> anyhow::Result<(Fleet, Cluster)> {
    let fleet = Fleet::start()?;
    fleet.coordinator.configure(&[
        ("synchronous_standby_names", "*"),
        ("pg_fdw_xacts.forget_delay", "1s"),
        ("pg_fdw_xacts.track_retention", "1s"),
    ])?;
    let mut standby = Cluster::standby_of(&fleet.coordinator, "coordinator-standby")?;
    standby.start()?;
    fleet.coordinator.reload()?;
    wait_until("the standby is synchronous", DEADLINE, || {
        let sql = "SELECT coalesce((SELECT sync_state = 'sync' FROM pg_stat_replication), false)";
        one::<bool>(&mut fleet.session()?, sql)
    })?;
    let mut session = fleet.session()?;
    begin_everywhere(&mut session, 9)?;
    session.batch_execute("SELECT pg_fdw_xacts_track('x'); COMMIT")?;
    standby.kill9()?;
    Ok((fleet, standby))
}

fn count(session: &mut Client, table: &str) -> anyhow::Result<i64> {
    one(session, &format!("SELECT count(*) FROM fdw_xacts.{table}"))
}

/// An orphan on shard 1 is settled soon: the resolver is at work.
fn sweeps_go_on(fleet: &Fleet, id: i32) -> Outcome {
    let gid = leave_orphan(fleet, 1, "postgres", id)?;
    // It is asked for what it does not look for by itself.
    let asked = in_background(fleet.session()?, "SELECT pg_fdw_xacts_resolve()");
    wait_until("an orphan is settled", DEADLINE, || {
        Ok(!prepared_gids(fleet.shard(1))?.contains(&gid))
    })?;
    // The answer says nothing that a standby could lose.
    asked.join().1?;
    Ok(())
}

/// Red on 0.2.0: the resolver waited for the standby with the deletion of the first decision,
/// and settled nothing.
#[test]
fn old_decisions_and_labels_are_deleted_and_the_resolver_goes_on() -> Outcome {
    let (fleet, mut standby) = start()?;
    let mut session = fleet.session()?;
    wait_until("the decision and the label have been deleted", DEADLINE, || {
        Ok(count(&mut session, "decision")? + count(&mut session, "label")? == 0)
    })?;
    sweeps_go_on(&fleet, 1)?;
    standby.start()?;
    assert_settled(&fleet);
    assert_commits(&fleet, &mut session, 20)
}

/// What must outlive a fail-over is answered when the standby has it, and keeps the resolver from
/// nothing meanwhile. Red on 0.2.0: it waited with the first of these, for as long as the standby
/// was away.
#[test]
fn requests_that_wait_for_the_standby_keep_the_resolver_from_nothing() -> Outcome {
    let (fleet, mut standby) = start()?;
    // A new participant has to be written down, and a label to be taken.
    let mut session = fleet.session()?;
    session.batch_execute("SET synchronous_commit = local")?;
    let port = fleet.port_of_shard(2);
    session.batch_execute(&format!(
        "CREATE SERVER extra FOREIGN DATA WRAPPER pg_fdw_xacts
             OPTIONS (host '127.0.0.1', port '{port}', dbname 'postgres');
         CREATE USER MAPPING FOR CURRENT_USER SERVER extra OPTIONS (user 'postgres');
         CREATE FOREIGN TABLE extra (id int NOT NULL, v text) SERVER extra OPTIONS (table_name 't')"
    ))?;
    let label = in_background(fleet.session()?, "SELECT pg_fdw_xacts_outcome('never')");
    session.batch_execute("BEGIN; INSERT INTO lt VALUES (1); INSERT INTO extra VALUES (1)")?;
    let commit = in_background(session, "COMMIT");
    for id in 2..=4 {
        sweeps_go_on(&fleet, id)?;
    }
    // Nobody has been told what a fail-over would have taken back.
    expect_error(commit.join().1, "55000");
    expect_error(label.join().1, "55000");
    assert_eq!(fleet.ids_in_lt()?, [9]);
    standby.start()?;
    let mut session = fleet.session()?;
    wait_until("the standby has caught up", DEADLINE, || {
        Ok(session.batch_execute("SELECT pg_fdw_xacts_outcome('never')").is_ok())
    })?;
    session
        .batch_execute("BEGIN; INSERT INTO lt VALUES (1); INSERT INTO extra VALUES (1); COMMIT")?;
    assert_settled(&fleet);
    assert_eq!(fleet.ids_on_shard(2)?, [1, 9]);
    Ok(())
}

/// A decision that the standby does not have stays, with that reason; what is to be rolled back on
/// the same shard does not wait for it.
#[test]
fn a_decision_that_is_not_replicated_says_so_and_keeps_nothing_else() -> Outcome {
    let (fleet, mut standby) = start()?;
    let mut session = fleet.session()?;
    let pid: i32 = one(&mut session, "SELECT pg_backend_pid()")?;
    begin_everywhere(&mut session, 1)?;
    let commit = in_background(session, "COMMIT");
    wait_until("COMMIT waits for the standby", DEADLINE, || {
        let sql = format!(
            "SELECT coalesce(wait_event = 'SyncRep', false) FROM pg_stat_activity WHERE pid = {pid}"
        );
        one::<bool>(&mut fleet.session()?, &sql)
    })?;
    one::<bool>(&mut fleet.session()?, &format!("SELECT pg_cancel_backend({pid})"))?;
    commit.join().1?;
    wait_until("the reason is told", DEADLINE, || {
        let shown = told(&fleet, 1)?;
        let expected = "a synchronous standby of this server does not have the decision yet";
        Ok(shown.view.len() == 1
            && (shown.view[0].1.as_str(), shown.view[0].2.as_str()) == ("committing", expected)
            && shown.in_doubt == (1, true)
            && shown.last_error.contains(expected))
    })?;
    sweeps_go_on(&fleet, 2)?;
    assert_eq!(prepared_gids(fleet.shard(1))?.len(), 1);
    standby.start()?;
    assert_settled(&fleet);
    assert_everywhere(&fleet, 1, true)
}
