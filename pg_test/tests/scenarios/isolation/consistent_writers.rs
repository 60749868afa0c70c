//! With consistent reads: statements that change rows of several servers, and statements in
//! savepoints.

use pg_test::oracle::{assert_settled, one};
use pg_test::wait_until;

use super::consistent::{session, start};
use crate::support::{Outcome, in_background};

const SUM: &str = "SELECT sum(money)::int8 FROM account";

/// What is changed or locked is taken in its newest version. Red where such a statement began
/// REPEATABLE READ transactions because it names several servers: 40001.
#[test]
fn a_statement_of_several_servers_goes_on_with_the_new_version() -> Outcome {
    let fleet = start()?;
    fleet.session()?.batch_execute(
        "CREATE FUNCTION one() RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN 1; END'",
    )?;
    let (mut a, mut b) = (session(&fleet, "on")?, session(&fleet, "off")?);
    let (mut expected, mut holder) = (10, fleet.shard(1).client()?);
    for (statement, adds) in [
        ("UPDATE account SET money = money + 1 WHERE id = 1", 1),
        ("UPDATE account SET money = money + one() WHERE id = 1", 1),
        ("SELECT * FROM account WHERE id = 1 FOR UPDATE", 0),
        ("UPDATE account1 SET money = money + (SELECT min(part) FROM account) WHERE id = 1", 1),
    ] {
        for begin in ["BEGIN", "BEGIN; SELECT sum(money) FROM account"] {
            a.batch_execute(begin)?;
            b.batch_execute("BEGIN; UPDATE account1 SET money = money + 5 WHERE id = 1")?;
            let waiting = in_background(a, statement);
            wait_until("the statement waits for the row", pg_test::DEADLINE, || {
                Ok(one::<i64>(&mut holder, "SELECT count(*) FROM pg_locks WHERE NOT granted")? > 0)
            })?;
            b.batch_execute("COMMIT")?;
            let (session, result) = waiting.join();
            result.unwrap_or_else(|error| panic!("{begin}; {statement}: {error}"));
            a = session;
            expected += 5 + adds;
            let money = "SELECT money FROM account1 WHERE id = 1";
            assert_eq!(one::<i64>(&mut a, money)?, expected, "{begin}; {statement}");
            // The transaction goes on as it began.
            let before = one::<i64>(&mut a, SUM)?;
            b.batch_execute("UPDATE account SET money = money + 1 WHERE id = 2")?;
            assert_eq!(one::<i64>(&mut a, SUM)?, before + 3, "{begin}; {statement}");
            a.batch_execute("COMMIT")?;
        }
    }
    assert_settled(&fleet);
    Ok(())
}

/// Red where a transaction with a savepoint was not begun again: the second query showed what the
/// first did, and one that read another server, too, was refused with 40001.
#[test]
fn a_statement_in_a_savepoint_has_a_cut_of_its_own() -> Outcome {
    let fleet = start()?;
    let (mut reader, mut writer) = (session(&fleet, "on")?, session(&fleet, "off")?);
    let everything = "UPDATE account SET money = money + 1 WHERE id = 1";
    for savepoints in ["SAVEPOINT a", "SAVEPOINT a; SELECT sum(money) FROM account1; SAVEPOINT b"] {
        reader.batch_execute(&format!("BEGIN; {savepoints}"))?;
        let first = one::<i64>(&mut reader, "SELECT sum(money)::int8 FROM account1")?;
        writer.batch_execute(everything)?;
        let before = one::<i64>(&mut reader, SUM)?;
        writer.batch_execute(everything)?;
        assert_eq!(one::<i64>(&mut reader, "SELECT sum(money)::int8 FROM account1")?, first + 2);
        assert_eq!(one::<i64>(&mut reader, SUM)?, before + 3, "{savepoints}");
        reader.batch_execute("ROLLBACK TO a")?;
        writer.batch_execute(everything)?;
        assert_eq!(one::<i64>(&mut reader, SUM)?, before + 6, "{savepoints}");
        reader.batch_execute("UPDATE mine1 SET n = n + 1 WHERE id = 1; RELEASE a")?;
        assert_eq!(one::<i64>(&mut reader, SUM)?, before + 6, "{savepoints}");
        reader.batch_execute("COMMIT")?;
    }
    assert_eq!(one::<i64>(&mut reader, "SELECT n::int8 FROM mine1 WHERE id = 1")?, 2);
    assert_settled(&fleet);
    Ok(())
}
