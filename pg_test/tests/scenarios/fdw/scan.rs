//! Reading foreign tables: cursors and fetches, rescans, parameters, what postgres_fdw pushes down,
//! values of many types.

use pg_test::Fleet;
use pg_test::fleet::ids;
use pg_test::oracle::one;
use postgres::Client;

use crate::support::Outcome;

fn filled(rows: i32) -> anyhow::Result<(Fleet, Client)> {
    let fleet = Fleet::start()?;
    for number in [1, 2] {
        fleet.shard(number).client()?.batch_execute(&format!(
            "INSERT INTO t SELECT i, 'row ' || i FROM generate_series(1, {rows}) i; ANALYZE t"
        ))?;
    }
    let session = fleet.session()?;
    Ok((fleet, session))
}

/// The plan of `query`; a test that is about pushing down first makes sure that it happens.
fn plan(session: &mut Client, query: &str) -> anyhow::Result<String> {
    let rows = session.query(&format!("EXPLAIN (VERBOSE, COSTS OFF) {query}"), &[])?;
    Ok(rows.iter().map(|row| row.get::<_, String>(0) + "\n").collect())
}

#[test]
fn every_row_is_read_once_whatever_the_fetch_size_is() -> Outcome {
    let (_fleet, mut session) = filled(0)?;
    session.batch_execute("ALTER FOREIGN TABLE ft1 OPTIONS (ADD fetch_size '10')")?;
    for rows in [0, 1, 9, 10, 11, 20, 25] {
        session.batch_execute("DELETE FROM ft1")?;
        session.batch_execute(&format!(
            "INSERT INTO ft1 SELECT i, 'v' FROM generate_series(1, {rows}) i"
        ))?;
        let expected: Vec<i32> = (1..=rows).collect();
        assert_eq!(ids(&mut session, "ft1")?, expected);
    }
    Ok(())
}

#[test]
fn a_scan_of_many_fetches_and_its_early_end() -> Outcome {
    let (_fleet, mut session) = filled(1000)?;
    assert_eq!(one::<i64>(&mut session, "SELECT sum(length(v)) FROM ft1")?, {
        (1..=1000).map(|i: i32| 4 + i.to_string().len() as i64).sum::<i64>()
    });
    for limit in [0, 1, 100, 101, 999] {
        let rows =
            session.query(&format!("SELECT id FROM ft1 WHERE random() >= 0 LIMIT {limit}"), &[])?;
        assert_eq!(rows.len(), limit);
    }
    Ok(())
}

#[test]
fn cursors_of_the_application_run_side_by_side_and_backwards() -> Outcome {
    let (_fleet, mut session) = filled(300)?;
    session.batch_execute(
        "BEGIN;
         DECLARE a SCROLL CURSOR FOR SELECT id FROM ft1 ORDER BY id;
         DECLARE b CURSOR FOR SELECT id FROM ft1 ORDER BY id DESC;
         DECLARE c CURSOR FOR SELECT id FROM ft2 ORDER BY id",
    )?;
    let mut fetch = |command: &str| -> anyhow::Result<Vec<i32>> {
        let rows = session.query(command, &[])?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    };
    assert_eq!(fetch("FETCH 2 FROM a")?, [1, 2]);
    assert_eq!(fetch("FETCH 2 FROM b")?, [300, 299]);
    assert_eq!(fetch("FETCH 2 FROM c")?, [1, 2]);
    assert_eq!(fetch("FETCH 150 FROM a")?.last(), Some(&152));
    assert_eq!(fetch("FETCH BACKWARD 2 FROM a")?, [151, 150]);
    assert_eq!(fetch("FETCH 1 FROM b")?, [298]);
    assert_eq!(fetch("FETCH ABSOLUTE 1 FROM a")?, [1]);
    assert_eq!(fetch("FETCH ALL FROM c")?.len(), 298);
    session.batch_execute("COMMIT")?;
    Ok(())
}

