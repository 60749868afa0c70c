//! Errors of the shards as the application sees them, and queries that are cancelled while a shard
//! works.

use std::time::{Duration, Instant};

use pg_test::oracle::{assert_usable, expect_error, expect_terminated, one};
use pg_test::{DEADLINE, Fault, Fleet, Point, lengthened_by_load, wait_until};
use postgres::NoTls;

use crate::support::{NONE, Outcome, in_background};

#[test]
fn a_remote_error_keeps_its_fields() -> Outcome {
    let fleet = Fleet::start()?;
    let mut session = fleet.session()?;
    session.batch_execute("INSERT INTO ft1 VALUES (1, 'x')")?;
    let error = expect_error(session.batch_execute("INSERT INTO ft1 VALUES (1, 'y')"), "23505");
    assert_eq!(error.message(), "duplicate key value violates unique constraint \"t_pkey\"");
    assert_eq!(error.detail(), Some("Key (id)=(1) already exists."));
    let context = error.where_().unwrap_or_default();
    assert!(context.contains("remote SQL command: INSERT INTO public.t"), "{error:#?}");
    assert_usable(&mut session);
    Ok(())
}

#[test]
fn hint_and_context_of_a_remote_function_are_passed_on() -> Outcome {
    let fleet = Fleet::start()?;
    fleet.shard(1).client()?.batch_execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN
             RAISE EXCEPTION 'not this one' USING ERRCODE = 'P1234', DETAIL = 'why', HINT = 'try another';
         END $$;
         CREATE TRIGGER refuse BEFORE UPDATE ON t FOR EACH ROW EXECUTE FUNCTION refuse()",
    )?;
    let mut session = fleet.session()?;
    session.batch_execute("INSERT INTO ft1 VALUES (1, 'x')")?;
    // As one statement on the shard, and row by row.
    for condition in ["", " WHERE random() >= 0"] {
        let update = format!("UPDATE ft1 SET v = 'y'{condition}");
        let error = expect_error(session.batch_execute(&update), "P1234");
        assert_eq!(error.message(), "not this one");
        assert_eq!(error.detail(), Some("why"));
        assert_eq!(error.hint(), Some("try another"));
        let context = error.where_().unwrap_or_default();
        assert!(context.contains("refuse() line 3 at RAISE"), "{error:#?}");
        assert!(context.contains("remote SQL command: UPDATE public.t"), "{error:#?}");
        assert_usable(&mut session);
    }
    Ok(())
}

#[test]
fn an_error_while_fetching_names_the_query() -> Outcome {
    let fleet = Fleet::start()?;
    fleet.shard(1).client()?.batch_execute(
        "INSERT INTO t SELECT i FROM generate_series(1, 300) i;
         CREATE VIEW bad AS SELECT 1 / (250 - id) AS id FROM t",
    )?;
    let mut session = fleet.session()?;
    session.batch_execute("CREATE FOREIGN TABLE bad (id int) SERVER shard1")?;
    let error = expect_error(session.batch_execute("SELECT * FROM bad"), "22012");
    assert_eq!(error.message(), "division by zero");
    assert!(error.where_().unwrap_or_default().contains("remote SQL command:"), "{error:#?}");
    assert_usable(&mut session);
    Ok(())
}

#[test]
fn a_table_that_is_missing_on_the_shard_is_the_shard_s_error() -> Outcome {
    let fleet = Fleet::start()?;
    let mut session = fleet.session()?;
    session.batch_execute("CREATE FOREIGN TABLE nowhere (id int) SERVER shard1")?;
    for statement in ["SELECT * FROM nowhere", "INSERT INTO nowhere VALUES (1)"] {
        let error = expect_error(session.batch_execute(statement), "42P01");
        assert_eq!(error.message(), "relation \"public.nowhere\" does not exist");
        assert_usable(&mut session);
    }
    Ok(())
}

