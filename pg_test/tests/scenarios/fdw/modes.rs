//! READ ONLY and DEFERRABLE of the coordinator's transaction, which its shards are given from
//! PostgreSQL 19 on.

use pg_test::oracle::{assert_settled, assert_usable, expect_error, one};
use pg_test::{Fleet, Installation};
use postgres::Client;

use crate::support::{NONE, Outcome, start};

/// A foreign table that shows the modes of the shard's transaction, and whether they are passed on.
fn start_with_modes() -> anyhow::Result<(Fleet, Client, bool)> {
    let (fleet, mut session) = start()?;
    fleet.shard(1).client()?.batch_execute(
        "CREATE VIEW modes AS SELECT concat_ws(' ', current_setting('transaction_read_only'),
             current_setting('transaction_deferrable')) AS set;
         CREATE FUNCTION write(i int) RETURNS int LANGUAGE sql AS
             'INSERT INTO t VALUES ($1) RETURNING id'",
    )?;
    session.batch_execute("CREATE FOREIGN TABLE modes (set text) SERVER shard1")?;
    let passed_on = Installation::from_env()?.major() >= 19;
    Ok((fleet, session, passed_on))
}

/// Before 19 the shard's transaction is neither.
#[test]
fn the_modes_of_a_transaction_are_passed_on() -> Outcome {
    let (fleet, mut session, passed_on) = start_with_modes()?;
    let mut check = |statements: &str, expected: &str| -> Outcome {
        session.batch_execute(statements)?;
        let expected = if passed_on { expected } else { "off off" };
        assert_eq!(one::<String>(&mut session, "SELECT set FROM modes")?, expected, "{statements}");
        Ok(())
    };
    check("BEGIN READ ONLY", "on off")?;
    check("SAVEPOINT a", "on off")?;
    check("COMMIT; BEGIN", "off off")?;
    check("SET TRANSACTION READ ONLY", "on off")?;
    check("SAVEPOINT a", "on off")?;
    check("ROLLBACK TO a", "on off")?;
    check("COMMIT; BEGIN; SAVEPOINT a; SET TRANSACTION READ ONLY", "on off")?;
    check("SAVEPOINT b", "on off")?;
    check("RELEASE a", "off off")?;
    check("SAVEPOINT a", "off off")?;
    check("SET TRANSACTION READ ONLY", "on off")?;
    check("ROLLBACK TO a", "off off")?;
    check("SAVEPOINT b; SET TRANSACTION READ ONLY; SAVEPOINT c", "on off")?;
    check("ROLLBACK TO b", "off off")?;
    check("COMMIT; BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY DEFERRABLE", "on on")?;
    check("COMMIT; BEGIN ISOLATION LEVEL SERIALIZABLE DEFERRABLE", "off on")?;
    check("COMMIT", "off off")?;
    assert_settled(&fleet);
    Ok(())
}

/// What a READ ONLY transaction only selects from writes nothing on the shard either.
#[test]
fn a_function_of_the_shard_writes_in_no_read_only_transaction() -> Outcome {
    let (fleet, mut session, passed_on) = start_with_modes()?;
    let write = "SELECT pg_fdw_xacts_exec('shard1', 'SELECT write(7)')";
    for begin in ["BEGIN READ ONLY", "BEGIN; INSERT INTO ft1 VALUES (1); SET TRANSACTION READ ONLY"]
    {
        session.batch_execute(begin)?;
        if passed_on {
            expect_error(session.batch_execute(write), "25006");
        } else {
            session.batch_execute(write)?;
        }
        session.batch_execute("ROLLBACK")?;
        assert_eq!(fleet.ids_on_shard(1)?, NONE);
        assert_usable(&mut session);
    }
    Ok(())
}