#[test]
fn a_rescan_with_new_parameters_starts_again() -> Outcome {
    let (_fleet, mut session) = filled(300)?;
    session.batch_execute("INSERT INTO lt SELECT i, 'x' FROM generate_series(1, 5) i")?;
    // A parameter from the outer side; random() keeps the inner side from being joined remotely or
    // hashed.
    let query = "SELECT lt.id, inner_.n FROM lt,
                 LATERAL (SELECT count(*) AS n FROM ft1 WHERE ft1.id <= lt.id * 50 OFFSET 0) inner_
                 ORDER BY lt.id";
    let rows = session.query(query, &[])?;
    let found: Vec<(i32, i64)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    assert_eq!(found, [(1, 50), (2, 100), (3, 150), (4, 200), (5, 250)]);
    Ok(())
}

#[test]
fn a_rescan_without_parameters_gives_the_same_rows_again() -> Outcome {
    let (_fleet, mut session) = filled(150)?;
    session.batch_execute(
        "INSERT INTO lt SELECT i, 'x' FROM generate_series(1, 3) i;
         SET enable_hashjoin = off; SET enable_mergejoin = off; SET enable_material = off",
    )?;
    let query = "SELECT count(*) FROM lt LEFT JOIN ft1 ON ft1.id % 3 = lt.id % 3 OR random() < 0";
    assert_eq!(one::<i64>(&mut session, query)?, 150);
    Ok(())
}

#[test]
fn prepared_statements_pass_their_parameters() -> Outcome {
    let (_fleet, mut session) = filled(100)?;
    session.batch_execute("SET plan_cache_mode = force_generic_plan")?;
    let statement = session.prepare("SELECT v FROM ft1 WHERE id = $1 OR v = $2 ORDER BY id")?;
    for id in [1, 50, 100] {
        let rows = session.query(&statement, &[&id, &"row 7"])?;
        let found: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        let mut expected = vec![format!("row {id}"), "row 7".to_owned()];
        expected.sort_by_key(|v| v[4..].parse::<i32>().unwrap_or_default());
        assert_eq!(found, expected);
    }
    Ok(())
}

#[test]
fn joins_and_aggregates_run_on_the_shard() -> Outcome {
    let (_fleet, mut session) = filled(100)?;
    session.batch_execute(
        "SET enable_hashjoin = off; SET enable_mergejoin = off; SET enable_nestloop = off",
    )?;
    let join = "SELECT a.id, b.v FROM ft1 a JOIN ft1 b ON a.id = b.id WHERE a.id < 4 ORDER BY a.id";
    assert!(plan(&mut session, join)?.contains("INNER JOIN"), "the join is not pushed down");
    let rows = session.query(join, &[])?;
    let found: Vec<(i32, &str)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    assert_eq!(found, [(1, "row 1"), (2, "row 2"), (3, "row 3")]);

    let aggregate = "SELECT id % 2 AS odd, count(*), max(v) FROM ft1 GROUP BY 1 ORDER BY 1";
    assert!(
        plan(&mut session, aggregate)?.contains("GROUP BY"),
        "the aggregate is not pushed down"
    );
    let rows = session.query(aggregate, &[])?;
    let found: Vec<(i32, i64, &str)> =
        rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();
    assert_eq!(found, [(0, 50, "row 98"), (1, 50, "row 99")]);
    Ok(())
}

#[test]
fn joins_across_shards_and_with_local_tables() -> Outcome {
    let (_fleet, mut session) = filled(200)?;
    session.batch_execute("INSERT INTO lt SELECT i, 'x' FROM generate_series(1, 10) i")?;
    let query = "SELECT count(*) FROM ft1 JOIN ft2 USING (id) JOIN lt USING (id)";
    assert_eq!(one::<i64>(&mut session, query)?, 10);
    let query = "SELECT count(*) FROM (SELECT id FROM ft1 UNION ALL SELECT id FROM ft2) u";
    assert_eq!(one::<i64>(&mut session, query)?, 400);
    Ok(())
}

