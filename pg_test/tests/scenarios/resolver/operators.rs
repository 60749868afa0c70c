//! What an operator does about transactions in doubt: look, try now, give up, and be kept from
//! dropping what is still needed.

use std::time::{Duration, Instant};

use pg_test::oracle::{assert_settled, expect_error, one, prepared_gids};
use pg_test::proxy::{NewConnections, Point};
use pg_test::{DEADLINE, Fleet, wait_until};
use postgres::Client;

use crate::support::{
    Outcome, assert_everywhere, begin_everywhere, commit_held_at, session_with_notices, statuses,
};

fn resolve(session: &mut Client) -> anyhow::Result<Vec<(String, String)>> {
    let rows = session.query("SELECT * FROM pg_fdw_xacts_resolve()", &[])?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

#[test]
fn resolve_tries_now_and_tells_what_happened() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let mut session = fleet.in_doubt(1)?;
    let gid = prepared_gids(fleet.shard(1))?.remove(0);
    assert_eq!(resolve(&mut session)?, [(gid.clone(), "in doubt".to_owned())]);
    let failures: i64 =
        one(&mut session, "SELECT failures FROM pg_stat_fdw_xacts WHERE server = 'shard1'")?;
    let error: String =
        one(&mut session, "SELECT last_error FROM pg_stat_fdw_xacts WHERE server = 'shard1'")?;
    assert!(failures > 0);
    assert!(error.contains("shard1"), "{error}");
    let (status, in_doubt): (String, i64) = (
        one(&mut session, "SELECT status FROM pg_fdw_xacts")?,
        one(&mut session, "SELECT in_doubt FROM pg_stat_fdw_xacts WHERE server = 'shard1'")?,
    );
    assert_eq!((status.as_str(), in_doubt), ("committing", 1));

    fleet.reconnect(1);
    resolve(&mut session)?;
    // No waiting: the call returns when everything has been tried.
    assert_eq!(prepared_gids(fleet.shard(1))?, Vec::<String>::new());
    let resolved: i64 =
        one(&mut session, "SELECT resolved FROM pg_stat_fdw_xacts WHERE server = 'shard1'")?;
    assert_eq!(resolved, 1);
    assert_everywhere(&fleet, 1, true)?;
    let outcome: String =
        one(&mut session, &format!("SELECT outcome FROM pg_fdw_xacts_resolve('{gid}')"))?;
    assert_eq!(outcome, "not in doubt");
    assert_settled(&fleet);
    Ok(())
}

#[test]
fn what_is_forgotten_is_delivered_if_it_is_ever_seen_again() -> Outcome {
    let mut fleet = Fleet::start_proxied()?;
    let mut session = fleet.in_doubt(1)?;
    let gid = prepared_gids(fleet.shard(1))?.remove(0);
    session.batch_execute("CREATE ROLE bob LOGIN")?;
    let mut bob = fleet.coordinator.client_for("postgres", "bob")?;
    expect_error(bob.batch_execute(&format!("SELECT pg_fdw_xacts_forget('{gid}')")), "42501");
    expect_error(session.batch_execute("SELECT pg_fdw_xacts_forget('nonsense')"), "42704");

    session.batch_execute(&format!("SELECT pg_fdw_xacts_forget('{gid}')"))?;
    let shown: i64 = one(&mut session, "SELECT count(*) FROM pg_fdw_xacts")?;
    assert_eq!(shown, 0);
    assert_eq!(prepared_gids(fleet.shard(1))?, [gid]);
    // It does come back, long after: the decision outlives forget_delay and a crash.
    fleet.coordinator.configure(&[("pg_fdw_xacts.forget_delay", "0")])?;
    fleet.coordinator.kill9()?;
    fleet.coordinator.start()?;
    fleet.reconnect(1);
    assert_settled(&fleet);
    assert_everywhere(&fleet, 1, true)
}

#[test]
fn a_server_that_will_never_come_back_can_be_given_up_and_dropped() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let mut session = fleet.in_doubt(1)?;
    expect_error(session.batch_execute("DROP SERVER shard1 CASCADE"), "55006");
    session.batch_execute("SELECT pg_fdw_xacts_forget('shard1')")?;
    session.batch_execute("DROP SERVER shard1 CASCADE")?;
    let shown: i64 = one(&mut session, "SELECT count(*) FROM pg_fdw_xacts")?;
    assert_eq!(shown, 0);
    Ok(())
}

/// Shard 2 was given up while 'gxid' was pending, and a restart has made entries for the others. Red
/// before 0.3.0: these counted as all that is open; shard 1 was the last to confirm, the decision
/// was deleted, and shard 2 rolled back when it was used again.
#[test]
fn a_decision_is_kept_for_who_was_given_up_before_it() -> Outcome {
    let mut fleet = Fleet::start_proxied()?;
    let mut session = fleet.session()?;
    begin_everywhere(&mut session, 1)?;
    session.batch_execute("PREPARE TRANSACTION 'gxid'; SELECT pg_fdw_xacts_forget('shard2')")?;
    fleet.coordinator.configure(&[("pg_fdw_xacts.forget_delay", "0")])?;
    fleet.coordinator.kill9()?;
    fleet.coordinator.start()?;
    wait_until("shard 1 has its entry", DEADLINE, || Ok(statuses(&fleet, 1)? == ["prepared"]))?;
    fleet.proxy(1).set_new_connections(NewConnections::Refused);
    fleet.proxy(1).cut_all();
    fleet.session()?.batch_execute("COMMIT PREPARED 'gxid'")?;
    assert_eq!(statuses(&fleet, 1)?, ["committing"]);
    fleet.reconnect(1);
    wait_until("shard 1 is settled", DEADLINE, || Ok(prepared_gids(fleet.shard(1))?.is_empty()))?;
    let looks = Instant::now();
    wait_until("the decision could be deleted", DEADLINE, || {
        Ok(looks.elapsed() > Duration::from_secs(4))
    })?;
    // A new number on the list; what was prepared there before has the decision that it had.
    let mut session = fleet.session()?;
    session.batch_execute("BEGIN; INSERT INTO lt VALUES (2); INSERT INTO ft2 VALUES (2)")?;
    let _ = session.batch_execute("COMMIT");
    assert_settled(&fleet);
    assert_everywhere(&fleet, 1, true)
}

