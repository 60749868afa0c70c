//! Asynchronous Append: partitions on several servers, and several on one, are asked at the same
//! time.
//!
//! No test measures time: that two shards are asked at once is seen by holding the answers of both.

use pg_test::oracle::{assert_settled, one};
use pg_test::{DEADLINE, Fault, Fleet, Point, wait_until};
use postgres::{Client, SimpleQueryMessage};

use crate::support::{NONE, Outcome, in_background};

/// Rows of each partition.
pub const ROWS: i32 = 1000;

/// Table `pt(id, v)` with four partitions, in turn on shard 1 and shard 2: `p1` has the ids from 1
/// to 1000, `p2` those up to 2000, and so on.
fn parted(fleet: &Fleet) -> anyhow::Result<Client> {
    let mut session = fleet.session()?;
    session.batch_execute(
        "CREATE TABLE pt (id int, v text) PARTITION BY RANGE (id);
         ALTER SERVER shard1 OPTIONS (ADD async_capable 'true', ADD fetch_size '50');
         ALTER SERVER shard2 OPTIONS (ADD async_capable 'true', ADD fetch_size '50')",
    )?;
    for number in 1..=4 {
        let shard = 2 - number % 2;
        let (first, end) = ((number - 1) * ROWS + 1, number * ROWS + 1);
        fleet.shard(shard as usize).client()?.batch_execute(&format!(
            "CREATE TABLE r{number} (id int PRIMARY KEY, v text);
             INSERT INTO r{number} SELECT i, 'row ' || i FROM generate_series({first}, {end} - 1) i;
             ANALYZE r{number}"
        ))?;
        session.batch_execute(&format!(
            "CREATE FOREIGN TABLE p{number} PARTITION OF pt FOR VALUES FROM ({first}) TO ({end})
                 SERVER shard{shard} OPTIONS (table_name 'r{number}')"
        ))?;
    }
    // What hangs fails.
    session.batch_execute("SET statement_timeout = '60s'; SET enable_partitionwise_join = off")?;
    Ok(session)
}

pub fn started() -> anyhow::Result<(Fleet, Client)> {
    let fleet = Fleet::start()?;
    let session = parted(&fleet)?;
    Ok((fleet, session))
}

pub fn proxied() -> anyhow::Result<(Fleet, Client)> {
    let fleet = Fleet::start_proxied()?;
    let session = parted(&fleet)?;
    Ok((fleet, session))
}

fn explain(session: &mut Client, options: &str, query: &str) -> anyhow::Result<String> {
    let mut text = String::new();
    for message in session.simple_query(&format!("EXPLAIN ({options}) {query}"))? {
        if let SimpleQueryMessage::Row(row) = message {
            text.push_str(row.get(0).unwrap_or_default());
            text.push('\n');
        }
    }
    Ok(text)
}

/// How many asynchronous scans the plan has; a test first makes sure that it is about them.
fn async_scans(session: &mut Client, query: &str) -> anyhow::Result<usize> {
    Ok(explain(session, "COSTS OFF", query)?.matches("Async Foreign Scan").count())
}

/// The ids that a query returns, sorted.
pub fn sorted(session: &mut Client, query: &str) -> anyhow::Result<Vec<i32>> {
    let mut ids: Vec<i32> = session.query(query, &[])?.iter().map(|row| row.get(0)).collect();
    ids.sort_unstable();
    Ok(ids)
}

pub fn all() -> Vec<i32> {
    (1..=4 * ROWS).collect()
}

#[test]
fn every_row_comes_once_whatever_the_fetch_size_is() -> Outcome {
    let (_fleet, mut session) = started()?;
    assert_eq!(async_scans(&mut session, "SELECT id FROM pt")?, 4);
    for size in [1, 7, 100, 999, 1000, 1001, 5000] {
        session.batch_execute(&format!(
            "ALTER SERVER shard1 OPTIONS (SET fetch_size '{size}');
             ALTER SERVER shard2 OPTIONS (SET fetch_size '{size}')"
        ))?;
        assert_eq!(sorted(&mut session, "SELECT id FROM pt")?, all());
    }
    Ok(())
}

#[test]
fn both_servers_are_asked_before_either_has_answered() -> Outcome {
    let (fleet, session) = proxied()?;
    let first = fleet.proxy(1).inject(Fault::hold(Point::Answer, "DECLARE"));
    let second = fleet.proxy(2).inject(Fault::hold(Point::Answer, "DECLARE"));
    let query = in_background(session, "SELECT * FROM pt");
    first.wait()?;
    second.wait()?;
    assert!(!query.is_finished());
    second.release();
    first.release();
    let (mut session, result) = query.join();
    result?;
    assert_eq!(sorted(&mut session, "SELECT id FROM pt")?, all());
    Ok(())
}

