//! With `log_min_messages = debug1` the coordinator's log has a line with the gid for each step of
//! the protocol: grepping for the gid follows one participant through its transaction.

use pg_test::log::Mark;
use pg_test::oracle::assert_usable;
use pg_test::{Fault, Fleet, Point};
use postgres::Client;

use crate::support::{Outcome, assert_everywhere, assert_recovered, begin_everywhere, gid_of};

/// A coordinator with proxies, and a session that logs what it does.
fn start() -> anyhow::Result<(Fleet, Client)> {
    let fleet = Fleet::start_proxied()?;
    let mut session = fleet.session()?;
    session.batch_execute("SET log_min_messages = debug1")?;
    Ok((fleet, session))
}

/// The first gid that was given to shard 1 since `mark`.
fn gid_on_shard_1(fleet: &Fleet, mark: Mark) -> anyhow::Result<String> {
    let log = fleet.coordinator.log().since(mark)?;
    let reserved = |line: &str| {
        let (_, rest) = line.split_once("DEBUG:  '")?;
        let (gid, rest) = rest.split_once("' on server ")?;
        (rest == "\"shard1\": gid reserved").then(|| gid.to_owned())
    };
    Ok(log.lines().find_map(reserved).expect("no gid was reserved"))
}

/// The gid that shard 1 was asked to prepare since `mark`, from its own log.
fn prepared_there(fleet: &Fleet, mark: Mark) -> anyhow::Result<String> {
    let statements = fleet.shard(1).log().statements_since(mark)?;
    let gid = gid_of(&statements, "PREPARE TRANSACTION");
    Ok(format!("px_{}_{}_{}", gid.n, gid.serverid, gid.userid))
}

/// What the coordinator's log tells of a gid since `mark`, each line from behind the server's name.
fn steps(fleet: &Fleet, mark: Mark, gid: &str) -> anyhow::Result<Vec<String>> {
    let log = fleet.coordinator.log().since(mark)?;
    let start = format!("DEBUG:  '{gid}' on server \"shard1\": ");
    let told = log.lines().filter_map(|line| Some(line.split_once(&start)?.1.to_owned()));
    // The local transaction's number differs from run to run.
    Ok(told.map(|step| step.trim_end_matches(|c: char| c.is_ascii_digit()).to_owned()).collect())
}

const PREPARED: [&str; 4] =
    ["gid reserved", "written down by transaction ", "sending PREPARE TRANSACTION", "prepared"];

/// The steps of a participant that has prepared, and these.
fn prepared_and(steps: &[&str]) -> Vec<String> {
    PREPARED.iter().chain(steps).map(|step| (*step).to_owned()).collect()
}

#[test]
fn a_commit_is_followed_from_the_gid_to_its_confirmation() -> Outcome {
    let (fleet, mut session) = start()?;
    let (here, there) = (fleet.coordinator.log().mark()?, fleet.shard(1).log().mark()?);
    begin_everywhere(&mut session, 1)?;
    session.batch_execute("COMMIT")?;
    let gid = gid_on_shard_1(&fleet, here)?;
    let expected = prepared_and(&["decided to commit", "sent COMMIT PREPARED", "confirmed"]);
    assert_eq!(steps(&fleet, here, &gid)?, expected);
    assert_eq!(prepared_there(&fleet, there)?, gid);
    assert_everywhere(&fleet, 1, true)
}

#[test]
fn what_is_not_confirmed_is_followed_to_the_resolver() -> Outcome {
    let (fleet, mut session) = start()?;
    let here = fleet.coordinator.log().mark()?;
    begin_everywhere(&mut session, 1)?;
    let hit = fleet.proxy(1).inject(Fault::cut(Point::Statement, "COMMIT PREPARED"));
    session.batch_execute("COMMIT")?;
    hit.wait()?;
    assert_recovered(&fleet, 1, true)?;
    let gid = gid_on_shard_1(&fleet, here)?;
    let expected = prepared_and(&[
        "decided to commit",
        "sent COMMIT PREPARED",
        "not confirmed; handed over to the resolver",
    ]);
    assert_eq!(steps(&fleet, here, &gid)?, expected);
    let log = fleet.coordinator.log().since(here)?;
    let resolved = format!("resolved: COMMIT PREPARED '{gid}'");
    assert!(log.contains(&resolved), "no '{resolved}' in {log}");
    Ok(())
}

#[test]
fn an_abort_is_followed_to_its_confirmation() -> Outcome {
    let (fleet, mut session) = start()?;
    let here = fleet.coordinator.log().mark()?;
    begin_everywhere(&mut session, 1)?;
    let hit = fleet.proxy(2).inject(Fault::cut(Point::Statement, "PREPARE TRANSACTION"));
    assert!(session.batch_execute("COMMIT").is_err(), "shard 2 cannot have prepared");
    hit.wait()?;
    // The error comes before the end of the abort.
    assert_usable(&mut session);
    let gid = gid_on_shard_1(&fleet, here)?;
    let mut told = steps(&fleet, here, &gid)?;
    // Its answer to PREPARE may be read before or after shard 2 is found to be lost.
    told.retain(|step| step != "prepared");
    let mut expected =
        prepared_and(&["decided to roll back", "sent ROLLBACK PREPARED", "confirmed"]);
    expected.retain(|step| step != "prepared");
    assert_eq!(told, expected);
    assert_recovered(&fleet, 1, false)
}

#[test]
fn settling_gxid_goes_on_where_its_preparation_has_ended() -> Outcome {
    for (command, decided) in
        [("COMMIT PREPARED", "decided to commit"), ("ROLLBACK PREPARED", "decided to roll back")]
    {
        let (fleet, mut session) = start()?;
        let here = fleet.coordinator.log().mark()?;
        begin_everywhere(&mut session, 1)?;
        session.batch_execute("PREPARE TRANSACTION 'gxid'")?;
        session.batch_execute(&format!("{command} 'gxid'"))?;
        let gid = gid_on_shard_1(&fleet, here)?;
        let sent = format!("sent {command}");
        let expected = prepared_and(&[
            "left to COMMIT PREPARED or ROLLBACK PREPARED here",
            decided,
            &sent,
            "confirmed",
        ]);
        assert_eq!(steps(&fleet, here, &gid)?, expected);
        assert_everywhere(&fleet, 1, command == "COMMIT PREPARED")?;
    }
    Ok(())
}

#[test]
fn without_debug1_no_gid_is_logged() -> Outcome {
    let (fleet, mut session) = start()?;
    session.batch_execute("SET log_min_messages = log")?;
    let (here, there) = (fleet.coordinator.log().mark()?, fleet.shard(1).log().mark()?);
    begin_everywhere(&mut session, 1)?;
    session.batch_execute("COMMIT")?;
    let gid = prepared_there(&fleet, there)?;
    let log = fleet.coordinator.log().since(here)?;
    assert!(!log.contains(&gid), "{gid} in {log}");
    Ok(())
}