#[test]
fn nothing_is_dropped_while_something_is_in_doubt() -> Outcome {
    let fleet = Fleet::start()?;
    let (mut session, notices) = session_with_notices(&fleet)?;
    begin_everywhere(&mut session, 1)?;
    session.batch_execute("PREPARE TRANSACTION 'gxid'")?;
    // DROP EXTENSION must not even wait for the locks of 'gxid'.
    session.batch_execute("SET lock_timeout = '5s'")?;
    for statement in [
        "DROP SERVER shard1 CASCADE",
        "DROP USER MAPPING FOR postgres SERVER shard2",
        "DROP EXTENSION pg_fdw_xacts CASCADE",
    ] {
        let error = session.batch_execute(statement).expect_err(statement);
        let report = error.as_db_error().expect("the coordinator answers");
        assert_eq!(report.code().code(), "55006", "{statement}: {report:#?}");
        assert!(report.hint().is_some(), "{statement}: {report:#?}");
    }
    notices.take();
    session.batch_execute("ALTER SERVER shard1 OPTIONS (ADD connect_timeout '5')")?;
    assert_eq!(notices.take(), [""; 0], "only a server that moves is lost");
    session.batch_execute("ALTER SERVER shard1 OPTIONS (SET host 'localhost')")?;
    let told = notices.take();
    assert!(told.iter().any(|n| n.starts_with("WARNING") && n.contains("shard1")), "{told:#?}");
    session.batch_execute("COMMIT PREPARED 'gxid'")?;
    assert_settled(&fleet);
    assert_everywhere(&fleet, 1, true)?;
    // The resolver may have been looking at the shards just then.
    session.batch_execute("SELECT * FROM pg_fdw_xacts_resolve()")?;
    session.batch_execute("DROP SERVER shard1 CASCADE")?;
    session.batch_execute("DROP EXTENSION pg_fdw_xacts CASCADE")?;
    Ok(())
}

/// The resolver saw what a session was about to settle, and cannot look again: there is nothing to
/// look for. Red: something counted as left there for as long as the server could not be reached,
/// or had moved.
#[test]
fn what_its_session_has_settled_is_not_left_where_the_resolver_cannot_look() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let mut session = fleet.session()?;
    begin_everywhere(&mut session, 1)?;
    let (commit, held) = commit_held_at(&fleet, session, 1, Point::Statement, "COMMIT PREPARED")?;
    let mut operator = fleet.session()?;
    resolve(&mut operator)?;
    operator.batch_execute("ALTER SERVER shard1 OPTIONS (SET host 'localhost')")?;
    held.release();
    let (_session, result) = commit.join();
    result?;
    assert_settled(&fleet);
    assert_everywhere(&fleet, 1, true)?;
    Ok(operator.batch_execute("DROP SERVER shard1 CASCADE")?)
}

#[test]
fn the_resolver_does_not_hold_up_commands_that_need_a_database_alone() -> Outcome {
    let fleet = Fleet::start()?;
    let mut session = fleet.session()?;
    session.batch_execute("CREATE DATABASE other")?;
    {
        let mut other = fleet.coordinator.client_for("other", "postgres")?;
        other.batch_execute("CREATE EXTENSION pg_fdw_xacts CASCADE")?;
        other.batch_execute("SELECT * FROM pg_fdw_xacts_resolve()")?;
    }
    let resolvers = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'other'
                     AND backend_type = 'pg_fdw_xacts resolver'";
    assert_eq!(one::<i64>(&mut session, resolvers)?, 1);
    {
        // It goes with the extension, and comes back with it.
        let mut other = fleet.coordinator.client_for("other", "postgres")?;
        other.batch_execute("DROP EXTENSION pg_fdw_xacts CASCADE")?;
        wait_until("the resolver has left", DEADLINE, || {
            Ok(one::<i64>(&mut session, resolvers)? == 0)
        })?;
        other.batch_execute("CREATE EXTENSION pg_fdw_xacts")?;
        other.batch_execute("SELECT * FROM pg_fdw_xacts_resolve()")?;
    }
    session.batch_execute("CREATE DATABASE copy TEMPLATE other")?;
    session.batch_execute("ALTER DATABASE other RENAME TO another")?;
    session.batch_execute("DROP DATABASE another")?;
    // The copy is another coordinator.
    let identity = "SELECT identity FROM fdw_xacts.identity";
    let mut copy = fleet.coordinator.client_for("copy", "postgres")?;
    let before: i64 = one(&mut copy, identity)?;
    copy.batch_execute("SELECT * FROM pg_fdw_xacts_resolve()")?;
    assert_ne!(one::<i64>(&mut copy, identity)?, before);
    Ok(())
}
