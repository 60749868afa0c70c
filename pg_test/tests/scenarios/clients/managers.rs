//! External transaction managers: psycopg's two-phase API and pgjdbc's XA data source, with the
//! coordinator as one of their resources and two shards behind it.
//!
//! Both programs understand the same commands, so that each scenario is tried with both.

use pg_test::client::Program;
use pg_test::oracle::{assert_settled, prepared_gids};
use pg_test::{DEADLINE, Fleet, StopMode, wait_until};

use crate::support::{Outcome, assert_commits, statuses};

const MANAGERS: [&str; 2] = ["two_phase.py", "TwoPhase.java"];

/// Runs `scenario` on new servers with each manager.
fn with_each(scenario: impl Fn(&mut Fleet, &mut Program) -> Outcome) -> Outcome {
    for file in MANAGERS {
        println!("with {file}");
        let mut fleet = Fleet::start()?;
        let mut manager = Program::start(file, &fleet.coordinator)?;
        scenario(&mut fleet, &mut manager)?;
        assert_settled(&fleet);
        assert_commits(&fleet, &mut fleet.session()?, 1000)?;
    }
    Ok(())
}

/// Both shards have exactly these rows.
#[track_caller]
fn assert_on_both_shards(fleet: &Fleet, ids: &[i32]) {
    let found = [1, 2].map(|number| fleet.ids_on_shard(number).expect("the shard runs"));
    assert_eq!(found, [ids, ids], "rows on shard 1 and on shard 2");
}

/// One transaction is prepared on each shard, as the view says, and one on the coordinator.
fn assert_pending(fleet: &Fleet) -> Outcome {
    for number in [1, 2] {
        assert_eq!(prepared_gids(fleet.shard(number))?.len(), 1, "shard {number}");
        assert_eq!(statuses(fleet, number)?, ["prepared"], "shard {number}");
    }
    assert_eq!(prepared_gids(&fleet.coordinator)?.len(), 1);
    assert_on_both_shards(fleet, &[]);
    Ok(())
}

fn prepare(manager: &mut Program) {
    manager.expect("start order-1");
    manager.expect("insert 1");
    manager.expect("prepare");
}

#[test]
fn prepared_and_committed() -> Outcome {
    with_each(|fleet, manager| {
        prepare(manager);
        assert_pending(fleet)?;
        manager.expect("commit");
        assert_on_both_shards(fleet, &[1]);
        assert_eq!(manager.expect("recover"), "");
        Ok(())
    })
}

#[test]
fn prepared_and_rolled_back() -> Outcome {
    with_each(|fleet, manager| {
        prepare(manager);
        assert_pending(fleet)?;
        manager.expect("rollback");
        assert_on_both_shards(fleet, &[]);
        assert_eq!(manager.expect("recover"), "");
        Ok(())
    })
}

/// The manager decides that it needs no second phase; the shards do.
#[test]
fn committed_in_one_phase() -> Outcome {
    with_each(|fleet, manager| {
        let marks = [fleet.shard(1).log().mark()?, fleet.shard(2).log().mark()?];
        manager.expect("start order-1");
        manager.expect("insert 1");
        manager.expect("commit");
        assert_on_both_shards(fleet, &[1]);
        for (number, mark) in [1, 2].into_iter().zip(marks) {
            let statements = fleet.shard(number).log().statements_since(mark)?;
            let prepared = statements.iter().filter(|sql| sql.starts_with("PREPARE TRANSACTION"));
            assert_eq!(prepared.count(), 1, "on shard {number}: {statements:#?}");
        }
        Ok(())
    })
}

#[test]
fn rolled_back_before_it_is_prepared() -> Outcome {
    with_each(|fleet, manager| {
        manager.expect("start order-1");
        manager.expect("insert 1");
        manager.expect("rollback");
        assert_on_both_shards(fleet, &[]);
        Ok(())
    })
}

/// Enough of them that the drivers go over to named prepared statements.
#[test]
fn one_connection_serves_many_transactions() -> Outcome {
    with_each(|fleet, manager| {
        for id in 1..=12 {
            manager.expect(&format!("start order-{id}"));
            manager.expect(&format!("insert {id}"));
            manager.expect("prepare");
            manager.expect(if id % 3 == 0 { "rollback" } else { "commit" });
        }
        assert_on_both_shards(fleet, &[1, 2, 4, 5, 7, 8, 10, 11]);
        Ok(())
    })
}

