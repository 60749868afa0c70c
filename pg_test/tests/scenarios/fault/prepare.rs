//! Faults before the decision: whatever keeps one participant from preparing, or the coordinator
//! from committing after all have prepared, aborts everywhere; an outcome that is not known is kept
//! until it is.

use std::time::Duration;

use pg_test::oracle::{
    assert_settled, assert_usable, expect_error, one, prepared_gids, statistic, wait_for_attempts,
};
use pg_test::proxy::NewConnections;
use pg_test::{DEADLINE, Fault, Fleet, FleetOptions, Point, lengthened_by_load, wait_until};

use crate::support::{
    Outcome, assert_commits, assert_everywhere, assert_recovered, begin_everywhere, commit_held_at,
    in_background, statuses, wait_for_late_prepare,
};

/// The error of a COMMIT that has definitely aborted: not of class 08, which leaves it open.
#[track_caller]
fn assert_definite(error: &postgres::Error) {
    let report = error.as_db_error().expect("the coordinator answers");
    assert!(!report.code().code().starts_with("08"), "not definite: {report:#?}");
    assert!(format!("{report:?}").contains("shard1"), "the server is not named: {report:#?}");
}

#[test]
fn a_connection_cut_before_prepare_aborts_everywhere() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let mut session = fleet.session()?;
    begin_everywhere(&mut session, 1)?;
    let hit = fleet.proxy(1).inject(Fault::cut(Point::Statement, "PREPARE TRANSACTION"));
    assert_definite(&session.batch_execute("COMMIT").expect_err("shard 1 was cut off"));
    hit.wait()?;
    assert_recovered(&fleet, 1, false)?;
    assert_commits(&fleet, &mut session, 2)
}

#[test]
fn an_unknown_outcome_of_prepare_is_kept_until_it_is_known() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let mut session = fleet.session()?;
    begin_everywhere(&mut session, 1)?;
    let hit = fleet.proxy(1).inject(Fault::cut(Point::Answer, "PREPARE TRANSACTION"));
    fleet.proxy(1).set_new_connections(NewConnections::Refused);
    assert_definite(&session.batch_execute("COMMIT").expect_err("shard 1 was cut off"));
    hit.wait()?;
    wait_for_attempts(&fleet, 1, 2)?;
    assert_eq!(prepared_gids(fleet.shard(1))?.len(), 1);
    assert_eq!(statuses(&fleet, 1)?, ["aborting"]);
    assert_eq!((prepared_gids(fleet.shard(2))?.len(), statuses(&fleet, 2)?.len()), (0, 0));
    fleet.proxy(1).set_new_connections(NewConnections::Served);
    assert_recovered(&fleet, 1, false)?;
    assert_commits(&fleet, &mut session, 2)
}

#[test]
fn a_connection_cut_before_prepare_stays_unknown_while_the_shard_is_away() -> Outcome {
    let mut fleet = Fleet::start_proxied()?;
    let mut session = fleet.session()?;
    begin_everywhere(&mut session, 1)?;
    let hit = fleet.proxy(1).inject(Fault::cut(Point::Statement, "PREPARE TRANSACTION"));
    fleet.proxy(1).set_new_connections(NewConnections::Refused);
    assert_definite(&session.batch_execute("COMMIT").expect_err("shard 1 was cut off"));
    hit.wait()?;
    fleet.shard_mut(1).kill9()?;
    wait_for_attempts(&fleet, 1, 2)?;
    assert_eq!(statuses(&fleet, 1)?, ["aborting"]);
    fleet.shard_mut(1).start()?;
    fleet.proxy(1).set_new_connections(NewConnections::Served);
    assert_recovered(&fleet, 1, false)
}

/// The PREPARE is on its way while its client has gone, and every sweep finds the shard without it.
#[test]
fn a_prepare_that_lands_after_the_abort_and_after_sweeps_is_rolled_back() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let mut session = fleet.session()?;
    begin_everywhere(&mut session, 1)?;
    let mark = fleet.shard(1).log().mark()?;
    let (commit, hit) =
        commit_held_at(&fleet, session, 1, Point::Statement, "PREPARE TRANSACTION")?;
    fleet.proxy(1).cut_clients();
    let (mut session, result) = commit.join();
    assert_definite(&result.expect_err("shard 1 was cut off"));
    wait_for_attempts(&fleet, 1, 3)?;
    assert_eq!(prepared_gids(fleet.shard(1))?.len(), 0);
    assert_eq!(statuses(&fleet, 1)?, ["aborting"], "absent is not settled while it may land");
    hit.release();
    wait_for_late_prepare(&fleet, 1, mark)?;
    assert_recovered(&fleet, 1, false)?;
    assert_commits(&fleet, &mut session, 2)
}

