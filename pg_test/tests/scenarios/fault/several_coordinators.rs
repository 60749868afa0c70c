//! Several coordinators over the same shards, on which they have servers and users of the same
//! numbers: each settles its own transactions, also after one of them was lost and restored. What
//! holds for one coordinator only, as the book says, is shown here, too.

use pg_test::oracle::{expect_error, one, prepared_gids};
use pg_test::{Cluster, DEADLINE, Fault, Fleet, Point, wait_until};
use postgres::Client;

use crate::support::{
    NONE, Outcome, assert_commits, begin_everywhere, commit_held_at, in_background, wait_for_lock,
};

/// What the gids of a coordinator begin with.
fn prefix(coordinator: &Cluster) -> anyhow::Result<String> {
    let sql = "SELECT 'px_' || lpad(identity::text, 20, '0') FROM fdw_xacts.identity";
    one(&mut coordinator.client()?, sql)
}

/// Commits row `id` through `coordinator`, whose resolver has to deliver it, because the shards do
/// not hear of it.
fn commit_by_resolver(fleet: &Fleet, coordinator: &Cluster, id: i32) -> Outcome {
    let cuts = [1, 2]
        .map(|number| fleet.proxy(number).inject(Fault::cut(Point::Statement, "COMMIT PREPARED")));
    let mut session = coordinator.client()?;
    begin_everywhere(&mut session, id)?;
    session.batch_execute("COMMIT")?;
    for (number, cut) in [1, 2].into_iter().zip(cuts) {
        cut.wait()?;
        wait_until("the resolver has delivered", DEADLINE, || {
            Ok(fleet.ids_on_shard(number)?.contains(&id))
        })?;
    }
    Ok(())
}

/// The third has committed row 3, of which shard 1 has not heard, and dies while row 4 is being
/// prepared, which shard 2 does later. The other two work on and leave that alone. What is
/// restored from its backup and its archive settles it.
#[test]
fn what_a_lost_coordinator_has_left_is_settled_by_its_replacement_alone() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let second = fleet.another_coordinator("coordinator2", &[])?;
    let mut third = fleet.another_coordinator("coordinator3", &[])?;
    third.archive_wal()?;
    third.restart()?;
    third.base_backup()?;
    let numbers = "SELECT string_agg(srvname || oid, ' ' ORDER BY srvname) FROM pg_foreign_server";
    let numbers_at = |server: &Cluster| one::<String>(&mut server.client()?, numbers);
    assert_eq!(numbers_at(&fleet.coordinator)?, numbers_at(&third)?);
    assert_eq!(numbers_at(&second)?, numbers_at(&third)?);

    let (mut committed, mut dying) = (third.client()?, third.client()?);
    begin_everywhere(&mut committed, 3)?;
    begin_everywhere(&mut dying, 4)?;
    let (dying, late) = commit_held_at(&fleet, dying, 2, Point::Statement, "PREPARE TRANSACTION")?;
    wait_until("shard 1 has prepared", DEADLINE, || Ok(prepared_gids(fleet.shard(1))?.len() == 1))?;
    fleet.commit_undelivered(committed, 1)?;
    let prefix_of_third = prefix(&third)?;
    third.client()?.batch_execute("SELECT pg_create_restore_point('last')")?;
    third.finish_archiving()?;
    third.kill9()?;
    late.release();
    assert!(dying.join().1.is_err(), "an answer from a dead server");
    fleet.reconnect(1);

    for (number, count) in [(1, 2), (2, 1)] {
        wait_until("what the third has left is there", DEADLINE, || {
            Ok(prepared_gids(fleet.shard(number))?.len() == count)
        })?;
    }
    commit_by_resolver(&fleet, &fleet.coordinator, 1)?;
    commit_by_resolver(&fleet, &second, 2)?;
    for (number, count) in [(1, 2), (2, 1)] {
        let left = prepared_gids(fleet.shard(number))?;
        assert_eq!(left.len(), count, "shard {number}: {left:#?}");
        assert!(left.iter().all(|gid| gid.starts_with(&prefix_of_third)), "{left:#?}");
    }

    third.restore("last")?;
    for number in [1, 2] {
        wait_until("the replacement has settled", DEADLINE, || {
            Ok(prepared_gids(fleet.shard(number))?.is_empty())
        })?;
        assert_eq!(fleet.ids_on_shard(number)?, [1, 2, 3], "shard {number}");
    }
    assert_eq!(prefix(&third)?, prefix_of_third);
    assert_commits(&fleet, &mut fleet.session()?, 5)
}

