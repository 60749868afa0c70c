//! What an operator or a default of the database does to the extension's tables stops
//! nobody else.

use std::time::{Duration, Instant};

use pg_test::oracle::{assert_settled, expect_error, one};
use pg_test::{Fleet, FleetOptions};

use crate::support::{Outcome, assert_commits, assert_everywhere, begin_everywhere, start};

/// With 0.2.0 VACUUM FULL waits for the end of 'gxid', and every COMMIT behind it, without a limit.
#[test]
fn the_decisions_can_be_rewritten_beside_a_pending_gxid() -> Outcome {
    let (mut fleet, mut session) = start()?;
    assert_commits(&fleet, &mut session, 9)?;
    begin_everywhere(&mut session, 1)?;
    session.batch_execute("PREPARE TRANSACTION 'gxid'")?;
    let mut operator = fleet.session()?;
    operator.batch_execute("SET lock_timeout = '20s'")?;
    operator.batch_execute("VACUUM FULL fdw_xacts.decision")?;
    assert_commits(&fleet, &mut session, 2)?;
    // The row has moved with the table: it is found before and after a crash.
    session.batch_execute("SELECT * FROM pg_fdw_xacts_resolve()")?;
    fleet.coordinator.kill9()?;
    fleet.coordinator.start()?;
    let mut session = fleet.session()?;
    session.batch_execute("SELECT * FROM pg_fdw_xacts_resolve()")?;
    assert_eq!(one::<i64>(&mut session, "SELECT count(*) FROM pg_prepared_xacts")?, 1);
    session.batch_execute("COMMIT PREPARED 'gxid'")?;
    assert_settled(&fleet);
    assert_everywhere(&fleet, 1, true)?;
    assert_everywhere(&fleet, 2, true)
}

/// With 0.2.0 the COMMIT waits as long as the lock is held.
#[test]
fn a_commit_does_not_wait_for_a_lock_on_the_decisions_past_its_limit() -> Outcome {
    let (fleet, mut session) = start()?;
    assert_commits(&fleet, &mut session, 9)?;
    let mut operator = fleet.session()?;
    operator.batch_execute("BEGIN; LOCK TABLE fdw_xacts.decision IN SHARE MODE")?;
    session
        .batch_execute("SET pg_fdw_xacts.prepare_timeout = '1s'; SET statement_timeout = '30s'")?;
    begin_everywhere(&mut session, 1)?;
    let since = Instant::now();
    let error = expect_error(session.batch_execute("COMMIT"), "55P03");
    assert!(since.elapsed() < Duration::from_secs(15), "{:?}", since.elapsed());
    assert!(error.hint().is_some_and(|h| h.contains("prepare_timeout")), "{error:#?}");
    operator.batch_execute("ROLLBACK")?;
    assert_settled(&fleet);
    assert_everywhere(&fleet, 1, false)?;
    assert_commits(&fleet, &mut session, 2)
}

/// With an empty table, everything on its way would count as aborted.
#[test]
fn the_tables_are_not_truncated() -> Outcome {
    let (fleet, mut session) = start()?;
    begin_everywhere(&mut session, 1)?;
    session.batch_execute("PREPARE TRANSACTION 'gxid'; SET lock_timeout = '5s'")?;
    for table in ["decision", "participant", "identity", "forgotten"] {
        expect_error(session.batch_execute(&format!("TRUNCATE lt, fdw_xacts.{table}")), "55006");
    }
    session.batch_execute("COMMIT PREPARED 'gxid'")?;
    assert_settled(&fleet);
    assert_everywhere(&fleet, 1, true)
}

/// Users whose transactions are serializable by default, beside the resolver's own: it looks at
/// labels, deletes old ones and takes them. With 0.2.0 users met `could not serialize access`.
#[test]
fn the_resolver_is_no_party_to_serializable_transactions() -> Outcome {
    let fleet = Fleet::start_with(&FleetOptions {
        coordinator: vec![
            ("default_transaction_isolation", "serializable"),
            ("default_transaction_read_only", "off"),
            ("pg_fdw_xacts.resolver_interval", "100ms"),
            ("pg_fdw_xacts.track_retention", "1s"),
        ],
        ..FleetOptions::default()
    })?;
    let mut session = fleet.session()?;
    let mut other = fleet.session()?;
    for id in 0..60 {
        session.batch_execute("BEGIN")?;
        session.batch_execute(&format!("SELECT pg_fdw_xacts_track('label {id}')"))?;
        session.batch_execute(&format!("INSERT INTO ft1 VALUES ({id}, 'x')"))?;
        // The resolver takes this one meanwhile, and reads and deletes others.
        other.batch_execute(&format!("SELECT pg_fdw_xacts_outcome('other {id}')"))?;
        session.batch_execute("COMMIT")?;
    }
    assert_settled(&fleet);
    Ok(())
}