/// A foreign table on shard 1 whose scan takes an hour.
fn with_a_slow_table() -> anyhow::Result<Fleet> {
    let fleet = Fleet::start()?;
    fleet
        .shard(1)
        .client()?
        .batch_execute("CREATE VIEW slow AS SELECT 1 AS id FROM (SELECT pg_sleep(3600)) s")?;
    fleet.session()?.batch_execute("CREATE FOREIGN TABLE slow (id int) SERVER shard1")?;
    Ok(fleet)
}

/// How many sessions of shard 1 sleep in a query.
fn sleeping(fleet: &Fleet) -> anyhow::Result<bool> {
    let query = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'PgSleep')";
    one(&mut fleet.shard(1).client()?, query)
}

#[test]
fn a_cancelled_query_ends_on_the_shard_too() -> Outcome {
    let fleet = with_a_slow_table()?;
    let session = fleet.session()?;
    let cancel = session.cancel_token();
    let query = in_background(session, "SELECT * FROM slow");
    wait_until("the shard works on it", DEADLINE, || sleeping(&fleet))?;
    cancel.cancel_query(NoTls)?;
    let (mut session, result) = query.join();
    expect_error(result, "57014");
    assert_usable(&mut session);
    wait_until("the shard has stopped", DEADLINE, || Ok(!sleeping(&fleet)?))?;
    session.batch_execute("INSERT INTO ft1 VALUES (1, 'x')")?;
    assert_eq!(fleet.ids_on_shard(1)?, [1]);
    Ok(())
}

#[test]
fn a_cancelled_query_in_a_savepoint_leaves_the_transaction() -> Outcome {
    let fleet = with_a_slow_table()?;
    let mut session = fleet.session()?;
    let cancel = session.cancel_token();
    session.batch_execute("BEGIN; INSERT INTO ft1 VALUES (1, 'x'); SAVEPOINT a")?;
    let query = in_background(session, "SELECT * FROM slow");
    wait_until("the shard works on it", DEADLINE, || sleeping(&fleet))?;
    cancel.cancel_query(NoTls)?;
    let (mut session, result) = query.join();
    expect_error(result, "57014");
    session.batch_execute("ROLLBACK TO a; INSERT INTO ft1 VALUES (2, 'x'); COMMIT")?;
    assert_eq!(fleet.ids_on_shard(1)?, [1, 2]);
    Ok(())
}

#[test]
fn statement_timeout_ends_a_query_on_the_shard_too() -> Outcome {
    let fleet = with_a_slow_table()?;
    let mut session = fleet.session()?;
    // It ends what follows, too, which a busy machine must not exceed.
    let limit = lengthened_by_load(Duration::from_millis(500)).as_millis();
    session.batch_execute(&format!("SET statement_timeout = '{limit}ms'"))?;
    let start = Instant::now();
    expect_error(session.batch_execute("SELECT * FROM slow"), "57014");
    assert!(start.elapsed() < Duration::from_secs(30), "it took {:?}", start.elapsed());
    assert_usable(&mut session);
    wait_until("the shard has stopped", DEADLINE, || Ok(!sleeping(&fleet)?))
}

#[test]
fn a_terminated_session_frees_the_shard() -> Outcome {
    let fleet = with_a_slow_table()?;
    let mut session = fleet.session()?;
    let pid: i32 = one(&mut session, "SELECT pg_backend_pid()")?;
    session.batch_execute("BEGIN; INSERT INTO ft2 VALUES (1, 'x')")?;
    let query = in_background(session, "SELECT * FROM slow");
    wait_until("the shard works on it", DEADLINE, || sleeping(&fleet))?;
    assert!(one::<bool>(&mut fleet.session()?, &format!("SELECT pg_terminate_backend({pid})"))?);
    expect_terminated(query.join().1);
    wait_until("the shard has stopped", DEADLINE, || Ok(!sleeping(&fleet)?))?;
    pg_test::oracle::assert_settled(&fleet);
    assert_eq!(fleet.ids_on_shard(2)?, NONE);
    Ok(())
}

