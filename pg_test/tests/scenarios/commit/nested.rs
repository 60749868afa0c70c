//! Shards that write through foreign tables of their own, to a leaf: the transaction has no xid on
//! the shard then, and has written all the same.
//!
//! | object | where |
//! |---|---|
//! | `d(id)` with a deferred constraint, and the row 1 | on shard 2, the leaf |
//! | `n`, foreign table of `d`; `p`, partitioned, with a foreign partition of `d`; view `w` that writes into it | on shard 1 |
//! | `n`, `p`, foreign tables of those | on the coordinator |

use pg_test::oracle::{assert_settled, expect_error, one, prepared_gids};
use pg_test::{Cluster, Fleet, FleetOptions, Installation, Point, StopMode, wait_until};

use crate::support::{Outcome, commit_held_at, session_with_notices, transaction};

const PRELOADED: &[(&str, &str)] = &[
    ("shared_preload_libraries", "pg_fdw_xacts"),
    ("pg_fdw_xacts.resolver_interval", "1s"),
    ("pg_fdw_xacts.resolver_retry_min", "200ms"),
    ("pg_fdw_xacts.resolver_retry_max", "1s"),
];

/// What writes on the leaf; `{}` is the id.
const WRITES: [&str; 7] = [
    "INSERT INTO n VALUES ({})",
    "INSERT INTO p VALUES ({})",
    "UPDATE n SET id = {} WHERE id = 0",
    "UPDATE n SET id = {} WHERE id = 0 AND random() >= 0",
    "SELECT pg_fdw_xacts_exec('shard1', 'INSERT INTO n VALUES ({})')",
    "SELECT pg_fdw_xacts_exec('shard1', 'SELECT write({})')",
    "SELECT * FROM pg_fdw_xacts_query('shard1', 'INSERT INTO n VALUES ({}) RETURNING id') AS r (id int)",
];

/// A coordinator, a shard that has `wrapper`, and its leaf.
fn start(wrapper: &str) -> anyhow::Result<Fleet> {
    let shard = if wrapper == "pg_fdw_xacts" { PRELOADED.to_vec() } else { Vec::new() };
    let fleet =
        Fleet::start_with(&FleetOptions { proxied: true, shard, ..FleetOptions::default() })?;
    fleet.shard(2).client()?.batch_execute(
        "CREATE TABLE d (id int UNIQUE DEFERRABLE INITIALLY DEFERRED); INSERT INTO d VALUES (0), (1)",
    )?;
    fleet.shard(1).client()?.batch_execute(&format!(
        "CREATE EXTENSION {wrapper} CASCADE;
         CREATE SERVER leaf FOREIGN DATA WRAPPER {wrapper}
             OPTIONS (host '127.0.0.1', port '{}', dbname 'postgres');
         CREATE USER MAPPING FOR CURRENT_USER SERVER leaf OPTIONS (user 'postgres');
         CREATE FOREIGN TABLE n (id int) SERVER leaf OPTIONS (table_name 'd');
         CREATE TABLE p (id int) PARTITION BY RANGE (id);
         CREATE FOREIGN TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (1000000)
             SERVER leaf OPTIONS (table_name 'd');
         CREATE FUNCTION write(i int) RETURNS int LANGUAGE sql AS
             'INSERT INTO public.n VALUES (i) RETURNING id';
         CREATE VIEW w AS SELECT write(1) AS id",
        fleet.shard(2).port()
    ))?;
    fleet.session()?.batch_execute(
        "CREATE FOREIGN TABLE n (id int) SERVER shard1 OPTIONS (table_name 'n');
         CREATE FOREIGN TABLE p (id int) SERVER shard1 OPTIONS (table_name 'p');
         CREATE FOREIGN TABLE w (id int) SERVER shard1 OPTIONS (table_name 'w')",
    )?;
    Ok(fleet)
}

/// The ids on the leaf that a test has written.
fn leaf(fleet: &Fleet) -> anyhow::Result<Vec<i32>> {
    pg_test::fleet::ids(&mut fleet.shard(2).client()?, "d WHERE id > 1")
}

fn set_up_zero(fleet: &Fleet) -> Outcome {
    fleet
        .shard(2)
        .client()?
        .batch_execute("DELETE FROM d WHERE id <> 1; INSERT INTO d VALUES (0)")?;
    Ok(())
}

