//! Scans that are asked before the executor comes to them, because it is certain to.
//!
//! No test measures time: that two shards are asked at once is seen by holding the answers of both.
//! In builds with assertions, a scan that was asked ahead and not needed fails its query.

use pg_test::install::Installation;
use pg_test::oracle::{assert_settled, assert_usable, expect_error, one};
use pg_test::{Cluster, DEADLINE, Fault, Fleet, Point, wait_until};
use postgres::{Client, SimpleQueryMessage};

use crate::support::{Outcome, in_background};

/// An Append of scans alone would be asynchronous, as the servers are `async_capable`.
const UNION: &str = "SELECT DISTINCT id FROM ft1 UNION ALL SELECT DISTINCT id FROM ft2";

/// Servers that are `async_capable`, rows 1 to 3 on both shards, the views `bad1` and `bad2` there, which fail when they are read,
/// and a table with two partitions on each.
fn filled() -> anyhow::Result<(Fleet, Client)> {
    let fleet = Fleet::start_proxied()?;
    let mut session = fleet.session()?;
    session.batch_execute(
        "INSERT INTO ft1 SELECT i, 'x' FROM generate_series(1, 3) i;
         INSERT INTO ft2 SELECT i, 'x' FROM generate_series(1, 3) i;
         CREATE TABLE pt (id int, v text) PARTITION BY LIST (id);
         SET statement_timeout = '60s'; SET enable_sort = off",
    )?;
    for number in 1..=2 {
        fleet.shard(number).client()?.batch_execute(&format!(
            "CREATE VIEW bad{number} AS SELECT {number} / (id - id) AS id FROM t"
        ))?;
        session.batch_execute(&format!(
            "ALTER SERVER shard{number} OPTIONS (ADD async_capable 'true');
             CREATE FOREIGN TABLE bad{number} (id int) SERVER shard{number}"
        ))?;
        for id in [number, number + 2] {
            session.batch_execute(&format!(
                "CREATE FOREIGN TABLE p{id} PARTITION OF pt FOR VALUES IN ({id})
                     SERVER shard{number} OPTIONS (table_name 't')"
            ))?;
        }
    }
    Ok((fleet, session))
}

fn join(session: &mut Client, kind: &str) -> Outcome {
    for other in ["hashjoin", "mergejoin", "nestloop"] {
        let is_on = if other == kind { "on" } else { "off" };
        session.batch_execute(&format!("SET enable_{other} = {is_on}"))?;
    }
    Ok(())
}

fn count(messages: &[SimpleQueryMessage]) -> usize {
    messages.iter().filter(|message| matches!(message, SimpleQueryMessage::Row(_))).count()
}

/// How many statements with this beginning the shard executes while `run` runs.
fn executed(shard: &Cluster, prefix: &str, run: impl FnOnce() -> Outcome) -> anyhow::Result<usize> {
    let mark = shard.log().mark()?;
    run()?;
    let statements = shard.log().statements_since(mark)?;
    Ok(statements.iter().filter(|statement| statement.starts_with(prefix)).count())
}

