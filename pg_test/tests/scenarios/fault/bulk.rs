//! Faults while rows go to a shard by COPY.

use pg_test::oracle::{assert_no_locks, assert_settled, assert_usable, expect_error, one};
use pg_test::wire::Message;
use pg_test::{DEADLINE, Fault, Fleet, Point, wait_until};
use postgres::Client;

use crate::support::{Outcome, in_background};

const INSERT: &str = "INSERT INTO ft1 SELECT i, repeat('x', 100) FROM generate_series(1, 30000) i";

/// A shard on which each COPY stops at the row with id 20000 until `gate` is released.
fn gated(fleet: &Fleet) -> anyhow::Result<Client> {
    let mut gate = fleet.shard(1).client()?;
    gate.batch_execute(
        "CREATE FUNCTION gate() RETURNS boolean LANGUAGE plpgsql AS
             'BEGIN PERFORM pg_advisory_xact_lock(4711); RETURN true; END';
         ALTER TABLE t ADD CHECK (id <> 20000 OR gate());
         SELECT pg_advisory_lock(4711)",
    )?;
    Ok(gate)
}

/// Waits until the COPY on shard 1 stands at the gate; returns its process.
fn at_the_gate(fleet: &Fleet) -> anyhow::Result<i32> {
    let mut session = fleet.shard(1).client()?;
    let waiting = "SELECT max(pid) FROM pg_stat_activity
         WHERE wait_event = 'advisory' AND query LIKE 'COPY%'";
    let mut found = None;
    wait_until("a COPY waits at the gate", DEADLINE, || {
        found = one::<Option<i32>>(&mut session, waiting)?;
        Ok(found.is_some())
    })?;
    Ok(found.expect("just found"))
}

#[test]
fn a_connection_cut_at_copy_fails_the_statement() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let mut session = fleet.session()?;
    for point in [Point::Statement, Point::Answer] {
        let hit = fleet.proxy(1).inject(Fault::cut(point, "COPY"));
        session.batch_execute("BEGIN; INSERT INTO ft2 VALUES (1, 'x')")?;
        expect_error(session.batch_execute(INSERT), "08006");
        hit.wait()?;
        session.batch_execute("ROLLBACK")?;
        assert_eq!(fleet.ids_on_shard(1)?.len() + fleet.ids_on_shard(2)?.len(), 0);
        assert_usable(&mut session);
    }
    session.batch_execute(INSERT)?;
    assert_no_locks(&fleet)
}

/// While the shard does not take the data any more.
#[test]
fn a_connection_cut_and_a_session_killed_in_the_middle_fail_the_statement() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let mut gate = gated(&fleet)?;
    for kills in [false, true] {
        let running = in_background(fleet.session()?, INSERT);
        let pid = at_the_gate(&fleet)?;
        if kills {
            gate.execute("SELECT pg_terminate_backend($1)", &[&pid])?;
        } else {
            fleet.proxy(1).cut_clients();
        }
        let (mut session, result) = running.join();
        expect_error(result, "08006");
        assert_usable(&mut session);
        // Until it has ended: the next round looks for a COPY at the gate.
        gate.execute("SELECT pg_terminate_backend($1, 60000)", &[&pid])?;
    }
    gate.batch_execute("SELECT pg_advisory_unlock_all()")?;
    assert_no_locks(&fleet)?;
    assert_eq!(fleet.ids_on_shard(1)?.len(), 0);
    Ok(())
}

#[test]
fn a_cancel_and_a_timeout_end_a_copy() -> Outcome {
    let fleet = Fleet::start()?;
    let mut gate = gated(&fleet)?;
    let mut session = fleet.session()?;
    session.batch_execute("BEGIN; INSERT INTO ft2 VALUES (1, 'x'); SAVEPOINT a")?;
    let cancel = session.cancel_token();
    let running = in_background(session, INSERT);
    at_the_gate(&fleet)?;
    cancel.cancel_query(postgres::NoTls)?;
    let (mut session, result) = running.join();
    expect_error(result, "57014");
    // The transaction goes on from the savepoint.
    session.batch_execute("ROLLBACK TO a; INSERT INTO ft1 VALUES (1, 'x'); COMMIT")?;
    assert_eq!(fleet.ids_on_shard(1)?, [1]);
    session.batch_execute("DELETE FROM ft1; SET statement_timeout = '500ms'")?;
    expect_error(session.batch_execute(INSERT), "57014");
    session.batch_execute("RESET statement_timeout")?;
    gate.batch_execute("SELECT pg_advisory_unlock_all()")?;
    session.batch_execute(INSERT)?;
    assert_eq!(fleet.ids_on_shard(1)?.len(), 30000);
    assert_settled(&fleet);
    Ok(())
}

/// The coordinator's session is gone in the middle of a COPY: nothing of it stays.
#[test]
fn a_session_terminated_in_the_middle_leaves_nothing() -> Outcome {
    let fleet = Fleet::start()?;
    let mut gate = gated(&fleet)?;
    let mut session = fleet.session()?;
    let pid: i32 = one(&mut session, "SELECT pg_backend_pid()")?;
    let running = in_background(session, INSERT);
    at_the_gate(&fleet)?;
    fleet.coordinator.client()?.execute("SELECT pg_terminate_backend($1)", &[&pid])?;
    assert!(running.join().1.is_err());
    gate.batch_execute("SELECT pg_advisory_unlock_all()")?;
    assert_no_locks(&fleet)?;
    assert_eq!(fleet.ids_on_shard(1)?.len(), 0);
    Ok(())
}

/// What cannot be an answer to COPY, and an answer that belongs to COPY where none was asked for.
#[test]
fn an_answer_that_cannot_be_one_fails_the_statement() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let mut session = fleet.session()?;
    let done = |tag: &str| Message::new(b'C', format!("{tag}\0").as_bytes());
    let consent = Message::new(b'G', &[0, 0, 2, 0, 0, 0, 0]);
    let produces = Message::new(b'H', &[0, 0, 2, 0, 0, 0, 0]);
    for (prefix, answer) in [
        ("COPY", done("COPY 5")),
        ("COPY", done("COPY 29800")),
        ("COPY", produces),
        ("INSERT", consent),
    ] {
        let hit = fleet.proxy(1).inject(Fault::answer(prefix, &answer));
        let failed = session.batch_execute(INSERT).expect_err("the answer cannot be one");
        let code = failed.code().expect("an error of the coordinator").code().to_owned();
        assert!(code.starts_with("08"), "{prefix}: {failed:?}");
        hit.wait()?;
        assert_usable(&mut session);
        assert_no_locks(&fleet)?;
        assert_eq!(fleet.ids_on_shard(1)?.len(), 0);
    }
    Ok(())
}

/// More notices than fit between the two, while the data does not fit either.
#[test]
fn a_shard_that_talks_while_it_takes_the_data_does_not_block() -> Outcome {
    let fleet = Fleet::start()?;
    fleet.shard(1).client()?.batch_execute(
        "CREATE FUNCTION talk() RETURNS trigger LANGUAGE plpgsql AS
             'BEGIN RAISE NOTICE ''%'', repeat(''talk'', 500); RETURN NULL; END';
         CREATE TRIGGER talk AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION talk()",
    )?;
    let mut session = fleet.session()?;
    session.batch_execute(
        "INSERT INTO ft1 SELECT i, repeat('x', 2000) FROM generate_series(1, 8000) i",
    )?;
    assert_eq!(fleet.ids_on_shard(1)?.len(), 8000);
    Ok(())
}