/// Red on 0.2.0, which committed the shard as one that has only read, and lost its error:
/// INSERT 0 1, and no row.
#[test]
fn what_a_leaf_refuses_at_commit_fails_the_commit() -> Outcome {
    for wrapper in ["postgres_fdw", "pg_fdw_xacts"] {
        let fleet = start(wrapper)?;
        let mut session = fleet.session()?;
        for write in WRITES {
            set_up_zero(&fleet)?;
            // The row 1 is there.
            let write = write.replace("{}", "1");
            expect_error(session.batch_execute(&write), "23505");
            assert_eq!(leaf(&fleet)?, [] as [i32; 0], "{write}");
        }
        assert_settled(&fleet);
    }
    Ok(())
}

/// Red on 0.2.0, which committed on the leaf before the decision.
#[test]
fn a_shard_that_cannot_prepare_what_its_leaf_has_is_refused() -> Outcome {
    let fleet = start("postgres_fdw")?;
    let mut session = fleet.session()?;
    for write in WRITES {
        set_up_zero(&fleet)?;
        let write = write.replace("{}", "7");
        session.batch_execute("BEGIN; INSERT INTO lt VALUES (7)")?;
        session.batch_execute(&write)?;
        let error = expect_error(session.batch_execute("COMMIT"), "0A000");
        assert!(error.message().contains("PREPARE"), "{error:#?}");
        assert_eq!((leaf(&fleet)?, fleet.ids_in_lt()?), (vec![], vec![]), "{write}");

        session.batch_execute("BEGIN")?;
        session.batch_execute(&write)?;
        expect_error(session.batch_execute("PREPARE TRANSACTION 'x'"), "0A000");
        assert_eq!(leaf(&fleet)?, [] as [i32; 0], "{write}");

        session.batch_execute("SET pg_fdw_xacts.two_phase_commit = always")?;
        expect_error(session.batch_execute(&write), "0A000");
        assert_eq!(leaf(&fleet)?, [] as [i32; 0], "{write}");
        session.batch_execute("RESET pg_fdw_xacts.two_phase_commit")?;
        // Alone it commits in one phase.
        session.batch_execute(&write)?;
        assert_eq!(leaf(&fleet)?, [7], "{write}");
    }
    assert_settled(&fleet);
    Ok(())
}

/// Red on 0.2.0: rows on the leaf before COMMIT PREPARED, and after ROLLBACK PREPARED.
#[test]
fn a_shard_with_the_extension_is_atomic_to_its_leaf() -> Outcome {
    let fleet = start("pg_fdw_xacts")?;
    let mut session = fleet.session()?;
    for write in WRITES {
        set_up_zero(&fleet)?;
        let write = write.replace("{}", "7");
        session.batch_execute("BEGIN; INSERT INTO lt VALUES (7)")?;
        session.batch_execute(&write)?;
        session.batch_execute("PREPARE TRANSACTION 'x'")?;
        assert_eq!(leaf(&fleet)?, [] as [i32; 0], "{write}");
        assert_eq!(prepared_gids(fleet.shard(2))?.len(), 1, "{write}");
        session.batch_execute("ROLLBACK PREPARED 'x'")?;
        settled_everywhere(&fleet)?;
        assert_eq!((leaf(&fleet)?, fleet.ids_in_lt()?), (vec![], vec![]), "{write}");

        for end in ["COMMIT", "PREPARE TRANSACTION 'y'; COMMIT PREPARED 'y'"] {
            set_up_zero(&fleet)?;
            session.batch_execute("DELETE FROM lt")?;
            session.batch_execute("BEGIN; INSERT INTO lt VALUES (7)")?;
            session.batch_execute(&write)?;
            for command in end.split("; ") {
                session.batch_execute(command)?;
            }
            settled_everywhere(&fleet)?;
            assert_eq!((leaf(&fleet)?, fleet.ids_in_lt()?), (vec![7], vec![7]), "{write}");
        }
        session.batch_execute("DELETE FROM lt")?;
    }
    Ok(())
}

