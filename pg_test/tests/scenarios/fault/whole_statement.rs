//! A statement whose COMMIT travels behind it: what the client is told is what has become of it.

use std::time::{Duration, Instant};

use pg_test::oracle::{
    assert_no_locks, assert_settled, assert_usable, expect_error, expect_terminated, one,
};
use pg_test::{DEADLINE, Fault, Fleet, Point};
use postgres::Client;

use crate::support::{NONE, Outcome, in_background, signal, wait_for_lock};

const INSERT: &str = "INSERT INTO ft1 VALUES (1, 'x')";

/// How long a connection is relied on to be there without asking.
const RELIED_ON: Duration = Duration::from_secs(1);

/// A session that has heard of shard 1 just now.
fn session(fleet: &Fleet) -> anyhow::Result<Client> {
    let mut session = fleet.session()?;
    session.batch_execute("DELETE FROM ft1")?;
    Ok(session)
}

/// The answer to the statement, with the xid, comes before that to COMMIT: if only that is lost, it
/// is asked for.
#[test]
fn a_lost_answer_to_commit_is_asked_for() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let mut session = session(&fleet)?;
    let hit = fleet.proxy(1).inject(Fault::cut(Point::Answer, "COMMIT"));
    assert_eq!(session.execute(INSERT, &[])?, 1);
    assert!(hit.has_struck());
    assert_eq!(fleet.ids_on_shard(1)?, [1]);
    session.batch_execute("DELETE FROM ft1")?;
    let hit = fleet.proxy(1).inject(Fault::cut(Point::Statement, "COMMIT"));
    let error = session.batch_execute(INSERT).expect_err("COMMIT has not arrived");
    assert!(hit.has_struck());
    // The connection may have been cut before the answer to the statement had come.
    let code = error.code().map(|code| code.code());
    assert!(matches!(code, Some("40000" | "08007")), "{error:?}");
    assert_eq!(fleet.ids_on_shard(1)?, NONE);
    assert_usable(&mut session);
    assert_settled(&fleet);
    Ok(())
}

/// If nothing of both answers has come, nobody can tell, and that is what is said.
#[test]
fn if_nothing_was_answered_the_outcome_is_unknown() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    for (point, message) in [
        (Point::Statement, "START TRANSACTION"),
        (Point::Statement, "INSERT"),
        (Point::Answer, "START TRANSACTION"),
        (Point::Answer, "INSERT"),
    ] {
        let deadline = Instant::now() + DEADLINE;
        let (mut session, hit, result) = loop {
            let begin = Instant::now();
            let mut session = session(&fleet)?;
            let hit = fleet.proxy(1).inject(Fault::cut(point, message));
            let result = session.batch_execute(INSERT);
            // On a busy machine the connection may have been idle for so long in between that
            // COMMIT does not travel behind the statement: then nothing is shown.
            if begin.elapsed() < RELIED_ON || Instant::now() > deadline {
                break (session, hit, result);
            }
        };
        let error = expect_error(result, "08007");
        assert!(hit.has_struck());
        assert!(error.message().contains("its outcome is unknown"), "{error:#?}");
        assert!(error.hint().is_some(), "{error:#?}");
        assert_usable(&mut session);
        if point == Point::Statement {
            assert_eq!(fleet.ids_on_shard(1)?, NONE);
        }
    }
    assert_settled(&fleet);
    Ok(())
}

/// That an earlier answer is read only now does not tell that the server is still there. Red: COMMIT
/// travelled with the statement on a connection that had ended meanwhile, 08007.
#[test]
fn an_answer_that_is_read_late_is_no_sign_of_life() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    // Nobody waits for the answer to the last command there, before the next statement.
    let earlier = [
        "SELECT * FROM ft1",
        "SET pg_fdw_xacts.commit_wait = off;
         BEGIN; INSERT INTO lt VALUES (0); DELETE FROM ft1; COMMIT",
    ];
    for (id, earlier) in (1..).zip(earlier) {
        let mut session = session(&fleet)?;
        session.batch_execute(earlier)?;
        // Longer than it is relied on to be there without asking.
        session.batch_execute("SELECT pg_sleep(1.2)")?;
        let hit = fleet.proxy(1).inject(Fault::cut(Point::Statement, "INSERT"));
        session.batch_execute(&format!("INSERT INTO ft1 VALUES ({id}, 'x')"))?;
        assert!(hit.has_struck(), "{earlier}");
        assert_eq!(fleet.ids_on_shard(1)?, [id], "{earlier}");
    }
    assert_settled(&fleet);
    Ok(())
}

/// What the shard says as it ends the session, before it has executed the statement, is an answer.
#[test]
fn a_session_that_is_terminated_there_has_rolled_back() -> Outcome {
    let fleet = Fleet::start()?;
    let mut session = session(&fleet)?;
    let mut other = fleet.shard(1).client()?;
    other.batch_execute("BEGIN; INSERT INTO t VALUES (1)")?;
    let insert = in_background(session, INSERT);
    wait_for_lock(&fleet, 1)?;
    fleet.shard(1).client()?.batch_execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock'",
    )?;
    let (back, result) = insert.join();
    session = back;
    expect_error(result, "08006");
    other.batch_execute("ROLLBACK")?;
    assert_usable(&mut session);
    assert_eq!(fleet.ids_on_shard(1)?, NONE);
    Ok(())
}

