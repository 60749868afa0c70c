//! When a scan's cursor is opened on the shard, and at which savepoint it is fetched: a scan sees
//! what was there when its statement began, and what fails in it is taken back with the savepoint
//! in which it was fetched.

use pg_test::Fleet;
use pg_test::oracle::{assert_settled, expect_error, one};
use postgres::Client;

use crate::support::{Outcome, start};

/// `bad1` and `bad2`, foreign tables of a view whose third row cannot be computed, one row a FETCH.
fn with_bad_rows() -> anyhow::Result<(Fleet, Client)> {
    let (fleet, mut session) = start()?;
    for number in [1, 2] {
        fleet.shard(number).client()?.batch_execute(
            "INSERT INTO t SELECT i FROM generate_series(1, 3) i;
             CREATE VIEW bad AS SELECT id, 1 / (3 - id) AS v FROM t ORDER BY id",
        )?;
        session.batch_execute(&format!(
            "CREATE FOREIGN TABLE bad{number} (id int, v int) SERVER shard{number}
                 OPTIONS (table_name 'bad', fetch_size '1', async_capable 'true')"
        ))?;
    }
    Ok((fleet, session))
}

/// The third row of `c` fails inside of a savepoint, after `before`; what is written around that
/// commits.
fn assert_commits_without(
    (fleet, session): &mut (Fleet, Client),
    declare: &str,
    before: &[&str],
) -> Outcome {
    for id in [10, 20] {
        session.batch_execute(&format!("BEGIN; INSERT INTO ft2 VALUES ({id})"))?;
        session.batch_execute(declare)?;
        for statement in before {
            session.batch_execute(statement)?;
        }
        session.batch_execute("SAVEPOINT a")?;
        expect_error(session.batch_execute("FETCH ALL FROM c"), "22012");
        session.batch_execute("ROLLBACK TO a")?;
        session.batch_execute(&format!("INSERT INTO ft1 VALUES ({id}); COMMIT"))?;
        session.batch_execute("DELETE FROM ft1 WHERE id < 0")?;
    }
    assert_eq!(fleet.ids_on_shard(1)?, [1, 2, 3, 10, 20]);
    assert_eq!(fleet.ids_on_shard(2)?, [1, 2, 3, 10, 20]);
    assert_settled(fleet);
    session.batch_execute("DELETE FROM ft1 WHERE id > 3; DELETE FROM ft2 WHERE id > 3")?;
    Ok(())
}

/// Red on 0.2.0: COMMIT failed, because the shard's transaction had nothing to go back to.
#[test]
fn an_error_in_a_cursor_from_before_the_savepoint_is_taken_back_with_it() -> Outcome {
    const DECLARE: &str = "DECLARE c CURSOR FOR SELECT * FROM bad1 WHERE id > 0";
    let mut fleet = with_bad_rows()?;
    assert_commits_without(&mut fleet, DECLARE, &[])?;
    assert_commits_without(&mut fleet, DECLARE, &["FETCH 2 FROM c"])?;
    assert_commits_without(
        &mut fleet,
        DECLARE,
        &["SAVEPOINT z; FETCH 1 FROM c; INSERT INTO ft1 VALUES (-1)"],
    )?;
    assert_commits_without(&mut fleet, DECLARE, &["SAVEPOINT z; FETCH 1 FROM c; RELEASE z"])
}

/// Red on 0.2.0. Asked by an Append for many at once.
#[test]
fn an_error_in_an_asynchronous_cursor_is_taken_back_too() -> Outcome {
    const DECLARE: &str = "DECLARE c CURSOR FOR SELECT id FROM ft2 UNION ALL SELECT v FROM bad1 UNION ALL SELECT v FROM bad2";
    let mut fleet = with_bad_rows()?;
    assert_commits_without(&mut fleet, DECLARE, &[])?;
    assert_commits_without(&mut fleet, DECLARE, &["FETCH 1 FROM c"])
}

/// Red on 0.2.0. The savepoint is that of a PL/pgSQL block with an exception handler.
#[test]
fn an_error_of_a_refcursor_that_a_block_catches_is_taken_back() -> Outcome {
    let (fleet, mut session) = with_bad_rows()?;
    for (id, options) in [(10, ""), (20, "FOR i IN 1..2 LOOP FETCH c INTO r; END LOOP;")] {
        session.batch_execute(&format!(
            "BEGIN;
             INSERT INTO ft2 VALUES ({id});
             DO $$
             DECLARE c refcursor; r record;
             BEGIN
                 OPEN c FOR SELECT * FROM bad1 WHERE id > {id} - {id};
                 {options}
                 BEGIN
                     LOOP FETCH c INTO r; EXIT WHEN NOT FOUND; END LOOP;
                     RAISE 'no error';
                 EXCEPTION WHEN division_by_zero THEN
                     INSERT INTO ft1 VALUES ({id});
                 END;
             END $$;
             COMMIT"
        ))?;
    }
    assert_eq!(fleet.ids_on_shard(1)?, [1, 2, 3, 10, 20]);
    assert_eq!(fleet.ids_on_shard(2)?, [1, 2, 3, 10, 20]);
    assert_settled(&fleet);
    Ok(())
}