/// Red on 0.2.0, where nothing was prepared.
#[test]
fn a_crash_of_the_coordinator_leaves_the_leaf_with_the_decision() -> Outcome {
    for (statement, committed) in [("PREPARE TRANSACTION", false), ("COMMIT PREPARED", true)] {
        let mut fleet = start("pg_fdw_xacts")?;
        let mut session = fleet.session()?;
        session.batch_execute("BEGIN; INSERT INTO lt VALUES (7); INSERT INTO n VALUES (7)")?;
        let point = if committed { Point::Statement } else { Point::Answer };
        let (commit, hit) = commit_held_at(&fleet, session, 1, point, statement)?;
        assert_eq!(prepared_gids(fleet.shard(2))?.len(), 1);
        fleet.coordinator.stop(StopMode::Immediate)?;
        drop(hit);
        let _ = commit.join();
        fleet.coordinator.start()?;
        settled_everywhere(&fleet)?;
        let expected = if committed { vec![7] } else { vec![] };
        assert_eq!((leaf(&fleet)?, fleet.ids_in_lt()?), (expected.clone(), expected));
    }
    Ok(())
}

/// Waits until nothing is in doubt on any server, the leaf included.
fn settled_everywhere(fleet: &Fleet) -> Outcome {
    assert_settled(fleet);
    let mut shard = fleet.shard(1).client()?;
    wait_until("the shard has settled its leaf", pg_test::DEADLINE, || {
        Ok(one::<i64>(&mut shard, "SELECT count(*) FROM pg_fdw_xacts")? == 0)
    })
}

/// Red on 0.2.0. What a view writes there cannot be seen before its COMMIT; but it is reported.
#[test]
fn the_error_of_a_commit_that_nobody_waits_for_is_told() -> Outcome {
    let fleet = start("postgres_fdw")?;
    let (mut session, notices) = session_with_notices(&fleet)?;
    session.batch_execute("SELECT * FROM w")?;
    // The answer is read when the session has to do with the shard again.
    wait_until("the shard's COMMIT is reported", pg_test::DEADLINE, || {
        session.batch_execute("SELECT count(*) FROM ft1")?;
        Ok(notices.take().iter().any(|n| n.starts_with("WARNING") && n.contains("shard1")))
    })?;

    // A session that ends at once tells the log.
    let mark = fleet.coordinator.log().mark()?;
    let mut short = fleet.session()?;
    short.batch_execute("SELECT * FROM w")?;
    drop(short);
    wait_until("the shard's COMMIT is in the log", pg_test::DEADLINE, || {
        let log = fleet.coordinator.log().since(mark)?;
        Ok(log.lines().any(|line| line.contains("shard1") && line.contains("COMMIT")))
    })
}

/// Red on 0.2.0. Where others are waited for, its COMMIT is waited for with them, and fails the
/// transaction.
#[test]
fn the_commit_of_who_has_only_read_is_awaited_with_the_writers() -> Outcome {
    let fleet = start("postgres_fdw")?;
    let mut session = fleet.session()?;
    let error = expect_error(
        transaction(
            &mut session,
            &["INSERT INTO lt VALUES (7)", "INSERT INTO ft2 VALUES (7)", "SELECT * FROM w"],
        ),
        "23505",
    );
    assert!(format!("{error:?}").contains("shard1"), "{error:#?}");
    assert_settled(&fleet);
    assert_eq!((fleet.ids_on_shard(2)?, fleet.ids_in_lt()?), (vec![], vec![]));
    Ok(())
}

/// A statement that may write makes its shard a writer, whatever it has found: it is prepared. Red
/// on 0.2.0, where it was committed as one that has only read.
#[test]
fn a_modification_of_no_row_is_one() -> Outcome {
    let (fleet, mut session) = crate::support::start()?;
    for statement in [
        "UPDATE ft2 SET v = 'y' WHERE id = 99",
        "DELETE FROM ft2 WHERE id = 99 AND random() >= 0",
        "SELECT * FROM ft2 WHERE id = 99 FOR SHARE",
        "SELECT a.id FROM ft2 a JOIN ft2 b USING (id) WHERE a.id = 99 FOR UPDATE OF a",
        "INSERT INTO ft2 SELECT 1 WHERE false",
    ] {
        let mark = fleet.shard(2).log().mark()?;
        transaction(&mut session, &["INSERT INTO ft1 VALUES (1)", statement])?;
        let statements = fleet.shard(2).log().statements_since(mark)?;
        let prepared = statements.iter().any(|s| s.starts_with("PREPARE TRANSACTION"));
        // Of an INSERT without rows nothing was sent.
        assert_eq!(prepared, !statement.starts_with("INSERT"), "{statement}: {statements:#?}");
        session.batch_execute("DELETE FROM ft1")?;
    }
    assert_settled(&fleet);
    Ok(())
}