#[test]
fn a_prepare_that_is_answered_too_late_is_rolled_back_behind_it() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let mut session = fleet.session()?;
    // It registers in its first phase one, and the next has to get as far as PREPARE.
    assert_commits(&fleet, &mut session, 9)?;
    let limit = lengthened_by_load(Duration::from_secs(2)).as_millis();
    session.batch_execute(&format!(
        "SET pg_fdw_xacts.prepare_timeout = {limit}; SET pg_fdw_xacts.commit_timeout = '300ms'"
    ))?;
    begin_everywhere(&mut session, 1)?;
    let mark = fleet.shard(1).log().mark()?;
    let (commit, hit) =
        commit_held_at(&fleet, session, 1, Point::Statement, "PREPARE TRANSACTION")?;
    let (mut session, result) = commit.join();
    expect_error(result, "57014");
    assert_usable(&mut session);
    wait_for_attempts(&fleet, 1, 2)?;
    hit.release();
    wait_for_late_prepare(&fleet, 1, mark)?;
    session
        .batch_execute("RESET pg_fdw_xacts.prepare_timeout; RESET pg_fdw_xacts.commit_timeout")?;
    assert_recovered(&fleet, 1, false)?;
    assert_commits(&fleet, &mut session, 2)
}

/// After the crash nothing here remembers the transaction: the list of participants does.
#[test]
fn a_prepare_that_lands_after_a_crash_of_the_coordinator_is_rolled_back() -> Outcome {
    let mut fleet = Fleet::start_proxied()?;
    let mut session = fleet.session()?;
    begin_everywhere(&mut session, 1)?;
    let mark = fleet.shard(1).log().mark()?;
    let (commit, hit) =
        commit_held_at(&fleet, session, 1, Point::Statement, "PREPARE TRANSACTION")?;
    fleet.coordinator.kill9()?;
    assert!(commit.join().1.is_err(), "the client got an answer from a dead server");
    fleet.coordinator.start()?;
    wait_until("the resolver has come to shard 1", DEADLINE, || {
        Ok(statistic(&fleet, 1, "attempts")? >= 3)
    })?;
    hit.release();
    wait_for_late_prepare(&fleet, 1, mark)?;
    assert_recovered(&fleet, 1, false)
}

/// The other transaction commits while ours has prepared everywhere: ours then is the pivot that
/// must fail.
#[test]
fn a_local_serialization_failure_after_all_have_prepared_aborts_everywhere() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let (mut ours, mut other) = (fleet.session()?, fleet.session()?);
    // Other rows of one page would conflict as well; a sequential scan locks the whole table.
    ours.batch_execute("BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT * FROM lt")?;
    other.batch_execute("BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT * FROM lt")?;
    ours.batch_execute("INSERT INTO lt VALUES (1); INSERT INTO ft1 VALUES (1)")?;
    ours.batch_execute("INSERT INTO ft2 VALUES (1)")?;
    other.batch_execute("INSERT INTO lt VALUES (2)")?;
    let (commit, hit) = commit_held_at(&fleet, ours, 1, Point::Answer, "PREPARE TRANSACTION")?;
    wait_until("shard 2 has prepared", DEADLINE, || Ok(prepared_gids(fleet.shard(2))?.len() == 1))?;
    other.batch_execute("COMMIT")?;
    hit.release();
    let (mut session, result) = commit.join();
    expect_error(result, "40001");
    assert_recovered(&fleet, 1, false)?;
    assert_eq!(fleet.ids_in_lt()?, [2, 1001]);
    assert_commits(&fleet, &mut session, 3)
}

