//! Savepoints and PL/pgSQL exception blocks: what they roll back here is rolled back on the shards.

use pg_test::Fleet;
use pg_test::oracle::{assert_settled, expect_error, one};

use crate::support::Outcome;

/// Runs `statements` in one transaction; the ids that are then on the two shards.
fn after(statements: &[&str]) -> anyhow::Result<(Vec<i32>, Vec<i32>)> {
    let fleet = Fleet::start()?;
    let mut session = fleet.session()?;
    session.batch_execute("BEGIN")?;
    for statement in statements {
        // Failing statements are part of some of them.
        let _ = session.batch_execute(statement);
    }
    session.batch_execute("COMMIT")?;
    assert_settled(&fleet);
    Ok((fleet.ids_on_shard(1)?, fleet.ids_on_shard(2)?))
}

#[test]
fn a_savepoint_rolled_back_here_is_rolled_back_there() -> Outcome {
    let ids = after(&[
        "INSERT INTO ft1 VALUES (1)",
        "SAVEPOINT a",
        "INSERT INTO ft1 VALUES (2); INSERT INTO ft2 VALUES (2)",
        "ROLLBACK TO a",
        "INSERT INTO ft1 VALUES (3)",
    ])?;
    assert_eq!(ids, (vec![1, 3], vec![]));
    Ok(())
}

#[test]
fn released_and_nested_savepoints() -> Outcome {
    let ids = after(&[
        "SAVEPOINT a",
        "INSERT INTO ft1 VALUES (1)",
        "SAVEPOINT b",
        "INSERT INTO ft1 VALUES (2); INSERT INTO ft2 VALUES (2)",
        "RELEASE b",
        "SAVEPOINT c",
        "SAVEPOINT d",
        "INSERT INTO ft2 VALUES (3)",
        "RELEASE d",
        "ROLLBACK TO c",
        "INSERT INTO ft2 VALUES (4)",
        "RELEASE a",
    ])?;
    assert_eq!(ids, (vec![1, 2], vec![2, 4]));
    Ok(())
}

#[test]
fn a_released_savepoint_goes_with_the_outer_one() -> Outcome {
    let ids = after(&[
        "SAVEPOINT a",
        "SAVEPOINT b",
        "INSERT INTO ft1 VALUES (1); INSERT INTO ft2 VALUES (1)",
        "RELEASE b",
        "ROLLBACK TO a",
        "INSERT INTO ft1 VALUES (2)",
    ])?;
    assert_eq!(ids, (vec![2], vec![]));
    Ok(())
}

#[test]
fn a_remote_error_in_a_savepoint_leaves_the_rest() -> Outcome {
    let ids = after(&[
        "INSERT INTO ft1 VALUES (1)",
        "SAVEPOINT a",
        "INSERT INTO ft1 VALUES (2)",
        "INSERT INTO ft1 VALUES (1)",
        "ROLLBACK TO a",
        "INSERT INTO ft1 VALUES (3); INSERT INTO ft2 VALUES (3)",
    ])?;
    assert_eq!(ids, (vec![1, 3], vec![3]));
    Ok(())
}

#[test]
fn a_local_error_in_a_savepoint_takes_its_remote_writes_along() -> Outcome {
    let ids = after(&[
        "INSERT INTO ft1 VALUES (1)",
        "SAVEPOINT a",
        "INSERT INTO ft1 VALUES (2); INSERT INTO ft2 VALUES (2)",
        "SELECT 1 / 0",
        "ROLLBACK TO a",
    ])?;
    assert_eq!(ids, (vec![1], vec![]));
    Ok(())
}