/// A cancel or a limit that comes before the statement is done takes it back.
#[test]
fn a_cancel_takes_back_what_has_not_been_done() -> Outcome {
    let fleet = Fleet::start()?;
    let mut session = session(&fleet)?;
    let pid: i32 = one(&mut session, "SELECT pg_backend_pid()")?;
    let mut other = fleet.shard(1).client()?;
    for limit in ["0", "500ms"] {
        session.batch_execute(&format!("SET statement_timeout = '{limit}'"))?;
        other.batch_execute("BEGIN; INSERT INTO t VALUES (1)")?;
        let insert = in_background(session, INSERT);
        if limit == "0" {
            // With a limit it may have ended before anybody looks.
            wait_for_lock(&fleet, 1)?;
            signal(&fleet, "pg_cancel_backend", pid)?;
        }
        let (back, result) = insert.join();
        session = back;
        expect_error(result, "57014");
        assert_usable(&mut session);
        other.batch_execute("ROLLBACK")?;
        assert_eq!(fleet.ids_on_shard(1)?, NONE);
    }
    session.batch_execute("SET statement_timeout = 0")?;
    session.batch_execute(INSERT)?;
    assert_eq!(fleet.ids_on_shard(1)?, [1]);
    Ok(())
}

/// The same of a termination: what the shard has not done yet it does not do later.
#[test]
fn a_termination_takes_back_what_has_not_been_done() -> Outcome {
    let fleet = Fleet::start()?;
    let mut session = session(&fleet)?;
    let pid: i32 = one(&mut session, "SELECT pg_backend_pid()")?;
    let mut other = fleet.shard(1).client()?;
    other.batch_execute("BEGIN; INSERT INTO t VALUES (1)")?;
    let insert = in_background(session, INSERT);
    wait_for_lock(&fleet, 1)?;
    signal(&fleet, "pg_terminate_backend", pid)?;
    expect_terminated(insert.join().1);
    other.batch_execute("ROLLBACK")?;
    assert_no_locks(&fleet)?;
    assert_eq!(fleet.ids_on_shard(1)?, NONE);
    Ok(())
}

/// One that comes when the shard has committed changes nothing, and does not hit the next
/// statement.
#[test]
fn a_cancel_after_the_commit_comes_too_late() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let mut session = session(&fleet)?;
    let pid: i32 = one(&mut session, "SELECT pg_backend_pid()")?;
    let hit = fleet.proxy(1).inject(Fault::hold(Point::Answer, "COMMIT"));
    let insert = in_background(session, INSERT);
    hit.wait()?;
    signal(&fleet, "pg_cancel_backend", pid)?;
    hit.release();
    let (mut session, result) = insert.join();
    result?;
    assert_usable(&mut session);
    assert_eq!(fleet.ids_on_shard(1)?, [1]);
    Ok(())
}

/// What fails there, at once or at its COMMIT, fails with the shard's error, and nothing is left.
#[test]
fn what_the_shard_refuses_is_rolled_back() -> Outcome {
    let fleet = Fleet::start()?;
    let mut session = session(&fleet)?;
    fleet.shard(1).client()?.batch_execute(
        "ALTER TABLE t ADD u int UNIQUE DEFERRABLE INITIALLY DEFERRED,
             ADD CONSTRAINT few CHECK (id < 1000);
         INSERT INTO t VALUES (5, 'there', 5)",
    )?;
    session.batch_execute("ALTER FOREIGN TABLE ft1 ADD u int")?;
    for (statement, code) in [
        ("INSERT INTO ft1 VALUES (5)", "23505"),
        ("INSERT INTO ft1 VALUES (1000)", "23514"),
        ("INSERT INTO ft1 VALUES (6, 'deferred', 5)", "23505"),
        ("UPDATE ft1 SET id = 1000 WHERE id = 5", "23514"),
        ("INSERT INTO ft1 VALUES (6, 'here', 1 / (SELECT 0))", "22012"),
    ] {
        expect_error(session.batch_execute(statement), code);
        assert_usable(&mut session);
        assert_eq!(fleet.ids_on_shard(1)?, [5], "{statement}");
    }
    assert_eq!(session.execute("UPDATE ft1 SET v = 'y' WHERE id = 6", &[])?, 0);
    assert_eq!(session.execute("DELETE FROM ft1 WHERE id = 5", &[])?, 1);
    assert_settled(&fleet);
    Ok(())
}

