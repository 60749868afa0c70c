//! What commands run by `pg_fdw_xacts_exec()` leave in the session of a shard, where nobody sees
//! it: it ends with the transaction.

use pg_test::oracle::{assert_settled, expect_error, one};
use pg_test::{Fleet, FleetOptions, Installation, Point};
use postgres::Client;

use crate::support::{Outcome, commit_held_at, start};

/// Runs `command` on shard 1.
fn exec(session: &mut Client, command: &str) -> Result<i64, postgres::Error> {
    Ok(session.query_one("SELECT pg_fdw_xacts_exec('shard1', $1)", &[&command])?.get(0))
}

/// The only value of `query` on shard 1.
fn query(session: &mut Client, query: &str) -> anyhow::Result<String> {
    one(session, &format!("SELECT v FROM pg_fdw_xacts_query('shard1', $q${query}$q$) AS (v text)"))
}

#[test]
fn settings_that_a_block_leaves_are_not_met_by_the_next_transaction() -> Outcome {
    let (fleet, mut session) = start()?;
    session.batch_execute("INSERT INTO ft1 VALUES (1), (2)")?;
    fleet.shard(1).client()?.batch_execute(
        "CREATE SCHEMA evil;
         CREATE FUNCTION evil.eq(int, int) RETURNS bool LANGUAGE sql AS 'SELECT true';
         CREATE OPERATOR evil.= (leftarg = int, rightarg = int, function = evil.eq)",
    )?;
    const COUNT: &str = "SELECT count(*) FROM ft1 WHERE id = 1";
    let leave = |name: &str, value: &str| {
        format!("DO $$ BEGIN PERFORM set_config('{name}', '{value}', false); END $$")
    };
    let path = leave("search_path", "evil, pg_catalog");
    exec(&mut session, &path)?;
    assert_eq!(one::<i64>(&mut session, COUNT)?, 1);
    // In its own transaction too, and in a savepoint that is kept.
    session.batch_execute("BEGIN; SAVEPOINT a")?;
    exec(&mut session, &path)?;
    session.batch_execute("RELEASE a")?;
    assert_eq!(one::<i64>(&mut session, COUNT)?, 1);
    session.batch_execute("INSERT INTO ft1 VALUES (3); INSERT INTO ft2 VALUES (3); COMMIT")?;
    assert_eq!(one::<i64>(&mut session, COUNT)?, 1);
    for (name, value) in
        [("statement_timeout", "1234"), ("lock_timeout", "77"), ("px.search_path", "=evil")]
    {
        exec(&mut session, &leave(name, value))?;
        let left =
            query(&mut session, &format!("SELECT coalesce(current_setting('{name}', true), '')"))?;
        assert_ne!(left, value, "{name}");
        assert_ne!(query(&mut session, "SHOW search_path")?, "evil", "{name}");
    }
    assert_settled(&fleet);
    Ok(())
}

/// With the decision delivered without a wait, and in a transaction of the application's, too.
#[test]
fn the_session_ends_with_the_transaction() -> Outcome {
    const PID: &str = "SELECT pg_backend_pid()";
    let (fleet, mut session) = start()?;
    for (id, end) in (1..).zip([
        "COMMIT",
        "ROLLBACK",
        "SET LOCAL pg_fdw_xacts.commit_wait = off; COMMIT",
        "PREPARE TRANSACTION 'x'; COMMIT PREPARED 'x'",
    ]) {
        session.batch_execute(&format!("BEGIN; INSERT INTO ft2 VALUES ({id})"))?;
        let (first, second) = (query(&mut session, PID)?, query(&mut session, PID)?);
        assert_eq!(first, second, "one transaction, one session");
        exec(&mut session, &format!("INSERT INTO t VALUES ({id})"))?;
        for statement in end.split("; ") {
            session.batch_execute(statement)?;
        }
        assert_ne!(query(&mut session, PID)?, first, "{end}");
        assert_settled(&fleet);
    }
    assert_eq!(fleet.ids_on_shard(1)?, [1, 3, 4]);
    Ok(())
}

