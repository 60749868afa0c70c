//! `pg_fdw_xacts_exec()`: any SQL on a shard commits with the rest or not at all, and what the
//! remote transaction does not allow is refused at once.

use pg_test::oracle::{assert_settled, expect_error, one};
use pg_test::{DEADLINE, wait_until};
use postgres::{Client, NoTls};

use crate::support::{NONE, Outcome, in_background, start};

const EXEC: &str = "SELECT pg_fdw_xacts_exec($1::text::name, $2)";

/// Runs `command` on shard 1 and returns its row count.
fn exec(session: &mut Client, command: &str) -> Result<i64, postgres::Error> {
    Ok(session.query_one(EXEC, &[&"shard1", &command])?.get(0))
}

#[test]
fn the_rows_of_all_commands_are_counted() -> Outcome {
    let (fleet, mut session) = start()?;
    assert_eq!(exec(&mut session, "CREATE TABLE n (i int)")?, 0);
    assert_eq!(exec(&mut session, "INSERT INTO n SELECT generate_series(1, 7)")?, 7);
    assert_eq!(exec(&mut session, "UPDATE n SET i = 0 WHERE i < 3;")?, 2);
    assert_eq!(exec(&mut session, "SELECT * FROM n")?, 7);
    let several =
        "-- three\nDELETE FROM n WHERE i = 0; /* ; */ INSERT INTO n VALUES (1), (2), (3);; TABLE n";
    assert_eq!(exec(&mut session, several)?, 2 + 3 + 8);
    assert_eq!(exec(&mut session, "DO $$ BEGIN DELETE FROM n; END $$")?, 0);
    assert_eq!(one::<i64>(&mut fleet.shard(1).client()?, "SELECT count(*) FROM n")?, 0);
    // One that fails takes the others along, and is the one that is named.
    let error = expect_error(
        exec(&mut session, "INSERT INTO n VALUES (1); INSERT INTO m VALUES (1)"),
        "42P01",
    );
    assert_eq!(error.where_(), Some("remote SQL command: INSERT INTO m VALUES (1)"));
    assert_eq!(one::<i64>(&mut fleet.shard(1).client()?, "SELECT count(*) FROM n")?, 0);
    for nothing in ["", " ;; ", "-- nothing"] {
        expect_error(exec(&mut session, nothing), "42601");
    }
    assert_settled(&fleet);
    Ok(())
}

/// Red before the HINT was added: the shard's error alone does not say where else to run it.
#[test]
fn a_command_for_no_transaction_block_is_sent_elsewhere() -> Outcome {
    let (_fleet, mut session) = start()?;
    for command in ["VACUUM t", "CREATE INDEX CONCURRENTLY ON t (v)"] {
        let error = expect_error(exec(&mut session, command), "25001");
        let hint = "The remote transaction is part of the local one. Connect to the server itself.";
        assert_eq!(error.hint(), Some(hint));
    }
    Ok(())
}

#[test]
fn a_command_in_a_savepoint_is_undone_with_it() -> Outcome {
    let (fleet, mut session) = start()?;
    session.batch_execute(
        "BEGIN; SELECT pg_fdw_xacts_exec('shard1', 'CREATE TABLE kept ()');
         SAVEPOINT a; SELECT pg_fdw_xacts_exec('shard1', 'CREATE TABLE undone ()'); ROLLBACK TO a",
    )?;
    session.batch_execute(
        "DO $$ BEGIN
             PERFORM pg_fdw_xacts_exec('shard1', 'CREATE TABLE undone ()');
             PERFORM pg_fdw_xacts_exec('shard1', 'SELECT 1 / 0');
         EXCEPTION WHEN division_by_zero THEN NULL; END $$;
         INSERT INTO ft2 VALUES (1); COMMIT",
    )?;
    let found: String = one(
        &mut fleet.shard(1).client()?,
        "SELECT string_agg(relname, ',') FROM pg_class WHERE relname IN ('kept', 'undone')",
    )?;
    assert_eq!(found, "kept");
    assert_settled(&fleet);
    Ok(())
}

#[test]
fn a_command_is_cancelled_there_too() -> Outcome {
    let (fleet, session) = start()?;
    let cancel = session.cancel_token();
    let running =
        in_background(session, "SELECT pg_fdw_xacts_exec('shard1', 'SELECT pg_sleep(600)')");
    let mut shard = fleet.shard(1).client()?;
    let mut is_sleeping = || {
        Ok(one::<i64>(
            &mut shard,
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'",
        )? == 1)
    };
    wait_until("the command runs", DEADLINE, &mut is_sleeping)?;
    cancel.cancel_query(NoTls)?;
    let (mut session, result) = running.join();
    expect_error(result, "57014");
    // The client is told of the cancel before the transaction is aborted; the next statement waits
    // for that.
    assert_eq!(exec(&mut session, "SELECT 1")?, 1);
    assert!(!is_sleeping()?);
    Ok(())
}