#[test]
fn a_transaction_sees_one_snapshot_of_a_shard() -> Outcome {
    let (fleet, mut session) = filled(1)?;
    session.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ")?;
    assert_eq!(ids(&mut session, "ft1")?, [1]);
    fleet.shard(1).client()?.batch_execute("INSERT INTO t VALUES (2, 'later')")?;
    assert_eq!(ids(&mut session, "ft1")?, [1]);
    session.batch_execute("COMMIT")?;
    assert_eq!(ids(&mut session, "ft1")?, [1, 2]);
    Ok(())
}

#[test]
fn values_of_many_types_come_back_as_they_went() -> Outcome {
    let fleet = Fleet::start()?;
    let columns = "id int, big bigint, number numeric, real4 real, real8 double precision, flag bool, at timestamptz, \
                   day date, span interval, bytes bytea, words text[], doc jsonb, id16 uuid, note text";
    fleet.shard(1).client()?.batch_execute(&format!("CREATE TABLE wide ({columns})"))?;
    let mut session = fleet.session()?;
    session.batch_execute(&format!(
        "CREATE TABLE original ({columns});
         CREATE FOREIGN TABLE wide ({columns}) SERVER shard1;
         INSERT INTO original VALUES
             (1, 9223372036854775807, 12345678901234567890.123456789, 1.1, 0.1::float8 + 0.2::float8, true,
              '2026-03-29 02:30:00.123456+01', '0044-03-15 BC', '1 year -2 days 03:04:05.6',
              '\\x00ff275c', ARRAY['a', NULL, 'b \"c\" \\ d', ''], '{{\"a\": [1, null]}}',
              '00000000-0000-0000-0000-0000000000ff', E'line\\n''quoted'' \\\\ back \\t tab ü'),
             (2, NULL, NULL, 'NaN', '-Infinity', NULL, 'infinity', NULL, NULL, NULL, '{{}}', 'null', NULL, '')"
    ))?;
    // The session's own notation must not reach the shard, nor the shard's notation come back.
    session.batch_execute(
        "SET datestyle = 'SQL, DMY'; SET intervalstyle = 'sql_standard'; SET bytea_output = 'escape';
         SET extra_float_digits = 0; SET timezone = 'Asia/Kathmandu'",
    )?;
    session.batch_execute("INSERT INTO wide SELECT * FROM original")?;
    let same = "SELECT count(*) FROM original o JOIN wide w ON (o.*) IS NOT DISTINCT FROM (w.*)";
    assert_eq!(one::<i64>(&mut session, same)?, 2);
    // A constant in a pushed-down condition is written in a notation that the shard reads alike.
    let query = "SELECT id FROM wide WHERE day = '15/03/0044 BC'";
    assert_eq!(one::<i32>(&mut session, query)?, 1);
    Ok(())
}

#[test]
fn system_columns_and_whole_rows() -> Outcome {
    let (_fleet, mut session) = filled(3)?;
    let rows = session.query(
        "SELECT ctid::text, tableoid::regclass::text, (f.*)::text FROM ft1 f ORDER BY id LIMIT 1",
        &[],
    )?;
    let found: (&str, &str, &str) = (rows[0].get(0), rows[0].get(1), rows[0].get(2));
    assert_eq!(found, ("(0,1)", "ft1", "(1,\"row 1\")"));
    Ok(())
}

#[test]
fn rows_can_be_locked() -> Outcome {
    let (fleet, mut session) = filled(3)?;
    session.batch_execute("BEGIN; SELECT * FROM ft1 WHERE id = 1 FOR UPDATE")?;
    let mut other = fleet.shard(1).client()?;
    let busy = other.batch_execute("SELECT * FROM t WHERE id = 1 FOR UPDATE NOWAIT");
    pg_test::oracle::expect_error(busy, "55P03");
    session.batch_execute("COMMIT")?;
    other.batch_execute("SELECT * FROM t WHERE id = 1 FOR UPDATE NOWAIT")?;
    Ok(())
}
