//! `use_remote_estimate`: the planner's own connections and ours, in one backend, never wait for
//! each other.

use pg_test::oracle::{assert_settled, expect_error, one, prepared_gids};
use pg_test::{DEADLINE, Fleet, wait_until};
use postgres::Client;

use crate::support::{Background, Outcome, in_background};

/// Shards that are asked for estimates.
fn start() -> anyhow::Result<(Fleet, Client)> {
    let fleet = Fleet::start()?;
    let mut session = fleet.session()?;
    session.batch_execute(
        "ALTER SERVER shard1 OPTIONS (ADD use_remote_estimate 'true');
         ALTER SERVER shard2 OPTIONS (ADD use_remote_estimate 'true')",
    )?;
    for number in [1, 2] {
        // Writing `trouble` locks `t`, as a statement's own locks cannot tell.
        fleet.shard(number).client()?.batch_execute(
            "CREATE TABLE trouble (id int);
             CREATE FUNCTION lock_t() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN LOCK TABLE public.t IN ACCESS EXCLUSIVE MODE; RETURN NEW; END $$;
             CREATE TRIGGER lock_t BEFORE INSERT ON trouble FOR EACH ROW EXECUTE FUNCTION lock_t()",
        )?;
    }
    session.batch_execute(
        "CREATE FOREIGN TABLE trouble (id int) SERVER shard1 OPTIONS (use_remote_estimate 'false')",
    )?;
    Ok((fleet, session))
}

/// A foreign table `stock_t` for `t` of shard 2, under postgres_fdw's own handler.
fn create_stock_table(fleet: &Fleet, session: &mut Client) -> Outcome {
    let port = fleet.shard(2).port();
    session.batch_execute(&format!(
        "CREATE SERVER stock FOREIGN DATA WRAPPER postgres_fdw
             OPTIONS (host '127.0.0.1', port '{port}', dbname 'postgres');
         CREATE USER MAPPING FOR CURRENT_USER SERVER stock OPTIONS (user 'postgres', password_required 'false');
         CREATE FOREIGN TABLE stock_t (id int, v text) SERVER stock OPTIONS (table_name 't')"
    ))?;
    Ok(())
}

/// Waits for the end of a statement that must not hang.
fn ended(statement: Background) -> anyhow::Result<(Client, Result<(), postgres::Error>)> {
    wait_until("the statement ends", DEADLINE, || Ok(statement.is_finished()))?;
    Ok(statement.join())
}

#[test]
fn a_transaction_planned_with_estimates_commits_atomically() -> Outcome {
    let (fleet, mut session) = start()?;
    session.batch_execute(
        "BEGIN; INSERT INTO ft1 VALUES (1, 'a'); INSERT INTO ft2 VALUES (1, 'a');
         UPDATE ft1 SET v = 'b' WHERE id IN (SELECT id FROM ft2); COMMIT",
    )?;
    assert_eq!(one::<String>(&mut session, "SELECT v FROM ft1")?, "b");
    assert_settled(&fleet);
    Ok(())
}

#[test]
fn prepare_transaction_works_after_planning_with_estimates() -> Outcome {
    let (fleet, mut session) = start()?;
    for round in 1..3 {
        session.batch_execute(&format!(
            "BEGIN; INSERT INTO ft1 VALUES ({round}, 'a'); INSERT INTO ft2 SELECT id, v FROM ft1 WHERE id = {round};
             SAVEPOINT s; EXPLAIN SELECT * FROM ft1 JOIN ft2 USING (id); RELEASE s;
             PREPARE TRANSACTION 'both'"
        ))?;
        assert_eq!(prepared_gids(fleet.shard(1))?.len(), 1);
        assert_eq!(prepared_gids(fleet.shard(2))?.len(), 1);
        session.batch_execute("COMMIT PREPARED 'both'")?;
        assert_eq!(one::<i64>(&mut session, "SELECT count(*) FROM ft2")?, round);
    }
    assert_settled(&fleet);
    Ok(())
}

#[test]
fn a_failed_transaction_is_rolled_back_by_prepare() -> Outcome {
    let (fleet, mut session) = start()?;
    session.batch_execute("BEGIN; INSERT INTO ft1 VALUES (1, 'a')")?;
    session.batch_execute("EXPLAIN SELECT * FROM ft1")?;
    expect_error(session.batch_execute("SELECT 1 / 0"), "22012");
    session.batch_execute("PREPARE TRANSACTION 'none'")?;
    assert_eq!(one::<i64>(&mut session, "SELECT count(*) FROM ft1")?, 0);
    assert_settled(&fleet);
    Ok(())
}

#[test]
fn what_waits_for_the_planners_locks_gets_them() -> Outcome {
    let (fleet, mut session) = start()?;
    session.batch_execute("BEGIN; EXPLAIN SELECT * FROM ft1")?;
    let (mut session, result) = ended(in_background(session, "INSERT INTO trouble VALUES (1)"))?;
    result?;
    session.batch_execute("COMMIT")?;
    assert_settled(&fleet);
    Ok(())
}

