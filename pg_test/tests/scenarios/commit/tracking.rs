//! The unknown COMMIT: a client that lost the answer finds out by its label what happened, and what
//! it was told once stays true.

use pg_test::oracle::{assert_settled, assert_usable, expect_error, one};
use pg_test::{Cluster, DEADLINE, Fleet, Point, StopMode, wait_until};
use postgres::Client;

use crate::support::{Outcome, assert_everywhere, begin_everywhere, commit_held_at};

fn outcome(fleet: &Fleet, label: &str) -> anyhow::Result<String> {
    ask(&fleet.coordinator, label)
}

fn ask(server: &Cluster, label: &str) -> anyhow::Result<String> {
    one(&mut server.client()?, &format!("SELECT pg_fdw_xacts_outcome('{label}')"))
}

/// Inserts row `id` everywhere in a labelled transaction that stays open.
fn begin_labelled(session: &mut Client, id: i32, label: &str) -> Outcome {
    begin_everywhere(session, id)?;
    Ok(session.batch_execute(&format!("SELECT pg_fdw_xacts_track('{label}')"))?)
}

#[test]
fn every_outcome_is_told() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let mut session = fleet.session()?;
    begin_labelled(&mut session, 1, "a")?;
    assert_eq!(outcome(&fleet, "a")?, "in progress");
    let (commit, hit) = commit_held_at(&fleet, session, 1, Point::Statement, "COMMIT PREPARED")?;
    assert_eq!(outcome(&fleet, "a")?, "committing");
    hit.release();
    let (mut session, result) = commit.join();
    result?;
    assert_eq!(outcome(&fleet, "a")?, "committed");

    begin_labelled(&mut session, 2, "b")?;
    session.batch_execute("ROLLBACK")?;
    assert_eq!(outcome(&fleet, "b")?, "aborted");

    for (id, label, end, told) in [(3, "c", "COMMIT", "committed"), (4, "d", "ROLLBACK", "aborted")]
    {
        begin_labelled(&mut session, id, label)?;
        session.batch_execute("PREPARE TRANSACTION 'gxid'")?;
        assert_eq!(outcome(&fleet, label)?, "prepared");
        session.batch_execute(&format!("{end} PREPARED 'gxid'"))?;
        assert_eq!(outcome(&fleet, label)?, told);
    }
    // With local writes only, and with none but the label.
    for label in ["e", "f"] {
        session.batch_execute("BEGIN")?;
        if label == "e" {
            session.batch_execute("INSERT INTO lt VALUES (5, 'x')")?;
        }
        session.batch_execute(&format!("SELECT pg_fdw_xacts_track('{label}'); COMMIT"))?;
        assert_eq!(outcome(&fleet, label)?, "committed");
    }
    assert_settled(&fleet);
    Ok(())
}

#[test]
fn who_is_told_aborted_is_told_the_truth_for_ever() -> Outcome {
    let fleet = Fleet::start()?;
    let mut session = fleet.session()?;
    begin_everywhere(&mut session, 1)?;
    // Somebody asks before the transaction has labelled itself.
    assert_eq!(outcome(&fleet, "late")?, "aborted");
    expect_error(session.batch_execute("SELECT pg_fdw_xacts_track('late')"), "42710");
    session.batch_execute("ROLLBACK")?;
    assert_usable(&mut session);
    assert_eq!(outcome(&fleet, "late")?, "aborted");
    // A label names one transaction.
    session.batch_execute("SELECT pg_fdw_xacts_track('once')")?;
    expect_error(session.batch_execute("SELECT pg_fdw_xacts_track('once')"), "42710");
    assert_eq!(outcome(&fleet, "once")?, "committed");
    Ok(())
}

#[test]
fn a_label_that_would_vanish_or_is_none_is_refused() -> Outcome {
    let fleet = Fleet::start()?;
    let mut session = fleet.session()?;
    session.batch_execute("BEGIN; SAVEPOINT s")?;
    expect_error(session.batch_execute("SELECT pg_fdw_xacts_track('x')"), "55000");
    session.batch_execute("ROLLBACK")?;
    for statement in
        ["SELECT pg_fdw_xacts_track('')", "SELECT pg_fdw_xacts_outcome(repeat('x', 201))"]
    {
        expect_error(session.batch_execute(statement), "22023");
    }
    assert_usable(&mut session);
    Ok(())
}

#[test]
fn an_expired_label_is_unknown() -> Outcome {
    let fleet = Fleet::start()?;
    let mut session = fleet.session()?;
    session.batch_execute("SELECT pg_fdw_xacts_track('old')")?;
    fleet.coordinator.configure(&[("pg_fdw_xacts.track_retention", "1s")])?;
    fleet.coordinator.reload()?;
    let left = "SELECT count(*) FROM fdw_xacts.label";
    wait_until("the label expires", DEADLINE, || Ok(one::<i64>(&mut session, left)? == 0))?;
    assert_eq!(outcome(&fleet, "old")?, "unknown");
    expect_error(session.batch_execute("SELECT pg_fdw_xacts_track('old')"), "42710");
    Ok(())
}

