//! `pg_fdw_xacts_query()`: the rows of any query on a shard, in the transaction, as the caller
//! declares them.

use pg_test::oracle::{assert_settled, assert_usable, expect_error, one};

use crate::support::{NONE, Outcome, start};

#[test]
fn rows_are_as_they_are_declared() -> Outcome {
    let (fleet, mut session) = start()?;
    let sql = "SELECT i, t, n, d, a, r FROM pg_fdw_xacts_query('shard1', $$
            SELECT i, 'x' || i, CASE i WHEN 2 THEN NULL ELSE i / 4.0 END, date '2024-02-29' + i, ARRAY[i, NULL], ROW(i, 'y')
            FROM generate_series(1, 3) i ORDER BY i $$)
        AS (i int, t text, n numeric, d date, a int[], r text)";
    let rows = session.query(&format!("SELECT q::text FROM ({sql}) q"), &[])?;
    let rows: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(
        rows,
        [
            "(1,x1,0.25000000000000000000,2024-03-01,\"{1,NULL}\",\"(1,y)\")",
            "(2,x2,,2024-03-02,\"{2,NULL}\",\"(2,y)\")",
            "(3,x3,0.75000000000000000000,2024-03-03,\"{3,NULL}\",\"(3,y)\")",
        ]
    );
    // More rows than a batch, and as many as one.
    for count in [0, 999, 1000, 1001, 2500] {
        let query = format!(
            "SELECT count(i) FROM pg_fdw_xacts_query('shard1', 'SELECT generate_series(1, {count})') AS (i int)"
        );
        assert_eq!(one::<i64>(&mut session, &query)?, count);
    }
    // More than memory is allowed to hold.
    session.batch_execute("SET work_mem = '64kB'")?;
    let sum: i64 = one(
        &mut session,
        "SELECT sum(length(v)) FROM pg_fdw_xacts_query('shard1',
             'SELECT repeat(i::text, 20) FROM generate_series(10000, 59999) i') AS (v text)",
    )?;
    assert_eq!(sum, 50_000 * 100);
    assert_settled(&fleet);
    Ok(())
}

#[test]
fn it_sees_the_transaction_and_its_savepoints() -> Outcome {
    let (fleet, mut session) = start()?;
    let ids = "SELECT coalesce(string_agg(id::text, ','), '') FROM pg_fdw_xacts_query('shard1', 'SELECT id FROM t ORDER BY id') AS (id int)";
    session.batch_execute(
        "BEGIN; INSERT INTO ft1 VALUES (1); SAVEPOINT a; INSERT INTO ft1 VALUES (2)",
    )?;
    assert_eq!(one::<String>(&mut session, ids)?, "1,2");
    session.batch_execute("ROLLBACK TO a")?;
    assert_eq!(one::<String>(&mut session, ids)?, "1");
    // Beside a scan that is under way on the same connection.
    let both: i64 = one(
        &mut session,
        "SELECT count(*) FROM ft1, LATERAL pg_fdw_xacts_query('shard1', 'SELECT ' || ft1.id) AS (n int)",
    )?;
    assert_eq!(both, 1);
    session.batch_execute("INSERT INTO ft2 VALUES (1); COMMIT")?;
    assert_eq!(fleet.ids_on_shard(1)?, [1]);
    assert_settled(&fleet);
    Ok(())
}

#[test]
fn commands_that_no_cursor_runs_return_rows_too() -> Outcome {
    let (fleet, mut session) = start()?;
    session.batch_execute("BEGIN; INSERT INTO ft2 VALUES (1)")?;
    let mut get = |query: &str| {
        one::<String>(
            &mut session,
            &format!(
                "SELECT string_agg(v, ',') FROM pg_fdw_xacts_query('shard1', $q${query}$q$) AS (v text)"
            ),
        )
    };
    assert_eq!(get("INSERT INTO t VALUES (1), (2) RETURNING id")?, "1,2");
    assert_eq!(get("WITH d AS (DELETE FROM t WHERE id = 2 RETURNING id) SELECT * FROM d")?, "2");
    assert_eq!(get("SHOW extra_float_digits")?, "3");
    assert_eq!(get("VALUES (1), (2);")?, "1,2");
    assert_eq!(get("SELECT id FROM t -- the end")?, "1");
    assert!(get("EXPLAIN (COSTS OFF) SELECT 1")?.contains("Result"));
    session.batch_execute("COMMIT")?;
    assert_eq!(fleet.ids_on_shard(1)?, [1]);
    assert_settled(&fleet);
    Ok(())
}

#[test]
fn other_columns_than_declared_are_refused() -> Outcome {
    let (fleet, mut session) = start()?;
    let mut fails = |code: &str, call: &str| {
        let error = expect_error(session.batch_execute(&format!("SELECT * FROM {call}")), code);
        assert_usable(&mut session);
        error
    };
    let error = fails("42804", "pg_fdw_xacts_query('shard1', 'SELECT 1, 2') AS (a int)");
    assert_eq!(
        (error.message(), error.detail()),
        (
            "the result of the remote query does not match the column definition list",
            Some("The number of columns is 2 in the result and 1 in the list.")
        )
    );
    fails("42804", "pg_fdw_xacts_query('shard1', 'SELECT 1 WHERE false') AS (a int, b int)");
    let error =
        fails("42804", "pg_fdw_xacts_query('shard1', 'INSERT INTO t VALUES (1)') AS (a int)");
    assert_eq!(error.hint(), Some("Run commands that return no rows with pg_fdw_xacts_exec()."));
    let error =
        fails("22P02", "pg_fdw_xacts_query('shard1', $$SELECT 1, 'x'$$) AS (a int, wrong int)");
    assert_eq!(error.where_(), Some("column \"wrong\" of the remote query"));
    let error = fails(
        "22012",
        "pg_fdw_xacts_query('shard1', 'SELECT 1 / (3 - i) FROM generate_series(1, 5) i') AS (a int)",
    );
    assert_eq!(
        error.where_(),
        Some("remote SQL command: SELECT 1 / (3 - i) FROM generate_series(1, 5) i")
    );
    fails("42601", "pg_fdw_xacts_query('shard1', 'SELECT 1; SELECT 2') AS (a int)");
    fails("2D000", "pg_fdw_xacts_query('shard1', 'COMMIT') AS (a int)");
    let call = "SELECT pg_fdw_xacts_query('shard1', 'SELECT 1')";
    expect_error(session.batch_execute(call), "0A000");
    assert_eq!(fleet.ids_on_shard(1)?, NONE);
    assert_settled(&fleet);
    Ok(())
}
