//! `pg_fdw_xacts.write_behind` under faults: what is owed when a connection, a shard or the
//! coordinator goes away is on all servers or on none.

use pg_test::oracle::{assert_settled, assert_usable, expect_error};
use pg_test::{Fault, Fleet, Point};
use postgres::Client;

use crate::support::{
    NONE, Outcome, assert_everywhere, assert_recovered, begin_everywhere, in_background, signal,
    wait_for_lock,
};

fn behind(fleet: &Fleet) -> anyhow::Result<Client> {
    let mut session = fleet.session()?;
    session
        .batch_execute("SET pg_fdw_xacts.write_behind = on; SELECT FROM ft1; SELECT FROM ft2")?;
    Ok(session)
}

/// At each message of a transaction, before it reaches the shard or before it is answered. Where
/// nothing had been answered, the transaction may begin anew; COMMIT tells.
#[test]
fn a_cut_at_any_message_leaves_all_or_nothing() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let mut id = 0;
    for message in ["START TRANSACTION", "INSERT", "SAVEPOINT s2", "PREPARE TRANSACTION"] {
        for point in [Point::Statement, Point::Answer] {
            id += 1;
            let mut session = behind(&fleet)?;
            let hit = fleet.proxy(1).inject(Fault::cut(point, message));
            let written = begin_everywhere(&mut session, id)
                .and_then(|()| session.batch_execute("SAVEPOINT a"))
                .and_then(|()| {
                    session.batch_execute(&format!("INSERT INTO ft1 VALUES ({id} + 1000)"))
                })
                .and_then(|()| session.batch_execute("COMMIT"));
            assert!(hit.has_struck(), "{message}, {point:?}");
            if written.is_err() {
                session.batch_execute("ROLLBACK")?;
            }
            assert_usable(&mut session);
            assert_settled(&fleet);
            assert_everywhere(&fleet, id, written.is_ok())?;
            let ids = fleet.ids_on_shard(1)?;
            assert_eq!(ids.contains(&(id + 1000)), written.is_ok(), "{message}, {point:?}");
        }
    }
    Ok(())
}

/// If no answer has been read, the transaction begins anew.
#[test]
fn a_shard_that_restarts_meanwhile_has_all_of_it_or_nothing() -> Outcome {
    let mut fleet = Fleet::start()?;
    let mut session = behind(&fleet)?;
    begin_everywhere(&mut session, 1)?;
    fleet.shard_mut(1).restart()?;
    let committed = session.batch_execute("COMMIT").is_ok();
    assert_usable(&mut session);
    assert_recovered(&fleet, 1, committed)
}

#[test]
fn a_coordinator_that_dies_meanwhile_leaves_nothing() -> Outcome {
    let mut fleet = Fleet::start()?;
    let mut session = behind(&fleet)?;
    begin_everywhere(&mut session, 1)?;
    fleet.coordinator.kill9()?;
    fleet.coordinator.start()?;
    assert_recovered(&fleet, 1, false)
}

/// The shard executes an INSERT that has to wait for another transaction there. Whoever waits for
/// it can be cancelled, and ROLLBACK does not wait.
#[test]
fn what_is_owed_and_waits_for_a_lock_can_be_given_up() -> Outcome {
    let fleet = Fleet::start()?;
    let mut other = fleet.shard(1).client()?;
    let mut session = behind(&fleet)?;
    let pid: i32 = session.query_one("SELECT pg_backend_pid()", &[])?.get(0);
    for end in ["ROLLBACK", "cancel", "ROLLBACK TO a; COMMIT"] {
        other.batch_execute("BEGIN; INSERT INTO t VALUES (1)")?;
        session.batch_execute("BEGIN; SAVEPOINT a; SELECT FROM ft1; INSERT INTO ft1 VALUES (1)")?;
        if end == "cancel" {
            let commit = in_background(session, "COMMIT");
            wait_for_lock(&fleet, 1)?;
            signal(&fleet, "pg_cancel_backend", pid)?;
            let (back, result) = commit.join();
            session = back;
            expect_error(result, "57014");
        } else if end == "ROLLBACK" {
            session.batch_execute(end)?;
        } else {
            // What follows on the shard waits for it; here that is the end of the transaction.
            let rolled_back = in_background(session, end);
            wait_for_lock(&fleet, 1)?;
            other.batch_execute("ROLLBACK")?;
            let (back, result) = rolled_back.join();
            session = back;
            result?;
        }
        assert_usable(&mut session);
        other.batch_execute("ROLLBACK")?;
        assert_eq!(fleet.ids_on_shard(1)?, NONE);
    }
    assert_settled(&fleet);
    Ok(())
}
