//! The advisory lock by which a session of the coordinator shows on a shard that it can still
//! prepare: without it nothing is prepared.

use pg_test::Fleet;
use pg_test::oracle::{assert_settled, expect_error, prepared_gids};

use crate::support::{Outcome, assert_commits, transaction};

/// `pg_advisory_unlock_all()` in a trigger on both shards, immediate or deferred to the commit.
fn start(timing: &str) -> anyhow::Result<Fleet> {
    let fleet = Fleet::start()?;
    for shard in fleet.shards() {
        shard.client()?.batch_execute(&format!(
            "CREATE FUNCTION let_go() RETURNS trigger LANGUAGE plpgsql AS
                 'BEGIN PERFORM pg_advisory_unlock_all(); RETURN NULL; END';
             CREATE CONSTRAINT TRIGGER let_go AFTER INSERT ON t {timing}
                 FOR EACH ROW WHEN (new.id < 100) EXECUTE FUNCTION let_go()"
        ))?;
    }
    Ok(fleet)
}

/// Red on 0.2.0, which sent PREPARE from a session that nobody could see any more.
#[test]
fn a_session_whose_lock_a_trigger_has_released_does_not_prepare() -> Outcome {
    for timing in ["NOT DEFERRABLE", "DEFERRABLE INITIALLY DEFERRED"] {
        let fleet = start(timing)?;
        let mut session = fleet.session()?;
        // From now on a session has its lock from its first statement on.
        assert_commits(&fleet, &mut session, 100)?;
        for id in [1, 2] {
            let insert = |table: &str| format!("INSERT INTO {table} VALUES ({id})");
            let mark = fleet.shard(1).log().mark()?;
            let own = fleet.coordinator.log().mark()?;
            let ended = transaction(&mut session, &[&insert("ft1"), &insert("ft2")]);
            let error = expect_error(ended, "55000");
            assert!(error.message().contains("advisory lock"), "{error:#?}");
            assert!(error.hint().is_some_and(|hint| hint.contains("pg_advisory_unlock_all")));
            // Skipped, not refused: the shard has never executed it.
            let statements = fleet.shard(1).log().statements_since(mark)?;
            assert!(!statements.iter().any(|s| s.starts_with("PREPARE TRANSACTION")), "{timing}");
            assert_eq!(prepared_gids(fleet.shard(1))?, [] as [&str; 0]);
            assert_settled(&fleet);
            // Nor is any of it left to the resolver.
            assert!(!fleet.coordinator.log().since(own)?.contains("has not confirmed"));
            assert_eq!((fleet.ids_on_shard(1)?, fleet.ids_on_shard(2)?), (vec![100], vec![100]));
        }
        // The next transaction has a session that holds it.
        assert_commits(&fleet, &mut session, 101)?;
        assert_commits(&fleet, &mut session, 102)?;
        assert_settled(&fleet);
    }
    Ok(())
}

/// What a deferred constraint finds is reported as before, and costs no connection.
#[test]
fn a_deferred_constraint_that_fails_keeps_the_connection() -> Outcome {
    let fleet = Fleet::start()?;
    fleet.shard(2).client()?.batch_execute(
        "CREATE TABLE d (id int UNIQUE DEFERRABLE INITIALLY DEFERRED); INSERT INTO d VALUES (1)",
    )?;
    let mut session = fleet.session()?;
    session
        .batch_execute("CREATE FOREIGN TABLE d (id int) SERVER shard2 OPTIONS (table_name 'd')")?;
    let backend = |fleet: &Fleet| -> anyhow::Result<Vec<i32>> {
        let rows = fleet.shard(2).client()?.query(
            "SELECT pid FROM pg_stat_activity
             WHERE backend_type = 'client backend' AND application_name = 'postgres_fdw'
             ORDER BY pid",
            &[],
        )?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    };
    session.batch_execute("SELECT * FROM ft2")?;
    let before = backend(&fleet)?;
    for _ in 0..2 {
        let ended =
            transaction(&mut session, &["INSERT INTO ft1 VALUES (1)", "INSERT INTO d VALUES (1)"]);
        let error = expect_error(ended, "23505");
        assert!(error.where_().is_some_and(|w| w.contains("shard2")), "{error:#?}");
    }
    assert_settled(&fleet);
    assert_eq!(backend(&fleet)?, before);
    assert_eq!(fleet.ids_on_shard(1)?, [] as [i32; 0]);
    Ok(())
}
