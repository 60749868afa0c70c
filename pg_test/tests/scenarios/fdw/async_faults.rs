//! Asynchronous Append when something goes wrong meanwhile: errors, savepoints rolled back,
//! timeouts, lost connections.

use pg_test::oracle::{assert_settled, expect_error, one};
use pg_test::{DEADLINE, Fault, Fleet, Point, wait_until};

use crate::fdw::async_scan::{ROWS, all, proxied, sorted, started};
use crate::support::{Outcome, in_background};

/// A view in place of `r<number>` that fails at one row.
fn fails_at(fleet: &Fleet, number: i32, id: i32) -> Outcome {
    let shard = 2 - number as usize % 2;
    fleet.shard(shard).client()?.batch_execute(&format!(
        "ALTER TABLE r{number} RENAME TO s{number};
         CREATE VIEW r{number} AS SELECT id, CASE WHEN 1 / (id - {id}) < 9 THEN v END AS v FROM s{number}"
    ))?;
    Ok(())
}

#[test]
fn an_error_is_reported_for_the_scan_that_failed() -> Outcome {
    let (fleet, mut session) = started()?;
    fails_at(&fleet, 3, 2 * ROWS + 1)?;
    // p1 is on the same connection, and finds the transaction failed.
    for _ in 0..10 {
        let error = session.query("SELECT * FROM pt", &[]).unwrap_err();
        let error = error.as_db_error().expect("an error of the server").clone();
        assert_eq!(error.code().code(), "22012");
        assert_eq!(error.message(), "division by zero");
        let context = error.where_().unwrap_or_default();
        assert!(context.contains("remote SQL command: SELECT id, v FROM public.r3"), "{context}");
    }
    assert_eq!(sorted(&mut session, "SELECT id FROM p1")?, (1..=ROWS).collect::<Vec<_>>());
    Ok(())
}

#[test]
fn an_error_of_rows_that_nobody_needed_any_more() -> Outcome {
    let (fleet, mut session) = proxied()?;
    fails_at(&fleet, 1, 1)?;
    session.batch_execute("SET enable_async_append = on")?;
    let slow = fleet.proxy(1).inject(Fault::hold(Point::Answer, "DECLARE"));
    let query = in_background(session, "SELECT * FROM pt LIMIT 1");
    slow.wait()?;
    slow.release();
    let (mut session, result) = query.join();
    expect_error(result, "22012");
    assert_eq!(one::<i64>(&mut session, "SELECT count(*) FROM p2")?, i64::from(ROWS));
    Ok(())
}

#[test]
fn a_savepoint_is_rolled_back_while_rows_are_on_their_way() -> Outcome {
    let (fleet, mut session) = started()?;
    session.batch_execute(
        "CREATE FUNCTION walk() RETURNS int LANGUAGE plpgsql AS $$
         DECLARE r record; n int := 0;
         BEGIN
             FOR r IN SELECT * FROM pt LOOP
                 n := n + 1;
                 IF r.id % 100 = 0 THEN
                     BEGIN
                         INSERT INTO ft1 VALUES (r.id);
                         INSERT INTO ft2 VALUES (r.id % 500);
                     EXCEPTION WHEN unique_violation THEN NULL;
                     END;
                 END IF;
             END LOOP;
             RETURN n;
         END $$",
    )?;
    assert_eq!(one::<i32>(&mut session, "SELECT walk()")?, 4 * ROWS);
    assert_eq!(fleet.ids_on_shard(1)?.len(), 5);
    assert_eq!(fleet.ids_on_shard(2)?, [0, 100, 200, 300, 400]);
    Ok(())
}

/// A function that catches errors is the first to use the connection after a FETCH of the scan has
/// failed, in a subtransaction of its own. Red before: "cannot be used due to abort cleanup failure".
#[test]
fn a_failure_that_a_function_hears_of_first_is_the_scan_s() -> Outcome {
    let (fleet, mut session) = started()?;
    session.batch_execute(
        "CREATE FUNCTION looks(n int) RETURNS int LANGUAGE plpgsql STABLE AS $$
         BEGIN
             PERFORM FROM ft1 WHERE id = n;
             RETURN n;
         EXCEPTION WHEN OTHERS THEN RETURN -1;
         END $$",
    )?;
    fails_at(&fleet, 1, 333)?;
    session.batch_execute("BEGIN; INSERT INTO ft1 VALUES (1); SAVEPOINT a")?;
    expect_error(session.batch_execute("SELECT looks(id), v FROM pt"), "22012");
    session.batch_execute("ROLLBACK TO a; INSERT INTO ft1 VALUES (2); COMMIT")?;
    assert_eq!(fleet.ids_on_shard(1)?, [1, 2]);
    Ok(())
}