#[test]
fn rows_of_a_quick_server_do_not_wait_for_a_slow_one() -> Outcome {
    let (fleet, mut session) = proxied()?;
    let slow = fleet.proxy(1).inject(Fault::hold(Point::Answer, "FETCH"));
    session.batch_execute("BEGIN; DECLARE c CURSOR FOR SELECT id FROM pt")?;
    let quick = sorted(&mut session, "FETCH 2000 FROM c")?;
    assert!(slow.has_struck());
    slow.release();
    let late = sorted(&mut session, "FETCH ALL FROM c")?;
    session.batch_execute("COMMIT")?;
    let of_shard = |number| -> Vec<i32> {
        all().into_iter().filter(|id| (id - 1) / ROWS % 2 == number - 1).collect()
    };
    assert_eq!((late, quick), (of_shard(1), of_shard(2)));
    Ok(())
}

#[test]
fn several_scans_on_one_connection() -> Outcome {
    let (_fleet, mut session) = started()?;
    let query = "SELECT id FROM p1 UNION ALL SELECT id FROM p3 UNION ALL SELECT id FROM p1 \
                 UNION ALL SELECT id FROM p3 WHERE id % 2 = 0";
    assert_eq!(async_scans(&mut session, query)?, 4);
    for _ in 0..20 {
        assert_eq!(session.query(query, &[])?.len(), 3 * ROWS as usize + ROWS as usize / 2);
    }
    Ok(())
}

#[test]
fn local_partitions_go_on_meanwhile() -> Outcome {
    let (_fleet, mut session) = started()?;
    session.batch_execute(
        "CREATE TABLE p0 PARTITION OF pt FOR VALUES FROM (-100) TO (1);
         INSERT INTO pt SELECT i FROM generate_series(-100, 0) i; ANALYZE p0",
    )?;
    assert_eq!(async_scans(&mut session, "SELECT id FROM pt")?, 4);
    assert_eq!(sorted(&mut session, "SELECT id FROM pt")?, (-100..=4 * ROWS).collect::<Vec<_>>());
    Ok(())
}

#[test]
fn a_local_filter_may_refuse_whole_batches() -> Outcome {
    let (_fleet, mut session) = started()?;
    session.batch_execute(
        "CREATE FUNCTION hundredth(i int) RETURNS bool LANGUAGE plpgsql AS
             'BEGIN RETURN i % 777 = 0; END'",
    )?;
    let query = "SELECT id FROM pt WHERE hundredth(id)";
    assert_eq!(async_scans(&mut session, query)?, 4);
    let expected: Vec<i32> = (1..=4 * ROWS).filter(|i| i % 777 == 0).collect();
    assert_eq!(sorted(&mut session, query)?, expected);
    assert_eq!(
        sorted(&mut session, "SELECT id FROM pt WHERE hundredth(id + id) AND id < 0")?,
        NONE
    );
    Ok(())
}

#[test]
fn a_filter_that_reads_from_the_same_servers() -> Outcome {
    let (_fleet, mut session) = started()?;
    session.batch_execute(
        "CREATE FUNCTION known(i int) RETURNS bool LANGUAGE plpgsql AS
             'BEGIN RETURN EXISTS (SELECT FROM pt WHERE id = i + 1000); END'",
    )?;
    let query = "SELECT id FROM pt WHERE id % 100 = 0 AND known(id)";
    let expected: Vec<i32> = (1..=30).map(|i| i * 100).collect();
    assert_eq!(async_scans(&mut session, query)?, 4);
    assert_eq!(sorted(&mut session, query)?, expected);
    Ok(())
}

#[test]
fn explain_analyze_counts_the_rows() -> Outcome {
    let (_fleet, mut session) = started()?;
    let options = "ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF, BUFFERS OFF";
    let text = explain(&mut session, options, "SELECT * FROM pt")?;
    // 18 shows two decimals.
    let counts = |text: &str, rows: &str| {
        text.lines()
            .filter(|line| line.contains("Async Foreign Scan"))
            .filter(|line| {
                line.replace(".00", "").contains(&format!("(actual rows={rows} loops=1)"))
            })
            .count()
    };
    assert_eq!(counts(&text, "1000"), 4, "{text}");
    let text = explain(&mut session, options, "SELECT * FROM pt WHERE length(v || random()) < 0")?;
    assert_eq!(counts(&text, "0"), 4, "{text}");
    assert_eq!(text.matches("Rows Removed by Filter: 1000").count(), 4, "{text}");
    Ok(())
}