/// Where something here could still fail, or belongs to the same transaction, the shard is not
/// told to commit before that.
#[test]
fn what_comes_behind_the_statement_takes_it_back() -> Outcome {
    let fleet = Fleet::start()?;
    let mut session = session(&fleet)?;
    session.batch_execute(
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS
             'BEGIN RAISE division_by_zero; END';
         CREATE FUNCTION note() RETURNS int LANGUAGE plpgsql AS
             'BEGIN INSERT INTO lt VALUES (1); RETURN 2; END';
         ALTER TABLE lt ADD UNIQUE (v) DEFERRABLE INITIALLY DEFERRED;
         INSERT INTO lt VALUES (0, 'x');
         CREATE FUNCTION late() RETURNS int LANGUAGE plpgsql AS
             $$BEGIN INSERT INTO lt VALUES (3, 'x'); RETURN 3; END$$;
         CREATE FOREIGN TABLE checked (id int, v text) SERVER shard1 OPTIONS (table_name 't');
         CREATE TRIGGER fail AFTER INSERT OR UPDATE ON checked
             FOR EACH STATEMENT EXECUTE FUNCTION fail();
         CREATE TABLE parent (id int, v text) PARTITION BY LIST (id);
         CREATE FOREIGN TABLE part PARTITION OF parent FOR VALUES IN (1, 2, 3) SERVER shard1
             OPTIONS (table_name 't');
         CREATE TRIGGER fail AFTER INSERT ON parent FOR EACH STATEMENT EXECUTE FUNCTION fail()",
    )?;
    for (statement, code) in [
        ("INSERT INTO checked VALUES (1)", "22012"),
        ("UPDATE checked SET id = 1 WHERE id = 1", "22012"),
        ("INSERT INTO parent VALUES (1)", "22012"),
        ("INSERT INTO ft1 VALUES (1) RETURNING 1 / (id - 1)", "22012"),
        ("WITH i AS (INSERT INTO ft1 VALUES (1) RETURNING id) SELECT 1 / (id - 1) FROM i", "22012"),
        ("INSERT INTO ft1 VALUES (1); SELECT 1 / 0", "22012"),
        ("INSERT INTO ft1 VALUES (late())", "23505"),
        ("DO $$BEGIN INSERT INTO ft1 VALUES (1); PERFORM 1 / 0; END$$", "22012"),
        ("EXPLAIN ANALYZE INSERT INTO checked VALUES (1)", "22012"),
    ] {
        expect_error(session.batch_execute(statement), code);
        assert_eq!(fleet.ids_on_shard(1)?, NONE, "{statement}");
        assert_eq!(fleet.ids_in_lt()?, [0], "{statement}");
    }
    session.batch_execute("INSERT INTO ft1 VALUES (note())")?;
    session.batch_execute("PREPARE p AS INSERT INTO ft1 VALUES (4); EXECUTE p")?;
    assert_eq!(fleet.ids_on_shard(1)?, [2, 4]);
    assert_eq!(fleet.ids_in_lt()?, [0, 1]);
    assert_settled(&fleet);
    Ok(())
}

/// A cursor WITH HOLD runs its query when the transaction ends, which a function in the statement, or
/// what was executed before it in a pipeline, may leave. Red with COMMIT behind such a statement: the
/// row was there.
#[test]
fn what_still_runs_at_the_end_is_not_overtaken() -> Outcome {
    let fleet = Fleet::start()?;
    let mut session = session(&fleet)?;
    session.batch_execute(
        "INSERT INTO lt VALUES (0);
         CREATE FUNCTION hold() RETURNS text LANGUAGE plpgsql AS $$BEGIN
             EXECUTE 'DECLARE hc CURSOR WITH HOLD FOR SELECT 1 / id FROM lt'; RETURN 'x'; END$$;
         CREATE DOMAIN held AS text CHECK (hold() = 'x');
         CREATE FOREIGN TABLE fd (id int, v held) SERVER shard1 OPTIONS (table_name 't')",
    )?;
    for statement in [
        "INSERT INTO ft1 VALUES (1, hold())",
        "INSERT INTO ft1 VALUES (1, 'x'::held)",
        "INSERT INTO fd VALUES (1, 'x')",
        "UPDATE ft1 SET v = 'x' WHERE id = 0 AND v = hold()",
    ] {
        fleet.shard(1).client()?.batch_execute("INSERT INTO t VALUES (0, 'x')")?;
        session.batch_execute("SELECT count(*) FROM ft1")?;
        expect_error(session.batch_execute(statement), "22012");
        assert_eq!(fleet.ids_on_shard(1)?, [0], "{statement}");
        session.batch_execute("DELETE FROM ft1")?;
    }
    assert_settled(&fleet);
    Ok(())
}

/// A trigger there that takes the session's prepared statements away makes the transaction fail, and
/// that is what is said. Red before: 08007.
#[test]
fn a_session_without_its_statements_has_not_committed() -> Outcome {
    let fleet = Fleet::start()?;
    fleet.shard(1).client()?.batch_execute(
        "CREATE FUNCTION forget() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
             IF new.v = 'forget' THEN EXECUTE 'DEALLOCATE ALL'; END IF; RETURN NULL; END$$;
         CREATE TRIGGER forget AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION forget()",
    )?;
    let mut session = session(&fleet)?;
    expect_error(session.batch_execute("INSERT INTO ft1 VALUES (1, 'forget')"), "40000");
    assert_eq!(fleet.ids_on_shard(1)?, NONE);
    session.batch_execute(INSERT)?;
    assert_eq!(fleet.ids_on_shard(1)?, [1]);
    assert_settled(&fleet);
    Ok(())
}
