//! The coordinator has been started again, and what it knew is lost.

use std::time::Duration;

use pg_test::oracle::{assert_settled, expect_error, one};
use pg_test::{DEADLINE, Fault, Fleet, FleetOptions, Point, lengthened_by_load, wait_until};
use postgres::Client;

use crate::doubt::resolve;
use crate::support::{
    Outcome, assert_commits, begin_everywhere, hold_commits, in_background, release_commits,
    wait_for_held_commit,
};

const BOTH: &str = "SELECT (SELECT count(*) FROM ft1) - (SELECT count(*) FROM ft2)";

fn reader(fleet: &Fleet) -> anyhow::Result<Client> {
    let mut reader = fleet.session()?;
    // On a busy machine it takes a while until a resolver has started and asked everybody.
    reader.batch_execute(
        "SET pg_fdw_xacts.consistent_reads = on; SET pg_fdw_xacts.commit_timeout = '60s'",
    )?;
    Ok(reader)
}

/// Shard 2 waits for a standby of its own with what it was told before the crash, so that the
/// resolver cannot settle it there. Seen red, half of it read, when the first sweep did not know the
/// xid of what it had to leave.
#[test]
fn what_the_resolver_has_to_leave_is_waited_for() -> Outcome {
    let mut fleet = Fleet::start_proxied()?;
    let mut writer = fleet.session()?;
    begin_everywhere(&mut writer, 1)?;
    let hit = fleet.proxy(2).inject(Fault::hold(Point::Statement, "COMMIT PREPARED"));
    let writer = in_background(writer, "COMMIT");
    hit.wait()?;
    wait_until("shard 1 has it", DEADLINE, || Ok(fleet.ids_on_shard(1)?.contains(&1)))?;
    let held = hold_commits(fleet.shard(2))?;
    hit.release();
    wait_for_held_commit(fleet.shard(2), &held, "COMMIT PREPARED")?;
    fleet.coordinator.kill9()?;
    drop(writer.join());
    fleet.coordinator.start()?;
    let mut reader = reader(&fleet)?;
    // Everybody has been asked, so that what is read next waits for nothing but shard 2.
    resolve(&mut fleet.session()?)?;
    let short = lengthened_by_load(Duration::from_secs(2)).as_millis();
    reader.batch_execute(&format!("SET pg_fdw_xacts.commit_timeout = '{short}ms'"))?;
    let refused = expect_error(reader.query(BOTH, &[]), "55000");
    assert!(refused.detail().unwrap_or_default().contains("'px_"), "{refused:#?}");
    // The coordinator's own tables have it.
    reader.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ")?;
    assert_eq!(one::<i64>(&mut reader, "SELECT count(*) FROM lt")?, 1);
    let refused = reader.query("SELECT count(*) FROM ft2", &[]);
    assert!(refused.is_err(), "{refused:?}");
    reader.batch_execute("ROLLBACK; SET pg_fdw_xacts.commit_timeout = '60s'")?;
    release_commits(fleet.shard(2), held)?;
    wait_until("it is everywhere", DEADLINE, || Ok(fleet.ids_on_shard(2)?.contains(&1)))?;
    assert_eq!(one::<i64>(&mut reader, BOTH)?, 0);
    assert_settled(&fleet);
    Ok(())
}

/// Nobody can ask the old server any more, and nothing is read there. Seen red: 55000.
#[test]
fn where_a_server_led_before_it_was_moved_does_not_matter() -> Outcome {
    let mut fleet = Fleet::start_with(&FleetOptions { shards: 3, ..FleetOptions::default() })?;
    let mut session = fleet.session()?;
    assert_commits(&fleet, &mut session, 1)?;
    assert_settled(&fleet);
    session.batch_execute(&format!(
        "ALTER SERVER shard1 OPTIONS (SET port '{}')",
        fleet.port_of_shard(3)
    ))?;
    drop(session);
    fleet.coordinator.restart()?;
    assert_eq!(one::<i64>(&mut reader(&fleet)?, BOTH)?, -1);
    Ok(())
}

/// Its user mapping has been dropped, so nobody can be asked in its name; and nothing that was decided
/// is left there. Seen red: 55000.
#[test]
fn a_participant_without_decisions_does_not_have_to_be_asked() -> Outcome {
    let mut fleet = Fleet::start_with(&FleetOptions {
        coordinator: vec![("pg_fdw_xacts.forget_delay", "0")],
        ..FleetOptions::default()
    })?;
    let mut session = fleet.session()?;
    session.batch_execute(
        "CREATE ROLE writer LOGIN SUPERUSER;
         CREATE USER MAPPING FOR writer SERVER shard1 OPTIONS (user 'postgres');
         CREATE USER MAPPING FOR writer SERVER shard2 OPTIONS (user 'postgres')",
    )?;
    let mut writer = fleet.coordinator.client_for("postgres", "writer")?;
    assert_commits(&fleet, &mut writer, 1)?;
    wait_until("its decision is deleted", DEADLINE, || {
        Ok(one::<i64>(&mut session, "SELECT count(*) FROM fdw_xacts.decision")? == 0)
    })?;
    drop(writer);
    session.batch_execute(
        "DROP USER MAPPING FOR writer SERVER shard1; DROP USER MAPPING FOR writer SERVER shard2",
    )?;
    drop(session);
    fleet.coordinator.restart()?;
    assert_eq!(one::<i64>(&mut reader(&fleet)?, BOTH)?, 0);
    Ok(())
}
