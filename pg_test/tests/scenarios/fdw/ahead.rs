//! Scans that are asked before the executor comes to them, and that nobody notices where it does
//! not.
//!
//! No test measures time: that two shards are asked at once is seen by holding the answers of both.

use pg_test::oracle::{assert_settled, assert_usable, expect_error, one};
use pg_test::{Cluster, Fault, Fleet, Point};
use postgres::{Client, SimpleQueryMessage};

use crate::support::{Outcome, in_background};

const JOINS: [&str; 3] = ["hashjoin", "mergejoin", "nestloop"];

/// Rows 1 to 3 on both shards, and the view `bad` on shard 2, which fails when it is read.
fn filled() -> anyhow::Result<(Fleet, Client)> {
    let fleet = Fleet::start_proxied()?;
    let mut session = fleet.session()?;
    session.batch_execute(
        "INSERT INTO ft1 SELECT i, 'x' FROM generate_series(1, 3) i;
         INSERT INTO ft2 SELECT i, 'x' FROM generate_series(1, 3) i;
         CREATE FOREIGN TABLE bad (id int) SERVER shard2 OPTIONS (table_name 'bad');
         SET statement_timeout = '60s'",
    )?;
    fleet
        .shard(2)
        .client()?
        .batch_execute("CREATE VIEW bad AS SELECT 1 / (id - id) AS id FROM t")?;
    Ok((fleet, session))
}

/// Only joins of this kind are planned.
fn only(session: &mut Client, join: &str) -> Outcome {
    for other in JOINS {
        let is_on = if other == join { "on" } else { "off" };
        session.batch_execute(&format!("SET enable_{other} = {is_on}"))?;
    }
    Ok(())
}

fn count(messages: &[SimpleQueryMessage]) -> usize {
    messages.iter().filter(|message| matches!(message, SimpleQueryMessage::Row(_))).count()
}

/// The FETCH commands that a shard executes while `run` runs.
fn fetches(shard: &Cluster, run: impl FnOnce() -> Outcome) -> anyhow::Result<usize> {
    let mark = shard.log().mark()?;
    run()?;
    let statements = shard.log().statements_since(mark)?;
    Ok(statements.iter().filter(|statement| statement.starts_with("FETCH")).count())
}

/// On 0.2.0 the second shard is asked when the first has answered.
#[test]
fn both_shards_are_asked_before_either_has_answered() -> Outcome {
    let (fleet, mut session) = filled()?;
    let join = "SELECT * FROM ft1 a JOIN ft2 b USING (id)";
    let union = "SELECT id FROM ft1 UNION ALL SELECT id FROM ft2";
    let mut run = |join: &str, query: &str, rows: usize| -> Outcome {
        only(&mut session, join)?;
        let first = fleet.proxy(1).inject(Fault::hold(Point::Answer, "DECLARE"));
        let second = fleet.proxy(2).inject(Fault::hold(Point::Answer, "DECLARE"));
        std::thread::scope(|scope| {
            let query = scope.spawn(|| session.simple_query(query));
            first.wait()?;
            second.wait()?;
            first.release();
            second.release();
            let answer = query.join().expect("it only runs one statement")?;
            assert_eq!(count(&answer), rows);
            Ok(())
        })
    };
    for kind in JOINS {
        run(kind, join, 3)?;
    }
    run("hashjoin", "SELECT * FROM ft1 a LEFT JOIN ft2 b USING (id)", 3)?;
    run("hashjoin", "SELECT * FROM ft1 a FULL JOIN ft2 b USING (id)", 3)?;
    run(
        "hashjoin",
        "SELECT * FROM ft1 a WHERE NOT EXISTS (SELECT FROM ft2 b WHERE b.id = a.id)",
        0,
    )?;
    run("hashjoin", &format!("{join} ORDER BY a.v LIMIT 2"), 2)?;
    run("hashjoin", union, 6)?;
    run("hashjoin", "SELECT id FROM ft1 UNION SELECT id FROM ft2", 3)?;
    run("hashjoin", "SELECT id FROM ft1 INTERSECT SELECT id FROM ft2", 3)?;
    run("hashjoin", "SELECT * FROM (SELECT count(*) FROM ft1) a, (SELECT count(*) FROM ft2) b", 1)?;
    for (begin, query) in [
        ("BEGIN", join),
        ("BEGIN; SELECT FROM ft2", join),
        ("BEGIN ISOLATION LEVEL REPEATABLE READ", join),
        ("BEGIN; SET LOCAL pg_fdw_xacts.consistent_reads = on", union),
    ] {
        session.batch_execute(begin)?;
        session.batch_execute("SAVEPOINT a")?;
        let second = fleet.proxy(2).inject(Fault::hold(Point::Statement, "DECLARE"));
        let first = fleet.proxy(1).inject(Fault::hold(Point::Answer, "DECLARE"));
        let query = in_background(session, query);
        second.wait()?;
        first.wait()?;
        second.release();
        first.release();
        let result;
        (session, result) = query.join();
        result?;
        session.batch_execute("ROLLBACK TO a; COMMIT")?;
    }
    assert_settled(&fleet);
    Ok(())
}

