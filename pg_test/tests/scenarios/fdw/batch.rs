//! How many rows one INSERT carries: options, the setting, and where rows go one by one to keep the
//! result.

use pg_test::Fleet;
use pg_test::oracle::one;
use postgres::Client;

use crate::support::{Outcome, start};

/// How many INSERTs shard 1 executes for `sql`.
fn inserts(fleet: &Fleet, session: &mut Client, sql: &str) -> anyhow::Result<usize> {
    let mark = fleet.shard(1).log().mark()?;
    session.batch_execute(sql)?;
    let statements = fleet.shard(1).log().statements_since(mark)?;
    Ok(statements.iter().filter(|s| s.starts_with("INSERT INTO public.t(")).count())
}

const FOUR_HUNDRED: &str = "INSERT INTO ft1 SELECT i, 'v' FROM generate_series(1, 400) i";

#[test]
fn two_hundred_rows_go_at_once_unless_something_else_is_asked_for() -> Outcome {
    let (fleet, mut session) = start()?;
    let mut check = |change: &str, expected: usize| -> Outcome {
        session.batch_execute(change)?;
        assert_eq!(inserts(&fleet, &mut session, FOUR_HUNDRED)?, expected, "after: {change}");
        session.batch_execute("DELETE FROM ft1")?;
        Ok(())
    };
    check("", 2)?;
    check("SET pg_fdw_xacts.batch_size = 50", 8)?;
    check("SET pg_fdw_xacts.batch_size = 1", 400)?;
    check("ALTER SERVER shard1 OPTIONS (ADD batch_size '20')", 20)?;
    check("ALTER FOREIGN TABLE ft1 OPTIONS (ADD batch_size '100')", 4)?;
    check("ALTER FOREIGN TABLE ft1 OPTIONS (SET batch_size '1')", 400)
}

/// What one message cannot carry would fail; what it can is no faster by the hundred megabytes.
#[test]
fn a_batch_of_wide_rows_goes_in_several_messages() -> Outcome {
    let (fleet, mut session) = start()?;
    let mut insert = |rows: usize, bytes: usize| {
        let sql = format!(
            "INSERT INTO ft1 SELECT i + {bytes}, repeat('x', {bytes}) FROM generate_series(1, {rows}) i"
        );
        inserts(&fleet, &mut session, &sql)
    };
    assert_eq!(insert(200, 1000)?, 1);
    assert_eq!(insert(100, 100_000)?, 10, "eleven rows a message, and one");
    assert_eq!(insert(5, 1_500_000)?, 5);
    let lengths = "SELECT count(DISTINCT (id, length(v))) FROM ft1";
    assert_eq!(one::<i64>(&mut session, lengths)?, 305);
    Ok(())
}

/// A batch of 200 goes in messages of 66, 66, 66 and 2 rows; in a transaction of many batches no
/// more and more statements are prepared, also where the sizes change.
#[test]
fn messages_of_changing_size_do_not_pile_up_prepared_statements() -> Outcome {
    let (_fleet, mut session) = start()?;
    let prepared = "SELECT n FROM pg_fdw_xacts_query('shard1',
        'SELECT count(*) FROM pg_prepared_statements WHERE name !~ ''^px_(xid|constraints|lock|begin|fetch|commit)''') AS (n bigint)";
    session.batch_execute(
        "SET pg_fdw_xacts.batch_size = 200;
         BEGIN; INSERT INTO ft1 SELECT i, repeat('x', 16000) FROM generate_series(1, 1000) i",
    )?;
    assert_eq!(one::<i64>(&mut session, prepared)?, 1);
    session.batch_execute(
        "INSERT INTO ft1 SELECT i, repeat('x', 12000 + i / 200 * 2000) FROM generate_series(1001, 3400) i",
    )?;
    let count = one::<i64>(&mut session, prepared)?;
    assert!((2..=10).contains(&count), "{count}");
    session.batch_execute("COMMIT")?;
    Ok(())
}

#[test]
fn explain_tells_the_batch_size() -> Outcome {
    let (_fleet, mut session) = start()?;
    let plan = session.query(&format!("EXPLAIN (VERBOSE, COSTS OFF) {FOUR_HUNDRED}"), &[])?;
    let lines: Vec<String> = plan.iter().map(|row| row.get(0)).collect();
    assert!(lines.iter().any(|line| line.trim() == "Batch Size: 200"), "{lines:#?}");
    Ok(())
}

/// The function counts what is there, so each row tells how many came before it.
#[test]
fn rows_of_a_volatile_source_see_the_rows_before_them() -> Outcome {
    let (fleet, mut session) = start()?;
    session.batch_execute(
        "CREATE FUNCTION so_far() RETURNS int LANGUAGE sql VOLATILE AS 'SELECT count(*)::int FROM ft1';
         CREATE SEQUENCE numbers;
         CREATE TABLE source AS SELECT generate_series(1, 20) AS i",
    )?;
    for insert in [
        "INSERT INTO ft1 SELECT so_far(), 'v' FROM source",
        "INSERT INTO ft1 SELECT n, 'v' FROM source, LATERAL (SELECT so_far() + 0 * i AS n) s",
        "INSERT INTO ft1 SELECT count(*) FILTER (WHERE so_far() >= 0) - 1 + i, 'v'
             FROM (SELECT i - 1 AS i FROM source) s GROUP BY i HAVING so_far() >= 0",
        "WITH c AS MATERIALIZED (SELECT so_far() AS n FROM source) INSERT INTO ft1 SELECT n, 'v' FROM c",
    ] {
        assert_eq!(inserts(&fleet, &mut session, insert)?, 20, "{insert}");
        let distinct: i64 = one(&mut session, "SELECT count(DISTINCT id) FROM ft1")?;
        assert_eq!(distinct, 20, "{insert}");
        session.batch_execute("DELETE FROM ft1")?;
    }
    // What is asked for is done, as by postgres_fdw; sequences do not look at tables.
    let numbered = "INSERT INTO ft1 SELECT nextval('numbers'), 'v' FROM source";
    assert_eq!(inserts(&fleet, &mut session, numbered)?, 1);
    session
        .batch_execute("DELETE FROM ft1; ALTER FOREIGN TABLE ft1 OPTIONS (ADD batch_size '7')")?;
    let insert = "INSERT INTO ft1 SELECT so_far() + i, 'v' FROM source";
    assert_eq!(inserts(&fleet, &mut session, insert)?, 3);
    Ok(())
}

#[test]
fn rows_that_come_back_or_fire_local_triggers_go_one_by_one() -> Outcome {
    let (fleet, mut session) = start()?;
    let returning = format!("{FOUR_HUNDRED} RETURNING id");
    assert_eq!(inserts(&fleet, &mut session, &returning)?, 400);
    session.batch_execute(
        "DELETE FROM ft1;
         CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
         CREATE TRIGGER nothing AFTER INSERT ON ft1 FOR EACH ROW EXECUTE FUNCTION nothing()",
    )?;
    assert_eq!(inserts(&fleet, &mut session, FOUR_HUNDRED)?, 400);
    Ok(())
}