#[test]
fn a_gxid_in_use_aborts_what_its_participants_have_prepared() -> Outcome {
    let fleet = Fleet::start()?;
    let mut session = fleet.session()?;
    begin_everywhere(&mut session, 1)?;
    session.batch_execute("PREPARE TRANSACTION 'gxid'")?;
    let mark = fleet.shard(2).log().mark()?;
    begin_everywhere(&mut session, 2)?;
    expect_error(session.batch_execute("PREPARE TRANSACTION 'gxid'"), "42710");
    let statements = fleet.shard(2).log().statements_since(mark)?;
    assert!(statements.iter().any(|s| s.starts_with("PREPARE TRANSACTION")), "{statements:#?}");
    // The error is told before the abort has arrived.
    wait_until("only the first is left", DEADLINE, || {
        Ok(statuses(&fleet, 1)? == ["prepared"] && prepared_gids(fleet.shard(1))?.len() == 1)
    })?;
    session.batch_execute("COMMIT PREPARED 'gxid'")?;
    assert_settled(&fleet);
    assert_everywhere(&fleet, 1, true)?;
    assert_recovered(&fleet, 2, false)
}

#[test]
fn no_room_for_gxid_aborts_what_its_participants_have_prepared() -> Outcome {
    let fleet = Fleet::start_with(&FleetOptions {
        coordinator: vec![("max_prepared_transactions", "1")],
        ..FleetOptions::default()
    })?;
    let mut session = fleet.session()?;
    begin_everywhere(&mut session, 1)?;
    session.batch_execute("PREPARE TRANSACTION 'gxid'")?;
    begin_everywhere(&mut session, 2)?;
    expect_error(session.batch_execute("PREPARE TRANSACTION 'another'"), "53200");
    session.batch_execute("ROLLBACK PREPARED 'gxid'")?;
    assert_settled(&fleet);
    assert_everywhere(&fleet, 1, false)?;
    assert_recovered(&fleet, 2, false)
}

/// What was written before the connection broke is gone, whatever the savepoint says.
#[test]
fn a_connection_lost_inside_a_savepoint_dooms_the_transaction() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let mut session = fleet.session()?;
    begin_everywhere(&mut session, 1)?;
    session.batch_execute("SAVEPOINT s")?;
    fleet.proxy(1).cut_all();
    session.batch_execute("INSERT INTO ft1 VALUES (2)").expect_err("shard 1 was cut off");
    session.batch_execute("ROLLBACK TO s")?;
    let result = session.batch_execute("COMMIT");
    assert_definite(&result.expect_err("the first INSERT is lost"));
    assert_recovered(&fleet, 1, false)?;
    assert_commits(&fleet, &mut session, 3)
}

/// Its reads may turn out never to have been: only PREPARE tells before the decision.
#[test]
fn a_serializable_reader_is_prepared_too() -> Outcome {
    let fleet = Fleet::start()?;
    let mut session = fleet.session()?;
    let mark = fleet.shard(2).log().mark()?;
    session.batch_execute("BEGIN ISOLATION LEVEL SERIALIZABLE; INSERT INTO ft1 VALUES (1)")?;
    session.batch_execute("SELECT * FROM ft2")?;
    session.batch_execute("COMMIT")?;
    let statements = fleet.shard(2).log().statements_since(mark)?;
    for command in ["PREPARE TRANSACTION", "COMMIT PREPARED"] {
        assert!(statements.iter().any(|s| s.starts_with(command)), "{command}: {statements:#?}");
    }
    assert_settled(&fleet);
    assert_eq!(fleet.ids_on_shard(1)?, [1]);
    Ok(())
}

/// A shard in which another transaction prepares first finds that ours has read a state that never
/// existed.
#[test]
fn a_serialization_failure_of_a_shard_aborts_everywhere() -> Outcome {
    let fleet = Fleet::start()?;
    let (mut ours, mut other) = (fleet.session()?, fleet.session()?);
    for (session, id) in [(&mut ours, 1), (&mut other, 2)] {
        session.batch_execute("BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT count(*) FROM ft1")?;
        session.batch_execute(&format!("INSERT INTO ft1 VALUES ({id})"))?;
        session.batch_execute(&format!("INSERT INTO ft2 VALUES ({id})"))?;
        session.batch_execute(&format!("INSERT INTO lt VALUES ({id})"))?;
    }
    other.batch_execute("COMMIT")?;
    let commit = in_background(ours, "COMMIT");
    let (mut session, result) = commit.join();
    expect_error(result, "40001");
    assert_everywhere(&fleet, 2, true)?;
    assert_recovered(&fleet, 1, false)?;
    assert_eq!(one::<i64>(&mut session, "SELECT count(*) FROM ft1")?, 2);
    Ok(())
}
