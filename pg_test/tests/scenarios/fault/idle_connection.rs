//! A connection that was idle is cut at the very moment at which it is used again, when nothing has
//! told of it before.

use std::sync::{Arc, Mutex};

use pg_test::oracle::{assert_settled, expect_error, one};
use pg_test::wire::Message;
use pg_test::{DEADLINE, Fault, Fleet, Point, wait_until};
use postgres::NoTls;

use crate::support::{Outcome, assert_everywhere, begin_everywhere};

const POINTS: [Point; 2] = [Point::Statement, Point::Answer];

/// Red on 0.2.0: 08006, where postgres_fdw connects anew. A statement whose COMMIT travels behind it
/// is another matter (`whole_statement`).
#[test]
fn a_transaction_that_has_only_just_begun_begins_anew() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    fleet
        .shard(1)
        .client()?
        .batch_execute("INSERT INTO t SELECT i, 'x' FROM generate_series(1, 3) i")?;
    let mut session = fleet.session()?;
    session.batch_execute("SELECT * FROM ft1; SELECT * FROM ft2")?;
    for point in POINTS {
        for statement in [
            "SELECT * FROM ft1",
            "SELECT a.id FROM ft1 a, ft1 b WHERE a.id = b.id + 0 AND random() < 2",
            "INSERT INTO ft1 VALUES (10, 'x'), (11, 'x')",
            "BEGIN; UPDATE ft1 SET v = 'y' WHERE id = 10; COMMIT",
            "UPDATE ft1 SET v = 'z' || random() WHERE id = 10",
            "BEGIN; DELETE FROM ft1 WHERE id >= 10; COMMIT",
            "ANALYZE ft1",
            "BEGIN; SAVEPOINT a; SELECT * FROM ft1; ROLLBACK TO a; SELECT * FROM ft1; COMMIT",
            "BEGIN; SELECT * FROM ft2; SELECT * FROM ft1; COMMIT",
            "PREPARE p AS INSERT INTO ft1 VALUES (12, 'x'); EXECUTE p; DEALLOCATE p; DELETE FROM ft1 WHERE id = 12",
        ] {
            let first = if statement.contains("ft2") { 2 } else { 1 };
            let hit = fleet.proxy(first).inject(Fault::cut(point, "START TRANSACTION"));
            session.batch_execute(statement)?;
            assert!(hit.has_struck(), "{statement}");
            assert_eq!(one::<i64>(&mut session, "SELECT count(*) FROM ft1 WHERE id < 10")?, 3);
        }
    }
    // It is committed once, and with the others.
    for (id, point) in [(21, Point::Statement), (22, Point::Answer)] {
        let _hit = fleet.proxy(1).inject(Fault::cut(point, "START TRANSACTION"));
        session.batch_execute(&format!(
            "BEGIN; INSERT INTO ft1 VALUES ({id}, 'x'); INSERT INTO ft2 VALUES ({id}, 'x');
             INSERT INTO lt VALUES ({id}, 'x'); COMMIT"
        ))?;
        assert_everywhere(&fleet, id, true)?;
    }
    assert_settled(&fleet);
    Ok(())
}

/// What is executed before PREPARE is prepared in the new session, too, also where the session that
/// ended had prepared it before. Red on 0.2.0: 08006.
#[test]
fn a_transaction_that_has_begun_anew_can_prepare() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let mut session = fleet.session()?;
    begin_everywhere(&mut session, 1)?;
    session.batch_execute("COMMIT")?;
    for (id, point) in [(2, Point::Statement), (3, Point::Answer)] {
        let hit = fleet.proxy(1).inject(Fault::cut(point, "START TRANSACTION"));
        begin_everywhere(&mut session, id)?;
        session.batch_execute("COMMIT")?;
        assert!(hit.has_struck());
        assert_everywhere(&fleet, id, true)?;
    }
    assert_settled(&fleet);
    Ok(())
}

/// By asynchronous scans. Red on 0.2.0: 08006.
#[test]
fn asynchronous_scans_begin_anew() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    for shard in fleet.shards() {
        shard
            .client()?
            .batch_execute("INSERT INTO t SELECT i, 'x' FROM generate_series(1, 500) i")?;
    }
    let mut session = fleet.session()?;
    session.batch_execute(
        "ALTER SERVER shard1 OPTIONS (ADD async_capable 'true');
         ALTER SERVER shard2 OPTIONS (ADD async_capable 'true')",
    )?;
    let all = "SELECT count(*) FROM (SELECT id FROM ft1 UNION ALL SELECT id FROM ft2 UNION ALL SELECT id FROM ft1) x";
    assert_eq!(one::<i64>(&mut session, all)?, 1500);
    for point in POINTS {
        let hits = [1, 2].map(|n| fleet.proxy(n).inject(Fault::cut(point, "START TRANSACTION")));
        assert_eq!(one::<i64>(&mut session, all)?, 1500);
        assert!(hits.iter().all(|hit| hit.has_struck()));
    }
    Ok(())
}