#[test]
fn the_lock_of_the_session_is_held_at_prepare_even_if_a_block_has_released_it() -> Outcome {
    const LOCKS: &str =
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ShareLock'
        AND pid = (SELECT pid FROM pg_stat_activity WHERE application_name = 'postgres_fdw')";
    let fleet = Fleet::start_with(&FleetOptions { proxied: true, ..FleetOptions::default() })?;
    let mut session = fleet.session()?;
    let mut shard = fleet.shard(1).client()?;
    // With the owner lock it is two. The first transaction of a server may take it only when it prepares.
    session.batch_execute(
        "BEGIN; INSERT INTO ft1 VALUES (1); INSERT INTO ft2 VALUES (1); COMMIT;
         BEGIN; INSERT INTO ft1 VALUES (2); INSERT INTO ft2 VALUES (2)",
    )?;
    assert_eq!(one::<i64>(&mut shard, LOCKS)?, 2);
    exec(&mut session, "DO $$ BEGIN PERFORM pg_advisory_unlock_all(); END $$")?;
    assert_eq!(one::<i64>(&mut shard, LOCKS)?, 0);
    let (commit, hit) =
        commit_held_at(&fleet, session, 1, Point::Statement, "PREPARE TRANSACTION")?;
    assert_eq!(one::<i64>(&mut shard, LOCKS)?, 2);
    hit.release();
    commit.join().1?;
    assert_eq!(fleet.ids_on_shard(1)?, [1, 2]);
    assert_settled(&fleet);
    Ok(())
}

#[test]
fn what_values_are_read_by_stays_as_it_is() -> Outcome {
    let (_fleet, mut session) = start()?;
    for (name, value) in
        [("array_nulls", "off"), ("lc_monetary", "C"), ("standard_conforming_strings", "off")]
    {
        // Whatever it is, it is another one.
        let other = format!("SET LOCAL {name} = '{value}'");
        let message = format!("cannot set \"{name}\" on server \"shard1\"");
        assert_eq!(expect_error(exec(&mut session, &other), "0A000").message(), message);
        if query(&mut session, &format!("SHOW {name}"))? != value {
            let block = format!("DO $$ BEGIN {other}; END $$");
            let refused = expect_error(exec(&mut session, &block), "0A000");
            // From 19 on the shard itself refuses this one.
            if name != "standard_conforming_strings" || Installation::from_env()?.major() < 19 {
                assert_eq!(refused.message(), message);
            }
        }
    }
    Ok(())
}

/// Each call has memory of its own, and gives it back while the query goes on.
#[test]
fn many_calls_in_a_query_take_no_memory_together() -> Outcome {
    let (_fleet, mut session) = start()?;
    session.batch_execute(
        "BEGIN;
         DECLARE calls CURSOR FOR SELECT a FROM generate_series(1, 60) g,
             LATERAL pg_fdw_xacts_query('shard1', 'SELECT ' || g) AS q (a int);
         FETCH 50 FROM calls",
    )?;
    let used: i64 = one(
        &mut session,
        "SELECT count(*) FROM pg_backend_memory_contexts WHERE name LIKE 'pg_fdw_xacts%'",
    )?;
    assert!(used < 10, "{used} memory contexts");
    session.batch_execute("COMMIT")?;
    Ok(())
}

/// At COMMIT they run with the `search_path` of foreign tables, in the command that asks for them
/// with the role's.
#[test]
fn deferred_triggers_find_names_where_they_are_made_immediate() -> Outcome {
    let (fleet, mut session) = start()?;
    exec(
        &mut session,
        "CREATE TABLE d (id int);
         CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS
             'BEGIN PERFORM count(*) FROM d; RETURN NULL; END';
         CREATE CONSTRAINT TRIGGER looks AFTER INSERT ON d DEFERRABLE INITIALLY DEFERRED
             FOR EACH ROW EXECUTE FUNCTION look()",
    )?;
    expect_error(exec(&mut session, "INSERT INTO d VALUES (1)"), "42P01");
    exec(&mut session, "INSERT INTO d VALUES (2); SET CONSTRAINTS ALL IMMEDIATE")?;
    assert_eq!(one::<i64>(&mut fleet.shard(1).client()?, "SELECT sum(id) FROM d")?, 2);
    assert_settled(&fleet);
    Ok(())
}