/// Command, SQLSTATE, what is in the message.
const REFUSED: &[(&str, &str, &str)] = &[
    ("COMMIT", "2D000", "run COMMIT"),
    ("END", "2D000", "run COMMIT"),
    ("ROLLBACK", "2D000", "run ROLLBACK"),
    ("ABORT AND CHAIN", "2D000", "run ROLLBACK"),
    ("PREPARE TRANSACTION 'x'", "2D000", "run PREPARE TRANSACTION"),
    ("COMMIT AND FROBNICATE", "2D000", "run COMMIT"),
    ("BEGIN", "0A000", "run BEGIN"),
    ("START TRANSACTION READ ONLY", "0A000", "run START TRANSACTION"),
    ("SAVEPOINT a", "0A000", "run SAVEPOINT"),
    ("RELEASE a", "0A000", "run RELEASE"),
    ("ROLLBACK TO a", "0A000", "run ROLLBACK"),
    ("COMMIT PREPARED 'x'", "0A000", "run COMMIT PREPARED"),
    ("ROLLBACK PREPARED 'x'", "0A000", "run ROLLBACK PREPARED"),
    ("SET TRANSACTION READ ONLY", "0A000", "run SET"),
    ("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", "0A000", "run SET"),
    ("CREATE TEMP TABLE x ()", "0A000", "create temporary objects"),
    ("CREATE TABLE pg_temp.x ()", "0A000", "create temporary objects"),
    ("CREATE TEMP VIEW x AS SELECT 1", "0A000", "create temporary objects"),
    ("CREATE TEMP SEQUENCE x", "0A000", "create temporary objects"),
    ("CREATE TEMP TABLE x AS SELECT 1", "0A000", "create temporary objects"),
    ("SELECT 1 INTO TEMP x UNION SELECT 2", "0A000", "create temporary objects"),
    ("EXPLAIN ANALYZE CREATE TEMP TABLE x AS SELECT 1", "0A000", "create temporary objects"),
    ("LISTEN x", "0A000", "run LISTEN"),
    ("UNLISTEN *", "0A000", "run UNLISTEN"),
    ("NOTIFY x", "0A000", "run NOTIFY"),
    ("SELECT 1, (SELECT pg_notify('x', 'y'))", "0A000", "call pg_notify()"),
    (
        "INSERT INTO t SELECT 1, pg_catalog.pg_export_snapshot()",
        "0A000",
        "call pg_export_snapshot()",
    ),
    ("DECLARE x CURSOR WITH HOLD FOR SELECT 1", "0A000", "declare a cursor WITH HOLD"),
    ("DECLARE c1 CURSOR FOR SELECT 1", "0A000", "run DECLARE CURSOR"),
    ("FETCH c1", "0A000", "run FETCH"),
    ("CLOSE ALL", "0A000", "run CLOSE CURSOR ALL"),
    ("PREPARE x AS SELECT 1", "0A000", "run PREPARE"),
    ("EXECUTE px_xid", "0A000", "run EXECUTE"),
    ("DEALLOCATE ALL", "0A000", "run DEALLOCATE ALL"),
    ("DISCARD ALL", "0A000", "run DISCARD ALL"),
    ("SET work_mem = '1MB'", "0A000", "set \"work_mem\""),
    ("RESET work_mem", "0A000", "set \"work_mem\""),
    ("RESET ALL", "0A000", "run RESET"),
    ("SET LOCAL ROLE other", "0A000", "set \"role\""),
    ("SET LOCAL TIME ZONE 'UTC'", "0A000", "set \"timezone\""),
    ("SELECT set_config('work_mem', '1MB', false)", "0A000", "call set_config()"),
    ("SELECT set_config('DateStyle', 'German', true)", "0A000", "call set_config()"),
    ("SELECT pg_advisory_lock(1)", "0A000", "call pg_advisory_lock()"),
    (
        "WITH x AS (SELECT pg_advisory_unlock_all()) TABLE x",
        "0A000",
        "call pg_advisory_unlock_all()",
    ),
    ("COPY t FROM STDIN", "0A000", "run COPY FROM STDIN"),
    ("COPY (SELECT 1) TO STDOUT", "0A000", "run COPY TO STDOUT"),
    ("INSERT INTO t VALUES (9); COMMIT", "2D000", "run COMMIT"),
    // What newer servers can read, and this one may not be able to.
    (";ROLLBACK TO s2\x0B", "0A000", "run ROLLBACK TO SAVEPOINT"),
    ("-- x\rCOMMIT\x0B", "2D000", "run COMMIT"),
    ("\x0BSET lock_timeout = 77", "0A000", "run SET"),
    ("SELECT pg_advisory_lock(0x10", "0A000", "call pg_advisory_lock()"),
    ("FROBNICATE", "0A000", "run an unknown command"),
    // Seen only when it has been done.
    ("DO 'BEGIN CREATE TEMP TABLE x (); END'", "0A000", "use temporary objects"),
    ("DO 'BEGIN SET LOCAL ROLE other; END'", "0A000", "change the role"),
    ("DO 'BEGIN SET LOCAL datestyle = german; END'", "0A000", "set \"datestyle\""),
    ("SELECT hidden()", "0A000", "set \"timezone\""),
];

