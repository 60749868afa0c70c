//! Scans of many batches: how the batches grow, and that a write by what a scan calls is noticed
//! whenever it happens.

use pg_test::oracle::{assert_usable, expect_error, one};
use pg_test::proxy::NewConnections;
use pg_test::{Fault, Fleet, Point};
use postgres::Client;

use crate::support::{Outcome, in_background};

fn filled(rows: i32) -> anyhow::Result<(Fleet, Client)> {
    let fleet = Fleet::start()?;
    fleet.shard(1).client()?.batch_execute(&format!(
        "INSERT INTO t SELECT i, 'row' FROM generate_series(1, {rows}) i; ANALYZE t"
    ))?;
    let session = fleet.session()?;
    Ok((fleet, session))
}

/// A view on shard 1, and a foreign table for it with these columns.
fn view(fleet: &Fleet, session: &mut Client, name: &str, columns: &str, query: &str) -> Outcome {
    fleet.shard(1).client()?.batch_execute(&format!("CREATE VIEW {name} AS {query}"))?;
    session.batch_execute(&format!(
        "CREATE FOREIGN TABLE {name} ({columns}) SERVER shard1 OPTIONS (table_name '{name}')"
    ))?;
    Ok(())
}

/// `run` fetches with these sizes. It is run again where it has not: a FETCH that takes long on a
/// busy machine is not followed by a larger one.
fn assert_fetches(fleet: &Fleet, expected: &[u32], mut run: impl FnMut() -> Outcome) -> Outcome {
    let mut sizes = Vec::new();
    for _ in 0..10 {
        sizes = fetches(fleet, &mut run)?;
        if sizes == expected {
            break;
        }
    }
    assert_eq!(sizes, expected);
    Ok(())
}

/// How many rows each FETCH on shard 1 asks for while `run` runs.
fn fetches(fleet: &Fleet, run: impl FnOnce() -> Outcome) -> anyhow::Result<Vec<u32>> {
    let mark = fleet.shard(1).log().mark()?;
    run()?;
    let statements = fleet.shard(1).log().statements_since(mark)?;
    let sizes = statements.iter().filter_map(|s| s.strip_prefix("FETCH ")?.split(' ').next());
    Ok(sizes.map(str::parse).collect::<Result<_, _>>()?)
}

#[test]
fn the_batches_of_a_long_scan_grow() -> Outcome {
    let (fleet, mut session) = filled(10_000)?;
    let mut expected = vec![100; 8];
    expected.push(200);
    expected.extend([400; 23]);
    assert_fetches(&fleet, &expected, || {
        let sum: i64 = one(&mut session, "SELECT sum(id) FROM (SELECT id FROM ft1 OFFSET 0) s")?;
        assert_eq!(sum, 50_005_000);
        Ok(())
    })?;
    // Again from the beginning, as another scan and as the same.
    assert_fetches(&fleet, &[&expected[..], &expected[..]].concat(), || {
        let sum: i64 = one(
            &mut session,
            "SELECT sum(n)::int8 FROM generate_series(1, 2) k, LATERAL
                 (SELECT count(*) AS n FROM (SELECT id FROM ft1 WHERE id + k > 0 OFFSET 0) s) s",
        )?;
        assert_eq!(sum, 20_000);
        Ok(())
    })
}

#[test]
fn an_early_end_reads_little_more_than_was_wanted() -> Outcome {
    let (fleet, mut session) = filled(10_000)?;
    for (limit, most) in [(150, 200), (900, 1000), (1500, 1800)] {
        let sizes = fetches(&fleet, || {
            let rows = session
                .query(&format!("SELECT id FROM ft1 WHERE random() >= 0 LIMIT {limit}"), &[])?;
            assert_eq!(rows.len(), limit);
            Ok(())
        })?;
        assert!(sizes.iter().sum::<u32>() <= most, "{limit}: {sizes:?}");
    }
    Ok(())
}