#[test]
fn an_early_end_leaves_the_connections_usable() -> Outcome {
    let (fleet, mut session) = started()?;
    for limit in [0, 1, 50, 51, 1500] {
        session.batch_execute("BEGIN")?;
        let query = format!("SELECT id FROM pt LIMIT {limit}");
        assert_eq!(session.query(&query, &[])?.len(), limit);
        session.batch_execute(&format!("INSERT INTO pt VALUES ({})", -(limit as i32))).unwrap_err();
        session.batch_execute("ROLLBACK; BEGIN")?;
        assert_eq!(session.query(&query, &[])?.len(), limit);
        session.batch_execute("INSERT INTO ft1 VALUES (1); DELETE FROM ft1; COMMIT")?;
    }
    assert_eq!(sorted(&mut session, "SELECT id FROM pt")?, all());
    assert_settled(&fleet);
    Ok(())
}

#[test]
fn an_early_end_waits_for_the_slow_server_longer_than_a_commit_may() -> Outcome {
    let (fleet, mut session) = proxied()?;
    session.batch_execute("SET pg_fdw_xacts.prepare_timeout = '1s'")?;
    let slow = fleet.proxy(1).inject(Fault::hold(Point::Answer, "FETCH"));
    let query = in_background(session, "SELECT * FROM pt LIMIT 1");
    slow.wait()?;
    let mut observer = fleet.session()?;
    wait_until("it has waited longer than that", DEADLINE, || {
        let waits = "SELECT count(*) FROM pg_stat_activity
                     WHERE query LIKE '%LIMIT 1' AND now() - query_start > '1500 ms'";
        Ok(query.is_finished() || one::<i64>(&mut observer, waits)? == 1)
    })?;
    slow.release();
    query.join().1?;
    Ok(())
}

#[test]
fn rescans_with_new_parameters_and_rows_on_their_way() -> Outcome {
    let (_fleet, mut session) = started()?;
    session.batch_execute("INSERT INTO lt SELECT i FROM generate_series(1, 12) i; ANALYZE lt")?;
    let whole = "SELECT lt.id, n FROM lt, LATERAL
                 (SELECT count(*) AS n FROM pt WHERE pt.id > lt.id * 100 OFFSET 0) s ORDER BY 1";
    assert_eq!(async_scans(&mut session, whole)?, 4);
    for row in session.query(whole, &[])? {
        let (id, n): (i32, i64) = (row.get(0), row.get(1));
        assert_eq!(n, i64::from(4 * ROWS - id * 100));
    }
    // The inner side is left after about one batch of each scan, so that the next parameters find
    // the second one under way.
    for limit in 196..=208 {
        let part = format!(
            "SELECT lt.id, s.id FROM lt, LATERAL
             (SELECT id FROM pt WHERE pt.id % 13 = lt.id LIMIT {limit}) s"
        );
        assert_eq!(async_scans(&mut session, &part)?, 4);
        let rows = session.query(&part, &[])?;
        assert_eq!(rows.len(), 12 * limit);
        assert!(rows.iter().all(|row| row.get::<_, i32>(1) % 13 == row.get::<_, i32>(0)));
    }
    Ok(())
}

#[test]
fn rescans_without_parameters() -> Outcome {
    let (_fleet, mut session) = started()?;
    session.batch_execute(
        "INSERT INTO lt SELECT i FROM generate_series(1, 3) i; ANALYZE lt;
         SET enable_hashjoin = off; SET enable_mergejoin = off; SET enable_material = off",
    )?;
    for size in [50, 1000, 2000] {
        session.batch_execute(&format!(
            "ALTER SERVER shard1 OPTIONS (SET fetch_size '{size}');
             ALTER SERVER shard2 OPTIONS (SET fetch_size '{size}')"
        ))?;
        let query = "SELECT count(*) FROM lt LEFT JOIN pt ON pt.id % 3 = lt.id % 3 OR random() < 0";
        assert_eq!(async_scans(&mut session, query)?, 4);
        assert_eq!(one::<i64>(&mut session, query)?, i64::from(4 * ROWS));
        // Left at the first match.
        let query = "SELECT count(*) FROM lt WHERE EXISTS
                     (SELECT FROM pt WHERE pt.id % 3 = lt.id % 3 OR random() < 0)";
        assert_eq!(one::<i64>(&mut session, query)?, 3);
    }
    Ok(())
}