#[test]
fn truncate_gets_its_lock_after_planning_with_estimates() -> Outcome {
    let (fleet, mut session) = start()?;
    session.batch_execute("SET deadlock_timeout = '1h'; INSERT INTO ft1 VALUES (1, 'a')")?;
    session.batch_execute("BEGIN; EXPLAIN SELECT * FROM ft1")?;
    let (mut session, result) = ended(in_background(session, "TRUNCATE ft1"))?;
    result?;
    // Now it is the planner that would wait.
    expect_error(session.batch_execute("EXPLAIN SELECT * FROM ft1"), "55000");
    session.batch_execute("ROLLBACK")?;
    assert_eq!(one::<i64>(&mut session, "SELECT count(*) FROM ft1")?, 1);
    assert_settled(&fleet);
    Ok(())
}

#[test]
fn estimates_that_would_wait_for_our_own_locks_are_refused() -> Outcome {
    let (fleet, mut session) = start()?;
    session.batch_execute("BEGIN; INSERT INTO trouble VALUES (1); SAVEPOINT s")?;
    let (mut session, result) = ended(in_background(session, "EXPLAIN SELECT * FROM ft1"))?;
    let error = expect_error(result, "55000");
    assert!(error.hint().is_some_and(|hint| hint.contains("use_remote_estimate 'false'")));
    // Other servers are not concerned.
    session.batch_execute("ROLLBACK TO s; INSERT INTO ft2 VALUES (1, 'a'); COMMIT")?;
    session.batch_execute("SELECT * FROM ft1")?;
    assert_settled(&fleet);
    Ok(())
}

/// It would commit what postgres_fdw's handler has written.
#[test]
fn where_postgres_fdw_is_in_use_too_its_transactions_are_left_alone() -> Outcome {
    let (fleet, mut session) = start()?;
    create_stock_table(&fleet, &mut session)?;
    session.batch_execute(
        "BEGIN; INSERT INTO stock_t VALUES (9, 'x'); INSERT INTO ft1 SELECT * FROM ft1",
    )?;
    expect_error(session.batch_execute("PREPARE TRANSACTION 'both'"), "55000");
    session.batch_execute("ROLLBACK")?;
    // A server that is dropped in the transaction that wrote there counts as well.
    session.batch_execute(
        "BEGIN; INSERT INTO stock_t VALUES (9, 'x'); INSERT INTO ft1 SELECT * FROM ft1; DROP SERVER stock CASCADE",
    )?;
    expect_error(session.batch_execute("PREPARE TRANSACTION 'both'"), "55000");
    session.batch_execute("ROLLBACK")?;
    let left: i64 = one(&mut fleet.shard(2).client()?, "SELECT count(*) FROM t")?;
    assert_eq!(left, 0);
    session.batch_execute("DROP SERVER stock CASCADE; BEGIN; INSERT INTO ft1 VALUES (9, 'x'); PREPARE TRANSACTION 'one'")?;
    session.batch_execute("ROLLBACK PREPARED 'one'")?;
    assert_settled(&fleet);
    Ok(())
}

/// The catalog says that nobody uses postgres_fdw, but this transaction has.
#[test]
fn a_switch_by_another_session_commits_nothing_early() -> Outcome {
    let (fleet, mut session) = start()?;
    create_stock_table(&fleet, &mut session)?;
    session.batch_execute("BEGIN; INSERT INTO stock_t VALUES (9, 'x')")?;
    fleet.session()?.batch_execute(
        "ALTER FOREIGN DATA WRAPPER postgres_fdw
             HANDLER pg_fdw_xacts_handler VALIDATOR pg_fdw_xacts_validator",
    )?;
    session.batch_execute("EXPLAIN SELECT * FROM ft2")?;
    expect_error(session.batch_execute("TRUNCATE ft2"), "55000");
    session.batch_execute("ROLLBACK")?;
    let left: i64 = one(&mut fleet.shard(2).client()?, "SELECT count(*) FROM t")?;
    assert_eq!(left, 0);
    // The next transaction sees the change.
    session.batch_execute("BEGIN; EXPLAIN SELECT * FROM ft2; TRUNCATE ft2; COMMIT")?;
    assert_settled(&fleet);
    Ok(())
}

#[test]
fn a_command_of_the_user_does_not_wait_for_the_planner_either() -> Outcome {
    let (fleet, mut session) = start()?;
    let alter = "SELECT pg_fdw_xacts_exec('shard1', 'ALTER TABLE t ADD COLUMN extra int')";
    session.batch_execute("BEGIN; INSERT INTO ft2 VALUES (1, 'a'); SELECT * FROM ft1")?;
    let (mut session, result) = ended(in_background(session, alter))?;
    result?;
    session.batch_execute("SAVEPOINT a")?;
    let error = expect_error(session.batch_execute("SELECT * FROM ft1"), "55000");
    assert!(error.message().starts_with("cannot ask for estimates"), "{error:?}");
    session.batch_execute("ROLLBACK TO a; COMMIT")?;
    assert_eq!(fleet.ids_on_shard(2)?, [1]);
    // Where the planner's transaction cannot be ended, the command is refused, and a query is not.
    create_stock_table(&fleet, &mut session)?;
    session
        .batch_execute("BEGIN; SELECT * FROM ft1; SELECT pg_fdw_xacts_exec('shard1', 'TABLE t')")?;
    let drop = "SELECT pg_fdw_xacts_exec('shard1', 'ALTER TABLE t DROP COLUMN extra')";
    let error = expect_error(session.batch_execute(drop), "55000");
    assert!(error.message().starts_with("cannot lock remote tables exclusively"), "{error:?}");
    session.batch_execute("ROLLBACK")?;
    assert_settled(&fleet);
    Ok(())
}