#[test]
fn what_the_transaction_does_not_bear_is_refused_at_once() -> Outcome {
    let (fleet, mut session) = start()?;
    fleet.shard(1).client()?.batch_execute(
        "CREATE ROLE other;
         CREATE FUNCTION hidden() RETURNS text LANGUAGE sql AS $$ SELECT set_config('timezone', 'UTC', true) $$",
    )?;
    // To newer grammars a vertical tab is white space: then the coordinator can read what stands
    // beside it, and names the command as it names others.
    let reads_vertical_tab = session.batch_execute("\x0BSELECT 1").is_ok();
    session.batch_execute("BEGIN; INSERT INTO ft1 VALUES (1); INSERT INTO ft2 VALUES (1)")?;
    for (command, code, message) in REFUSED {
        session.batch_execute("SAVEPOINT a")?;
        let error = expect_error(exec(&mut session, command), code);
        let message = match *command {
            "\x0BSET lock_timeout = 77" if reads_vertical_tab => "set \"lock_timeout\"",
            ";ROLLBACK TO s2\x0B" if reads_vertical_tab => "run ROLLBACK",
            _ => *message,
        };
        assert_eq!(error.message(), format!("cannot {message} on server \"shard1\""), "{command}");
        assert!(error.detail().is_some() && error.hint().is_some(), "{error:?}");
        session.batch_execute("ROLLBACK TO a")?;
        if command.contains("TEMP") && command.starts_with("DO") {
            // PostgreSQL does not forget that, even with the savepoint.
            session.batch_execute(
                "ROLLBACK; BEGIN; INSERT INTO ft1 VALUES (1); INSERT INTO ft2 VALUES (1)",
            )?;
        }
    }
    session.batch_execute("COMMIT")?;
    assert_eq!((fleet.ids_on_shard(1)?, fleet.ids_on_shard(2)?), (vec![1], vec![1]));
    assert_settled(&fleet);
    Ok(())
}

#[test]
fn what_it_bears_is_admitted() -> Outcome {
    let (fleet, mut session) = start()?;
    session.batch_execute("BEGIN; INSERT INTO ft2 VALUES (1)")?;
    for command in [
        "SET LOCAL lock_timeout = '5s'",
        "SELECT set_config('work_mem', '1MB', true)",
        "SET CONSTRAINTS ALL DEFERRED",
        "SELECT pg_advisory_xact_lock(1)",
        "DECLARE mine CURSOR FOR TABLE t",
        "FETCH ALL FROM mine",
        "CLOSE mine",
        "LOCK TABLE t IN EXCLUSIVE MODE",
        "CREATE UNLOGGED TABLE u AS SELECT 1 AS i",
        "SELECT pg_try_advisory_xact_lock(1), 'COMMIT'",
        "CREATE FUNCTION pg_notify(int) RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "SELECT public.pg_notify(1)",
        "CREATE PROCEDURE p() LANGUAGE sql AS 'INSERT INTO u VALUES (2)'",
        "CALL p()",
        "COMMENT ON TABLE u IS 'COMMIT; ROLLBACK'",
    ] {
        exec(&mut session, command).unwrap_or_else(|error| panic!("{command}: {error:?}"));
    }
    session.batch_execute("COMMIT")?;
    assert_eq!(one::<i64>(&mut fleet.shard(1).client()?, "SELECT count(*) FROM u")?, 2);
    assert_settled(&fleet);
    Ok(())
}

