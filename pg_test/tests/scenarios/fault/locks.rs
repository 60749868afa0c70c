//! What an operator or a default of the database does to the extension's tables stops
//! nobody else.

use pg_test::oracle::{assert_settled, expect_error, one};
use pg_test::{DEADLINE, Fleet, FleetOptions, wait_until};

use crate::support::{
    Outcome, assert_commits, assert_everywhere, begin_everywhere, in_background, start,
};

/// Red on 0.2.0: VACUUM FULL waited for the end of 'gxid', and every COMMIT behind it, without a
/// limit.
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

/// Red on 0.2.0: the COMMIT waited as long as the lock was held.
#[test]
fn a_commit_does_not_wait_for_a_lock_on_the_decisions_past_its_limit() -> Outcome {
    let (fleet, mut session) = start()?;
    assert_commits(&fleet, &mut session, 9)?;
    let mut operator = fleet.session()?;
    operator.batch_execute("BEGIN; LOCK TABLE fdw_xacts.decision IN SHARE MODE")?;
    session.batch_execute("SET pg_fdw_xacts.prepare_timeout = '1s'")?;
    begin_everywhere(&mut session, 1)?;
    let commit = in_background(session, "COMMIT");
    wait_until("COMMIT has given up", DEADLINE, || Ok(commit.is_finished()))?;
    let (mut session, result) = commit.join();
    let error = expect_error(result, "55P03");
    assert!(error.hint().is_some_and(|h| h.contains("prepare_timeout")), "{error:#?}");
    operator.batch_execute("ROLLBACK")?;
    assert_settled(&fleet);
    assert_everywhere(&fleet, 1, false)?;
    assert_commits(&fleet, &mut session, 2)
}

/// An empty table would be an abort of whatever is on its way. Red on 0.2.0: TRUNCATE waited for
/// the end of 'gxid'.
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
/// labels, deletes old ones and takes them. Red on 0.2.0: `could not serialize access` where an
/// older label expired during a labelled one.
#[test]
fn the_resolver_is_no_party_to_serializable_transactions() -> Outcome {
    let fleet = Fleet::start_with(&FleetOptions {
        coordinator: vec![
            ("default_transaction_isolation", "serializable"),
            ("default_transaction_read_only", "off"),
            ("pg_fdw_xacts.resolver_interval", "1s"),
            ("pg_fdw_xacts.track_retention", "1s"),
        ],
        ..FleetOptions::default()
    })?;
    let mut session = fleet.session()?;
    let mut other = fleet.session()?;
    let mut observer = fleet.session()?;
    observer.batch_execute("SET default_transaction_isolation = 'read committed'")?;
    for id in 1..=3 {
        session.batch_execute(&format!("SELECT pg_fdw_xacts_track('old {id}')"))?;
        session.batch_execute("BEGIN")?;
        session.batch_execute(&format!("SELECT pg_fdw_xacts_track('label {id}')"))?;
        session.batch_execute(&format!("INSERT INTO ft1 VALUES ({id}, 'x')"))?;
        other.batch_execute(&format!("SELECT pg_fdw_xacts_outcome('other {id}')"))?;
        wait_until("the resolver has deleted the older label", DEADLINE, || {
            let sql = format!("SELECT count(*) FROM fdw_xacts.label WHERE label = 'old {id}'");
            Ok(one::<i64>(&mut observer, &sql)? == 0)
        })?;
        session.batch_execute("COMMIT")?;
    }
    assert_settled(&fleet);
    Ok(())
}
