//! What the roles need and may do: on the shards, where nobody has to be a superuser and where
//! others may stand in the way, and on the coordinator, where an ordinary role must not stand in
//! anybody's. (docs/src/security.md)

use pg_test::oracle::{assert_settled, expect_error, one, prepared_gids};
use pg_test::proxy::NewConnections;
use pg_test::{DEADLINE, Fault, Fleet, Point, wait_until};

use crate::support::{
    Outcome, assert_commits, assert_everywhere, begin_everywhere, commit_held_at, in_background,
    start,
};

/// A role of the shards that may use its table and nothing else: enough for commits, and for the
/// resolver after a crash.
#[test]
fn a_role_of_the_shards_that_is_no_superuser() -> Outcome {
    let mut fleet = Fleet::start_proxied()?;
    let mut session = fleet.session()?;
    for number in [1, 2] {
        fleet.shard(number).client()?.batch_execute(
            "CREATE ROLE app LOGIN; GRANT SELECT, INSERT, UPDATE, DELETE ON t TO app;
             REVOKE CONNECT, TEMPORARY ON DATABASE postgres FROM PUBLIC;
             REVOKE CREATE ON SCHEMA public FROM PUBLIC;
             GRANT CONNECT ON DATABASE postgres TO app",
        )?;
        session.batch_execute(&format!(
            "ALTER USER MAPPING FOR postgres SERVER shard{number} OPTIONS (SET user 'app')"
        ))?;
    }
    assert_commits(&fleet, &mut session, 1)?;
    // Nothing heard of the commit on one, prepared and not decided on both: after a crash both are
    // settled.
    let cut = fleet.proxy(1).inject(Fault::cut(Point::Statement, "COMMIT PREPARED"));
    begin_everywhere(&mut session, 2)?;
    session.batch_execute("COMMIT")?;
    cut.wait()?;
    begin_everywhere(&mut session, 3)?;
    let (_commit, hit) = commit_held_at(&fleet, session, 2, Point::Answer, "PREPARE TRANSACTION")?;
    fleet.coordinator.kill9()?;
    hit.release();
    fleet.coordinator.start()?;
    assert_settled(&fleet);
    assert_everywhere(&fleet, 2, true)?;
    assert_everywhere(&fleet, 3, false)?;
    let mut session = fleet.session()?;
    begin_everywhere(&mut session, 4)?;
    session.batch_execute("PREPARE TRANSACTION 'gxid'")?;
    session.batch_execute("COMMIT PREPARED 'gxid'")?;
    assert_settled(&fleet);
    assert_everywhere(&fleet, 4, true)
}

/// Who may connect to the shard's database can take the fence; the reason names who it is. Red on
/// 0.2.0, which did not say who.
#[test]
fn somebody_else_holds_the_fence() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let mut session = fleet.session()?;
    assert_commits(&fleet, &mut session, 1)?;
    let identity: i64 = one(&mut session, "SELECT identity FROM fdw_xacts.identity")?;
    fleet.shard(1).client()?.batch_execute("CREATE ROLE stranger LOGIN")?;
    begin_everywhere(&mut session, 2)?;
    fleet.commit_undelivered(session, 1)?;
    let mut stranger = fleet.shard(1).client_for("postgres", "stranger")?;
    stranger.batch_execute(&format!("SELECT pg_advisory_lock({identity})"))?;
    fleet.proxy(1).set_new_connections(NewConnections::Served);
    let mut session = fleet.session()?;
    wait_until("the reason is told", DEADLINE, || {
        let error: String = one(
            &mut session,
            "SELECT coalesce(last_error, '') FROM pg_stat_fdw_xacts WHERE server = 'shard1'",
        )?;
        Ok(error.contains("role \"stranger\""))
    })?;
    assert_eq!(prepared_gids(fleet.shard(1))?.len(), 1);
    drop(stranger);
    assert_settled(&fleet);
    assert_everywhere(&fleet, 2, true)
}