/// A transaction that has been answered is not begun anew.
#[test]
fn a_transaction_that_has_been_answered_is_doomed() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let mut session = fleet.session()?;
    session.batch_execute("SELECT * FROM ft1; BEGIN; INSERT INTO ft1 VALUES (1, 'x')")?;
    let _hit = fleet.proxy(1).inject(Fault::cut(Point::Statement, "INSERT"));
    expect_error(session.batch_execute("INSERT INTO ft1 VALUES (2, 'x')"), "08006");
    session.batch_execute("ROLLBACK; INSERT INTO ft1 VALUES (3, 'x')")?;
    assert_eq!(fleet.ids_on_shard(1)?, [3]);
    // A second loss is an error.
    let _hits =
        [1, 2].map(|_| fleet.proxy(1).inject(Fault::cut(Point::Statement, "START TRANSACTION")));
    expect_error(session.batch_execute("SELECT * FROM ft1"), "08006");
    session.batch_execute("SELECT * FROM ft1")?;
    Ok(())
}

/// Red on 0.2.0: about one in five failed with 08006.
#[test]
fn a_connection_that_is_lost_at_a_readers_commit_is_replaced() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let mut session = fleet.session()?;
    for turn in 0..50 {
        let _hit = fleet.proxy(1).inject(Fault::cut(Point::Statement, "COMMIT"));
        session.batch_execute("BEGIN; SELECT * FROM ft1; COMMIT")?;
        session
            .batch_execute("SELECT * FROM ft1")
            .map_err(|error| anyhow::anyhow!("turn {turn}: {error:?}"))?;
    }
    Ok(())
}

/// Red on 0.2.0: what the session had committed was not there when it looked through another
/// mapping.
#[test]
fn another_mapping_sees_what_the_session_has_committed() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let mut session = fleet.session()?;
    session.batch_execute(
        "CREATE ROLE app SUPERUSER;
         CREATE USER MAPPING FOR app SERVER shard1 OPTIONS (user 'postgres');
         CREATE USER MAPPING FOR app SERVER shard2 OPTIONS (user 'postgres');
         SET pg_fdw_xacts.commit_wait = off",
    )?;
    // With connections that have been used before, and with new ones.
    for id in 1..=4 {
        if id % 2 == 1 {
            session.batch_execute("SELECT pg_fdw_xacts_disconnect_all()")?;
        }
        begin_everywhere(&mut session, id)?;
        let hit = fleet.proxy(1).inject(Fault::hold(Point::Statement, "COMMIT PREPARED"));
        session.batch_execute("COMMIT; SET ROLE app")?;
        hit.wait()?;
        let look = std::thread::spawn(move || {
            let seen: anyhow::Result<i64> = one(&mut session, "SELECT count(*) FROM ft1");
            (session, seen)
        });
        // It waits for that; a reader that does not wait has looked long before.
        wait_until("the session waits for the delivery", DEADLINE, || {
            let waiting = "SELECT count(*) FROM pg_stat_activity
                WHERE query LIKE 'SELECT count(*) FROM ft1%' AND state = 'active' AND wait_event_type = 'Extension'";
            Ok(look.is_finished() || one::<i64>(&mut fleet.session()?, waiting)? == 1)
        })?;
        assert!(!look.is_finished(), "it did not wait");
        hit.release();
        let (again, seen) = look.join().expect("the thread only looks");
        assert_eq!(seen?, i64::from(id));
        session = again;
        session.batch_execute("RESET ROLE")?;
    }
    assert_settled(&fleet);
    Ok(())
}

