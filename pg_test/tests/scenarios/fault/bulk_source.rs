//! Faults while rows go to a shard by COPY and their source stands still. The COPY is open then, if
//! the rows before have come fast; what happens must not depend on it.

use pg_test::oracle::{assert_no_locks, assert_usable, expect_error, one};
use pg_test::{DEADLINE, Fleet, wait_until};
use postgres::Client;

use crate::support::{Outcome, in_background};

/// Whose row 20000 is made when the gate is open.
const INSERT: &str =
    "INSERT INTO ft1 SELECT i, gate(i) || repeat('x', 100) FROM generate_series(1, 30000) i";

/// A coordinator with a gate that is shut.
fn gated(fleet: &Fleet) -> anyhow::Result<Client> {
    let mut gate = fleet.session()?;
    gate.batch_execute(
        "CREATE FUNCTION gate(n int) RETURNS text LANGUAGE plpgsql STABLE AS $$BEGIN
             IF n = 20000 THEN PERFORM pg_advisory_xact_lock(4711); END IF;
             RETURN '';
         END$$;
         SELECT pg_advisory_lock(4711)",
    )?;
    Ok(gate)
}

fn open(gate: &mut Client) -> anyhow::Result<()> {
    Ok(gate.batch_execute("SELECT pg_advisory_unlock_all()")?)
}

/// Waits until the source stands at the gate; returns the shard's process that has got the rows.
fn at_the_gate(fleet: &Fleet) -> anyhow::Result<i32> {
    let mut session = fleet.coordinator.client()?;
    wait_until("the source stands at the gate", DEADLINE, || {
        let waiting = "SELECT count(*) = 1 FROM pg_stat_activity
             WHERE wait_event = 'advisory' AND query LIKE 'INSERT%'";
        one::<bool>(&mut session, waiting)
    })?;
    one(
        &mut fleet.shard(1).client()?,
        "SELECT pid FROM pg_stat_activity WHERE query LIKE 'COPY public.t%'",
    )
}

#[test]
fn a_cancel_ends_it_and_leaves_the_connection_usable() -> Outcome {
    let fleet = Fleet::start()?;
    let mut gate = gated(&fleet)?;
    let mut session = fleet.session()?;
    session.batch_execute("BEGIN; INSERT INTO ft1 VALUES (0, 'x'); SAVEPOINT a")?;
    let cancel = session.cancel_token();
    let running = in_background(session, INSERT);
    at_the_gate(&fleet)?;
    cancel.cancel_query(postgres::NoTls)?;
    let (mut session, result) = running.join();
    expect_error(result, "57014");
    open(&mut gate)?;
    session.batch_execute(&format!("ROLLBACK TO a; {INSERT}; COMMIT"))?;
    assert_eq!(fleet.ids_on_shard(1)?.len(), 30001);
    Ok(())
}

#[test]
fn a_lost_shard_fails_the_statement() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let mut gate = gated(&fleet)?;
    let mut shard = fleet.shard(1).client()?;
    for kills in [false, true] {
        let running = in_background(fleet.session()?, INSERT);
        let pid = at_the_gate(&fleet)?;
        if kills {
            shard.execute("SELECT pg_terminate_backend($1)", &[&pid])?;
        } else {
            fleet.proxy(1).cut_clients();
        }
        open(&mut gate)?;
        let (mut session, result) = running.join();
        expect_error(result, "08006");
        gate.batch_execute("SELECT pg_advisory_lock(4711)")?;
        assert_usable(&mut session);
        assert_no_locks(&fleet)?;
        assert_eq!(fleet.ids_on_shard(1)?.len(), 0);
        // The next round looks for the only one.
        wait_until("the COPY's session has ended", DEADLINE, || {
            let left = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'COPY public.t%'";
            Ok(one::<i64>(&mut shard, left)? == 0)
        })?;
    }
    Ok(())
}

/// A row so near to the gate that the shard's refusal is heard of behind it.
#[test]
fn what_the_shard_refuses_fails_the_statement() -> Outcome {
    let fleet = Fleet::start()?;
    let mut gate = gated(&fleet)?;
    fleet.shard(1).client()?.batch_execute("ALTER TABLE t ADD CHECK (id <> 19900)")?;
    let mut session = fleet.session()?;
    session.batch_execute("BEGIN; INSERT INTO ft2 VALUES (1, 'x'); SAVEPOINT a")?;
    let running = in_background(session, INSERT);
    at_the_gate(&fleet)?;
    open(&mut gate)?;
    let (mut session, result) = running.join();
    let error = expect_error(result, "23514");
    let context = error.where_().unwrap_or_default();
    assert!(context.contains("remote SQL command: COPY public.t(id, v) FROM STDIN"), "{context}");
    session.batch_execute("ROLLBACK TO a; INSERT INTO ft1 VALUES (1, 'x'); COMMIT")?;
    assert_eq!(fleet.ids_on_shard(1)?, [1]);
    Ok(())
}

#[test]
fn a_session_that_ends_leaves_nothing() -> Outcome {
    let fleet = Fleet::start()?;
    let _gate = gated(&fleet)?;
    let mut session = fleet.session()?;
    let pid: i32 = one(&mut session, "SELECT pg_backend_pid()")?;
    let running = in_background(session, INSERT);
    at_the_gate(&fleet)?;
    fleet.coordinator.client()?.execute("SELECT pg_terminate_backend($1)", &[&pid])?;
    assert!(running.join().1.is_err());
    assert_no_locks(&fleet)?;
    assert_eq!(fleet.ids_on_shard(1)?.len(), 0);
    Ok(())
}
