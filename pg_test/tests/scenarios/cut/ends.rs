//! What is left of a unit that has failed, or was given up.

use std::time::{Duration, Instant};

use pg_test::oracle::{expect_error, one};
use pg_test::{DEADLINE, Fault, Fleet, Point, lengthened_by_load, wait_until};
use postgres::Client;

use super::held::wait_until_query_waits;
use crate::support::{
    Outcome, assert_commits, assert_interruptible, begin_everywhere, in_background, signal,
};

fn reader(fleet: &Fleet) -> anyhow::Result<Client> {
    let mut reader = fleet.session()?;
    reader.batch_execute("SET pg_fdw_xacts.consistent_reads = on")?;
    Ok(reader)
}

/// The savepoint is rolled back, and with it the attempt to read the other server. Seen red: 40001 on
/// the server that had been read before.
#[test]
fn a_server_that_could_not_join_does_not_keep_the_others_from_being_read() -> Outcome {
    let fleet = Fleet::start()?;
    let mut reader = reader(&fleet)?;
    reader.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ")?;
    assert_eq!(one::<i64>(&mut reader, "SELECT count(*) FROM ft1")?, 0);
    assert_commits(&fleet, &mut fleet.session()?, 1)?;
    reader.batch_execute("SAVEPOINT a")?;
    expect_error(reader.query("SELECT count(*) FROM ft2", &[]), "40001");
    reader.batch_execute("ROLLBACK TO a")?;
    assert_eq!(one::<i64>(&mut reader, "SELECT count(*) FROM ft1")?, 0);
    reader.batch_execute("INSERT INTO ft1 VALUES (2, 'x')")?;
    assert_eq!(one::<i64>(&mut reader, "SELECT count(*) FROM ft1")?, 1);
    reader.batch_execute("COMMIT")?;
    assert_eq!(fleet.ids_on_shard(1)?, [1, 2]);
    Ok(())
}

/// A shard does not tell its snapshot, and does not take a cancel either. Seen red: the abort waited
/// for half a minute.
/// Also where the first scan of the query is what waits. Red there: the cancel was forgotten, and
/// the snapshot waited for.
#[test]
fn a_cancel_ends_the_wait_for_a_snapshot() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    for held in [2, 1] {
        let mut reader = reader(&fleet)?;
        let both = "SELECT (SELECT count(*) FROM ft1) + (SELECT count(*) FROM ft2)";
        reader.query(both, &[])?;
        let pid: i32 = one(&mut reader, "SELECT pg_backend_pid()")?;
        let hit = fleet.proxy(held).inject(Fault::hold(Point::Statement, "START"));
        let reading = in_background(reader, both);
        hit.wait()?;
        fleet.proxy(held).set_new_connections(pg_test::proxy::NewConnections::Hanging);
        let start = Instant::now();
        signal(&fleet, "pg_cancel_backend", pid)?;
        let (mut reader, result) = reading.join();
        expect_error(result, "57014");
        // The error comes before the transaction has been rolled back.
        assert_eq!(one::<i32>(&mut reader, "SELECT 1")?, 1);
        assert!(
            start.elapsed() < lengthened_by_load(Duration::from_secs(15)),
            "{:?}",
            start.elapsed()
        );
        fleet.proxy(held).set_new_connections(pg_test::proxy::NewConnections::Served);
        hit.release();
        assert_eq!(one::<i64>(&mut reader, both)?, 0);
        assert_interruptible(&fleet, reader)?;
    }
    Ok(())
}

/// The coordinator's own tables do not show what the server does, whose rows nobody gets to see, not
/// after the error was caught either. Seen red: the second attempt showed them.
#[test]
fn a_server_that_was_refused_is_refused_again() -> Outcome {
    let fleet = Fleet::start()?;
    let mut reader = reader(&fleet)?;
    reader.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ")?;
    assert_eq!(one::<i64>(&mut reader, "SELECT count(*) FROM lt")?, 0);
    assert_commits(&fleet, &mut fleet.session()?, 1)?;
    for _ in 0..2 {
        reader.batch_execute("SAVEPOINT a")?;
        expect_error(reader.query("SELECT count(*) FROM ft1", &[]), "40001");
        reader.batch_execute("ROLLBACK TO a")?;
    }
    assert_eq!(one::<i64>(&mut reader, "SELECT count(*) FROM lt")?, 0);
    reader.batch_execute("COMMIT")?;
    Ok(())
}

/// A cursor that has only been declared is opened before the savepoint, in a transaction that is
/// begun again. Seen red: `the answer to a remote statement has been given up`.
#[test]
fn a_cursor_outlives_the_rounds_of_a_query_beside_it() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let mut reader = reader(&fleet)?;
    assert_commits(&fleet, &mut fleet.session()?, 1)?;
    reader.query("SELECT * FROM ft1 UNION ALL SELECT * FROM ft2", &[])?;
    let mut writer = fleet.session()?;
    begin_everywhere(&mut writer, 2)?;
    let hit = fleet.proxy(2).inject(Fault::hold(Point::Statement, "COMMIT PREPARED"));
    let writer = in_background(writer, "COMMIT");
    hit.wait()?;
    wait_until("shard 1 has it", DEADLINE, || Ok(fleet.ids_on_shard(1)?.contains(&2)))?;
    let reading = in_background(
        reader,
        "BEGIN; DECLARE c CURSOR FOR SELECT id FROM ft1; SAVEPOINT a;
         SELECT * FROM ft1 UNION ALL SELECT * FROM ft2",
    );
    let mut observer = fleet.session()?;
    wait_until_query_waits(&mut observer, "BEGIN; DECLARE")?;
    hit.release();
    writer.join().1?;
    let (mut reader, read) = reading.join();
    read?;
    assert_eq!(reader.query("FETCH ALL FROM c", &[])?.len(), 2);
    reader.batch_execute("COMMIT")?;
    Ok(())
}

/// A function that runs while the scans around it have been asked for rows finds that these are no
/// cut, and catches that. Seen red: `the answer to a remote statement has been given up`.
#[test]
fn an_error_that_a_function_has_caught_is_not_forgotten() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let mut reader = reader(&fleet)?;
    reader.batch_execute(
        "ALTER SERVER shard1 OPTIONS (ADD async_capable 'true');
         ALTER SERVER shard2 OPTIONS (ADD async_capable 'true');
         CREATE FUNCTION catching() RETURNS int LANGUAGE plpgsql VOLATILE AS $$ BEGIN
             PERFORM FROM ft1; RETURN 0; EXCEPTION WHEN OTHERS THEN RETURN 0; END $$;
         SET pg_fdw_xacts.commit_timeout = '1s'",
    )?;
    let mut writer = fleet.session()?;
    begin_everywhere(&mut writer, 1)?;
    let hit = fleet.proxy(2).inject(Fault::hold(Point::Statement, "COMMIT PREPARED"));
    let writer = in_background(writer, "COMMIT");
    hit.wait()?;
    wait_until("shard 1 has it", DEADLINE, || Ok(fleet.ids_on_shard(1)?.contains(&1)))?;
    let query = "SELECT id FROM ft1 UNION ALL SELECT id FROM ft2 UNION ALL SELECT catching()";
    expect_error(reader.query(query, &[]), "40001");
    hit.release();
    writer.join().1?;
    assert_eq!(reader.query(query, &[])?.len(), 3);
    Ok(())
}