/// Statements on the wire before those before them are answered.
#[test]
fn many_rows_sent_ahead() -> Outcome {
    with_each(|fleet, manager| {
        for (first, settle) in [(1, "commit"), (251, "rollback"), (501, "commit")] {
            manager.expect(&format!("start order-{first}"));
            manager.expect(&format!("insert_many {first} 250"));
            manager.expect("prepare");
            manager.expect(settle);
        }
        assert_on_both_shards(fleet, &(1..=250).chain(501..=750).collect::<Vec<_>>());
        manager.expect("start order-4");
        let raised = manager.expect_error("insert_many 750 10");
        assert!(raised.starts_with("23505 "), "{raised}");
        manager.expect("rollback");
        assert_on_both_shards(fleet, &(1..=250).chain(501..=750).collect::<Vec<_>>());
        Ok(())
    })
}

/// The manager lives on, loses its connection, and finds its transaction again.
#[test]
fn recovered_after_a_crash_of_the_coordinator() -> Outcome {
    for (settle, ids) in [("commit_recovered", &[1][..]), ("rollback_recovered", &[])] {
        with_each(|fleet, manager| {
            prepare(manager);
            fleet.coordinator.kill9()?;
            fleet.coordinator.start()?;
            assert_pending(fleet)?;
            manager.expect_error("commit");
            manager.expect("reconnect");
            assert_eq!(manager.expect("recover"), "order-1");
            assert_pending(fleet)?;
            manager.expect(&format!("{settle} order-1"));
            assert_on_both_shards(fleet, ids);
            assert_eq!(manager.expect("recover"), "");
            Ok(())
        })?;
    }
    Ok(())
}

/// Everything crashes, the manager too; another process settles what it finds.
#[test]
fn recovered_by_another_manager_after_a_crash_of_everything() -> Outcome {
    for file in MANAGERS {
        let mut fleet = Fleet::start()?;
        let mut manager = Program::start(file, &fleet.coordinator)?;
        prepare(&mut manager);
        drop(manager);
        fleet.coordinator.kill9()?;
        for number in [1, 2] {
            fleet.shard_mut(number).kill9()?;
            fleet.shard_mut(number).start()?;
        }
        fleet.coordinator.start()?;
        assert_pending(&fleet)?;
        let mut another = Program::start(file, &fleet.coordinator)?;
        assert_eq!(another.expect("recover"), "order-1");
        another.expect("commit_recovered order-1");
        assert_on_both_shards(&fleet, &[1]);
        assert_settled(&fleet);
    }
    Ok(())
}

/// The decision is the coordinator's own; the shard hears of it when it is back.
#[test]
fn settled_while_a_shard_is_down() -> Outcome {
    for (settle, ids) in [("commit", &[1][..]), ("rollback", &[])] {
        with_each(|fleet, manager| {
            prepare(manager);
            fleet.shard_mut(2).stop(StopMode::Fast)?;
            manager.expect(settle);
            assert_eq!(manager.expect("recover"), "");
            assert_eq!(fleet.ids_on_shard(1)?, ids);
            fleet.shard_mut(2).start()?;
            wait_until("shard 2 has heard", DEADLINE, || {
                Ok(prepared_gids(fleet.shard(2))?.is_empty())
            })?;
            assert_on_both_shards(fleet, ids);
            Ok(())
        })?;
    }
    Ok(())
}

/// A constraint that is checked at the end makes shard 2 refuse to prepare. The manager is told by
/// its prepare, and takes a new connection: psycopg believes that it is prepared.
#[test]
fn refused_by_a_shard() -> Outcome {
    with_each(|fleet, manager| {
        fleet.shard(2).client()?.batch_execute(
            "ALTER TABLE t ADD UNIQUE (v) DEFERRABLE INITIALLY DEFERRED;
             INSERT INTO t VALUES (99, 'x')",
        )?;
        manager.expect("start order-1");
        manager.expect("insert 1");
        let raised = manager.expect_error("prepare");
        assert!(raised.starts_with("23505 "), "{raised}");
        assert_eq!(fleet.ids_on_shard(1)?, Vec::<i32>::new());
        assert_eq!(fleet.ids_on_shard(2)?, [99]);
        manager.expect("reconnect");
        assert_eq!(manager.expect("recover"), "");
        fleet.shard(2).client()?.batch_execute("TRUNCATE t")?;
        assert_eq!(prepared_gids(&fleet.coordinator)?, Vec::<String>::new());
        Ok(())
    })
}

/// Shard 2 has gone before it could prepare. Whatever the manager makes of the error, it finds
/// nothing to recover.
#[test]
fn a_shard_is_lost_before_it_prepares() -> Outcome {
    with_each(|fleet, manager| {
        manager.expect("start order-1");
        manager.expect("insert 1");
        fleet.shard_mut(2).kill9()?;
        let raised = manager.expect_error("prepare");
        assert!(raised.starts_with("40000 "), "{raised}");
        manager.expect("reconnect");
        assert_eq!(manager.expect("recover"), "");
        fleet.shard_mut(2).start()?;
        assert_settled(fleet);
        assert_on_both_shards(fleet, &[]);
        Ok(())
    })
}
