//! Nothing raises where nothing may: faults injected into the extension itself, after the commit
//! decision, after PREPARE TRANSACTION, in abort, and after COMMIT PREPARED and ROLLBACK PREPARED
//! by the application.
//!
//! They need the extension built with its feature `inject` and are run by `cargo xtask test`.
//! Expected each time: the client gets the answer that is true, the server stays up, everything is
//! settled, and the backend can still be cancelled and terminated.

#![allow(missing_docs, reason = "a test's name is its documentation")]

#[path = "../scenarios/support.rs"]
#[allow(dead_code, reason = "shared with the scenarios, which use all of it")]
mod support;

use pg_test::Fleet;
use pg_test::oracle::{assert_settled, expect_error, one};
use postgres::Client;

use support::{
    Outcome, assert_commits, assert_everywhere, assert_interruptible, begin_everywhere,
    session_with_notices,
};

/// A Rust panic, an ERROR of PostgreSQL, and an allocation that fails.
const KINDS: [&str; 3] = ["panic", "error", "memory"];

/// Has the next passes of `point` fail in `kind`'s way.
fn inject(session: &mut Client, point: &str, kind: &str) -> Outcome {
    Ok(session.batch_execute(&format!("SET pg_fdw_xacts.inject = '{point}/{kind}'"))?)
}

/// The backend of `session` can still be cancelled and terminated.
fn assert_reacts(fleet: &Fleet, mut session: Client) -> Outcome {
    session.batch_execute("RESET pg_fdw_xacts.inject")?;
    assert_interruptible(fleet, session)
}

/// No process of the server has died since `witness` connected: a crash would have ended all
/// sessions.
fn assert_no_crash(mut witness: Client) {
    witness.batch_execute("SELECT 1").expect("the server has not restarted itself");
}

/// Red after rounds were made without what they wait with: COMMIT was on its way when that failed,
/// and the client was told of an abort.
#[test]
fn once_a_sole_writers_commit_is_sent_the_client_gets_its_outcome() -> Outcome {
    let fleet = Fleet::start()?;
    let witness = fleet.session()?;
    for (id, kind) in (1..).zip(KINDS) {
        let mut session = fleet.session()?;
        inject(&mut session, "one phase", kind)?;
        session.batch_execute(&format!("INSERT INTO ft1 VALUES ({id}, 'x')"))?;
        assert!(fleet.ids_on_shard(1)?.contains(&id), "{kind}");
        session.batch_execute("RESET pg_fdw_xacts.inject")?;
        session.batch_execute(&format!("INSERT INTO ft1 VALUES ({}, 'x')", id + 100))?;
        assert_reacts(&fleet, session)?;
    }
    assert_no_crash(witness);
    Ok(())
}

#[test]
fn after_the_decision_the_client_gets_its_commit_and_a_warning() -> Outcome {
    let fleet = Fleet::start()?;
    let witness = fleet.session()?;
    for (id, kind) in (1..).zip(KINDS) {
        let (mut session, notices) = session_with_notices(&fleet)?;
        inject(&mut session, "commit", kind)?;
        begin_everywhere(&mut session, id)?;
        session.batch_execute("COMMIT")?;
        let told = notices.take();
        assert!(told.iter().any(|line| line.starts_with("WARNING")), "{kind}: {told:#?}");
        assert_settled(&fleet);
        assert_everywhere(&fleet, id, true)?;
        session.batch_execute("RESET pg_fdw_xacts.inject")?;
        assert_commits(&fleet, &mut session, id + 100)?;
        assert_reacts(&fleet, session)?;
    }
    assert_no_crash(witness);
    Ok(())
}

#[test]
fn after_prepare_transaction_it_stays_prepared_and_can_be_settled() -> Outcome {
    let fleet = Fleet::start()?;
    let witness = fleet.session()?;
    for (id, kind) in (1..).zip(KINDS) {
        let mut session = fleet.session()?;
        inject(&mut session, "prepare", kind)?;
        begin_everywhere(&mut session, id)?;
        session.batch_execute("PREPARE TRANSACTION 'gxid'")?;
        let shown: i64 = one(&mut session, "SELECT count(*) FROM pg_fdw_xacts")?;
        assert_eq!(shown, 2, "{kind}");
        fleet.session()?.batch_execute("COMMIT PREPARED 'gxid'")?;
        assert_settled(&fleet);
        assert_everywhere(&fleet, id, true)?;
        assert_reacts(&fleet, session)?;
    }
    assert_no_crash(witness);
    Ok(())
}

#[test]
fn in_abort_everything_is_rolled_back_all_the_same() -> Outcome {
    let fleet = Fleet::start()?;
    let witness = fleet.session()?;
    // Rolled back before anything is prepared, and after: shard 2 refuses to prepare.
    fleet.shard(2).client()?.batch_execute(
        "CREATE TABLE parent (id int PRIMARY KEY);
         ALTER TABLE t ADD FOREIGN KEY (id) REFERENCES parent DEFERRABLE INITIALLY DEFERRED",
    )?;
    for (id, kind) in (1..).zip(KINDS) {
        for end in ["ROLLBACK", "COMMIT"] {
            let mut session = fleet.session()?;
            inject(&mut session, "abort", kind)?;
            begin_everywhere(&mut session, id)?;
            let result = session.batch_execute(end);
            if end == "COMMIT" {
                expect_error(result, "23503");
            } else {
                result?;
            }
            assert_settled(&fleet);
            assert_everywhere(&fleet, id, false)?;
            assert_reacts(&fleet, session)?;
        }
    }
    assert_no_crash(witness);
    Ok(())
}

#[test]
fn after_commit_prepared_and_rollback_prepared_the_resolver_delivers() -> Outcome {
    let fleet = Fleet::start()?;
    let witness = fleet.session()?;
    for (id, kind) in (1..).zip(KINDS) {
        for (id, commit) in [(id, true), (id + 100, false)] {
            let mut session = fleet.session()?;
            begin_everywhere(&mut session, id)?;
            session.batch_execute("PREPARE TRANSACTION 'gxid'")?;
            inject(&mut session, "settle", kind)?;
            let command = if commit { "COMMIT PREPARED" } else { "ROLLBACK PREPARED" };
            session.batch_execute(&format!("{command} 'gxid'"))?;
            assert_settled(&fleet);
            assert_everywhere(&fleet, id, commit)?;
            assert_reacts(&fleet, session)?;
        }
    }
    assert_no_crash(witness);
    Ok(())
}
