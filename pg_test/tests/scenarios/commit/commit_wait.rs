//! `pg_fdw_xacts.commit_wait = off`: COMMIT returns at the decision, and everything is delivered
//! all the same.

use pg_test::oracle::{assert_settled, expect_error, one, prepared_gids, statistic};
use pg_test::proxy::NewConnections;
use pg_test::{DEADLINE, Fault, Fleet, Point, wait_until};
use postgres::Client;

use crate::support::{
    Outcome, assert_everywhere, begin_everywhere, hold_commits, release_commits, statuses,
    wait_for_held_commit,
};

fn start() -> anyhow::Result<(Fleet, Client)> {
    let fleet = Fleet::start_proxied()?;
    let mut session = fleet.session()?;
    session.batch_execute("SET pg_fdw_xacts.commit_wait = off")?;
    Ok((fleet, session))
}

#[test]
fn transactions_follow_each_other_on_the_same_connections() -> Outcome {
    let (fleet, mut session) = start()?;
    for id in 1..=20 {
        begin_everywhere(&mut session, id)?;
        session.batch_execute("COMMIT")?;
        // The session's next statement on a shard follows the commit there.
        let sum: i64 =
            one(&mut session, "SELECT (SELECT count(*) FROM ft1) + (SELECT count(*) FROM ft2)")?;
        assert_eq!(sum, 2 * i64::from(id));
    }
    assert_settled(&fleet);
    assert_eq!(statistic(&fleet, 1, "committed")?, 20);
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'postgres_fdw'";
    assert_eq!(one::<i64>(&mut fleet.shard(1).client()?, sessions)?, 1);
    Ok(())
}

#[test]
fn commit_does_not_wait_for_a_shard() -> Outcome {
    let (fleet, mut session) = start()?;
    begin_everywhere(&mut session, 1)?;
    let hit = fleet.proxy(1).inject(Fault::hold(Point::Statement, "COMMIT PREPARED"));
    session.batch_execute("COMMIT")?;
    hit.wait()?;
    assert_eq!(statuses(&fleet, 1)?, ["committing"]);
    assert_eq!(prepared_gids(fleet.shard(1))?.len(), 1);
    hit.release();
    // Reading anything is enough to find out.
    session.batch_execute("SELECT * FROM ft1")?;
    assert_eq!(statuses(&fleet, 1)?, [""; 0]);
    assert_settled(&fleet);
    assert_everywhere(&fleet, 1, true)?;
    Ok(())
}

#[test]
fn what_is_cut_off_is_delivered_by_the_resolver() -> Outcome {
    let (fleet, mut session) = start()?;
    for (id, point) in [(1, Point::Statement), (2, Point::Answer)] {
        begin_everywhere(&mut session, id)?;
        let hit = fleet.proxy(1).inject(Fault::cut(point, "COMMIT PREPARED"));
        session.batch_execute("COMMIT")?;
        hit.wait()?;
        // Whatever the session does next finds out that the connection is gone.
        wait_until("the session and the resolver are done", DEADLINE, || {
            session.batch_execute("SELECT * FROM lt")?;
            Ok(statuses(&fleet, 1)?.is_empty())
        })?;
        assert_settled(&fleet);
        assert_everywhere(&fleet, id, true)?;
    }
    Ok(())
}

#[test]
fn a_transaction_behind_a_lost_delivery_is_tried_on_a_new_connection() -> Outcome {
    let (fleet, mut session) = start()?;
    begin_everywhere(&mut session, 1)?;
    let hit = fleet.proxy(1).inject(Fault::cut(Point::Statement, "COMMIT PREPARED"));
    session.batch_execute("COMMIT")?;
    hit.wait()?;
    begin_everywhere(&mut session, 2)?;
    session.batch_execute("COMMIT")?;
    assert_settled(&fleet);
    assert_everywhere(&fleet, 1, true)?;
    assert_everywhere(&fleet, 2, true)?;
    Ok(())
}

#[test]
fn a_session_that_ends_or_is_killed_leaves_nothing_behind() -> Outcome {
    let (fleet, mut session) = start()?;
    begin_everywhere(&mut session, 1)?;
    session.batch_execute("COMMIT")?;
    drop(session);
    assert_settled(&fleet);
    assert_everywhere(&fleet, 1, true)?;

    let mut session = fleet.session()?;
    session.batch_execute("SET pg_fdw_xacts.commit_wait = off")?;
    begin_everywhere(&mut session, 2)?;
    let hit = fleet.proxy(1).inject(Fault::hold(Point::Statement, "COMMIT PREPARED"));
    let pid: i32 = one(&mut session, "SELECT pg_backend_pid()")?;
    session.batch_execute("COMMIT")?;
    hit.wait()?;
    fleet.session()?.batch_execute(&format!("SELECT pg_terminate_backend({pid})"))?;
    fleet.proxy(1).cut_all();
    drop(hit);
    assert_settled(&fleet);
    assert_everywhere(&fleet, 2, true)?;
    Ok(())
}

