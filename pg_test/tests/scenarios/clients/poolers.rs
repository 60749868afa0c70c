//! PgBouncer in front of the coordinator: clients whose next transaction runs in another session
//! than the last one.

use pg_test::client::Program;
use pg_test::oracle::{assert_settled, expect_error, one, prepared_gids};
use pg_test::pooler::Pooler;
use pg_test::{DEADLINE, Fault, Fleet, FleetOptions, Point, wait_until};
use postgres::Client;

use crate::support::{Outcome, begin_everywhere, in_background};

fn start(mode: &str) -> anyhow::Result<(Fleet, Pooler)> {
    start_with(mode, vec![])
}

/// The same with these settings of the coordinator. A session of the pooler's has those that it
/// began with.
fn start_with(
    mode: &str,
    coordinator: Vec<(&'static str, &'static str)>,
) -> anyhow::Result<(Fleet, Pooler)> {
    let fleet =
        Fleet::start_with(&FleetOptions { proxied: true, coordinator, ..Default::default() })?;
    let pooler = Pooler::start(&fleet.coordinator, mode, 5)?;
    Ok((fleet, pooler))
}

/// Takes the session in which `command` was run last, so that nobody else gets it.
fn occupy(fleet: &Fleet, pooler: &Pooler, command: &str) -> anyhow::Result<Client> {
    let mut occupant = pooler.client()?;
    occupant.batch_execute("BEGIN")?;
    let own: i32 = one(&mut occupant, "SELECT pg_backend_pid()")?;
    let sql = format!("SELECT pid FROM pg_stat_activity WHERE query LIKE '{command}%'");
    let left: Option<i32> =
        fleet.session()?.query_opt(&sql, &[])?.map(|row| row.get(0)).filter(|pid| *pid != own);
    assert_eq!(left, None, "the session that ran {command} is still free");
    Ok(occupant)
}

/// What was prepared in one session is committed or rolled back in another one, or by another
/// connection of the manager.
#[test]
fn a_transaction_manager_changes_sessions_between_its_phases() -> Outcome {
    let (fleet, pooler) = start("transaction")?;
    let mut manager = Program::start_behind("two_phase.py", &pooler)?;
    for (id, settle) in [(1, "commit"), (2, "rollback"), (3, "commit_recovered order-3")] {
        manager.expect(&format!("start order-{id}"));
        manager.expect(&format!("insert {id}"));
        manager.expect("prepare");
        for number in [1, 2] {
            assert_eq!(prepared_gids(fleet.shard(number))?.len(), 1);
        }
        let occupant = occupy(&fleet, &pooler, "PREPARE TRANSACTION")?;
        if id == 3 {
            manager.expect("reconnect");
            assert_eq!(manager.expect("recover"), "order-3");
        }
        manager.expect(settle);
        drop(occupant);
    }
    // More than psycopg executes before it would prepare a statement.
    for id in 11..=18 {
        manager.expect(&format!("start order-{id}"));
        manager.expect(&format!("insert {id}"));
        manager.expect("commit");
    }
    let ids: Vec<i32> = [1, 3].into_iter().chain(11..=18).collect();
    assert_eq!([fleet.ids_on_shard(1)?, fleet.ids_on_shard(2)?], [ids.clone(), ids]);
    assert_settled(&fleet);
    Ok(())
}

#[test]
fn sqlalchemy_in_both_its_ways() -> Outcome {
    let (fleet, pooler) = start("transaction")?;
    let mut application = Program::start_behind("sqlalchemy_orm.py", &pooler)?;
    application.expect("write_in_two_phases 1");
    application.expect("write 2");
    application.expect("write_unless_there 2 3");
    application.expect("update 1 changed");
    for id in 11..=18 {
        application.expect(&format!("write {id}"));
    }
    assert_eq!(application.expect("count_differences"), "0");
    assert_eq!(fleet.ids_on_shard(1)?, [1, 2, 3].into_iter().chain(11..=18).collect::<Vec<_>>());
    assert_settled(&fleet);
    Ok(())
}