#[test]
fn exception_blocks_of_a_function() -> Outcome {
    let ids = after(&["DO $$
        BEGIN
            INSERT INTO ft1 VALUES (1);
            FOR i IN 1..4 LOOP
                BEGIN
                    INSERT INTO ft2 VALUES (i);
                    INSERT INTO ft1 VALUES (i % 3);
                EXCEPTION WHEN unique_violation THEN
                    NULL;
                END;
            END LOOP;
        END $$"])?;
    // i = 1 and i = 4 meet the row 1 and take their row on shard 2 back.
    assert_eq!(ids, (vec![0, 1, 2], vec![2, 3]));
    Ok(())
}

#[test]
fn a_cursor_opened_before_a_savepoint_survives_its_rollback() -> Outcome {
    let fleet = Fleet::start()?;
    let mut session = fleet.session()?;
    session.batch_execute("INSERT INTO ft1 SELECT i FROM generate_series(1, 250) i")?;
    session.batch_execute("BEGIN; DECLARE c CURSOR FOR SELECT id FROM ft1 ORDER BY id")?;
    assert_eq!(session.query("FETCH 10 FROM c", &[])?.len(), 10);
    session.batch_execute("SAVEPOINT a; INSERT INTO ft1 VALUES (999); ROLLBACK TO a")?;
    assert_eq!(session.query("FETCH ALL FROM c", &[])?.len(), 240);
    session.batch_execute("COMMIT")?;
    assert_eq!(fleet.ids_on_shard(1)?.len(), 250);
    Ok(())
}

#[test]
fn a_cursor_of_a_released_savepoint_belongs_to_what_is_around_it() -> Outcome {
    let fleet = Fleet::start()?;
    let mut session = fleet.session()?;
    session.batch_execute("INSERT INTO ft1 SELECT i FROM generate_series(1, 250) i")?;
    session
        .batch_execute("BEGIN; SAVEPOINT a; DECLARE c CURSOR FOR SELECT id FROM ft1; RELEASE a")?;
    // Its first fetch must not open a savepoint there that is none here: the next one would be
    // taken for it.
    assert_eq!(session.query("FETCH 10 FROM c", &[])?.len(), 10);
    session.batch_execute(
        "INSERT INTO ft1 VALUES (1000);
         SAVEPOINT b; INSERT INTO ft1 VALUES (2000); ROLLBACK TO b",
    )?;
    assert_eq!(session.query("FETCH ALL FROM c", &[])?.len(), 240);
    session.batch_execute("COMMIT")?;
    let ids = fleet.ids_on_shard(1)?;
    assert_eq!((ids.len(), ids.last()), (251, Some(&1000)));
    Ok(())
}

#[test]
fn a_shard_first_used_in_a_savepoint_that_is_rolled_back_takes_no_part() -> Outcome {
    let fleet = Fleet::start()?;
    let mut session = fleet.session()?;
    session.batch_execute(
        "BEGIN; SAVEPOINT a; INSERT INTO ft2 VALUES (1); ROLLBACK TO a; INSERT INTO ft1 VALUES (1)",
    )?;
    session.batch_execute("COMMIT")?;
    assert_settled(&fleet);
    assert_eq!((fleet.ids_on_shard(1)?, fleet.ids_on_shard(2)?), (vec![1], vec![]));
    Ok(())
}

#[test]
fn an_error_without_a_savepoint_fails_the_whole_transaction() -> Outcome {
    let fleet = Fleet::start()?;
    let mut session = fleet.session()?;
    session.batch_execute("BEGIN; INSERT INTO ft1 VALUES (1); INSERT INTO ft2 VALUES (1)")?;
    expect_error(session.batch_execute("INSERT INTO ft1 VALUES (1)"), "23505");
    expect_error(session.batch_execute("INSERT INTO ft1 VALUES (2)"), "25P02");
    // COMMIT of a failed transaction is a ROLLBACK.
    session.batch_execute("COMMIT")?;
    assert_settled(&fleet);
    assert_eq!((fleet.ids_on_shard(1)?, fleet.ids_on_shard(2)?), (vec![], vec![]));
    Ok(())
}

/// Red on 0.2.0, which stored 0 and so could not ask the shard later what became of its
/// transaction.
#[test]
fn the_xid_is_known_after_a_failed_statement() -> Outcome {
    let fleet = Fleet::start()?;
    let mut session = fleet.session()?;
    session.batch_execute("INSERT INTO ft1 VALUES (1)")?;
    let work = [
        "SELECT 1",
        "INSERT INTO ft2 VALUES ({})",
        "SELECT * FROM ft1",
        "INSERT INTO ft1 VALUES ({})",
    ];
    for (id, work) in (10..).zip(work) {
        let id = id.to_string();
        session.batch_execute("BEGIN; INSERT INTO lt VALUES (1); SAVEPOINT a")?;
        expect_error(session.batch_execute("INSERT INTO ft1 VALUES (1)"), "23505");
        session.batch_execute("ROLLBACK TO a")?;
        session.batch_execute(&work.replace("{}", &id))?;
        session.batch_execute("COMMIT; DELETE FROM lt")?;
        let unknown: i64 =
            one(&mut session, "SELECT count(*) FROM fdw_xacts.decision WHERE 0 = ANY (xids)")?;
        assert_eq!(unknown, 0, "{work}");
    }
    let decided: i64 = one(&mut session, "SELECT count(*) FROM fdw_xacts.decision")?;
    assert_eq!(decided, 4);
    assert_settled(&fleet);
    Ok(())
}