/// On 0.2.0 the second shard is asked when the first has answered.
#[test]
fn both_shards_are_asked_before_either_has_answered() -> Outcome {
    let (fleet, mut session) = filled()?;
    let mut run = |kind: &str, query: &str, rows: usize, scans: usize| -> Outcome {
        join(&mut session, kind)?;
        let marks = [fleet.shard(1).log().mark()?, fleet.shard(2).log().mark()?];
        let first = fleet.proxy(1).inject(Fault::hold(Point::Answer, "DECLARE"));
        let second = fleet.proxy(2).inject(Fault::hold(Point::Answer, "DECLARE"));
        std::thread::scope(|scope| {
            let query = scope.spawn(|| session.simple_query(query));
            first.wait()?;
            second.wait()?;
            for (number, mark) in (1..).zip(marks) {
                wait_until("all scans of the shard are asked", DEADLINE, || {
                    let statements = fleet.shard(number).log().statements_since(mark)?;
                    Ok(statements.iter().filter(|s| s.starts_with("FETCH")).count() == scans)
                })?;
            }
            first.release();
            second.release();
            let answer = query.join().expect("it only runs one statement")?;
            assert_eq!(count(&answer), rows);
            Ok(())
        })
    };
    run("hashjoin", UNION, 6, 1)?;
    let distinct = UNION.replace(" ALL", "");
    run("hashjoin", &distinct, 3, 1)?;
    run("hashjoin", &format!("SELECT * FROM ({UNION} ORDER BY id) a LIMIT 2"), 2, 1)?;
    run("hashjoin", &format!("SELECT sum(id) FROM ({UNION}) a"), 1, 1)?;
    if Installation::from_env()?.major() < 18 {
        run("hashjoin", &UNION.replace("UNION ALL", "EXCEPT"), 0, 1)?;
    }
    for kind in ["hashjoin", "mergejoin"] {
        run(kind, "SELECT * FROM ft1 a FULL JOIN ft2 b USING (id)", 3, 1)?;
    }
    // Two partitions on each shard, each of which is the whole table there, are merged.
    run("hashjoin", "SELECT id FROM pt ORDER BY v", 12, 2)?;
    run("hashjoin", "SELECT id FROM pt ORDER BY v LIMIT 1", 1, 2)?;
    // Of the next ones only the first on each connection is, so that their answers do not pile up.
    run("hashjoin", &format!("{UNION} UNION ALL SELECT DISTINCT id FROM ft1"), 9, 1)?;
    for begin in ["BEGIN", "BEGIN ISOLATION LEVEL REPEATABLE READ", "BEGIN; SELECT FROM ft2"] {
        session.batch_execute(&format!("{begin}; SAVEPOINT a; RELEASE a"))?;
        let second = fleet.proxy(2).inject(Fault::hold(Point::Statement, "DECLARE"));
        let first = fleet.proxy(1).inject(Fault::hold(Point::Answer, "DECLARE"));
        let query = in_background(session, UNION);
        second.wait()?;
        first.wait()?;
        second.release();
        first.release();
        let result;
        (session, result) = query.join();
        result?;
        session.batch_execute("INSERT INTO ft2 VALUES (4, 'y'); ROLLBACK")?;
    }
    assert_settled(&fleet);
    Ok(())
}

#[test]
fn what_may_not_be_needed_is_not_asked_ahead() -> Outcome {
    let (fleet, mut session) = filled()?;
    session.batch_execute(
        "CREATE FUNCTION first_of_many() RETURNS int LANGUAGE plpgsql AS $$
         DECLARE r record;
         BEGIN
             FOR r IN SELECT DISTINCT id, n FROM ft1 CROSS JOIN generate_series(1, 100) n
                      UNION ALL SELECT DISTINCT id, 0 FROM ft2 LOOP
                 RETURN r.id;
             END LOOP;
         END $$;
         CREATE FUNCTION several() RETURNS SETOF int LANGUAGE sql AS
             'SELECT DISTINCT id FROM ft1 UNION ALL SELECT DISTINCT id FROM ft2';
         CREATE FUNCTION fails(int) RETURNS int LANGUAGE plpgsql VOLATILE AS
             'BEGIN RAISE division_by_zero; END';
         SET plan_cache_mode = force_generic_plan;
         PREPARE several(int) AS
             SELECT DISTINCT id FROM ft1 UNION ALL SELECT DISTINCT id FROM ft2 LIMIT $1",
    )?;
    for kind in ["hashjoin", "mergejoin", "nestloop"] {
        join(&mut session, kind)?;
        for query in [
            // The left side has no row.
            "SELECT * FROM ft1 a LEFT JOIN ft2 b ON b.id = a.id WHERE a.id < 0",
            // The first has enough rows.
            "SELECT DISTINCT id FROM ft1 UNION ALL SELECT DISTINCT id FROM ft2 LIMIT 3",
            "EXECUTE several(3)",
            "SELECT EXISTS (SELECT DISTINCT id FROM ft1 UNION ALL SELECT DISTINCT id FROM ft2)",
            "SELECT first_of_many()",
            "SELECT several() LIMIT 2",
            "BEGIN; DECLARE c CURSOR FOR SELECT DISTINCT id FROM ft1 UNION ALL SELECT DISTINCT id FROM ft2;
                 FETCH 3 FROM c; COMMIT",
            // Nothing is read.
            "SELECT DISTINCT id FROM ft1 UNION ALL SELECT DISTINCT id FROM ft2 LIMIT 0",
            "SELECT * FROM (SELECT DISTINCT id FROM ft1 UNION ALL SELECT DISTINCT id FROM ft2) a
                 WHERE (SELECT false)",
            "EXPLAIN SELECT DISTINCT id FROM ft1 UNION ALL SELECT DISTINCT id FROM ft2",
        ] {
            let asked = executed(fleet.shard(2), "FETCH", || {
                session.simple_query(query)?;
                Ok(())
            })?;
            assert_eq!(asked, 0, "{kind}: {query}");
        }
    }
    assert_settled(&fleet);
    Ok(())
}