#[test]
fn what_may_not_be_needed_is_not_asked_for() -> Outcome {
    let (fleet, mut session) = filled()?;
    only(&mut session, "hashjoin")?;
    session.batch_execute("TRUNCATE lt")?;
    for query in [
        // The first has enough rows.
        "SELECT id FROM ft1 UNION ALL SELECT id FROM ft2 LIMIT 3",
        "SELECT EXISTS (SELECT FROM ft1 UNION ALL SELECT FROM ft2)",
        "SELECT * FROM ft1 a JOIN ft2 b USING (id) LIMIT 0",
        "SELECT * FROM ft1 a JOIN ft2 b USING (id) WHERE (SELECT false)",
        // No server is waited for before that.
        "SELECT * FROM lt LEFT JOIN ft2 USING (id) LEFT JOIN ft1 USING (id)",
        "EXPLAIN SELECT * FROM ft1 a JOIN ft2 b USING (id)",
        "SELECT CASE WHEN true THEN (SELECT count(*) FROM ft1) ELSE (SELECT count(*) FROM ft2) END",
        "BEGIN; DECLARE c CURSOR FOR SELECT id FROM ft1 UNION ALL SELECT id FROM ft2; FETCH 3 FROM c; COMMIT",
        "BEGIN; DECLARE c CURSOR FOR SELECT * FROM ft1 a JOIN ft2 b USING (id); COMMIT",
    ] {
        let asked = fetches(fleet.shard(2), || {
            session.simple_query(query)?;
            Ok(())
        })?;
        assert_eq!(asked, 0, "{query}");
    }
    Ok(())
}

/// A join whose first side has no row does not execute the second. That this one would fail is
/// nobody's error, whatever the transaction is and whatever it does then.
#[test]
fn what_fails_and_is_not_needed_has_not_failed() -> Outcome {
    let (fleet, mut session) = filled()?;
    let query = "SELECT * FROM ft1 a LEFT JOIN bad b ON b.id = a.id WHERE a.id < 0";
    let needed = "SELECT * FROM ft1 a LEFT JOIN bad b ON b.id = a.id";
    let mut id = 10;
    // Both execute the left side first, or hash it.
    for join in ["hashjoin", "nestloop"] {
        only(&mut session, join)?;
        let asked = fetches(fleet.shard(2), || {
            assert_eq!(count(&session.simple_query(query)?), 0);
            Ok(())
        })?;
        assert_eq!(asked, 1);
        drop(expect_error(session.simple_query(needed), "22012"));
        for begin in ["BEGIN", "BEGIN; SAVEPOINT a", "BEGIN ISOLATION LEVEL REPEATABLE READ"] {
            id += 1;
            session.batch_execute(begin)?;
            assert_eq!(count(&session.simple_query(query)?), 0);
            session.batch_execute(&format!("INSERT INTO ft2 VALUES ({id}, 'y')"))?;
            assert_eq!(count(&session.simple_query(query)?), 0);
            session.batch_execute(&format!("INSERT INTO ft1 VALUES ({id}, 'y')"))?;
            session.batch_execute("COMMIT")?;
        }
    }
    assert_eq!(fleet.ids_on_shard(2)?.len(), 3 + 2 * 3);
    assert_settled(&fleet);
    Ok(())
}

/// Nobody waits for it either.
#[test]
fn what_takes_long_and_is_not_needed_is_cancelled() -> Outcome {
    let (fleet, mut session) = filled()?;
    only(&mut session, "hashjoin")?;
    session.batch_execute(
        "CREATE FOREIGN TABLE slow (id int) SERVER shard2 OPTIONS (table_name 'slow')",
    )?;
    fleet
        .shard(2)
        .client()?
        .batch_execute("CREATE VIEW slow AS SELECT id FROM t WHERE pg_sleep(600) IS NOT NULL")?;
    session.batch_execute("BEGIN")?;
    let query = "SELECT * FROM ft1 a LEFT JOIN slow b ON b.id = a.id WHERE a.id < 0";
    assert_eq!(count(&session.simple_query(query)?), 0);
    session.batch_execute("INSERT INTO ft2 VALUES (4, 'y'); COMMIT")?;
    assert_eq!(count(&session.simple_query(query)?), 0);
    assert_eq!(fleet.ids_on_shard(2)?, [1, 2, 3, 4]);
    Ok(())
}

