//! After a restart, before the resolver has come up or where it cannot, the durable
//! list tells what may be in doubt; and every database that has something in doubt gets a resolver.

use pg_test::oracle::{assert_settled, expect_error, one, prepared_gids};
use pg_test::proxy::NewConnections;
use pg_test::{DEADLINE, Fleet, wait_until};

use crate::support::{Outcome, assert_commits, assert_everywhere, session_with_notices, start};

/// Row `id` is committed everywhere, shard 1 has not heard of it, and the coordinator is down.
fn crashed_with_something_in_doubt(id: i32) -> anyhow::Result<Fleet> {
    let mut fleet = Fleet::start_proxied()?;
    fleet.in_doubt(id)?;
    fleet.coordinator.kill9()?;
    Ok(fleet)
}

/// There is no room for a resolver. Red on 0.2.0: each of these commands was executed.
#[test]
fn nothing_is_dropped_before_the_resolver_has_looked() -> Outcome {
    let mut fleet = crashed_with_something_in_doubt(1)?;
    // One for the launcher, one for PostgreSQL's own of logical replication.
    fleet.coordinator.configure(&[("max_worker_processes", "2")])?;
    fleet.coordinator.start()?;
    let (mut session, notices) = session_with_notices(&fleet)?;
    for statement in [
        "DROP SERVER shard1 CASCADE",
        "DROP SERVER shard2 CASCADE",
        "DROP USER MAPPING FOR postgres SERVER shard1",
        "DROP EXTENSION pg_fdw_xacts CASCADE",
        "DROP EXTENSION postgres_fdw CASCADE",
        "DROP SCHEMA public CASCADE",
        "DO $$ BEGIN EXECUTE 'DROP SERVER shard1 CASCADE'; END $$",
    ] {
        let error = expect_error(session.batch_execute(statement), "55006");
        assert!(error.message().contains("has not looked"), "{statement}: {error:#?}");
        assert!(error.hint().is_some_and(|h| h.contains("max_worker_processes")), "{error:#?}");
    }
    notices.take();
    session.batch_execute("ALTER SERVER shard1 OPTIONS (SET host 'localhost')")?;
    session.batch_execute("ALTER SERVER shard1 OPTIONS (SET host '127.0.0.1')")?;
    let told = notices.take();
    assert!(told.iter().any(|n| n.starts_with("WARNING") && n.contains("shard1")), "{told:#?}");
    // Nothing protects a server that has never prepared.
    session.batch_execute(
        "CREATE SERVER unused FOREIGN DATA WRAPPER pg_fdw_xacts; DROP SERVER unused",
    )?;
    drop(session);
    let mut elsewhere = fleet.coordinator.client_for("template1", "postgres")?;
    expect_error(elsewhere.batch_execute("DROP DATABASE postgres"), "55006");
    fleet.coordinator.stop(pg_test::StopMode::Fast)?;

    fleet.coordinator.configure(&[("max_worker_processes", "8")])?;
    fleet.proxy(1).set_new_connections(NewConnections::Served);
    fleet.coordinator.start()?;
    assert_settled(&fleet);
    assert_everywhere(&fleet, 1, true)?;
    let mut session = fleet.session()?;
    session.batch_execute("SELECT * FROM pg_fdw_xacts_resolve(); DROP SERVER shard1 CASCADE")?;
    Ok(())
}

/// Red on 0.2.0: in doubt as long as the database is a template, or lets nobody in.
#[test]
fn a_database_that_is_a_template_or_lets_nobody_in() -> Outcome {
    for closed in ["IS_TEMPLATE true", "ALLOW_CONNECTIONS false"] {
        let mut fleet = crashed_with_something_in_doubt(1)?;
        fleet.proxy(1).set_new_connections(NewConnections::Served);
        // While nothing may be settled, it is closed.
        fleet.coordinator.configure(&[("max_worker_processes", "2")])?;
        fleet.coordinator.start()?;
        let mut elsewhere = fleet.coordinator.client_for("template1", "postgres")?;
        elsewhere.batch_execute(&format!("ALTER DATABASE postgres {closed}"))?;
        drop(elsewhere);
        fleet.coordinator.stop(pg_test::StopMode::Fast)?;
        fleet.coordinator.configure(&[("max_worker_processes", "8")])?;
        fleet.coordinator.start()?;
        wait_until("nothing is prepared any more", DEADLINE, || {
            Ok(prepared_gids(fleet.shard(1))?.is_empty())
        })?;
        assert_eq!(fleet.ids_on_shard(1)?, [1], "{closed}");
        // Whoever makes databases of templates is not held up.
        let mut elsewhere = fleet.coordinator.client_for("template1", "postgres")?;
        elsewhere.batch_execute("CREATE DATABASE copy TEMPLATE postgres")?;
        elsewhere.batch_execute("DROP DATABASE copy")?;
        elsewhere
            .batch_execute("ALTER DATABASE postgres IS_TEMPLATE false ALLOW_CONNECTIONS true")?;
        assert_settled(&fleet);
        assert_commits(&fleet, &mut fleet.session()?, 2)?;
    }
    Ok(())
}

/// The database that CREATE DATABASE copies where none is named has a resolver too, which makes
/// way. Red on 0.2.0, where a template had none.
#[test]
fn a_template_with_the_extension_can_be_copied() -> Outcome {
    let fleet = Fleet::start()?;
    {
        let mut template = fleet.coordinator.client_for("template1", "postgres")?;
        template.batch_execute("CREATE EXTENSION pg_fdw_xacts CASCADE")?;
        template.batch_execute("SELECT * FROM pg_fdw_xacts_resolve()")?;
    }
    let mut session = fleet.session()?;
    session.batch_execute("CREATE DATABASE first")?;
    session.batch_execute("CREATE DATABASE second")?;
    let mut first = fleet.coordinator.client_for("first", "postgres")?;
    first.batch_execute("SELECT * FROM pg_fdw_xacts_resolve()")?;
    assert_eq!(one::<i64>(&mut first, "SELECT count(*) FROM fdw_xacts.identity")?, 1);
    Ok(())
}

/// The copy deletes the original's list, and does not go on with what was on it. Red on 0.2.0: what
/// the copy prepared on was written down nowhere.
#[test]
fn a_copied_database_writes_down_its_own_participants() -> Outcome {
    let (fleet, mut session) = start()?;
    assert_commits(&fleet, &mut session, 1)?;
    drop(session);
    let mut elsewhere = fleet.coordinator.client_for("template1", "postgres")?;
    elsewhere.batch_execute("CREATE DATABASE copy TEMPLATE postgres")?;
    let mut copy = fleet.coordinator.client_for("copy", "postgres")?;
    copy.batch_execute(
        "BEGIN; INSERT INTO ft1 VALUES (2, 'x'); INSERT INTO ft2 VALUES (2, 'x'); COMMIT",
    )?;
    assert_eq!(one::<i64>(&mut copy, "SELECT count(*) FROM fdw_xacts.participant")?, 2);
    Ok(())
}
