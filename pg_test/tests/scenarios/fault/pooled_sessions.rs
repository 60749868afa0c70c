//! What the coordinator does on its shards, through PgBouncer in session mode: its locks, its
//! cancels, its COPY, what it does when the pooler goes away or does not reset sessions.

use pg_test::oracle::{assert_settled, assert_usable, expect_error, one, prepared_gids};
use pg_test::pooler::Pooler;
use pg_test::{DEADLINE, Fleet, wait_until};
use postgres::Client;

use crate::support::{
    Outcome, assert_commits, assert_everywhere, assert_recovered, begin_everywhere, in_background,
    signal, wait_for_lock,
};

/// A fleet whose shard 1 is reached through a pooler.
fn start() -> anyhow::Result<(Fleet, Pooler)> {
    let fleet = Fleet::start()?;
    let pooler = pool(&fleet, "")?;
    Ok((fleet, pooler))
}

/// A pooler with these further settings in front of shard 1.
fn pool(fleet: &Fleet, settings: &str) -> anyhow::Result<Pooler> {
    let pooler = Pooler::start_with(fleet.shard(1), "session", 20, settings)?;
    let port = pooler.port();
    fleet.session()?.batch_execute(&format!("ALTER SERVER shard1 OPTIONS (SET port '{port}')"))?;
    Ok(pooler)
}

/// Sessions leave their locks to whoever comes next: those of one that has gone say that it is
/// alive. Red before: the first sessions worked, and later ones were told of an `abort cleanup
/// failure`.
#[test]
fn a_pooler_that_does_not_reset_sessions_is_refused() -> Outcome {
    let fleet = Fleet::start()?;
    for reset in ["", "DEALLOCATE ALL", "SELECT pg_advisory_unlock_all()"] {
        let _pooler = pool(&fleet, &format!("server_reset_query = {reset}"))?;
        // That what is left is seen by the next session is usual, but not certain.
        wait_until("a session finds what another has left", DEADLINE, || {
            let mut session = fleet.session()?;
            let result = session.batch_execute("SELECT * FROM ft1");
            let Err(error) = result else { return Ok(false) };
            let refused = expect_error::<()>(Err(error), "0A000");
            assert!(refused.message().contains("does not reset sessions"), "{refused:#?}");
            assert!(refused.hint().unwrap_or_default().contains("DISCARD ALL"), "{refused:#?}");
            assert_usable(&mut session);
            Ok(true)
        })?;
    }
    Ok(())
}

/// What wants a lock is cancelled through the pooler, and gives way in a deadlock.
#[test]
fn waits_for_locks_end_as_they_do_without_a_pooler() -> Outcome {
    let (fleet, _pooler) = start()?;
    assert_commits(&fleet, &mut fleet.session()?, 1)?;
    let holding = |table: &str| -> anyhow::Result<Client> {
        let mut session = fleet.session()?;
        session.batch_execute("SET statement_timeout = '30s'; BEGIN")?;
        session.batch_execute(&format!("UPDATE {table} SET v = 'y' WHERE id = 1"))?;
        Ok(session)
    };
    let mut holder = holding("ft1")?;
    let mut session = fleet.session()?;
    let pid = one(&mut session, "SELECT pg_backend_pid()")?;
    let waits = in_background(session, "UPDATE ft1 SET v = 'z' WHERE id = 1");
    wait_for_lock(&fleet, 1)?;
    signal(&fleet, "pg_cancel_backend", pid)?;
    expect_error(waits.join().1, "57014");
    holder.batch_execute("ROLLBACK")?;

    let (one_way, other_way) = (holding("ft1")?, holding("ft2")?);
    let waits = [
        in_background(one_way, "UPDATE ft2 SET v = 'y' WHERE id = 1"),
        in_background(other_way, "UPDATE ft1 SET v = 'y' WHERE id = 1"),
    ];
    let ends = waits.map(|wait| wait.join().1);
    let victims: Vec<_> = ends.into_iter().filter_map(Result::err).collect();
    let [victim] = victims.as_slice() else { panic!("{victims:#?}") };
    assert_eq!(victim.code().map(|code| code.code()), Some("40P01"), "{victim:#?}");
    Ok(())
}

/// What saves waits, and COPY, which leaves the pipeline.
#[test]
fn what_is_sent_ahead_arrives() -> Outcome {
    let (fleet, _pooler) = start()?;
    let mut session = fleet.session()?;
    // A statement whose COMMIT travels behind it, on a connection that has just been heard of.
    session.batch_execute("DELETE FROM ft1")?;
    session.batch_execute("INSERT INTO ft1 VALUES (1, 'x')")?;
    session.batch_execute(
        "SET pg_fdw_xacts.write_behind = on;
         BEGIN;
         INSERT INTO ft1 VALUES (2, 'x');
         INSERT INTO ft2 VALUES (2, 'x');
         SAVEPOINT a;
         INSERT INTO ft1 VALUES (3, 'x');
         ROLLBACK TO a;
         COMMIT",
    )?;
    session.batch_execute("BEGIN; INSERT INTO ft1 VALUES (1, 'again')")?;
    expect_error(session.batch_execute("COMMIT"), "23505");
    session.batch_execute("INSERT INTO ft1 SELECT i, 'x' FROM generate_series(11, 1010) i")?;
    session.batch_execute("SET pg_fdw_xacts.commit_wait = off")?;
    begin_everywhere(&mut session, 5)?;
    session.batch_execute("COMMIT")?;
    let mut reader = fleet.session()?;
    reader.batch_execute("SET pg_fdw_xacts.consistent_reads = on")?;
    let both = one::<i64>(&mut reader, "SELECT count(*) FROM ft1 JOIN ft2 USING (id)")?;
    assert_eq!(both, 2);
    assert_eq!(fleet.ids_on_shard(1)?.len(), 1003);
    assert_settled(&fleet);
    Ok(())
}

/// In doubt while there is no pooler, and settled through the one that takes its place.
#[test]
fn a_pooler_that_dies_delays_the_commit_and_loses_nothing() -> Outcome {
    let (fleet, mut pooler) = start()?;
    let mut session = fleet.session()?;
    assert_commits(&fleet, &mut session, 1)?;
    begin_everywhere(&mut session, 2)?;
    session.batch_execute("PREPARE TRANSACTION 'two'")?;
    begin_everywhere(&mut session, 3)?;
    pooler.kill9();
    fleet.session()?.batch_execute("COMMIT PREPARED 'two'")?;
    assert_eq!(prepared_gids(fleet.shard(1))?.len(), 1);
    pooler.start_again()?;
    // What was open has lost its connection.
    expect_error(session.batch_execute("COMMIT"), "40000");
    assert_everywhere(&fleet, 3, false)?;
    assert_recovered(&fleet, 2, true)
}