#[test]
fn a_connection_that_is_lost_is_made_anew_or_not_missed() -> Outcome {
    let (fleet, mut session) = filled()?;
    only(&mut session, "hashjoin")?;
    let query = "SELECT * FROM ft1 a LEFT JOIN ft2 b ON b.id = a.id WHERE a.id <";
    for point in [Point::Statement, Point::Answer] {
        // A connection that ends as soon as it is made is not made again.
        session.batch_execute("SELECT FROM ft2")?;
        let hit = fleet.proxy(2).inject(Fault::cut(point, "START TRANSACTION"));
        assert_eq!(count(&session.simple_query(&format!("{query} 3"))?), 2);
        assert!(hit.has_struck());
        for command in ["START TRANSACTION", "DECLARE", "FETCH"] {
            session.batch_execute("SELECT FROM ft2")?;
            let hit = fleet.proxy(2).inject(Fault::cut(point, command));
            session.batch_execute("BEGIN")?;
            assert_eq!(count(&session.simple_query(&format!("{query} 0"))?), 0);
            hit.wait()?;
            session.batch_execute("INSERT INTO ft2 VALUES (4, 'y'); COMMIT")?;
            session.batch_execute("DELETE FROM ft2 WHERE id = 4")?;
            // By itself, so that its COMMIT comes directly behind it.
            let hit = fleet.proxy(2).inject(Fault::cut(Point::Statement, "DECLARE"));
            assert_eq!(count(&session.simple_query(&format!("{query} 0"))?), 0);
            hit.wait()?;
        }
        assert_usable(&mut session);
    }
    assert_settled(&fleet);
    Ok(())
}

/// A function that runs before the second side is read writes on its shard.
#[test]
fn what_is_written_meanwhile_is_not_shown_and_not_lost() -> Outcome {
    let (fleet, mut session) = filled()?;
    only(&mut session, "hashjoin")?;
    session.batch_execute(
        "CREATE FUNCTION note(id int, is_needed bool) RETURNS bool LANGUAGE plpgsql AS
             'BEGIN INSERT INTO ft2 VALUES (id + 100, ''n''); RETURN is_needed; END'",
    )?;
    let shown = "SELECT count(b.id) FROM ft1 a LEFT JOIN ft2 b ON b.id = a.id + 100
                 WHERE note(a.id, true)";
    assert_eq!(one::<i64>(&mut session, shown)?, 0);
    assert_eq!(one::<i64>(&mut session, "SELECT count(*) FROM ft2 WHERE id > 100")?, 3);
    session.batch_execute("DELETE FROM ft2 WHERE id > 100")?;
    // The failure is taken back before the function writes.
    let fails = "SELECT FROM ft1 a LEFT JOIN bad b ON b.id = a.id WHERE note(a.id, ";
    drop(expect_error(session.simple_query(&format!("{fails} true)")), "22012"));
    assert_eq!(one::<i64>(&mut session, "SELECT count(*) FROM ft2 WHERE id > 100")?, 0);
    session.batch_execute(&format!("{fails} false)"))?;
    assert_eq!(one::<i64>(&mut session, "SELECT count(*) FROM ft2 WHERE id > 100")?, 3);
    assert_settled(&fleet);
    Ok(())
}

#[test]
fn a_cursor_goes_on_behind_a_savepoint_that_is_rolled_back() -> Outcome {
    let (_fleet, mut session) = filled()?;
    for join in JOINS {
        only(&mut session, join)?;
        for query in [
            "SELECT a.id FROM ft1 a JOIN ft2 b USING (id)",
            "SELECT id FROM ft1 UNION ALL SELECT id FROM ft1 UNION ALL SELECT id FROM ft2",
            "SELECT a.id FROM ft1 a JOIN ft1 b ON b.id = a.id AND random() >= 0 JOIN ft2 c ON c.id = a.id",
        ] {
            session.batch_execute(&format!("BEGIN; DECLARE c CURSOR FOR {query}; SAVEPOINT a"))?;
            let first = count(&session.simple_query("FETCH 1 FROM c")?);
            session.batch_execute("ROLLBACK TO a")?;
            let rest = count(&session.simple_query("FETCH ALL FROM c")?);
            assert_eq!((first, rest), (1, if query.contains("UNION") { 8 } else { 2 }), "{query}");
            session.batch_execute("COMMIT")?;
        }
    }
    Ok(())
}
