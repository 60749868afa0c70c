//! What may happen while snapshots are taken again and again because a transaction is half
//! delivered: its owner ends, it is given up, the reader is cancelled or killed or loses a
//! connection.

use std::time::{Duration, Instant};

use pg_test::oracle::{assert_settled, expect_error, expect_terminated, one, prepared_gids};
use pg_test::proxy::Hit;
use pg_test::{DEADLINE, Fault, Fleet, Point, lengthened_by_load, wait_until};
use postgres::{Client, Error};

use super::held::{after_waiting, half_delivered, reader};
use crate::support::{Background, Outcome, assert_commits, begin_everywhere, signal};

const DIFFERENCE: &str = "SELECT (SELECT count(*) FROM ft1) - (SELECT count(*) FROM ft2)";

fn difference(reader: &mut Client) -> Result<i64, Error> {
    Ok(reader.query_one(DIFFERENCE, &[])?.get(0))
}

fn pid(session: &mut Client) -> anyhow::Result<i32> {
    one(session, "SELECT pg_backend_pid()")
}

/// The owner is told to end, or ends: the resolver delivers to shard 2, whatever was held.
fn settled_by_the_resolver(fleet: &Fleet, pid: i32) -> Outcome {
    let (reader, seen) = after_waiting(fleet, reader(fleet)?, difference, || {
        signal(fleet, "pg_terminate_backend", pid)
    })?;
    assert_eq!(seen?, 0);
    drop(reader);
    assert_eq!(fleet.ids_on_shard(2)?, [1], "the reader has waited for that");
    Ok(())
}

#[test]
fn the_owner_is_terminated_between_two_shards() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let mut writer = fleet.session()?;
    let owner = pid(&mut writer)?;
    let (hit, writer) = half_delivered(&fleet, writer, 1, "COMMIT")?;
    settled_by_the_resolver(&fleet, owner)?;
    // The decision stands, so COMMIT may be answered before the session ends.
    let (mut session, committed) = writer.join();
    expect_terminated(committed.and_then(|()| session.batch_execute("SELECT")));
    hit.release();
    assert_settled(&fleet);
    Ok(())
}

fn prepared(fleet: &Fleet) -> anyhow::Result<Client> {
    let mut manager = fleet.session()?;
    begin_everywhere(&mut manager, 1)?;
    manager.batch_execute("PREPARE TRANSACTION 'gxid'")?;
    Ok(manager)
}

#[test]
fn a_gxid_that_is_committed_with_one_shard_held() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let mut before = reader(&fleet)?;
    let manager = prepared(&fleet)?;
    assert_eq!(difference(&mut before)?, 0, "it is not decided");
    let (hit, manager) = half_delivered(&fleet, manager, 1, "COMMIT PREPARED 'gxid'")?;
    let release = || {
        hit.release();
        Ok(())
    };
    let (_, seen) = after_waiting(&fleet, before, difference, release)?;
    assert_eq!(seen?, 0);
    manager.join().1?;
    assert_settled(&fleet);
    Ok(())
}

#[test]
fn a_gxid_whose_manager_is_terminated_between_two_shards() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    drop(prepared(&fleet)?);
    let mut manager = fleet.session()?;
    let owner = pid(&mut manager)?;
    let (hit, manager) = half_delivered(&fleet, manager, 1, "COMMIT PREPARED 'gxid'")?;
    settled_by_the_resolver(&fleet, owner)?;
    expect_terminated(manager.join().1);
    hit.release();
    assert_settled(&fleet);
    Ok(())
}

/// What an operator has given up is not waited for, and is as it is. The resolver has it, and gets
/// no answer.
#[test]
fn what_was_forgotten_is_not_waited_for() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let mut writer = fleet.session()?;
    let owner = pid(&mut writer)?;
    let (hit, writer) = half_delivered(&fleet, writer, 1, "COMMIT")?;
    let gid = prepared_gids(fleet.shard(2))?.remove(0);
    let again = fleet.proxy(2).inject(Fault::hold(Point::Statement, "COMMIT PREPARED"));
    signal(&fleet, "pg_terminate_backend", owner)?;
    again.wait()?;
    let (mut session, settled) = writer.join();
    expect_terminated(settled.and_then(|()| session.batch_execute("SELECT")));
    let (mut reader, seen) = after_waiting(&fleet, reader(&fleet)?, difference, || {
        let forget = format!("SELECT pg_fdw_xacts_forget('{gid}')");
        Ok(fleet.session()?.batch_execute(&forget)?)
    })?;
    assert_eq!(seen?, 1);
    assert_eq!(difference(&mut reader)?, 1);
    again.release();
    hit.release();
    assert_settled(&fleet);
    assert_eq!(difference(&mut reader)?, 0);
    Ok(())
}