#[test]
fn batches_that_lock_rows_or_are_large_do_not_grow() -> Outcome {
    let (fleet, mut session) = filled(3000)?;
    session.batch_execute("BEGIN")?;
    for locking in [
        "SELECT * FROM ft1 FOR UPDATE",
        "UPDATE ft1 SET v = 'other' WHERE random() < 0",
        "DELETE FROM ft1 WHERE random() < 0",
        "WITH u AS (UPDATE ft1 SET v = 'other' WHERE random() < 0 RETURNING id) SELECT * FROM u",
    ] {
        let sizes = fetches(&fleet, || {
            session.query(locking, &[])?;
            Ok(())
        })?;
        assert_eq!(sizes, [100; 31], "{locking}");
    }
    session.batch_execute("COMMIT; UPDATE ft1 SET v = repeat('x', 3000)")?;
    let sizes = fetches(&fleet, || {
        assert_eq!(session.query("SELECT v FROM ft1", &[])?.len(), 3000);
        Ok(())
    })?;
    assert_eq!(sizes, [100; 31]);
    Ok(())
}

#[test]
fn a_batch_that_has_become_too_large_is_followed_by_smaller_ones() -> Outcome {
    let (fleet, mut session) = filled(1000)?;
    fleet.shard(1).client()?.batch_execute(
        "INSERT INTO t SELECT i, repeat('x', 20000) FROM generate_series(1001, 1600) i",
    )?;
    let expected = [&[100; 8][..], &[200, 400, 100, 100, 100]].concat();
    assert_fetches(&fleet, &expected, || {
        assert_eq!(session.query("SELECT * FROM ft1", &[])?.len(), 1600);
        Ok(())
    })
}

/// Each FETCH is a statement there, with the shard's timeout.
#[test]
fn batches_that_take_long_do_not_grow() -> Outcome {
    let (fleet, mut session) = filled(1000)?;
    view(
        &fleet,
        &mut session,
        "slow",
        "id int, s text",
        "SELECT id, pg_sleep(0.0015)::text AS s FROM t",
    )?;
    let sizes = fetches(&fleet, || {
        assert_eq!(session.query("SELECT * FROM slow", &[])?.len(), 1000);
        Ok(())
    })?;
    assert_eq!(sizes, [100; 11]);
    Ok(())
}

/// A view on shard 1 that writes when row `at` is read.
fn writing_view(fleet: &Fleet, session: &mut Client, at: i32) -> Outcome {
    fleet.shard(1).client()?.batch_execute(&format!(
        "CREATE TABLE noted (id int);
         CREATE FUNCTION note(n int) RETURNS int LANGUAGE plpgsql SET search_path = public AS
             'BEGIN IF n = {at} THEN INSERT INTO noted VALUES (n); END IF; RETURN n; END'"
    ))?;
    view(fleet, session, "noting", "id int", "SELECT note(id) AS id FROM t")
}

/// Which of PREPARE TRANSACTION and COMMIT shard 1 is told at the end of a transaction that reads
/// there and writes on shard 2.
fn endings(fleet: &Fleet, session: &mut Client, read: &str) -> anyhow::Result<Vec<String>> {
    let mark = fleet.shard(1).log().mark()?;
    session.batch_execute(&format!("BEGIN; DELETE FROM ft2 WHERE id > 0; {read}; COMMIT"))?;
    // What is asked behind the COMMIT that nobody waits for comes after it.
    session.batch_execute("BEGIN; SELECT FROM ft1 LIMIT 1")?;
    let statements = fleet.shard(1).log().statements_since(mark)?;
    session.batch_execute("ROLLBACK")?;
    let words = statements.iter().map(|s| s.split(' ').take(2).collect::<Vec<_>>().join(" "));
    Ok(words.filter(|w| ["PREPARE TRANSACTION", "COMMIT"].contains(&w.as_str())).collect())
}

/// The question whether the transaction has written no longer travels with each FETCH of so long a
/// scan.
#[test]
fn a_write_in_a_late_batch_is_prepared() -> Outcome {
    let (fleet, mut session) = filled(5000)?;
    writing_view(&fleet, &mut session, 4999)?;
    session.batch_execute("ALTER SERVER shard1 OPTIONS (ADD fetch_size '10')")?;
    for read in [
        "SELECT count(*) FROM (SELECT * FROM noting OFFSET 0) s",
        // It is still open when the transaction ends.
        "DECLARE c CURSOR FOR SELECT * FROM noting; FETCH FORWARD 5000 FROM c",
        // The savepoint is gone when the scan ends, and with it the cursor.
        "SAVEPOINT a; DECLARE c CURSOR FOR SELECT * FROM noting; FETCH FORWARD 4999 FROM c; RELEASE a",
    ] {
        session.batch_execute("INSERT INTO ft2 VALUES (1, 'x')")?;
        let told = endings(&fleet, &mut session, read)?;
        assert_eq!(told, ["PREPARE TRANSACTION"], "{read}");
    }
    let noted: i64 = one(&mut fleet.shard(1).client()?, "SELECT count(*) FROM noted")?;
    assert_eq!(noted, 3);
    Ok(())
}