/// A trigger there that writes through a foreign table, and two shards that have the leaf in
/// common. Red on 0.2.0, which committed without an error.
#[test]
fn a_trigger_that_writes_on_the_leaf() -> Outcome {
    for (wrapper, code) in [("postgres_fdw", Some("0A000")), ("pg_fdw_xacts", None)] {
        let fleet = start(wrapper)?;
        fleet.shard(1).client()?.batch_execute(
            "CREATE FUNCTION pass_on() RETURNS trigger LANGUAGE plpgsql AS
                 'BEGIN INSERT INTO public.n VALUES (new.id); RETURN NULL; END';
             CREATE VIEW v AS SELECT 1 AS id;
             CREATE TRIGGER pass_on INSTEAD OF INSERT ON v FOR EACH ROW EXECUTE FUNCTION pass_on()",
        )?;
        let mut session = fleet.session()?;
        session.batch_execute(
            "CREATE FOREIGN TABLE v (id int) SERVER shard1 OPTIONS (table_name 'v')",
        )?;
        let ended =
            transaction(&mut session, &["INSERT INTO ft2 VALUES (7)", "INSERT INTO v VALUES (7)"]);
        match code {
            Some(code) => drop(expect_error(ended, code)),
            None => ended?,
        }
        settled_or_stock(&fleet, code.is_some())?;
        let expected = if code.is_some() { vec![] } else { vec![7] };
        assert_eq!((leaf(&fleet)?, fleet.ids_on_shard(2)?), (expected.clone(), expected));
    }
    Ok(())
}

/// A standby, too, may be told to execute what can only be a query there: it does not have to
/// prepare.
#[test]
fn a_query_that_a_standby_executes_makes_no_writer_of_it() -> Outcome {
    let (fleet, mut session) = crate::support::start()?;
    let mut standby = Cluster::standby_of(fleet.shard(1), "standby")?;
    standby.start()?;
    session
        .batch_execute(&format!("ALTER SERVER shard1 OPTIONS (SET port '{}')", standby.port()))?;
    for _ in 0..2 {
        session.batch_execute(
            "BEGIN;
             SELECT pg_fdw_xacts_exec('shard1', 'SELECT count(*) FROM t');
             INSERT INTO lt VALUES (1);
             INSERT INTO ft2 VALUES (1);
             COMMIT;
             DELETE FROM lt;
             DELETE FROM ft2",
        )?;
    }
    assert_settled(&fleet);
    standby.stop(StopMode::Fast)
}

fn settled_or_stock(fleet: &Fleet, stock: bool) -> Outcome {
    if stock {
        assert_settled(fleet);
        return Ok(());
    }
    settled_everywhere(fleet)
}

/// READ ONLY of a savepoint, or of the rest of a transaction that has written, is no promise that
/// nothing is written: a function there writes on the leaf. Red on 0.2.0: committed on the leaf
/// before the decision. From 19 on it is refused, because the shard's transaction is READ ONLY, too.
#[test]
fn what_runs_in_the_read_only_part_of_a_writing_transaction() -> Outcome {
    let fleet = start("pg_fdw_xacts")?;
    let mut session = fleet.session()?;
    let exec = "SET TRANSACTION READ ONLY; SELECT pg_fdw_xacts_exec('shard1', 'SELECT write(7)')";
    for statements in [
        format!("SAVEPOINT a; {exec}; RELEASE a; INSERT INTO lt VALUES (7)"),
        format!("SAVEPOINT a; {exec}; RELEASE a"),
        format!("INSERT INTO lt VALUES (7); {exec}"),
        format!("INSERT INTO ft2 VALUES (7); {exec}"),
    ] {
        let prepare = format!("BEGIN; {statements}; PREPARE TRANSACTION 'x'");
        if Installation::from_env()?.major() >= 19 {
            expect_error(session.batch_execute(&prepare), "25006");
            session.batch_execute("ROLLBACK")?;
        } else {
            session.batch_execute(&prepare)?;
            assert_eq!(leaf(&fleet)?, [] as [i32; 0], "{statements}");
            session.batch_execute("ROLLBACK PREPARED 'x'")?;
        }
        settled_everywhere(&fleet)?;
        assert_eq!(leaf(&fleet)?, [] as [i32; 0], "{statements}");
    }
    Ok(())
}