/// A reader in the middle of its rounds, which has asked those who deliver to wait; what `harm` is
/// done to its backend.
fn harmed(
    fleet: &Fleet,
    mut reader: Client,
    harm: impl FnOnce(i32) -> Outcome,
) -> anyhow::Result<(Client, Result<i64, Error>)> {
    let reader_pid = pid(&mut reader)?;
    after_waiting(fleet, reader, difference, || {
        wait_until("the window was closed", DEADLINE, || {
            let windows = "SELECT windows FROM pg_stat_fdw_xacts_reads";
            Ok(one::<i64>(&mut fleet.session()?, windows)? > 0)
        })?;
        harm(reader_pid)
    })
}

fn released(fleet: &Fleet, (hit, writer): (Hit, Background)) -> Outcome {
    hit.release();
    writer.join().1?;
    assert_settled(fleet);
    Ok(())
}

/// A cancel and a timeout end the statement; the session reads on.
#[test]
fn a_reader_that_is_cancelled_goes_on() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let held = half_delivered(&fleet, fleet.session()?, 1, "COMMIT")?;
    let cancel = |pid| signal(&fleet, "pg_cancel_backend", pid);
    let (mut reader, seen) = harmed(&fleet, reader(&fleet)?, cancel)?;
    expect_error(seen, "57014");
    assert_eq!(one::<i64>(&mut reader, "SELECT count(*) FROM ft1")?, 1);
    // The limit is that of the reading alone: a busy machine may exceed it in any statement. What
    // fails takes it back, with the transaction or the savepoint.
    let limit = lengthened_by_load(Duration::from_millis(500)).as_millis();
    let limit = format!("SET statement_timeout = '{limit}ms'");
    for begin in ["BEGIN", "BEGIN ISOLATION LEVEL REPEATABLE READ"] {
        reader.batch_execute(&format!("{begin}; {limit}"))?;
        expect_error(difference(&mut reader), "57014");
        reader.batch_execute("ROLLBACK")?;
        // In a savepoint, behind which the transaction goes on.
        reader.batch_execute(&format!("{begin}; SAVEPOINT a; {limit}"))?;
        expect_error(difference(&mut reader), "57014");
        reader.batch_execute("ROLLBACK TO a")?;
        assert_eq!(one::<i64>(&mut reader, "SELECT count(*) FROM lt")?, 1);
        reader.batch_execute("COMMIT")?;
    }
    released(&fleet, held)?;
    assert_eq!(difference(&mut reader)?, 0);
    assert_commits(&fleet, &mut reader, 2)
}

/// In an exception block, what stays in doubt is caught, and one server is read.
#[test]
fn what_is_in_doubt_is_caught_in_an_exception_block() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let held = half_delivered(&fleet, fleet.session()?, 1, "COMMIT")?;
    let mut reader = reader(&fleet)?;
    reader.batch_execute("SET pg_fdw_xacts.commit_timeout = '300ms'")?;
    for isolation in ["READ COMMITTED", "REPEATABLE READ"] {
        reader.batch_execute(&format!(
            "BEGIN ISOLATION LEVEL {isolation};
             DO $$ DECLARE is_refused bool := false; BEGIN
                 BEGIN
                     PERFORM ({DIFFERENCE});
                 EXCEPTION WHEN object_not_in_prerequisite_state THEN is_refused := true;
                 END;
                 ASSERT is_refused;
             END $$;
             COMMIT"
        ))?;
    }
    reader.batch_execute(&format!(
        "DO $$ BEGIN
             BEGIN
                 PERFORM ({DIFFERENCE});
             EXCEPTION WHEN object_not_in_prerequisite_state THEN
                 ASSERT (SELECT count(*) FROM ft1) = 1;
             END;
         END $$"
    ))?;
    released(&fleet, held)?;
    assert_eq!(difference(&mut reader)?, 0);
    Ok(())
}

