//! Connections that nobody uses while their path dies.

use pg_test::StopMode;
use pg_test::network::Loss;
use pg_test::oracle::{assert_usable, expect_error};

use super::{at_work, ended, hosts, notice_soon, wait_until_given_up};
use crate::support::{NONE, Outcome, assert_commits, assert_recovered, in_background};

/// Whoever comes after the connection was given up connects anew.
#[test]
fn an_idle_connection_whose_path_has_died_is_made_anew() -> Outcome {
    let Some(fleet) = hosts(false)? else { return Ok(()) };
    notice_soon(&fleet)?;
    let mut session = fleet.session()?;
    assert_commits(&fleet, &mut session, 1)?;
    fleet.cable(2).lose(Loss::Both)?;
    wait_until_given_up(&fleet)?;
    fleet.cable(2).mend()?;
    assert_commits(&fleet, &mut session, 2)?;
    assert_recovered(&fleet, 1, true)
}

/// In a transaction it cannot be made anew.
#[test]
fn a_transaction_whose_path_dies_while_nobody_uses_it_fails() -> Outcome {
    let Some(fleet) = hosts(false)? else { return Ok(()) };
    notice_soon(&fleet)?;
    let mut session = fleet.session()?;
    session
        .batch_execute("BEGIN; INSERT INTO lt VALUES (1, 'x'); INSERT INTO ft2 VALUES (1, 'x')")?;
    fleet.cable(2).lose(Loss::Both)?;
    wait_until_given_up(&fleet)?;
    let (mut session, result) = ended(in_background(session, "INSERT INTO ft2 VALUES (2, 'x')"))?;
    expect_error(result, "08006");
    session.batch_execute("ROLLBACK")?;
    assert_usable(&mut session);
    fleet.cable(2).mend()?;
    assert_eq!(fleet.ids_in_lt()?, NONE);
    assert_recovered(&fleet, 1, false)
}

/// A shutdown waits for nobody who has vanished.
#[test]
fn a_coordinator_stops_while_a_host_is_away() -> Outcome {
    let Some(mut fleet) = hosts(false)? else { return Ok(()) };
    let statement = at_work(&fleet, fleet.session()?)?;
    let mut idle = fleet.session()?;
    assert_commits(&fleet, &mut idle, 1)?;
    fleet.cable(2).lose(Loss::Both)?;
    fleet.coordinator.stop(StopMode::Fast)?;
    assert!(ended(statement)?.1.is_err());
    fleet.cable(2).mend()?;
    fleet.coordinator.start()?;
    assert_recovered(&fleet, 1, true)
}