#[test]
fn the_server_has_its_own_word_on_the_rest() -> Outcome {
    let (fleet, mut session) = start()?;
    for (command, code) in [
        ("VACUUM t", "25001"),
        ("CREATE DATABASE x", "25001"),
        ("CREATE INDEX CONCURRENTLY ON t (v)", "25001"),
        ("ALTER TABLE t FROBNICATE", "42601"),
        ("TABLE nowhere", "42P01"),
        // Not even split, because this server cannot read it.
        ("ALTER TABLE t FROBNICATE; INSERT INTO t VALUES (1)", "42601"),
    ] {
        let error = expect_error(exec(&mut session, command), code);
        assert_eq!(error.where_(), Some(&*format!("remote SQL command: {command}")));
    }
    assert_eq!(fleet.ids_on_shard(1)?, NONE);
    assert_settled(&fleet);
    Ok(())
}

#[test]
fn names_are_found_as_by_a_client_of_the_shard() -> Outcome {
    let (fleet, mut session) = start()?;
    fleet.shard(1).client()?.batch_execute(
        "CREATE SCHEMA app; CREATE SCHEMA other; CREATE TABLE app.x (i int);
         ALTER ROLE postgres SET search_path = app, public",
    )?;
    let path = |session: &mut Client| {
        one::<String>(
            session,
            "SELECT path FROM pg_fdw_xacts_query('shard1', 'SHOW search_path') AS t (path text)",
        )
    };
    session.batch_execute("BEGIN")?;
    assert_eq!(path(&mut session)?, "app, public");
    exec(&mut session, "INSERT INTO x VALUES (1)")?;
    session.batch_execute("SAVEPOINT a")?;
    exec(&mut session, "SET LOCAL search_path = other")?;
    exec(&mut session, "CREATE TABLE y ()")?;
    assert_eq!(path(&mut session)?, "other");
    session.batch_execute("ROLLBACK TO a")?;
    assert_eq!(path(&mut session)?, "app, public");
    exec(&mut session, "SET LOCAL search_path = other; CREATE TABLE z ()")?;
    // Foreign tables find what they always find.
    session.batch_execute("INSERT INTO ft1 VALUES (1, lower('X'))")?;
    assert_eq!(path(&mut session)?, "other");
    session.batch_execute("COMMIT")?;
    assert_eq!(path(&mut session)?, "app, public");
    let found: String = one(
        &mut fleet.shard(1).client()?,
        "SELECT string_agg(oid::regclass::text, ' ') FROM pg_class WHERE relname IN ('y', 'z')",
    )?;
    assert_eq!(found, "other.z");
    Ok(())
}

#[test]
fn who_may_run_it() -> Outcome {
    let (fleet, mut session) = start()?;
    fleet.shard(1).client()?.batch_execute("CREATE ROLE remote_alice LOGIN")?;
    session.batch_execute(
        "CREATE ROLE alice LOGIN; CREATE SERVER stock FOREIGN DATA WRAPPER postgres_fdw;
         CREATE USER MAPPING FOR alice SERVER shard1 OPTIONS (user 'remote_alice', password_required 'false')",
    )?;
    let mut alice = fleet.coordinator.client_for("postgres", "alice")?;
    let whoami =
        "SELECT who FROM pg_fdw_xacts_query('shard1', 'SELECT current_user') AS t (who text)";
    expect_error(exec(&mut alice, "SELECT 1"), "42501");
    expect_error(alice.batch_execute(whoami), "42501");
    session.batch_execute(
        "GRANT EXECUTE ON FUNCTION pg_fdw_xacts_exec, pg_fdw_xacts_query TO alice",
    )?;
    let error = expect_error(exec(&mut alice, "SELECT 1"), "42501");
    assert_eq!(error.message(), "permission denied for foreign server shard1");
    expect_error(alice.batch_execute(whoami), "42501");
    session.batch_execute("GRANT USAGE ON FOREIGN SERVER shard1, shard2, stock TO alice")?;
    assert_eq!(one::<String>(&mut alice, whoami)?, "remote_alice");
    // The other server decides what she may do there.
    expect_error(exec(&mut alice, "DROP TABLE t"), "42501");
    let error = expect_error(alice.query(EXEC, &[&"shard2", &"SELECT 1"]), "42704");
    assert!(error.message().starts_with("user mapping not found"), "{error:?}");
    let error = expect_error(alice.query(EXEC, &[&"stock", &"SELECT 1"]), "55000");
    assert_eq!(error.message(), "server \"stock\" does not use pg_fdw_xacts");
    expect_error(alice.query(EXEC, &[&"nowhere", &"SELECT 1"]), "42704");
    // Credentials of her own, not the coordinator's.
    session.batch_execute(
        "ALTER USER MAPPING FOR alice SERVER shard1 OPTIONS (SET password_required 'true')",
    )?;
    expect_error(
        exec(&mut fleet.coordinator.client_for("postgres", "alice")?, "SELECT 1"),
        "2F003",
    );
    Ok(())
}