/// Or keeps away the lock that each session has there before it prepares. Red on 0.2.0: no hint
/// said what to do.
#[test]
fn somebody_else_keeps_the_sessions_lock_away() -> Outcome {
    let (fleet, mut session) = start()?;
    assert_commits(&fleet, &mut session, 1)?;
    fleet.shard(1).client()?.batch_execute("CREATE ROLE stranger LOGIN")?;
    let mut stranger = fleet.shard(1).client_for("postgres", "stranger")?;
    // The other is its owner lock.
    let owner: i32 = one(&mut session, "SELECT pg_backend_pid()")?;
    let lock = stranger.query_one(
        "SELECT classid::int8::bit(32)::int4, objid::int8::bit(32)::int4 FROM pg_locks
         WHERE locktype = 'advisory' AND objsubid = 2 AND objid::int8 <> $1 LIMIT 1",
        &[&i64::from(owner)],
    )?;
    let (key, incarnation): (i32, i32) = (lock.get(0), lock.get(1));
    let pid: i32 = one(&mut stranger, "SELECT pg_backend_pid()")?;
    let waits = in_background(stranger, &format!("SELECT pg_advisory_lock({key}, {incarnation})"));
    let mut shard = fleet.shard(1).client()?;
    wait_until("the stranger waits", DEADLINE, || {
        let sql = format!("SELECT count(*) FROM pg_locks WHERE pid = {pid} AND NOT granted");
        Ok(one::<i64>(&mut shard, &sql)? == 1)
    })?;
    let mut other = fleet.session()?;
    begin_everywhere(&mut other, 2)?;
    let error = expect_error(other.batch_execute("COMMIT"), "55000");
    assert!(error.message().contains("advisory lock"), "{error:#?}");
    assert!(error.hint().is_some_and(|h| h.contains("REVOKE CONNECT")), "{error:#?}");
    shard.batch_execute(&format!("SELECT pg_terminate_backend({pid})"))?;
    let _ = waits.join();
    wait_until("the stranger has gone", DEADLINE, || {
        let sql = format!("SELECT count(*) FROM pg_locks WHERE pid = {pid}");
        Ok(one::<i64>(&mut shard, &sql)? == 0)
    })?;
    assert_settled(&fleet);
    assert_everywhere(&fleet, 2, false)?;
    assert_commits(&fleet, &mut other, 3)
}

/// Whatever an ordinary role calls, with whatever arguments, is an error or an answer, and nobody
/// else notices.
#[test]
fn an_ordinary_role_of_the_coordinator() -> Outcome {
    let (fleet, mut session) = start()?;
    assert_commits(&fleet, &mut session, 1)?;
    session.batch_execute("CREATE ROLE mallory LOGIN")?;
    let mut mallory = fleet.coordinator.client_for("postgres", "mallory")?;
    for refused in [
        "SELECT * FROM pg_fdw_xacts_resolve()",
        "SELECT pg_fdw_xacts_forget('shard1')",
        "SELECT pg_fdw_xacts_exec('shard1', 'SELECT 1')",
        "SELECT * FROM pg_fdw_xacts_query('shard1', 'SELECT 1') AS (a int)",
        "SELECT * FROM ft1",
        "SELECT * FROM fdw_xacts.identity",
        "SELECT * FROM fdw_xacts.decision",
        "SELECT * FROM fdw_xacts.label",
        "TRUNCATE fdw_xacts.decision",
        "DO $$ BEGIN LOCK TABLE fdw_xacts.decision; END $$",
        "CREATE TABLE fdw_xacts.mine ()",
        "CREATE SERVER mine FOREIGN DATA WRAPPER pg_fdw_xacts",
        "ALTER EXTENSION pg_fdw_xacts UPDATE",
        "DROP EXTENSION pg_fdw_xacts CASCADE",
    ] {
        let error = mallory.batch_execute(refused).expect_err(refused);
        let code = error.code().expect("the server answers").code().to_owned();
        assert!(["42501", "55006"].contains(&code.as_str()), "{refused}: {error:?}");
    }
    for odd in [
        "SELECT pg_fdw_xacts_track(repeat('x', 50000000))",
        "SELECT pg_fdw_xacts_outcome(repeat('x', 50000000))",
        "SELECT pg_fdw_xacts_track('')",
        "SELECT pg_fdw_xacts_outcome('')",
        "SELECT pg_fdw_xacts_outcome(NULL)",
        "SELECT pg_fdw_xacts_outcome(E'\\x01\\n\\t')",
        "SELECT pg_fdw_xacts_validator('{a=b,c}', 0)",
        "SELECT pg_fdw_xacts_validator('{{a},{b}}', 1417)",
        "SELECT pg_fdw_xacts_validator(NULL::text[], 1417)",
        "SELECT pg_fdw_xacts_validator(ARRAY[NULL, 'host=x'], 1417)",
        "SELECT pg_fdw_xacts_validator(ARRAY[repeat('x', 1000000)], 1418)",
        "SELECT pg_fdw_xacts_handler()",
        "SELECT * FROM pg_fdw_xacts_participants()",
        "SELECT * FROM pg_fdw_xacts_statistics()",
        "SELECT pg_fdw_xacts_disconnect(repeat('x', 1000000))",
        "SELECT pg_fdw_xacts_disconnect(NULL)",
        "SELECT pg_fdw_xacts_disconnect_all()",
        "SELECT * FROM pg_fdw_xacts_get_connections()",
        "SELECT * FROM pg_fdw_xacts",
        "SELECT * FROM pg_stat_fdw_xacts",
        "SET pg_fdw_xacts.prepare_timeout = '1ms'",
        "ROLLBACK PREPARED 'y'",
    ] {
        // Both are fine.
        let answer = mallory.batch_execute(odd);
        assert!(!mallory.is_closed(), "{odd}: {answer:?}");
    }
    assert_commits(&fleet, &mut session, 2)?;
    assert_settled(&fleet);
    Ok(())
}