#[test]
fn two_appends_over_the_same_connections() -> Outcome {
    let (_fleet, mut session) = started()?;
    let query = "SELECT a.id FROM pt a JOIN pt b USING (id)";
    for join in ["hashjoin", "mergejoin"] {
        session.batch_execute(
            "SET enable_hashjoin = off; SET enable_mergejoin = off; SET enable_nestloop = off",
        )?;
        session.batch_execute(&format!("SET enable_{join} = on"))?;
        assert_eq!(async_scans(&mut session, query)?, 8);
        assert_eq!(sorted(&mut session, query)?, all());
    }
    session.batch_execute(
        "SET enable_hashjoin = off; SET enable_mergejoin = off; SET enable_nestloop = on;
         SET enable_material = off",
    )?;
    let query =
        "SELECT a.id FROM pt a JOIN pt b ON a.id = b.id + 0 * random()::int WHERE a.id % 500 = 0";
    assert_eq!(sorted(&mut session, query)?, [500, 1000, 1500, 2000, 2500, 3000, 3500, 4000]);
    Ok(())
}

#[test]
fn rows_are_written_to_the_servers_that_are_read() -> Outcome {
    let (fleet, mut session) = started()?;
    session.batch_execute(
        "BEGIN; INSERT INTO ft1 SELECT * FROM pt; INSERT INTO ft2 SELECT * FROM pt",
    )?;
    session.batch_execute("COMMIT")?;
    assert_eq!((fleet.ids_on_shard(1)?, fleet.ids_on_shard(2)?), (all(), all()));
    session.batch_execute(
        "UPDATE pt SET v = 'new' WHERE id IN (SELECT id FROM pt WHERE id % 2 = 0 AND random() >= 0);
         DELETE FROM pt USING (SELECT id AS i FROM pt WHERE id > 3990) s WHERE id = i",
    )?;
    let counts = "SELECT count(*) FILTER (WHERE v = 'new') || '/' || count(*) FROM pt";
    assert_eq!(one::<String>(&mut session, counts)?, "1995/3990");
    assert_settled(&fleet);
    Ok(())
}

#[test]
fn what_a_concurrent_update_changed_is_computed_again() -> Outcome {
    let (fleet, mut session) = started()?;
    session.batch_execute("INSERT INTO lt VALUES (1, 'a'), (7, 'a')")?;
    // A join keeps its foreign rows; a subquery runs once more, outside of any asynchronous Append.
    let join = "UPDATE lt SET v = lt.v || pt.v FROM pt WHERE pt.id = lt.id + 0 * random()::int";
    let subquery = "UPDATE lt SET v = lt.v || (SELECT count(pt.v) FROM pt \
                    WHERE pt.id % 1000 = lt.id AND random() >= 0)";
    for (update, expected) in [(join, "brow 1,brow 7"), (subquery, "b4,b4")] {
        assert!(async_scans(&mut session, update)? > 0);
        let mut other = fleet.session()?;
        other.batch_execute("BEGIN; UPDATE lt SET v = 'b'")?;
        let waiting = in_background(session, update);
        wait_until("the update waits", DEADLINE, || {
            let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
            Ok(one::<i64>(&mut fleet.session()?, waits)? == 1)
        })?;
        other.batch_execute("COMMIT")?;
        let result;
        (session, result) = waiting.join();
        result?;
        let found = "SELECT string_agg(v, ',' ORDER BY id) FROM lt";
        assert_eq!(one::<String>(&mut session, found)?, expected);
        session.batch_execute("UPDATE lt SET v = 'a'")?;
    }
    Ok(())
}

#[test]
fn memory_does_not_grow_with_the_rows() -> Outcome {
    let (fleet, mut session) = started()?;
    for (shard, number) in [(1, 1), (2, 2), (1, 3), (2, 4)] {
        fleet.shard(shard).client()?.batch_execute(&format!(
            "ALTER TABLE r{number} RENAME TO s{number};
             CREATE VIEW r{number} AS SELECT i AS id, repeat('x', 1000) AS v FROM generate_series(1, 50000) i"
        ))?;
    }
    let pid = one::<i32>(&mut session, "SELECT pg_backend_pid()")?;
    let peak = || -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("Linux has it");
        Ok(line.split_whitespace().nth(1).expect("a number").parse()?)
    };
    assert_eq!(
        one::<i64>(&mut session, "SELECT count(v) FROM (SELECT v FROM pt LIMIT 20000) s")?,
        20000
    );
    let before = peak()?;
    assert_eq!(one::<i64>(&mut session, "SELECT count(v || random()) FROM pt")?, 200_000);
    let grown = peak()? - before;
    assert!(grown < 8 * 1024, "{grown} kB more for 200 MB of rows");
    Ok(())
}
