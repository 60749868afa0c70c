//! What is read together: a query under READ COMMITTED, the transaction otherwise.

use pg_test::oracle::{expect_error, one};
use pg_test::{DEADLINE, Fault, Fleet, Point, wait_until};
use postgres::Client;

use super::held::wait_until_query_waits;
use crate::support::{Outcome, assert_commits, begin_everywhere, in_background};

fn start(mode: &str) -> anyhow::Result<(Fleet, Client)> {
    let fleet = Fleet::start()?;
    let mut reader = fleet.session()?;
    reader.batch_execute(&format!("SET pg_fdw_xacts.consistent_reads = {mode}"))?;
    Ok((fleet, reader))
}

fn sum(session: &mut Client) -> anyhow::Result<i64> {
    one(session, "SELECT (SELECT count(*) FROM ft1) + (SELECT count(*) FROM ft2)")
}

#[test]
fn each_query_under_read_committed_takes_a_new_one() -> Outcome {
    let (fleet, mut reader) = start("on")?;
    reader.batch_execute("BEGIN")?;
    assert_eq!(one::<i64>(&mut reader, "SELECT count(*) FROM ft1")?, 0);
    assert_commits(&fleet, &mut fleet.session()?, 1)?;
    assert_eq!(sum(&mut reader)?, 2, "begun again with the other server");
    reader.batch_execute("COMMIT")?;
    Ok(())
}

/// Where the server's transaction is REPEATABLE READ.
#[test]
fn what_a_transaction_has_written_on_stays_as_it_was_read() -> Outcome {
    let (fleet, mut reader) = start("on")?;
    reader.batch_execute("SET pg_fdw_xacts.remote_isolation = 'repeatable read'")?;
    reader.batch_execute("BEGIN; INSERT INTO ft1 VALUES (100, 'own')")?;
    assert_eq!(sum(&mut reader)?, 1);
    assert_commits(&fleet, &mut fleet.session()?, 1)?;
    assert_eq!(sum(&mut reader)?, 1, "the same cut");
    reader.batch_execute("COMMIT")?;
    assert_eq!(sum(&mut reader)?, 3);
    reader.batch_execute("BEGIN; INSERT INTO ft1 VALUES (101, 'own')")?;
    assert_commits(&fleet, &mut fleet.session()?, 2)?;
    let refused = expect_error(
        sum(&mut reader).unwrap_err().downcast::<postgres::Error>().map(Err::<(), _>)?,
        "40001",
    );
    assert!(refused.hint().unwrap_or_default().contains("pg_fdw_xacts_snapshot"), "{refused:#?}");
    reader.batch_execute("ROLLBACK")?;
    assert_eq!(sum(&mut reader)?, 5);
    Ok(())
}

#[test]
fn a_transaction_under_repeatable_read_keeps_its_own() -> Outcome {
    for mode in ["on", "auto"] {
        let (fleet, mut reader) = start(mode)?;
        reader.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ")?;
        assert_eq!(sum(&mut reader)?, 0);
        assert_commits(&fleet, &mut fleet.session()?, 1)?;
        assert_eq!(sum(&mut reader)?, 0);
        reader.batch_execute("COMMIT")?;
        assert_eq!(sum(&mut reader)?, 2);
    }
    Ok(())
}

/// A server that joins after the other has been left behind has nothing in common with it.
#[test]
fn a_server_that_joins_too_late_is_an_error() -> Outcome {
    let (fleet, mut reader) = start("on")?;
    reader.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ")?;
    assert_eq!(one::<i64>(&mut reader, "SELECT count(*) FROM ft1")?, 0);
    assert_commits(&fleet, &mut fleet.session()?, 1)?;
    expect_error(reader.query("SELECT count(*) FROM ft2", &[]), "40001");
    reader.batch_execute("ROLLBACK")?;
    // Without anything in between it joins.
    reader.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ")?;
    assert_eq!(one::<i64>(&mut reader, "SELECT count(*) FROM ft1")?, 1);
    assert_eq!(one::<i64>(&mut reader, "SELECT count(*) FROM ft2")?, 1);
    reader.batch_execute("COMMIT")?;
    Ok(())
}

#[test]
fn a_cursor_is_read_as_of_its_first_fetch_on_all_servers() -> Outcome {
    let (fleet, mut reader) = start("on")?;
    assert_commits(&fleet, &mut fleet.session()?, 1)?;
    reader.batch_execute(
        "BEGIN; DECLARE c CURSOR FOR SELECT * FROM ft1 UNION ALL SELECT * FROM ft2",
    )?;
    assert_eq!(reader.query("FETCH 1 FROM c", &[])?.len(), 1);
    assert_commits(&fleet, &mut fleet.session()?, 2)?;
    assert_eq!(reader.query("FETCH ALL FROM c", &[])?.len(), 1);
    // The open cursor keeps both snapshots; a query beside it has the same.
    assert_eq!(sum(&mut reader)?, 2);
    reader.batch_execute("COMMIT")?;
    assert_eq!(sum(&mut reader)?, 4);
    Ok(())
}

#[test]
fn a_function_of_a_row_does_not_move_the_query_around_it() -> Outcome {
    let (fleet, mut reader) = start("on")?;
    for id in 1..=3 {
        assert_commits(&fleet, &mut fleet.session()?, id)?;
    }
    reader.batch_execute(
        "CREATE FUNCTION inner_sum() RETURNS bigint LANGUAGE sql VOLATILE AS
             'SELECT (SELECT count(*) FROM ft1) + (SELECT count(*) FROM ft2)'",
    )?;
    let row = reader.query_one(
        "SELECT sum(n), (SELECT count(*) FROM ft2) FROM (SELECT inner_sum() AS n FROM ft1) s",
        &[],
    )?;
    assert_eq!(row.get::<_, i64>(1), 3);
    // One that runs after the first scan has asked and before the second has.
    for begin in ["BEGIN", "BEGIN ISOLATION LEVEL REPEATABLE READ"] {
        reader.batch_execute(begin)?;
        let query = "SELECT count(*) FROM (SELECT id FROM ft1 UNION ALL
             SELECT id FROM ft2 WHERE id <> (SELECT inner_sum()::int + 100)) u";
        assert_eq!(one::<i64>(&mut reader, query)?, 6, "{begin}");
        assert_eq!(sum(&mut reader)?, 6, "{begin}");
        reader.batch_execute("COMMIT")?;
    }
    Ok(())
}