/// The first shard fails: the second has been asked by then, or has not.
#[test]
fn a_shard_is_asked_ahead_where_nothing_notices() -> Outcome {
    let (fleet, mut session) = filled()?;
    session.batch_execute(
        "CREATE FUNCTION fails(int) RETURNS int LANGUAGE plpgsql VOLATILE AS
             'BEGIN RAISE division_by_zero; END';
         CREATE FUNCTION reads(int) RETURNS int LANGUAGE plpgsql STABLE AS
             'BEGIN PERFORM FROM ft2; RETURN $1; END';
         CREATE FUNCTION adds(int, int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS
             'BEGIN RETURN $1 + $2; END';
         CREATE AGGREGATE total(int) (SFUNC = adds, STYPE = int, INITCOND = 0)",
    )?;
    let mut is_asked = |query: &str| -> anyhow::Result<bool> {
        let asked = executed(fleet.shard(2), "FETCH", || {
            expect_error(session.simple_query(query), "22012");
            // The failure has ended a transaction that was begun for that.
            session.batch_execute("ROLLBACK")?;
            Ok(())
        })?;
        Ok(asked > 0)
    };
    let both = "SELECT DISTINCT id FROM bad1 UNION ALL SELECT DISTINCT id FROM ft2";
    assert!(is_asked(both)?);
    assert!(is_asked(&format!("BEGIN; SAVEPOINT a; RELEASE a; {both}"))?);
    assert!(is_asked(&both.replace("id FROM bad1", "adds(id, 1) FROM bad1"))?);
    assert!(is_asked(&both.replace("id FROM bad1", "abs(id) FROM bad1"))?);
    // An earlier failure would be rolled back alone; one of the second shard's session, or its
    // silence, ends the transaction.
    assert!(!is_asked(&format!("BEGIN; SAVEPOINT a; {both}"))?);
    let caught = format!(
        "DO $$ BEGIN PERFORM FROM ({both}) a; EXCEPTION WHEN no_data_found THEN NULL; END $$"
    );
    assert!(!is_asked(&caught)?);
    // What may write, or query that shard, comes before its scan.
    assert!(!is_asked(&both.replace("id FROM bad1", "fails(id) FROM ft1"))?);
    assert!(!is_asked(&both.replace("id FROM bad1", "reads(id) FROM bad1"))?);
    assert!(!is_asked(&both.replace("DISTINCT id FROM bad1", "total(id) FROM bad1"))?);
    let as_xml = "id + length(table_to_xml('ft2', true, true, '')::text)";
    assert!(!is_asked(&both.replace("id FROM bad1", &format!("{as_xml} FROM bad1")))?);
    // In the condition of a join or an index, and in a window's frame, too.
    let also = |query: &str| both.replace("ALL", &format!("ALL {query} UNION ALL"));
    let joined = "bad1 b FULL JOIN lt ON reads(b.id) = lt.id";
    assert!(!is_asked(&both.replace("id FROM bad1", &format!("b.id FROM {joined}")))?);
    assert!(!is_asked(&also("SELECT id FROM lt WHERE id = reads((SELECT 1))"))?);
    assert!(!is_asked(&also("SELECT count(*) OVER (ROWS reads((SELECT 1)) PRECEDING) FROM lt"))?);
    assert!(is_asked(&also("SELECT id FROM lt WHERE id = abs(1)"))?);
    // So does another scan there, which is not certain to be asked: in a subquery, behind a loop.
    assert!(!is_asked(&format!("{both} UNION ALL SELECT (SELECT max(id) FROM ft2)"))?);
    let by_key = "SELECT s.id FROM bad1 b, LATERAL (SELECT id FROM ft2 WHERE id = b.id OFFSET 0) s";
    assert!(!is_asked(&format!("{by_key} UNION ALL SELECT DISTINCT id FROM ft2"))?);
    assert!(!is_asked(&format!("BEGIN; DECLARE c CURSOR FOR SELECT id FROM ft2; {both}"))?);
    // Who does not want it.
    assert!(!is_asked(&format!("BEGIN; SET LOCAL enable_async_append = off; {both}"))?);
    let without = "ALTER FOREIGN TABLE ft2 OPTIONS (ADD async_capable 'false')";
    assert!(!is_asked(&format!("BEGIN; {without}; {both}"))?);
    let without = "ALTER SERVER shard2 OPTIONS (DROP async_capable)";
    assert!(!is_asked(&format!("BEGIN; {without}; {both}"))?);
    assert!(is_asked(both)?);
    assert_settled(&fleet);
    Ok(())
}

/// Whichever shard is the first to fail.
#[test]
fn the_error_is_that_of_the_scan_which_is_read_first() -> Outcome {
    let (fleet, mut session) = filled()?;
    let both = "SELECT DISTINCT id FROM bad1 UNION ALL SELECT DISTINCT id FROM bad2";
    let second = fleet.proxy(2).inject(Fault::hold(Point::Answer, "DECLARE"));
    let first = fleet.proxy(1).inject(Fault::hold(Point::Answer, "DECLARE"));
    let query = in_background(session, both);
    second.wait()?;
    second.release();
    first.wait()?;
    first.release();
    let (again, result) = query.join();
    session = again;
    let context = |query: &str, session: &mut Client| {
        let error = expect_error(session.batch_execute(query), "22012");
        error.where_().unwrap_or_default().to_owned()
    };
    let error = expect_error(result, "22012");
    assert!(error.where_().unwrap_or_default().contains("FROM public.bad1"), "{error:?}");
    let second = "SELECT DISTINCT id FROM ft1 UNION ALL SELECT DISTINCT id FROM bad2";
    assert!(context(second, &mut session).contains("FROM public.bad2"));
    // It is caught while the second scan is under way, and that shard is used again.
    session.batch_execute(&format!(
        "DO $$ BEGIN
             BEGIN PERFORM * FROM (SELECT DISTINCT id FROM bad1 UNION ALL SELECT DISTINCT id FROM ft2) a;
             EXCEPTION WHEN division_by_zero THEN NULL; END;
             BEGIN PERFORM * FROM ({both}) a;
             EXCEPTION WHEN division_by_zero THEN NULL; END;
             INSERT INTO ft2 VALUES (4, 'y');
         END $$"
    ))?;
    assert_eq!(fleet.ids_on_shard(2)?, [1, 2, 3, 4]);
    // Nor is the loss of the second shard's connection noticed before the first has failed.
    session.batch_execute("BEGIN")?;
    assert_eq!(one::<i64>(&mut session, "SELECT count(*) FROM ft2")?, 4);
    fleet.proxy(2).cut_all();
    let lost = "SELECT DISTINCT id FROM bad1 UNION ALL SELECT DISTINCT id FROM ft2";
    assert!(context(lost, &mut session).contains("FROM public.bad1"));
    session.batch_execute("ROLLBACK")?;
    assert_usable(&mut session);
    assert_settled(&fleet);
    Ok(())
}

#[test]
fn a_connection_that_is_lost_is_made_anew_or_reported() -> Outcome {
    let (fleet, mut session) = filled()?;
    for point in [Point::Statement, Point::Answer] {
        // Nothing has been answered yet: another connection does.
        session.batch_execute("SELECT FROM ft2")?;
        let hit = fleet.proxy(2).inject(Fault::cut(point, "START TRANSACTION"));
        assert_eq!(count(&session.simple_query(UNION)?), 6);
        assert!(hit.has_struck());
        session.batch_execute("BEGIN; SELECT FROM ft2")?;
        let hit = fleet.proxy(2).inject(Fault::cut(point, "DECLARE"));
        drop(expect_error(session.simple_query(UNION), "08006"));
        assert!(hit.has_struck());
        session.batch_execute("ROLLBACK")?;
        assert_usable(&mut session);
    }
    assert_settled(&fleet);
    Ok(())
}