#[test]
fn a_transaction_that_only_reads_runs_queries_only() -> Outcome {
    let (fleet, mut session) = start()?;
    session.batch_execute("BEGIN READ ONLY")?;
    assert_eq!(exec(&mut session, "SELECT 1")?, 1);
    for report in ["SHOW server_version", "EXPLAIN SELECT 1"] {
        let rows = format!("SELECT v FROM pg_fdw_xacts_query('shard1', '{report}') AS (v text)");
        assert!(!one::<String>(&mut session, &rows)?.is_empty());
    }
    session.batch_execute("SAVEPOINT a")?;
    expect_error(exec(&mut session, "EXPLAIN ANALYZE DELETE FROM t"), "25006");
    session.batch_execute("ROLLBACK TO a")?;
    let error = expect_error(exec(&mut session, "INSERT INTO t VALUES (1)"), "25006");
    assert_eq!(error.message(), "cannot execute pg_fdw_xacts_exec() in a read-only transaction");
    session.batch_execute("ROLLBACK")?;
    assert_eq!(fleet.ids_on_shard(1)?, NONE);
    Ok(())
}

#[test]
fn a_server_that_is_never_prepared_takes_part_in_one_phase() -> Outcome {
    let (fleet, mut session) = start()?;
    session.batch_execute("ALTER SERVER shard1 OPTIONS (ADD two_phase_commit 'off'); BEGIN")?;
    exec(&mut session, "CREATE TABLE x ()")?;
    session.batch_execute("INSERT INTO ft2 VALUES (1); COMMIT")?;
    assert_eq!(one::<i64>(&mut fleet.shard(1).client()?, "SELECT count(*) FROM x")?, 0);
    assert_eq!(fleet.ids_on_shard(2)?, [1]);
    Ok(())
}

/// A database of another encoding than the shard's: the command is converted as any text is.
#[test]
fn a_command_is_text_in_any_encoding() -> Outcome {
    let (fleet, mut session) = start()?;
    let port = fleet.shard(1).port();
    session
        .batch_execute("CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'")?;
    let mut latin = fleet.coordinator.config().dbname("latin").connect(NoTls)?;
    latin.batch_execute(&format!(
        "CREATE EXTENSION pg_fdw_xacts CASCADE;
         CREATE SERVER shard1 FOREIGN DATA WRAPPER pg_fdw_xacts OPTIONS (host '127.0.0.1', port '{port}', dbname 'postgres');
         CREATE USER MAPPING FOR CURRENT_USER SERVER shard1 OPTIONS (user 'postgres')"
    ))?;
    exec(&mut latin, "CREATE TABLE \"größe\" (\"ä\" text); INSERT INTO \"größe\" VALUES ('süß')")?;
    assert_eq!(one::<String>(&mut fleet.shard(1).client()?, "TABLE \"größe\"")?, "süß");
    let back = "SELECT v FROM pg_fdw_xacts_query('shard1', 'TABLE \"größe\"') AS t (v text)";
    assert_eq!(one::<String>(&mut latin, back)?, "süß");
    let error = expect_error(exec(&mut latin, "TABLE \"häßlich\""), "42P01");
    assert_eq!(error.where_(), Some("remote SQL command: TABLE \"häßlich\""));
    Ok(())
}

/// What a function has removed from the session there is missed by one transaction, not by all that
/// follow.
#[test]
fn a_session_that_has_lost_its_own_statement_is_not_used_again() -> Outcome {
    let (_fleet, mut session) = start()?;
    let lost = session
        .batch_execute(
            "BEGIN; SELECT pg_fdw_xacts_exec('shard1', 'DO $$ BEGIN EXECUTE ''DEALLOCATE ALL''; END $$');
             INSERT INTO ft1 VALUES (1, 'x'); COMMIT",
        )
        .is_err();
    assert!(lost, "a transaction whose writes nobody could ask for has committed");
    session.batch_execute("ROLLBACK; INSERT INTO ft1 VALUES (2, 'x')")?;
    assert_eq!(one::<i64>(&mut session, "SELECT sum(id) FROM ft1")?, 2);
    Ok(())
}