#[test]
fn a_snapshot_at_the_beginning_holds_for_servers_that_are_read_later() -> Outcome {
    for (mode, begin) in
        [("on", "BEGIN"), ("off", "BEGIN"), ("off", "BEGIN ISOLATION LEVEL REPEATABLE READ")]
    {
        let (fleet, mut reader) = start(mode)?;
        reader.batch_execute(&format!("{begin}; SELECT pg_fdw_xacts_snapshot()"))?;
        assert_commits(&fleet, &mut fleet.session()?, 1)?;
        assert_eq!(one::<i64>(&mut reader, "SELECT count(*) FROM ft1")?, 0, "{mode} {begin}");
        assert_eq!(one::<i64>(&mut reader, "SELECT count(*) FROM ft2")?, 0, "{mode} {begin}");
        assert_eq!(sum(&mut reader)?, 0);
        reader.batch_execute("COMMIT")?;
        assert_eq!(sum(&mut reader)?, 2);
        reader.batch_execute("BEGIN; SELECT pg_fdw_xacts_snapshot('shard2', 'shard1')")?;
        assert_eq!(sum(&mut reader)?, 2);
        reader.batch_execute("COMMIT")?;
    }
    Ok(())
}

#[test]
fn a_snapshot_that_comes_too_late_or_of_nothing_is_told() -> Outcome {
    let (fleet, mut session) = start("off")?;
    session.batch_execute("BEGIN; SELECT count(*) FROM ft1")?;
    expect_error(session.batch_execute("SELECT pg_fdw_xacts_snapshot()"), "25001");
    session.batch_execute("ROLLBACK")?;
    expect_error(session.batch_execute("SELECT pg_fdw_xacts_snapshot('shard3')"), "42704");
    session
        .batch_execute("CREATE ROLE nobody_in_particular; SET ROLE nobody_in_particular; BEGIN")?;
    session.batch_execute("SELECT pg_fdw_xacts_snapshot()")?;
    expect_error(session.batch_execute("SELECT pg_fdw_xacts_snapshot('shard1')"), "42501");
    session.batch_execute("ROLLBACK; RESET ROLE")?;
    assert_commits(&fleet, &mut session, 1)
}

/// One server is read at once, unless it lacks what another session was told of.
#[test]
fn one_server_waits_for_what_was_acknowledged() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let mut writer = fleet.session()?;
    writer.batch_execute("SET pg_fdw_xacts.commit_wait = off")?;
    begin_everywhere(&mut writer, 1)?;
    let hit = fleet.proxy(2).inject(Fault::hold(Point::Statement, "COMMIT PREPARED"));
    writer.batch_execute("COMMIT")?;
    hit.wait()?;
    let mut plain = fleet.session()?;
    assert_eq!(one::<i64>(&mut plain, "SELECT count(*) FROM ft2")?, 0);
    let mut reader = fleet.session()?;
    reader.batch_execute("SET pg_fdw_xacts.consistent_reads = on")?;
    let reader = in_background(reader, "DO $$ BEGIN ASSERT (SELECT count(*) FROM ft2) = 1; END $$");
    wait_until_query_waits(&mut plain, "DO")?;
    hit.release();
    reader.join().1?;
    Ok(())
}

/// A query of one server reads it for a second time while nothing is open there. Seen red: it had
/// the row that was committed in between.
#[test]
fn a_function_does_not_move_the_query_of_one_server_around_it() -> Outcome {
    let (fleet, mut reader) = start("on")?;
    for id in 1..=3 {
        assert_commits(&fleet, &mut fleet.session()?, id)?;
    }
    reader.batch_execute(
        "ALTER FOREIGN TABLE ft1 OPTIONS (ADD fetch_size '1');
         CREATE SEQUENCE call;
         CREATE FUNCTION second_reads() RETURNS int LANGUAGE plpgsql VOLATILE AS $$ BEGIN
             IF nextval('call') = 2 THEN
                 PERFORM pg_advisory_lock(1);
                 PERFORM (SELECT count(*) FROM ft1) + (SELECT count(*) FROM ft2);
             END IF;
             RETURN 0; END $$;
         SET enable_material = off",
    )?;
    let mut locker = fleet.session()?;
    locker.batch_execute("SELECT pg_advisory_lock(1)")?;
    let query = "SELECT count(*) FROM generate_series(1, 2) g LEFT JOIN
             (SELECT second_reads() AS id UNION ALL SELECT id FROM ft1) u ON g + 100 <> u.id";
    let reading =
        in_background(reader, &format!("DO $$ BEGIN ASSERT ({query}) = 2 * (1 + 3); END $$"));
    let waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND objsubid = 1";
    let mut observer = fleet.session()?;
    wait_until("it waits", DEADLINE, || Ok(one::<i64>(&mut observer, waits)? == 1))?;
    assert_commits(&fleet, &mut fleet.session()?, 4)?;
    locker.batch_execute("SELECT pg_advisory_unlock(1)")?;
    let (_, read) = reading.join();
    // It stays where it is, so the function comes too late to read both as of the same time.
    expect_error(read, "40001");
    Ok(())
}