/// A session that never comes back to the answer: after the time that every owner has, the resolver
/// sees to it.
#[test]
fn the_answer_to_an_idle_session_is_not_waited_for_in_vain() -> Outcome {
    let (fleet, mut session) = start()?;
    let mut operator = fleet.session()?;
    operator.batch_execute("ALTER SYSTEM SET pg_fdw_xacts.commit_timeout = '100ms'")?;
    // That would be phase one's limit as well, in which the session also registers.
    operator.batch_execute("ALTER SYSTEM SET pg_fdw_xacts.prepare_timeout = '60s'")?;
    operator.batch_execute("SELECT pg_reload_conf()")?;
    begin_everywhere(&mut session, 1)?;
    session.batch_execute("COMMIT")?;
    assert_settled(&fleet);
    assert_everywhere(&fleet, 1, true)?;
    session.batch_execute("SELECT * FROM ft1")?;
    Ok(())
}

#[test]
fn a_connection_that_is_not_kept_is_waited_for() -> Outcome {
    let (fleet, mut session) = start()?;
    session.batch_execute("ALTER SERVER shard1 OPTIONS (ADD keep_connections 'off')")?;
    begin_everywhere(&mut session, 1)?;
    session.batch_execute("COMMIT")?;
    assert_eq!(prepared_gids(fleet.shard(1))?, [""; 0]);
    assert_settled(&fleet);
    assert_everywhere(&fleet, 1, true)?;
    Ok(())
}

#[test]
fn a_shard_that_is_down_after_the_decision_gets_its_commit() -> Outcome {
    let (mut fleet, mut session) = start()?;
    begin_everywhere(&mut session, 1)?;
    let hit = fleet.proxy(1).inject(Fault::cut(Point::Statement, "COMMIT PREPARED"));
    fleet.proxy(1).set_new_connections(NewConnections::Refused);
    session.batch_execute("COMMIT")?;
    hit.wait()?;
    fleet.shard_mut(1).kill9()?;
    // The other shard goes on.
    session.batch_execute("INSERT INTO ft2 VALUES (2, 'x')")?;
    wait_until("it is in doubt", DEADLINE, || Ok(statuses(&fleet, 1)? == ["committing"]))?;
    fleet.shard_mut(1).start()?;
    fleet.proxy(1).set_new_connections(NewConnections::Served);
    assert_settled(&fleet);
    assert_everywhere(&fleet, 1, true)?;
    Ok(())
}

/// A cancel for the next transaction must not hit the previous one's COMMIT, which the shard is at
/// as long as its standby is away. Seen red when the cancel was sent all the same.
#[test]
fn a_cancel_of_the_next_statement_does_not_reach_the_commit() -> Outcome {
    let (fleet, mut session) = start()?;
    begin_everywhere(&mut session, 1)?;
    let hit = fleet.proxy(1).inject(Fault::hold(Point::Statement, "COMMIT PREPARED"));
    session.batch_execute("COMMIT; SET statement_timeout = '300ms'")?;
    hit.wait()?;
    let held = hold_commits(fleet.shard(1))?;
    let mark = fleet.shard(1).log().mark()?;
    hit.release();
    wait_for_held_commit(fleet.shard(1), &held, "COMMIT PREPARED")?;
    expect_error(session.batch_execute("SELECT * FROM ft1"), "57014");
    release_commits(fleet.shard(1), held)?;
    assert_settled(&fleet);
    assert_everywhere(&fleet, 1, true)?;
    assert!(!fleet.shard(1).log().since(mark)?.contains("canceling"));
    Ok(())
}

#[test]
fn a_server_can_be_dropped_right_after_its_commit() -> Outcome {
    let (fleet, mut session) = start()?;
    begin_everywhere(&mut session, 1)?;
    session.batch_execute("COMMIT")?;
    wait_until("the commits have arrived", DEADLINE, || {
        Ok(prepared_gids(fleet.shard(1))?.is_empty() && prepared_gids(fleet.shard(2))?.is_empty())
    })?;
    wait_until("the server can be dropped", DEADLINE, || {
        Ok(session.batch_execute("DROP SERVER shard1 CASCADE").is_ok())
    })?;
    assert_everywhere(&fleet, 1, true)
}
