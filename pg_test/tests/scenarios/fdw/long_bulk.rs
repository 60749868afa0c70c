//! INSERT of so many rows that one COPY takes several messages, and does not take all.

use pg_test::oracle::{assert_usable, expect_error, one};

use crate::support::{Outcome, start};

/// The rest of the rows is not made only to be thrown away.
#[test]
fn an_error_is_heard_of_before_all_rows_are_made() -> Outcome {
    let (fleet, mut session) = start()?;
    session.batch_execute("CREATE SEQUENCE made")?;
    let insert = "INSERT INTO ft1 SELECT least(nextval('made'), 5000), repeat('x', 1000)
         FROM generate_series(1, 100000)";
    expect_error(session.batch_execute(insert), "23505");
    let made: i64 = one(&mut session, "SELECT last_value FROM made")?;
    assert!((5001..20_000).contains(&made), "{made} rows");
    assert_usable(&mut session);
    assert_eq!(fleet.ids_on_shard(1)?.len(), 0);
    Ok(())
}

/// Each row of 20 MB is there once.
#[test]
fn rows_of_several_copies_are_complete() -> Outcome {
    let (fleet, mut session) = start()?;
    session.batch_execute(
        "INSERT INTO ft1 SELECT i, i || repeat('x', 1000) FROM generate_series(1, 20000) i",
    )?;
    let right = "SELECT count(*) FROM t WHERE v = id || repeat('x', 1000)";
    assert_eq!(one::<i64>(&mut fleet.shard(1).client()?, right)?, 20_000);
    Ok(())
}

/// Several tables of one server share a connection, which only one of them copies on at a time.
#[test]
fn partitions_of_one_server_are_copied_in_turns() -> Outcome {
    let (fleet, mut session) = start()?;
    fleet.shard(1).client()?.batch_execute("CREATE TABLE p1 (LIKE t); CREATE TABLE p2 (LIKE t)")?;
    session.batch_execute(
        "CREATE TABLE p (id int, v text) PARTITION BY LIST ((id % 3));
         CREATE FOREIGN TABLE p0 PARTITION OF p FOR VALUES IN (0) SERVER shard2 OPTIONS (table_name 't');
         CREATE FOREIGN TABLE p1 PARTITION OF p FOR VALUES IN (1) SERVER shard1;
         CREATE FOREIGN TABLE p2 PARTITION OF p FOR VALUES IN (2) SERVER shard1;
         INSERT INTO p SELECT i, i || repeat('x', 100) FROM generate_series(1, 30000) i",
    )?;
    for table in ["p0", "p1", "p2"] {
        let right =
            format!("SELECT count(DISTINCT id) FROM {table} WHERE v = id || repeat('x', 100)");
        assert_eq!(one::<i64>(&mut session, &right)?, 10_000, "{table}");
    }
    Ok(())
}

/// Each FETCH ends the COPY before it.
#[test]
fn the_source_and_the_target_take_turns_on_one_connection() -> Outcome {
    let (fleet, mut session) = start()?;
    let mut shard = fleet.shard(1).client()?;
    shard.batch_execute(
        "CREATE TABLE u (id int, v text);
         INSERT INTO t SELECT i, i || repeat('x', 200) FROM generate_series(1, 10000) i",
    )?;
    session.batch_execute("CREATE FOREIGN TABLE u (id int, v text) SERVER shard1")?;
    assert_eq!(session.execute("INSERT INTO u SELECT * FROM ft1", &[])?, 10_000);
    let right = "SELECT count(DISTINCT id) FROM u WHERE v = id || repeat('x', 200)";
    assert_eq!(one::<i64>(&mut shard, right)?, 10_000);
    Ok(())
}

/// Functions in the source, which catch what they hear of, may be the first to use the connection
/// after the shard has refused a row. Red before: where the failure was caught at last, the
/// connection could not be used any more.
#[test]
fn a_function_that_catches_errors_may_be_the_first_to_hear_of_one() -> Outcome {
    let (fleet, mut session) = start()?;
    session.batch_execute(
        "CREATE FUNCTION looks(n int) RETURNS text LANGUAGE plpgsql STABLE AS $$
         DECLARE found text;
         BEGIN
             IF n % 1000 = 0 THEN
                 BEGIN
                     SELECT v INTO found FROM ft1 WHERE id = -n;
                 EXCEPTION WHEN OTHERS THEN found := 'caught';
                 END;
                 PERFORM FROM ft1 WHERE id = -n;
             END IF;
             RETURN found;
         EXCEPTION WHEN OTHERS THEN RETURN 'caught';
         END $$;
         BEGIN; INSERT INTO ft1 VALUES (-1, 'before')",
    )?;
    let copies = "INSERT INTO ft1 SELECT i % 3990, looks(i) FROM generate_series(1, 40000) i";
    session.batch_execute(&format!(
        "DO $$ BEGIN
             {copies};
             RAISE 'not reached';
         EXCEPTION WHEN unique_violation THEN INSERT INTO ft1 VALUES (-2, 'caught');
         END $$;
         SAVEPOINT a"
    ))?;
    expect_error(session.batch_execute(copies), "23505");
    session.batch_execute("ROLLBACK TO a; INSERT INTO ft1 VALUES (-3, 'after'); COMMIT")?;
    assert_eq!(fleet.ids_on_shard(1)?, [-3, -2, -1]);
    Ok(())
}