/// A cycle through two coordinators is seen by neither; `lock_timeout` ends it. And the servers of
/// one read show the same transactions of its own coordinator only.
#[test]
fn what_one_coordinator_promises_ends_at_its_own_transactions() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let second = fleet.another_coordinator("coordinator2", &[])?;
    assert_commits(&fleet, &mut fleet.session()?, 1)?;
    let (mut here, mut there) = (fleet.session()?, second.client()?);
    here.batch_execute("BEGIN; UPDATE ft1 SET v = 'here' WHERE id = 1")?;
    there.batch_execute(
        "SET lock_timeout = '500ms'; BEGIN; UPDATE ft2 SET v = 'there' WHERE id = 1",
    )?;
    let here = in_background(here, "UPDATE ft2 SET v = 'here' WHERE id = 1");
    wait_for_lock(&fleet, 2)?;
    let gives_up = there.batch_execute("UPDATE ft1 SET v = 'there' WHERE id = 1");
    expect_error(gives_up, "55P03");
    let (mut here, result) = here.join();
    result?;
    here.batch_execute("COMMIT")?;
    there.batch_execute("ROLLBACK")?;

    begin_everywhere(&mut here, 2)?;
    let (commit, held) = commit_held_at(&fleet, here, 2, Point::Statement, "COMMIT PREPARED")?;
    wait_until("shard 1 has committed", DEADLINE, || Ok(fleet.ids_on_shard(1)?.contains(&2)))?;
    there.batch_execute("SET pg_fdw_xacts.consistent_reads = on")?;
    let halves =
        "SELECT (SELECT count(*) FROM ft1 WHERE id = 2) - (SELECT count(*) FROM ft2 WHERE id = 2)";
    assert_eq!(one::<i64>(&mut there, halves)?, 1);
    held.release();
    commit.join().1?;
    assert_eq!(one::<i64>(&mut there, halves)?, 0);
    Ok(())
}

/// The other coordinator is a foreign server of the first, whose transaction the migration is.
#[test]
fn a_migration_of_shards_and_coordinators_is_everywhere_or_nowhere() -> Outcome {
    let fleet = Fleet::start()?;
    let second = fleet.another_coordinator("coordinator2", &[])?;
    let mut session = fleet.session()?;
    session.batch_execute(&format!(
        "CREATE SERVER coordinator2 FOREIGN DATA WRAPPER pg_fdw_xacts
             OPTIONS (host '127.0.0.1', port '{}', dbname 'postgres');
         CREATE USER MAPPING FOR CURRENT_USER SERVER coordinator2 OPTIONS (user 'postgres')",
        second.port()
    ))?;
    let migrate = |session: &mut Client, last: &str| {
        session.batch_execute(&format!(
            "BEGIN;
             ALTER FOREIGN TABLE ft1 ADD COLUMN extra int;
             SELECT pg_fdw_xacts_exec('coordinator2', 'ALTER FOREIGN TABLE ft1 ADD COLUMN extra int');
             SELECT pg_fdw_xacts_exec('shard1', '{last}')"
        ))
    };
    let has_column = |server: &Cluster| {
        let sql = "SELECT EXISTS (SELECT FROM pg_attribute WHERE attname = 'extra')";
        one::<bool>(&mut server.client()?, sql)
    };
    let refused = migrate(&mut session, "ALTER TABLE t DROP COLUMN extra");
    expect_error(refused, "42703");
    session.batch_execute("ROLLBACK")?;
    for server in [&fleet.coordinator, &second, fleet.shard(1)] {
        assert!(!has_column(server)?, "{}", server.name());
    }
    migrate(&mut session, "ALTER TABLE t ADD COLUMN extra int")?;
    session.batch_execute("COMMIT")?;
    for server in [&fleet.coordinator, &second, fleet.shard(1)] {
        assert!(has_column(server)?, "{}", server.name());
    }
    assert_eq!(fleet.ids_on_shard(1)?, NONE);
    second.client()?.batch_execute(
        "BEGIN; INSERT INTO ft1 VALUES (1, 'x', 7); INSERT INTO ft2 VALUES (1, 'x'); COMMIT",
    )?;
    assert_eq!(one::<i32>(&mut session, "SELECT extra FROM ft1")?, 7);
    Ok(())
}
