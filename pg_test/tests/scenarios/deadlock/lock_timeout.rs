//! The application's `lock_timeout` holds on the shards.

use std::time::Instant;

use pg_test::DEADLINE;
use pg_test::oracle::{expect_error, one};
use postgres::Client;

use super::{session_that, start};
use crate::support::Outcome;

const UPDATE: &str = "UPDATE ft1 SET v = 'b' WHERE id = 1";

/// What the shard's session has, by its own word.
fn there(session: &mut Client) -> anyhow::Result<String> {
    one(
        session,
        "SELECT s FROM pg_fdw_xacts_query('shard1', 'SELECT current_setting(''lock_timeout'')') AS q (s text)",
    )
}

/// Red before: all of these waited until the holder ended.
#[test]
fn it_ends_a_wait_wherever_it_was_set() -> Outcome {
    let fleet = start()?;
    let _holder = session_that(&fleet, "UPDATE ft1 SET v = 'a' WHERE id = 1")?;
    for before in [
        "SET lock_timeout = '700ms'; BEGIN",
        "BEGIN; SET LOCAL lock_timeout = '700ms'",
        // After the remote transaction has begun.
        "BEGIN; SELECT FROM ft1; SET LOCAL lock_timeout = '700ms'",
        "BEGIN; SELECT FROM ft1; SAVEPOINT s; SET LOCAL lock_timeout = '700ms'; SELECT FROM ft1",
        // Set outside of the savepoint that is rolled back, sent inside.
        "BEGIN; SELECT FROM ft1; SET LOCAL lock_timeout = '700ms';
         SAVEPOINT s; SELECT FROM ft1; ROLLBACK TO s",
    ] {
        let mut session = fleet.session()?;
        session.batch_execute("SET statement_timeout = '10min'")?;
        session.batch_execute(before)?;
        let begin = Instant::now();
        expect_error(session.batch_execute(UPDATE), "55P03");
        assert!(begin.elapsed() < DEADLINE, "{before}: {:?}", begin.elapsed());
        session.batch_execute("ROLLBACK")?;
    }
    Ok(())
}

#[test]
fn where_none_is_set_the_shards_own_counts() -> Outcome {
    let fleet = start()?;
    fleet
        .session()?
        .batch_execute("ALTER SERVER shard1 OPTIONS (ADD options '-c lock_timeout=9s')")?;
    let mut session = fleet.session()?;
    assert_eq!(there(&mut session)?, "9s");
    session.batch_execute("SET lock_timeout = '7s'")?;
    assert_eq!(there(&mut session)?, "7s");
    session.batch_execute("BEGIN; SELECT FROM ft1; SET LOCAL lock_timeout = '5s'")?;
    assert_eq!(there(&mut session)?, "5s");
    session.batch_execute("SAVEPOINT s; SET LOCAL lock_timeout = '4s'")?;
    assert_eq!(there(&mut session)?, "4s");
    session.batch_execute("ROLLBACK TO s")?;
    assert_eq!(there(&mut session)?, "5s");
    session.batch_execute("COMMIT")?;
    assert_eq!(there(&mut session)?, "7s");
    session.batch_execute("RESET lock_timeout")?;
    assert_eq!(there(&mut session)?, "9s");
    Ok(())
}

/// It travels with a statement, once per connection, and never has a message of its own.
#[test]
fn it_costs_a_command_per_connection() -> Outcome {
    let fleet = start()?;
    let mut session = fleet.session()?;
    session.batch_execute("SET lock_timeout = '7s'")?;
    let mark = fleet.shard(1).log().mark()?;
    for id in 100..110 {
        session.batch_execute(&format!("INSERT INTO ft1 VALUES ({id}, 'x')"))?;
    }
    let statements = fleet.shard(1).log().statements_since(mark)?;
    let sent = statements.iter().filter(|s| s.contains("lock_timeout")).count();
    assert_eq!(sent, 1, "{statements:#?}");
    Ok(())
}
