//! Statements that a shard does not parse again.

use pg_test::Fleet;
use pg_test::oracle::{assert_settled, one};

use crate::support::Outcome;

/// A statement that is repeated in a transaction is not parsed again, so that its parameters keep
/// the types that were found first. They are others once the table was changed there.
#[test]
fn a_statement_is_parsed_again_when_its_table_was_changed() -> Outcome {
    let fleet = Fleet::start()?;
    let mut shard = fleet.shard(1).client()?;
    shard.batch_execute("CREATE TABLE times (id int, at timestamp)")?;
    let mut session = fleet.session()?;
    session.batch_execute(
        "CREATE FOREIGN TABLE times (id int, at text) SERVER shard1;
         CREATE FUNCTION put(id int) RETURNS void LANGUAGE sql
             AS $$INSERT INTO times VALUES (id, '2026-01-01 00:00:00+05')$$",
    )?;
    let change = "SELECT pg_fdw_xacts_exec('shard1',
        'ALTER TABLE times ALTER at TYPE timestamptz USING ''2026-01-01 00:00:00+00''')";
    session.batch_execute(&format!(
        "BEGIN; SELECT put(1), put(2); SAVEPOINT a; {change}; SELECT put(3), put(4);
         ROLLBACK TO a; SELECT put(5); {change}; SELECT put(6); COMMIT"
    ))?;
    let mut seen = |id: i32| -> anyhow::Result<String> {
        one(&mut shard, &format!("SELECT (at AT TIME ZONE 'UTC')::text FROM times WHERE id = {id}"))
    };
    for id in [1, 2, 5] {
        assert_eq!(seen(id)?, "2026-01-01 00:00:00", "{id}");
    }
    assert_eq!(seen(6)?, "2025-12-31 19:00:00");
    session.batch_execute("SELECT put(7), put(8)")?;
    assert_eq!(seen(8)?, "2025-12-31 19:00:00");
    assert_settled(&fleet);
    Ok(())
}