#[test]
fn cursors_survive_what_is_rolled_back_around_them() -> Outcome {
    let (_fleet, mut session) = started()?;
    session.batch_execute(
        "BEGIN; SAVEPOINT a; DECLARE c CURSOR FOR SELECT id FROM pt; FETCH 10 FROM c; RELEASE a",
    )?;
    let mut rest = vec![];
    for _ in 0..40 {
        session.batch_execute("SAVEPOINT b")?;
        rest.extend(session.query("FETCH 60 FROM c", &[])?.iter().map(|r| r.get::<_, i32>(0)));
        session.batch_execute("ROLLBACK TO b")?;
        rest.extend(session.query("FETCH 10 FROM c", &[])?.iter().map(|r| r.get::<_, i32>(0)));
    }
    rest.extend(session.query("FETCH ALL FROM c", &[])?.iter().map(|r| r.get::<_, i32>(0)));
    session.batch_execute("COMMIT")?;
    rest.sort_unstable();
    rest.dedup();
    assert_eq!(rest.len(), 4 * ROWS as usize - 10);
    Ok(())
}

#[test]
fn scans_below_a_savepoint_that_failed_are_forgotten() -> Outcome {
    let (fleet, mut session) = started()?;
    fails_at(&fleet, 1, 500)?;
    session.batch_execute("BEGIN; INSERT INTO ft1 VALUES (1); SAVEPOINT a")?;
    expect_error(session.batch_execute("SELECT * FROM pt"), "22012");
    session
        .batch_execute("ROLLBACK TO a; INSERT INTO ft1 VALUES (2); INSERT INTO ft2 VALUES (2)")?;
    assert_eq!(sorted(&mut session, "SELECT id FROM pt WHERE id > 1000")?.len(), 3 * ROWS as usize);
    session.batch_execute("COMMIT")?;
    assert_eq!((fleet.ids_on_shard(1)?, fleet.ids_on_shard(2)?), (vec![1, 2], vec![2]));
    assert_settled(&fleet);
    Ok(())
}

#[test]
fn a_timeout_stops_the_work_on_all_servers() -> Outcome {
    let (fleet, mut session) = started()?;
    for (shard, number) in [(1, 1), (2, 2)] {
        fleet.shard(shard).client()?.batch_execute(&format!(
            "ALTER TABLE r{number} RENAME TO s{number};
             CREATE VIEW r{number} AS SELECT id, v FROM s{number}, pg_sleep(3600)"
        ))?;
    }
    expect_error(session.batch_execute("SET statement_timeout = '1s'; SELECT * FROM pt"), "57014");
    for shard in fleet.shards() {
        let mut there = shard.client()?;
        wait_until("nothing runs there any more", DEADLINE, || {
            let running = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
            Ok(one::<i64>(&mut there, running)? == 0)
        })?;
    }
    session.batch_execute("SET statement_timeout = '60s'")?;
    assert_eq!(one::<i64>(&mut session, "SELECT count(*) FROM p3")?, i64::from(ROWS));
    Ok(())
}

#[test]
fn a_lost_connection_is_an_error() -> Outcome {
    let (fleet, mut session) = proxied()?;
    for statement in ["DECLARE", "FETCH"] {
        let held = fleet.proxy(1).inject(Fault::hold(Point::Answer, statement));
        let query = in_background(session, "SELECT * FROM pt");
        held.wait()?;
        fleet.proxy(1).cut_all();
        let result;
        (session, result) = query.join();
        expect_error(result, "08006");
        assert_eq!(sorted(&mut session, "SELECT id FROM pt")?, all());
    }
    Ok(())
}

#[test]
fn a_terminated_server_process_is_an_error() -> Outcome {
    let (fleet, session) = proxied()?;
    let held = fleet.proxy(2).inject(Fault::hold(Point::Statement, "DECLARE"));
    let query = in_background(session, "SELECT * FROM pt");
    held.wait()?;
    let terminated: i64 = one(
        &mut fleet.shard(2).client()?,
        "SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity
         WHERE application_name = 'postgres_fdw'",
    )?;
    assert_eq!(terminated, 1);
    let (mut session, result) = query.join();
    expect_error(result, "08006");
    drop(held);
    assert_eq!(sorted(&mut session, "SELECT id FROM pt")?, all());
    Ok(())
}