/// With `commit_wait = off` the client's own commit may not be there yet in its next session,
/// unless that reads consistently.
#[test]
fn a_client_reads_its_own_commit_where_reads_are_consistent() -> Outcome {
    let (fleet, pooler) = start_with("transaction", vec![("pg_fdw_xacts.commit_wait", "off")])?;
    let mut client = pooler.client()?;
    begin_everywhere(&mut client, 1)?;
    let held = fleet.proxy(1).inject(Fault::hold(Point::Statement, "COMMIT PREPARED"));
    client.batch_execute("COMMIT")?;
    held.wait()?;
    let occupant = occupy(&fleet, &pooler, "COMMIT")?;
    const READ: &str = "SELECT count(*) FROM ft1";
    let read = |client: &mut Client, setting: &str| -> Result<i64, postgres::Error> {
        client.batch_execute(&format!(
            "BEGIN; SET LOCAL pg_fdw_xacts.consistent_reads = {setting}"
        ))?;
        let count = client.query_one(READ, &[])?.get(0);
        client.batch_execute("COMMIT")?;
        Ok(count)
    };
    assert_eq!(read(&mut client, "off")?, 0);
    let mut reader = pooler.client()?;
    reader.batch_execute("BEGIN; SET LOCAL pg_fdw_xacts.consistent_reads = on")?;
    let waits = in_background(reader, "DO $$ BEGIN ASSERT (SELECT count(*) FROM ft1) = 1; END $$");
    wait_until("the reader waits for what was committed", DEADLINE, || {
        let waits = "SELECT EXISTS (SELECT FROM pg_stat_activity
                     WHERE query LIKE 'DO %' AND state = 'active' AND wait_event_type IS NOT NULL)";
        one(&mut fleet.session()?, waits)
    })?;
    held.release();
    waits.join().1?;
    drop(occupant);
    assert_settled(&fleet);
    Ok(())
}

/// The client does not know whether its COMMIT has happened; its label tells, in any session.
#[test]
fn a_pooler_that_dies_during_commit() -> Outcome {
    let (fleet, mut pooler) = start("transaction")?;
    let mut client = pooler.client()?;
    client.batch_execute("BEGIN; SELECT pg_fdw_xacts_track('order-1')")?;
    client.batch_execute("INSERT INTO ft1 VALUES (1, 'x'); INSERT INTO ft2 VALUES (1, 'x')")?;
    let held = fleet.proxy(1).inject(Fault::hold(Point::Statement, "COMMIT PREPARED"));
    let commit = in_background(client, "COMMIT");
    held.wait()?;
    pooler.kill9();
    assert!(commit.join().1.is_err(), "an answer from a dead pooler");
    held.release();
    pooler.start_again()?;
    wait_until("the outcome is known", DEADLINE, || {
        let outcome: String = one(&mut pooler.client()?, "SELECT pg_fdw_xacts_outcome('order-1')")?;
        assert_ne!(outcome, "aborted");
        Ok(outcome == "committed")
    })?;
    assert_settled(&fleet);
    assert_eq!([fleet.ids_on_shard(1)?, fleet.ids_on_shard(2)?], [[1], [1]]);
    Ok(())
}

/// In session mode the pooler resets sessions with DISCARD ALL, and in statement mode there are no
/// transactions of several statements; one statement is atomic.
#[test]
fn session_and_statement_mode() -> Outcome {
    const BOTH: &str = "WITH a AS (INSERT INTO ft1 VALUES ($1, 'x') RETURNING id)
                        INSERT INTO ft2 SELECT id, 'x' FROM a";
    let (fleet, pooler) = start("session")?;
    for id in 1..=3 {
        let mut client = pooler.client()?;
        client.batch_execute("SET pg_fdw_xacts.commit_wait = off")?;
        client.batch_execute(&BOTH.replace("$1", &id.to_string()))?;
    }
    assert_settled(&fleet);
    let by_statement = Pooler::start(&fleet.coordinator, "statement", 5)?;
    let mut client = by_statement.client()?;
    client.batch_execute(&BOTH.replace("$1", "4"))?;
    fleet.shard(2).client()?.batch_execute("INSERT INTO t VALUES (5, 'there')")?;
    expect_error(client.batch_execute(&BOTH.replace("$1", "5")), "23505");
    assert_eq!(fleet.ids_on_shard(1)?, [1, 2, 3, 4]);
    assert_eq!(fleet.ids_on_shard(2)?, [1, 2, 3, 4, 5]);
    assert!(client.batch_execute("BEGIN").is_err(), "a transaction in statement mode");
    assert_settled(&fleet);
    Ok(())
}