/// Who has asked others to wait and ends, leaves nobody waiting.
#[test]
fn writers_go_on_when_who_has_closed_the_window_is_terminated() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let held = half_delivered(&fleet, fleet.session()?, 1, "COMMIT")?;
    let mut other = fleet.session()?;
    assert_commits(&fleet, &mut other, 2)?;
    let terminate = |pid| signal(&fleet, "pg_terminate_backend", pid);
    let (reader, seen) = harmed(&fleet, reader(&fleet)?, terminate)?;
    expect_terminated(seen);
    drop(reader);
    let start = Instant::now();
    assert_commits(&fleet, &mut other, 3)?;
    // 50 ms, and what a commit takes on a busy machine.
    assert!(start.elapsed() < lengthened_by_load(Duration::from_secs(3)), "{:?}", start.elapsed());
    released(&fleet, held)
}

/// SIGKILL for a reader restarts the server, as ever.
#[test]
fn a_reader_that_is_killed_in_the_middle_of_its_rounds() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let (hit, writer) = half_delivered(&fleet, fleet.session()?, 1, "COMMIT")?;
    let kill = |pid| fleet.coordinator.kill9_backend(pid);
    let (_, seen) = harmed(&fleet, reader(&fleet)?, kill)?;
    assert!(seen.is_err());
    assert!(writer.join().1.is_err());
    wait_until("the server is there again", DEADLINE, || Ok(fleet.session().is_ok()))?;
    let mut reader = reader(&fleet)?;
    assert_eq!(difference(&mut reader)?, 0);
    assert_eq!(one::<i64>(&mut reader, "SELECT count(*) FROM ft2")?, 1);
    hit.release();
    assert_commits(&fleet, &mut reader, 2)?;
    assert_settled(&fleet);
    Ok(())
}

/// The connection is lost where a snapshot is taken again: an error or another connection, and
/// never half a transaction.
#[test]
fn a_connection_that_is_cut_in_a_round() -> Outcome {
    for (point, statement) in [
        (Point::Statement, "ROLLBACK"),
        (Point::Answer, "ROLLBACK"),
        (Point::Statement, "START TRANSACTION"),
        (Point::Answer, "SELECT pg_catalog.pg_current_snapshot"),
    ] {
        let fleet = Fleet::start_proxied()?;
        let held = half_delivered(&fleet, fleet.session()?, 1, "COMMIT")?;
        let (mut reader, seen) = after_waiting(&fleet, reader(&fleet)?, difference, || {
            let cut = fleet.proxy(1).inject(Fault::cut(point, statement));
            cut.wait()?;
            held.0.release();
            Ok(())
        })?;
        match seen {
            Ok(seen) => assert_eq!(seen, 0, "{point:?} {statement}"),
            Err(error) => drop(expect_error(Err::<(), _>(error), "08006")),
        }
        assert_eq!(difference(&mut reader)?, 0);
        released(&fleet, held)?;
    }
    Ok(())
}

/// What the shard's session has prepared for it is gone: an error where that happens, and then
/// another session.
#[test]
fn deallocate_all_on_a_shard() -> Outcome {
    let fleet = Fleet::start()?;
    let mut reader = reader(&fleet)?;
    fleet.shard(1).client()?.batch_execute(
        "CREATE FUNCTION deallocate() RETURNS int LANGUAGE plpgsql AS
             $$ BEGIN EXECUTE 'DEALLOCATE ALL'; RETURN 1; END $$;
         CREATE VIEW deallocating AS SELECT deallocate() AS id",
    )?;
    reader.batch_execute("CREATE FOREIGN TABLE deallocating (id int) SERVER shard1")?;
    for id in 1..=2 {
        assert_eq!(difference(&mut reader)?, 0);
        expect_error(reader.query("SELECT * FROM deallocating", &[]), "40000");
        assert_eq!(difference(&mut reader)?, 0);
        assert_commits(&fleet, &mut reader, id)?;
    }
    Ok(())
}