/// A partitioned table with 250 rows on shard 1, more than a whole batch, and 50 on shard 2.
fn with_partitions() -> anyhow::Result<(Fleet, Client)> {
    let (fleet, mut session) = start()?;
    for number in [1, 2] {
        fleet.shard(number).client()?.batch_execute("CREATE TABLE p (id int, v int)")?;
    }
    session.batch_execute(
        "CREATE TABLE pt (id int, v int) PARTITION BY LIST (v);
         CREATE FOREIGN TABLE p1 PARTITION OF pt FOR VALUES IN (1) SERVER shard1
             OPTIONS (table_name 'p');
         CREATE FOREIGN TABLE p2 PARTITION OF pt FOR VALUES IN (2) SERVER shard2
             OPTIONS (table_name 'p');
         INSERT INTO pt SELECT i, 1 + least(i / 251, 1) FROM generate_series(1, 300) i",
    )?;
    Ok((fleet, session))
}

/// Red on 0.2.0, where the second partition was read with the rows that had just been written:
/// 500 rows.
#[test]
fn a_statement_does_not_read_what_it_has_written_itself() -> Outcome {
    for options in ["", "async_capable 'true'", "batch_size '1'"] {
        let (_fleet, mut session) = with_partitions()?;
        if !options.is_empty() {
            session.batch_execute(&format!(
                "ALTER SERVER shard1 OPTIONS ({options}); ALTER SERVER shard2 OPTIONS ({options})"
            ))?;
        }
        let rows = session.execute("INSERT INTO pt SELECT id + 1000, 3 - v FROM pt", &[])?;
        assert_eq!(rows, 300, "{options}");
        assert_eq!(one::<i64>(&mut session, "SELECT count(*) FROM pt")?, 600, "{options}");
        // A subquery that is asked for only behind the modification.
        let rows = session.query(
            "WITH gone AS (DELETE FROM p2 RETURNING id)
             SELECT (SELECT count(*) FROM gone), (SELECT count(*) FROM p2)",
            &[],
        )?;
        assert_eq!((rows[0].get::<_, i64>(0), rows[0].get::<_, i64>(1)), (300, 300), "{options}");
    }
    Ok(())
}

/// Red on 0.2.0, where a cursor showed what was written between its DECLARE and its first
/// FETCH.
#[test]
fn a_cursor_shows_what_was_there_when_it_was_declared() -> Outcome {
    let (fleet, mut session) = start()?;
    session.batch_execute("INSERT INTO ft1 VALUES (1, 'old'), (2, 'old')")?;
    let mut other = fleet.session()?;
    let of_shard = |sql: &str| format!("SELECT pg_fdw_xacts_exec('shard1', '{sql}')");
    for change in [
        "UPDATE ft1 SET v = 'new'",
        "UPDATE ft1 SET v = 'new' WHERE random() >= 0",
        "DELETE FROM ft1",
        "SAVEPOINT a; UPDATE ft1 SET v = 'new'; RELEASE a",
        "SAVEPOINT a; UPDATE ft1 SET v = 'new'; ROLLBACK TO a",
        "SAVEPOINT a; SELECT 1 FROM ft1; DELETE FROM ft1; ROLLBACK TO a; SAVEPOINT b",
        &of_shard("UPDATE t SET v = ''new''"),
        "SELECT * FROM pg_fdw_xacts_query('shard1', 'UPDATE t SET v = ''new'' RETURNING id') AS r (id int)",
    ] {
        for declare in [
            "DECLARE c CURSOR FOR SELECT v FROM ft1",
            "DECLARE c CURSOR FOR SELECT v FROM ft1 WHERE id < 9",
        ] {
            session.batch_execute("BEGIN")?;
            session.batch_execute(declare)?;
            session.batch_execute(change)?;
            let rows = session.query("FETCH ALL FROM c", &[])?;
            let seen: Vec<&str> = rows.iter().map(|row| row.get(0)).collect();
            assert_eq!(seen, ["old", "old"], "{change}");
            session.batch_execute("ROLLBACK")?;
        }
    }
    // The values of a statement's own parameters are known, too.
    session.batch_execute("SET plan_cache_mode = force_generic_plan")?;
    session.batch_execute(
        "DO $$
         DECLARE c refcursor; most int := 9; seen text;
         BEGIN
             OPEN c FOR SELECT v FROM ft1 WHERE id < most;
             UPDATE ft1 SET v = 'new';
             FETCH c INTO seen;
             ASSERT seen = 'old', seen;
             UPDATE ft1 SET v = 'old';
         END $$",
    )?;
    // Another session's, too.
    session.batch_execute("BEGIN; DECLARE c CURSOR FOR SELECT v FROM ft1 ORDER BY id")?;
    other.batch_execute("UPDATE ft1 SET v = 'new' WHERE id = 1")?;
    let rows = session.query("FETCH ALL FROM c", &[])?;
    assert_eq!(rows[0].get::<_, &str>(0), "old");
    session.batch_execute("COMMIT")?;
    assert_settled(&fleet);
    Ok(())
}

/// What is never asked for is not opened, unless something is written there.
#[test]
fn a_scan_that_is_not_executed_is_not_opened() -> Outcome {
    let (fleet, mut session) = start()?;
    session.batch_execute("INSERT INTO ft1 VALUES (1, 'x'); SELECT * FROM ft2")?;
    let mark = fleet.shard(2).log().mark()?;
    session
        .batch_execute("SELECT CASE WHEN id < 0 THEN (SELECT count(*) FROM ft2) END FROM ft1")?;
    let statements = fleet.shard(2).log().statements_since(mark)?;
    assert!(!statements.iter().any(|s| s.starts_with("DECLARE")), "{statements:#?}");
    Ok(())
}