/// Red on 0.2.0: libpq's text alone.
#[test]
fn a_warning_of_a_lost_connection_names_the_server() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let contexts = Arc::new(Mutex::new(Vec::new()));
    let list = Arc::clone(&contexts);
    let mut session = fleet
        .coordinator
        .config()
        .notice_callback(move |notice| {
            let text = notice.where_().unwrap_or_default().to_owned();
            list.lock().expect("nobody panics with it").push(text);
        })
        .connect(NoTls)?;
    session.batch_execute("BEGIN; SELECT * FROM ft1")?;
    let _hit = fleet.proxy(1).inject(Fault::cut(Point::Statement, "INSERT"));
    expect_error(session.batch_execute("INSERT INTO ft1 VALUES (2, 'x')"), "08006");
    session.batch_execute("ROLLBACK")?;
    // A savepoint that cannot be rolled back there: why is in the log. The client gets the message
    // that postgres_fdw has.
    let mark = fleet.coordinator.log().mark()?;
    session.batch_execute("BEGIN; SELECT * FROM ft1; SAVEPOINT a")?;
    let _hit = fleet.proxy(1).inject(Fault::cut(Point::Statement, "INSERT"));
    expect_error(session.batch_execute("INSERT INTO ft1 VALUES (2, 'x')"), "08006");
    session.batch_execute("ROLLBACK TO a")?;
    expect_error(session.batch_execute("SELECT * FROM ft1"), "08000");
    let log = fleet.coordinator.log().since(mark)?;
    assert!(log.contains("The connection was lost: server closed the connection"), "{log}");
    session.batch_execute("ROLLBACK")?;
    let contexts = contexts.lock().expect("nobody panics with it");
    assert!(!contexts.is_empty(), "no warning");
    assert!(
        contexts.iter().all(|text| text.contains("abort on server \"shard1\"")),
        "{contexts:#?}"
    );
    Ok(())
}

/// Red on 0.2.0: up to 150 kB of parameters.
#[test]
fn the_context_of_a_failing_batch_is_short() -> Outcome {
    let fleet = Fleet::start()?;
    let mut session = fleet.session()?;
    let insert = "INSERT INTO ft1 SELECT least(i, 5000), 'x' FROM generate_series(1, 5001) i";
    session.batch_execute("SET pg_fdw_xacts.batch_size = 5001")?;
    let error = expect_error(session.batch_execute(insert), "23505");
    let context = error.where_().unwrap_or_default();
    assert!(context.len() < 500, "{} bytes", context.len());
    assert!(context.contains("VALUES ($1, $2), ... (5000 more)"), "{context}");
    Ok(())
}

/// Whether somebody who is connected to this port has received so many bytes and not read them. The
/// end of an earlier answer may be among them.
fn has_unread(port: u16, bytes: usize) -> anyhow::Result<bool> {
    let remote = format!(":{port:04X}");
    let sockets = std::fs::read_to_string("/proc/net/tcp")?;
    Ok(sockets.lines().any(|line| {
        let mut fields = line.split_whitespace().skip(2);
        let is_there = fields.next().is_some_and(|address| address.ends_with(&remote));
        let received = fields.nth(1).and_then(|queues| queues.split(':').nth(1));
        let received = received.and_then(|queue| usize::from_str_radix(queue, 16).ok());
        is_there && received.is_some_and(|received| received >= bytes)
    }))
}

/// A server that ends a session says so first, and on a busy machine the end of the stream follows
/// some time later. Red: the INSERT, whose COMMIT travels behind it, failed with that message.
#[test]
fn a_session_that_the_server_has_ended_is_not_used_again() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let mut session = fleet.session()?;
    let mut there = fleet.shard(1).client()?;
    let mut newest = || {
        one::<i32>(
            &mut there,
            "SELECT pid FROM pg_stat_activity WHERE application_name = 'postgres_fdw'
             ORDER BY backend_start DESC LIMIT 1",
        )
    };
    session.batch_execute("INSERT INTO ft1 VALUES (0, 'x')")?;
    let before = newest()?;
    for (id, severity) in [(1, "NOTICE"), (2, "FATAL")] {
        let said = format!("S{severity}\0V{severity}\0C57P05\0Midle for too long\0\0");
        let tag = if severity == "FATAL" { b'E' } else { b'N' };
        fleet.proxy(1).say(&Message::new(tag, said.as_bytes()))?;
        wait_until("it has arrived", DEADLINE, || has_unread(fleet.proxy(1).port(), said.len()))?;
        session.batch_execute(&format!("INSERT INTO ft1 VALUES ({id}, 'x')"))?;
        assert_eq!(newest()? == before, severity == "NOTICE", "{severity}");
    }
    assert_eq!(fleet.ids_on_shard(1)?, [0, 1, 2]);
    assert_settled(&fleet);
    Ok(())
}

