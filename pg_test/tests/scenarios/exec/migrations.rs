//! A migration of all shards with `pg_fdw_xacts_exec()` is everywhere or nowhere.

use pg_test::oracle::{assert_settled, assert_usable, expect_error, one, prepared_gids};
use pg_test::{Fleet, FleetOptions, Point};
use postgres::Client;

use crate::support::{Outcome, commit_held_at};

/// Three shards and the migration of their table, with that of the foreign tables, in a transaction
/// that is open.
fn migration(proxied: bool) -> anyhow::Result<(Fleet, Client)> {
    let fleet = Fleet::start_with(&FleetOptions { shards: 3, proxied, ..FleetOptions::default() })?;
    let mut session = fleet.session()?;
    session.batch_execute("BEGIN")?;
    for number in 1..=3 {
        session.batch_execute(&format!(
            "SELECT pg_fdw_xacts_exec('shard{number}', 'ALTER TABLE t ADD COLUMN extra int DEFAULT {number}');
             ALTER FOREIGN TABLE ft{number} ADD COLUMN extra int"
        ))?;
    }
    session.batch_execute(
        "INSERT INTO ft1 VALUES (1, 'x', 10); INSERT INTO ft3 (id, v) VALUES (1, 'x')",
    )?;
    Ok((fleet, session))
}

/// The new column is on all shards and in all foreign tables, or in none of them.
fn assert_migrated(fleet: &Fleet, expected: bool) -> Outcome {
    const COLUMNS: &str = "SELECT count(*) FROM pg_attribute WHERE attname = 'extra'";
    let mut session = fleet.session()?;
    assert_eq!(one::<i64>(&mut session, COLUMNS)?, if expected { 3 } else { 0 });
    for shard in fleet.shards() {
        let found: i64 = one(&mut shard.client()?, COLUMNS)?;
        assert_eq!(found == 1, expected, "{}", shard.name());
    }
    let rows = if expected { vec![1] } else { vec![] };
    assert_eq!((fleet.ids_on_shard(1)?, fleet.ids_on_shard(3)?), (rows.clone(), rows));
    if expected {
        let sum: i64 = one(
            &mut session,
            "SELECT sum(extra) FROM (SELECT * FROM ft1 UNION ALL SELECT * FROM ft2 UNION ALL SELECT * FROM ft3) t",
        )?;
        assert_eq!(sum, 10);
    }
    Ok(())
}

#[test]
fn a_migration_of_three_shards_commits_everywhere() -> Outcome {
    let (fleet, mut session) = migration(false)?;
    session.batch_execute("COMMIT")?;
    assert_settled(&fleet);
    assert_migrated(&fleet, true)
}

#[test]
fn a_migration_of_three_shards_is_rolled_back_everywhere() -> Outcome {
    let (fleet, mut session) = migration(false)?;
    session.batch_execute("ROLLBACK")?;
    assert_settled(&fleet);
    assert_migrated(&fleet, false)
}

#[test]
fn a_migration_that_fails_on_one_shard_is_nowhere() -> Outcome {
    let (fleet, mut session) = migration(false)?;
    let twice = "SELECT pg_fdw_xacts_exec('shard2', 'ALTER TABLE t ADD COLUMN extra int')";
    let error = expect_error(session.batch_execute(twice), "42701");
    assert_eq!(error.where_(), Some("remote SQL command: ALTER TABLE t ADD COLUMN extra int"),);
    session.batch_execute("COMMIT")?;
    assert_usable(&mut session);
    assert_settled(&fleet);
    assert_migrated(&fleet, false)
}

#[test]
fn a_migration_over_a_crash_of_the_coordinator_is_everywhere_or_nowhere() -> Outcome {
    for (number, point, statement, committed) in [
        (2, Point::Statement, "PREPARE TRANSACTION", false),
        (1, Point::Answer, "PREPARE TRANSACTION", false),
        (3, Point::Statement, "COMMIT PREPARED", true),
    ] {
        let (mut fleet, session) = migration(true)?;
        let (commit, hit) = commit_held_at(&fleet, session, number, point, statement)?;
        fleet.coordinator.kill9()?;
        hit.release();
        assert!(commit.join().1.is_err(), "the client got an answer from a dead server");
        fleet.coordinator.start()?;
        assert_settled(&fleet);
        assert_migrated(&fleet, committed)?;
    }
    Ok(())
}

#[test]
fn a_migration_is_prepared_by_the_application_and_committed_later() -> Outcome {
    let (fleet, mut session) = migration(false)?;
    session.batch_execute("PREPARE TRANSACTION 'gxid'")?;
    assert_eq!(prepared_gids(fleet.shard(2))?.len(), 1);
    fleet.session()?.batch_execute("COMMIT PREPARED 'gxid'")?;
    assert_settled(&fleet);
    assert_migrated(&fleet, true)
}