#[test]
fn a_long_scan_that_writes_nothing_is_not_prepared() -> Outcome {
    let (fleet, mut session) = filled(5000)?;
    writing_view(&fleet, &mut session, 0)?;
    session.batch_execute("ALTER SERVER shard1 OPTIONS (ADD fetch_size '10')")?;
    for read in [
        "SELECT count(*) FROM (SELECT * FROM noting OFFSET 0) s",
        "DECLARE c CURSOR FOR SELECT * FROM noting; FETCH FORWARD 4000 FROM c",
    ] {
        session.batch_execute("INSERT INTO ft2 VALUES (1, 'x')")?;
        let told = endings(&fleet, &mut session, read)?;
        assert_eq!(told, ["COMMIT"], "{read}");
    }
    Ok(())
}

/// A failure in a late batch is the statement's own, and what is read again begins at the
/// beginning.
#[test]
fn a_failure_in_a_late_batch_is_reported_for_its_query() -> Outcome {
    let (fleet, mut session) = filled(5000)?;
    let query = "SELECT 1 / (id - 3333) AS id FROM t ORDER BY t.id";
    view(&fleet, &mut session, "failing", "id int", query)?;
    session.batch_execute("BEGIN; SAVEPOINT a")?;
    let error = session.query("SELECT * FROM failing", &[]).unwrap_err();
    let error = error.as_db_error().expect("the server's");
    assert_eq!(error.message(), "division by zero");
    assert!(
        error.where_().is_some_and(|w| w.contains("SELECT id FROM public.failing")),
        "{error:?}"
    );
    session.batch_execute("ROLLBACK TO a")?;
    assert_eq!(session.query("SELECT id FROM ft1", &[])?.len(), 5000);
    session.batch_execute("COMMIT")?;
    Ok(())
}

#[test]
fn a_rollback_behind_a_long_scan_cancels_nothing() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let mut session = fleet.session()?;
    session.batch_execute(
        "INSERT INTO ft1 SELECT i, 'row' FROM generate_series(1, 5000) i;
         ALTER SERVER shard1 OPTIONS (ADD fetch_size '10')",
    )?;
    let read = "SELECT count(*) FROM (SELECT id FROM ft1 WHERE random() >= 0 OFFSET 0) s";
    session.batch_execute(read)?;
    let sessions =
        "SELECT array_agg(pid) FROM pg_stat_activity WHERE application_name = 'postgres_fdw'";
    let before: Vec<i32> = one(&mut fleet.shard(1).client()?, sessions)?;
    // A cancel would not be taken, and the session be given up.
    fleet.proxy(1).set_new_connections(NewConnections::Hanging);
    let close = fleet.proxy(1).inject(Fault::hold(Point::Answer, "CLOSE"));
    session.batch_execute(&format!("BEGIN; {read}"))?;
    close.wait()?;
    let rollback = fleet.proxy(1).inject(Fault::hold(Point::Statement, "ROLLBACK"));
    let ending = in_background(session, "ROLLBACK");
    rollback.wait()?;
    drop((close, rollback));
    let (mut session, result) = ending.join();
    result?;
    fleet.proxy(1).set_new_connections(NewConnections::Served);
    assert_eq!(one::<i64>(&mut session, read)?, 5000);
    let after: Vec<i32> = one(&mut fleet.shard(1).client()?, sessions)?;
    assert_eq!(after, before);
    Ok(())
}

#[test]
fn a_connection_lost_behind_a_long_scan_fails_the_commit_and_says_why() -> Outcome {
    let (fleet, mut session) = filled(5000)?;
    session.batch_execute(
        "ALTER SERVER shard1 OPTIONS (ADD fetch_size '10');
         BEGIN; DECLARE c CURSOR FOR SELECT * FROM ft1; MOVE FORWARD 4000 FROM c",
    )?;
    fleet.shard(1).client()?.batch_execute(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE application_name = 'postgres_fdw'",
    )?;
    let error = expect_error(session.batch_execute("COMMIT"), "40000");
    assert_eq!(error.message(), "connection to server \"shard1\" was lost before it had prepared");
    let detail = error.detail().unwrap_or_default();
    assert!(detail.contains("terminating connection due to administrator command"), "{detail}");
    assert_usable(&mut session);
    Ok(())
}