/// Red on 0.2.0: any role could fill the table of labels.
#[test]
fn a_role_uses_no_more_labels_than_it_may() -> Outcome {
    let fleet = Fleet::start()?;
    fleet.session()?.batch_execute("CREATE ROLE app LOGIN; CREATE ROLE other LOGIN")?;
    fleet.coordinator.configure(&[("pg_fdw_xacts.track_limit", "3")])?;
    fleet.coordinator.reload()?;
    let mut app = fleet.coordinator.client_for("postgres", "app")?;
    wait_until("the limit is read", DEADLINE, || {
        Ok(one::<String>(&mut app, "SHOW pg_fdw_xacts.track_limit")? == "3")
    })?;
    app.batch_execute("SELECT pg_fdw_xacts_track('1'); SELECT pg_fdw_xacts_outcome('1')")?;
    app.batch_execute("SELECT pg_fdw_xacts_track('2')")?;
    assert_eq!(one::<String>(&mut app, "SELECT pg_fdw_xacts_outcome('3')")?, "aborted");
    for statement in ["SELECT pg_fdw_xacts_track('4')", "SELECT pg_fdw_xacts_outcome('5')"] {
        let error = expect_error(app.batch_execute(statement), "53400");
        assert!(error.hint().unwrap_or_default().contains("pg_fdw_xacts.track_limit"), "{error:?}");
    }
    // What it has used tells what became of it; others and superusers go on.
    assert_eq!(one::<String>(&mut app, "SELECT pg_fdw_xacts_outcome('2')")?, "committed");
    let mut other = fleet.coordinator.client_for("postgres", "other")?;
    other.batch_execute("SELECT pg_fdw_xacts_track('4')")?;
    assert_eq!(outcome(&fleet, "5")?, "aborted");
    Ok(())
}

#[test]
fn after_a_crash_of_the_coordinator() -> Outcome {
    for (statement, committed) in [("PREPARE TRANSACTION", false), ("COMMIT PREPARED", true)] {
        let mut fleet = Fleet::start_proxied()?;
        let mut session = fleet.session()?;
        session.batch_execute("SET synchronous_commit = off")?;
        begin_labelled(&mut session, 1, "x")?;
        let (commit, hit) = commit_held_at(&fleet, session, 1, Point::Statement, statement)?;
        fleet.coordinator.kill9()?;
        hit.release();
        assert!(commit.join().1.is_err(), "the client got an answer from a dead server");
        fleet.coordinator.start()?;
        let told = outcome(&fleet, "x")?;
        if committed {
            assert!(["committing", "committed"].contains(&told.as_str()), "{told}");
        } else {
            assert_eq!(told, "aborted");
        }
        assert_settled(&fleet);
        assert_everywhere(&fleet, 1, committed)?;
        assert_eq!(outcome(&fleet, "x")?, if committed { "committed" } else { "aborted" });
    }
    Ok(())
}

#[test]
fn a_standby_does_not_know_before_it_is_promoted() -> Outcome {
    let mut fleet = Fleet::start()?;
    let mut session = fleet.session()?;
    begin_labelled(&mut session, 1, "x")?;
    session.batch_execute("COMMIT")?;
    begin_labelled(&mut session, 2, "y")?;
    session.batch_execute("PREPARE TRANSACTION 'gxid'")?;
    let mut standby = Cluster::standby_of(&fleet.coordinator, "standby")?;
    standby.start()?;
    wait_until("the standby has the transaction", DEADLINE, || {
        Ok(one::<i64>(&mut standby.client()?, "SELECT count(*) FROM lt")? == 1)
    })?;
    assert_eq!(ask(&standby, "x")?, "committed");
    assert_eq!(ask(&standby, "y")?, "unknown");
    assert_eq!(ask(&standby, "never")?, "unknown");
    fleet.coordinator.kill9()?;
    standby.client()?.batch_execute("SELECT pg_promote()")?;
    let told = |label: &str, expected: &str| {
        // Until it has asked the shards, it cannot know that all have it.
        wait_until(&format!("'{label}' is {expected}"), DEADLINE, || {
            let told = ask(&standby, label)?;
            assert!([expected, "committing"].contains(&told.as_str()), "{told}");
            Ok(told == expected)
        })
    };
    told("x", "committed")?;
    assert_eq!(ask(&standby, "y")?, "prepared");
    assert_eq!(ask(&standby, "never")?, "aborted");
    standby.client()?.batch_execute("COMMIT PREPARED 'gxid'")?;
    wait_until("the shards have row 2", DEADLINE, || {
        Ok(fleet.ids_on_shard(1)?.contains(&2) && fleet.ids_on_shard(2)?.contains(&2))
    })?;
    told("y", "committed")?;
    standby.stop(StopMode::Fast)
}