#[test]
fn a_connection_lost_inside_a_transaction_dooms_it() -> Outcome {
    let fleet = Fleet::start()?;
    let mut session = fleet.session()?;
    session.batch_execute("BEGIN; INSERT INTO ft1 VALUES (1, 'x'); SAVEPOINT a")?;
    fleet.shard(1).client()?.batch_execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state = 'idle in transaction'",
    )?;
    let error = session.batch_execute("INSERT INTO ft1 VALUES (2, 'x')").expect_err("it is lost");
    assert!(error.as_db_error().is_some(), "the coordinator does not answer: {error:?}");
    session.batch_execute("ROLLBACK TO a")?;
    session.batch_execute("INSERT INTO lt VALUES (1, 'x')")?;
    session.batch_execute("COMMIT").expect_err("the first INSERT is lost");
    assert_usable(&mut session);
    pg_test::oracle::assert_settled(&fleet);
    assert_eq!((fleet.ids_in_lt()?, fleet.ids_on_shard(1)?), (vec![], vec![]));
    // Outside a transaction a new connection is made without further ado.
    session.batch_execute("INSERT INTO ft1 VALUES (3, 'x')")?;
    assert_eq!(fleet.ids_on_shard(1)?, [3]);
    Ok(())
}

/// All of a first message is answered in one go, or by the end of the connection, at any of its
/// statements.
#[test]
fn a_connection_that_breaks_in_its_first_message_is_an_error_and_never_a_wait() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let statements = [
        "SELECT s.system_identifier",
        "SELECT pg_catalog.pg_try_advisory_lock_shared",
        "START TRANSACTION",
        "INSERT INTO",
        "SELECT CASE WHEN pg_catalog.pg_is_in_recovery()",
    ];
    for (number, statement) in statements.iter().enumerate() {
        for point in [Point::Statement, Point::Answer] {
            let sql = format!("INSERT INTO ft1 VALUES ({number}, '{point:?}')");
            let hit = fleet.proxy(1).inject(Fault::cut(point, statement));
            let insert = in_background(fleet.session()?, &sql);
            wait_until(&format!("{statement} cut off at {point:?} is told"), DEADLINE, || {
                Ok(insert.is_finished())
            })?;
            let (mut session, result) = insert.join();
            hit.wait()?;
            // The last is cut after the INSERT has been answered: COMMIT finds out.
            let probed = statement.contains("is_in_recovery") && point == Point::Answer;
            expect_error(result, if probed { "40000" } else { "08006" });
            session.batch_execute(&sql)?;
            session.batch_execute("DELETE FROM ft1")?;
        }
    }
    Ok(())
}

/// Two rows of a partitioned table on the shard have the same `ctid`. Red: the error blamed a
/// program between the servers.
#[test]
fn a_row_that_its_ctid_does_not_identify_is_not_changed() -> Outcome {
    let fleet = Fleet::start()?;
    let mut shard = fleet.shard(1).client()?;
    shard.batch_execute(
        "CREATE TABLE p (id int, v text) PARTITION BY LIST (id);
         CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1);
         CREATE TABLE p2 PARTITION OF p FOR VALUES IN (2);
         INSERT INTO p VALUES (1, 'x'), (2, 'x')",
    )?;
    let mut session = fleet.session()?;
    session.batch_execute("CREATE FOREIGN TABLE p (id int, v text) SERVER shard1")?;
    for statement in [
        "DELETE FROM p WHERE id = 1 AND random() >= 0",
        "UPDATE p SET v = 'y' WHERE id = 1 AND random() >= 0",
        "UPDATE p SET v = 'y' WHERE id = 1 AND random() >= 0 RETURNING *",
    ] {
        let error = expect_error(session.batch_execute(statement), "HV000");
        assert_eq!(error.message(), "server \"shard1\" has changed 2 rows instead of one");
        assert!(error.detail().unwrap_or_default().contains("partitions"), "{error:?}");
        assert_eq!(one::<i64>(&mut shard, "SELECT count(*) FROM p WHERE v = 'x'")?, 2);
    }
    session.batch_execute("UPDATE p SET v = 'y' WHERE id = 1; DELETE FROM p WHERE id = 2")?;
    assert_eq!(one::<String>(&mut shard, "SELECT string_agg(id || v, ' ') FROM p")?, "1y");
    Ok(())
}