/// `pg_fdw_xacts.idle_connection_timeout` closes what is idle outside of transactions, and nobody
/// notices.
#[test]
fn idle_connections_are_closed_when_they_are_to_be() -> Outcome {
    let fleet = Fleet::start()?;
    let mut there = fleet.shard(1).client()?;
    let mut sessions = || {
        one::<i64>(
            &mut there,
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'postgres_fdw'",
        )
    };
    let mut session = fleet.session()?;
    session.batch_execute("SET pg_fdw_xacts.idle_connection_timeout = '200ms'")?;
    for id in 1..=2 {
        begin_everywhere(&mut session, id)?;
        // A transaction is not idle, and what is done in it stays.
        session.batch_execute("SELECT pg_sleep(0.5)")?;
        assert_eq!(sessions()?, 1);
        session.batch_execute("COMMIT")?;
        assert_everywhere(&fleet, id, true)?;
        wait_until("the connection is closed", DEADLINE, || Ok(sessions()? == 0))?;
    }
    // A statement that is the whole transaction.
    session.batch_execute("INSERT INTO ft1 VALUES (3, 'x')")?;
    wait_until("the connection is closed", DEADLINE, || Ok(sessions()? == 0))?;
    session.batch_execute("SET pg_fdw_xacts.idle_connection_timeout = 0; SELECT * FROM ft1")?;
    session.batch_execute("SELECT pg_sleep(0.5)")?;
    assert_eq!(sessions()?, 1);
    assert_eq!(fleet.ids_on_shard(1)?, [1, 2, 3]);
    Ok(())
}

/// A session that has prepared is not idle as long as it waits for another server. Red: it was
/// ended, COMMIT warned, and its own session did not see what it had committed.
#[test]
fn a_session_that_has_prepared_is_not_closed() -> Outcome {
    let fleet = Fleet::start()?;
    let (mut first, mut second) = (fleet.shard(1).client()?, fleet.shard(2).client()?);
    second.batch_execute(
        "CREATE FUNCTION waits() RETURNS trigger LANGUAGE plpgsql
             AS 'BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NULL; END';
         CREATE CONSTRAINT TRIGGER waits AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED
             FOR EACH ROW EXECUTE FUNCTION waits();
         SELECT pg_advisory_lock(1)",
    )?;
    let mut session = fleet.session()?;
    session.batch_execute("SET pg_fdw_xacts.idle_connection_timeout = '200ms'")?;
    begin_everywhere(&mut session, 1)?;
    let committing = std::thread::spawn(move || session.batch_execute("COMMIT").map(|()| session));
    let mut is_there = |condition: &str| {
        one::<bool>(
            &mut first,
            &format!(
                "SELECT EXISTS (SELECT FROM pg_stat_activity
                     WHERE application_name = 'postgres_fdw' {condition})"
            ),
        )
    };
    wait_until("it has prepared", DEADLINE, || {
        is_there("AND state = 'idle' AND query LIKE 'PREPARE %'")
    })?;
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert!(is_there("")?, "the session was ended");
    second.batch_execute("SELECT pg_advisory_unlock(1)")?;
    let mut session = committing.join().expect("no panic")?;
    assert_eq!(one::<i64>(&mut session, "SELECT count(*) FROM ft1")?, 1);
    wait_until("the connection is closed", DEADLINE, || Ok(!is_there("")?))?;
    assert_everywhere(&fleet, 1, true)?;
    Ok(())
}

/// The server ends an idle session after the connection was found to be there, and before the
/// statement is sent. Red while COMMIT travelled behind it all the same: 08006.
#[test]
fn a_session_that_ends_before_a_whole_statement_is_sent_is_replaced() -> Outcome {
    let fleet = Fleet::start()?;
    let mut session = fleet.session()?;
    session.batch_execute(
        "CREATE FUNCTION slow(id integer) RETURNS integer STABLE LANGUAGE plpgsql
             AS 'BEGIN PERFORM pg_sleep(0.6); RETURN id; END';
         SET pg_fdw_xacts.idle_connection_timeout = '200ms'",
    )?;
    for (id, statement) in [
        (1, "INSERT INTO ft1 VALUES (slow(1), 'x')"),
        (2, "UPDATE ft1 SET id = 2 WHERE id = slow(1)"),
        (2, "DELETE FROM ft1 WHERE id = slow(3)"),
    ] {
        session.batch_execute("SELECT * FROM ft1")?;
        session.batch_execute(statement)?;
        assert_eq!(fleet.ids_on_shard(1)?, [id], "{statement}");
    }
    assert_settled(&fleet);
    Ok(())
}
