//! Whatever reads several servers: while a transaction has reached one of them and not the other,
//! each kind of statement waits and then shows all of it.

use std::io::Read;

use pg_test::oracle::{assert_settled, expect_error, one};
use pg_test::{Fleet, FleetOptions};
use postgres::{Client, Error};

use super::held::{after_waiting, half_delivered, reader};
use crate::support::{Outcome, assert_commits};

/// Three shards behind proxies, and a table with a partition on each: what is written through ft1
/// and ft2 is in the first two.
fn start() -> anyhow::Result<(Fleet, Client)> {
    let fleet =
        Fleet::start_with(&FleetOptions { shards: 3, proxied: true, ..FleetOptions::default() })?;
    let mut session = reader(&fleet)?;
    session.batch_execute(
        "CREATE TABLE pt (part int, id int, v text) PARTITION BY LIST (part);
         CREATE TABLE target (part int, id int, v text)",
    )?;
    for number in 1..=3 {
        fleet.shard(number).client()?.batch_execute(&format!(
            "ALTER TABLE t ADD part int DEFAULT {number};
             CREATE TABLE target (part int, id int, v text)"
        ))?;
        session.batch_execute(&format!(
            "ALTER SERVER shard{number} OPTIONS (ADD async_capable 'true');
             CREATE FOREIGN TABLE pt{number} PARTITION OF pt FOR VALUES IN ({number}) SERVER shard{number}
                 OPTIONS (table_name 't');
             CREATE FOREIGN TABLE target{number} (part int, id int, v text) SERVER shard{number}
                 OPTIONS (table_name 'target')"
        ))?;
    }
    Ok((fleet, session))
}

/// Asks how often row `id` is seen; it is on two shards.
type Ask = fn(&mut Client, i32) -> Result<u64, Error>;

fn count(session: &mut Client, sql: &str) -> Result<u64, Error> {
    Ok(session.query_one(sql, &[])?.get::<_, i64>(0) as u64)
}

const KINDS: &[(&str, Ask)] = &[
    ("asynchronous Append of partitions", |session, id| {
        count(session, &format!("SELECT count(*) FROM pt WHERE id = {id}"))
    }),
    ("without it", |session, id| {
        session.batch_execute("SET enable_async_append = off")?;
        count(session, &format!("SELECT count(*) FROM pt WHERE id = {id}"))
    }),
    ("a join", |session, id| {
        let join = "SELECT 2 * count(*) FROM ft2 JOIN ft1 USING (id)";
        count(session, &format!("{join} WHERE id = {id}"))
    }),
    ("subqueries", |session, id| {
        let of = |table| format!("(SELECT count(*) FROM {table} WHERE id = {id})");
        count(session, &format!("SELECT {} + {}", of("ft1"), of("ft2")))
    }),
    ("CTEs, the second of which is read later", |session, id| {
        count(
            session,
            &format!(
                "WITH a AS MATERIALIZED (SELECT id FROM ft1 WHERE id = {id}),
                      b AS MATERIALIZED (SELECT id FROM ft2 WHERE id = {id})
                 SELECT (SELECT count(*) FROM a) + (SELECT count(*) FROM b)"
            ),
        )
    }),
    ("a generic plan, pruned when it starts", |session, id| {
        session.batch_execute("SET plan_cache_mode = force_generic_plan")?;
        session.batch_execute("DEALLOCATE ALL; PREPARE p(int, int, int) AS SELECT count(*) FROM pt WHERE part IN ($1, $2) AND id = $3")?;
        count(session, &format!("EXECUTE p(1, 2, {id})"))
    }),
    ("partitions pruned while it runs", |session, id| {
        session.batch_execute("SET enable_hashjoin = off; SET enable_mergejoin = off")?;
        count(
            session,
            &format!(
                "SELECT count(*) FROM (VALUES (1), (2)) n (part)
                 CROSS JOIN LATERAL (SELECT FROM pt WHERE pt.part = n.part AND id = {id} OFFSET 0) p"
            ),
        )
    }),
    ("UPDATE of partitions, directly", |session, id| {
        session.execute(&format!("UPDATE pt SET v = 'u' WHERE id = {id}"), &[])
    }),
    ("UPDATE of partitions, row by row", |session, id| {
        let update = "UPDATE pt SET v = 'u' || random()";
        session.execute(&format!("{update} WHERE id = {id} AND random() >= 0"), &[])
    }),
    ("INSERT … SELECT into a third", |session, id| {
        session.execute(&format!("INSERT INTO target3 SELECT * FROM pt WHERE id = {id}"), &[])
    }),
    ("INSERT … SELECT into one of them", |session, id| {
        session.execute(&format!("INSERT INTO target1 SELECT * FROM pt WHERE id = {id}"), &[])
    }),
    ("CREATE TABLE AS", |session, id| {
        let create = "DROP TABLE IF EXISTS made; CREATE TABLE made AS SELECT * FROM pt";
        session.batch_execute(&format!("{create} WHERE id = {id}"))?;
        count(session, "SELECT count(*) FROM made")
    }),
    ("COPY TO", |session, id| {
        let mut text = String::new();
        let copy = format!("COPY (SELECT id FROM pt WHERE id = {id}) TO STDOUT");
        session.copy_out(&copy)?.read_to_string(&mut text).expect("it is text");
        Ok(text.lines().count() as u64)
    }),
    ("a cursor WITH HOLD", |session, id| {
        let declare = "BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT id FROM pt";
        session.batch_execute(&format!("{declare} WHERE id = {id}; COMMIT"))?;
        let rows = session.query("FETCH ALL FROM c", &[])?.len() as u64;
        session.batch_execute("CLOSE c")?;
        Ok(rows)
    }),
    ("a function's loop", |session, id| {
        session.batch_execute(&format!(
            "DO $$ DECLARE n int := 0; r record; BEGIN
                 FOR r IN SELECT id FROM pt WHERE id = {id} LOOP n := n + 1; END LOOP;
                 PERFORM set_config('my.n', n::text, false);
             END $$"
        ))?;
        count(session, "SELECT current_setting('my.n')::int8")
    }),
    ("in a savepoint that is rolled back", |session, id| {
        session.batch_execute("BEGIN; SAVEPOINT a")?;
        let first = count(session, &format!("SELECT count(*) FROM pt WHERE id = {id}"))?;
        session.batch_execute("ROLLBACK TO a")?;
        let second = count(session, &format!("SELECT count(*) FROM pt WHERE id = {id}"))?;
        session.batch_execute("COMMIT")?;
        assert_eq!(first, second);
        Ok(second)
    }),
    ("in an exception block", |session, id| {
        session.batch_execute(&format!(
            "DO $$ DECLARE a int; b int; BEGIN
                 BEGIN
                     a := (SELECT count(*) FROM pt WHERE id = {id});
                     RAISE division_by_zero;
                 EXCEPTION WHEN division_by_zero THEN NULL;
                 END;
                 b := (SELECT count(*) FROM pt WHERE id = {id});
                 ASSERT a = b;
                 PERFORM set_config('my.n', b::text, false);
             END $$"
        ))?;
        count(session, "SELECT current_setting('my.n')::int8")
    }),
];

/// Runs each kind after `settings`.
fn each_is_whole(settings: &str) -> Outcome {
    let (fleet, mut session) = start()?;
    assert_commits(&fleet, &mut session, 9000)?;
    for (index, (kind, ask)) in KINDS.iter().enumerate() {
        let id = index as i32 + 1;
        let (hit, writer) = half_delivered(&fleet, fleet.session()?, id, "COMMIT")?;
        let mut plain = fleet.session()?;
        let half: i64 = one(&mut plain, &format!("SELECT count(*) FROM pt WHERE id = {id}"))?;
        assert_eq!(half, 1, "without consistent reads it is half");
        let mut reader = reader(&fleet)?;
        reader.batch_execute(settings)?;
        let release = || {
            hit.release();
            Ok(())
        };
        let (_, seen) = after_waiting(&fleet, reader, move |reader| ask(reader, id), release)?;
        assert_eq!(seen.unwrap_or_else(|error| panic!("{kind}: {error:#?}")), 2, "{kind}");
        writer.join().1?;
    }
    assert_settled(&fleet);
    Ok(())
}

#[test]
fn each_kind_of_statement_sees_the_whole() -> Outcome {
    each_is_whole("")
}

#[test]
fn each_kind_of_statement_sees_the_whole_under_repeatable_read() -> Outcome {
    each_is_whole("SET default_transaction_isolation = 'repeatable read'")
}

/// Each statement has its own snapshot on the servers then.
#[test]
fn each_kind_of_statement_sees_the_whole_after_writing() -> Outcome {
    each_is_whole(
        "SET pg_fdw_xacts.remote_isolation = 'match'; BEGIN;
         INSERT INTO target1 VALUES (0, 0, 'own'); INSERT INTO target2 VALUES (0, 0, 'own')",
    )
}

/// What is left when the plan starts is one server: no cut.
#[test]
fn partitions_that_are_pruned_are_not_asked() -> Outcome {
    let (fleet, mut session) = start()?;
    assert_commits(&fleet, &mut session, 1)?;
    session.batch_execute(
        "SET plan_cache_mode = force_generic_plan;
         PREPARE p(int) AS SELECT count(*) FROM pt WHERE part = $1",
    )?;
    let (hit, writer) = half_delivered(&fleet, fleet.session()?, 2, "COMMIT")?;
    for (part, seen) in [(1, 2), (2, 1), (3, 0)] {
        assert_eq!(one::<i64>(&mut session, &format!("EXECUTE p({part})"))?, seen);
    }
    hit.release();
    writer.join().1?;
    Ok(())
}

/// With `remote_isolation = 'repeatable read'`, as a foreign table that is read again shows what it
/// showed, also without consistent reads.
#[test]
fn a_second_query_on_the_same_servers_shows_the_same() -> Outcome {
    let (fleet, mut session) = start()?;
    session.batch_execute("SET pg_fdw_xacts.remote_isolation = 'repeatable read'")?;
    for mode in ["off", "on"] {
        session.batch_execute(&format!("SET pg_fdw_xacts.consistent_reads = {mode}; BEGIN"))?;
        let sum = "SELECT (SELECT count(*) FROM ft1) + (SELECT count(*) FROM ft2)";
        let before = one::<i64>(&mut session, sum)?;
        assert_commits(&fleet, &mut fleet.session()?, 1 + before as i32)?;
        assert_eq!(one::<i64>(&mut session, sum)?, before, "{mode}");
        session.batch_execute("COMMIT")?;
        assert_eq!(one::<i64>(&mut session, sum)?, before + 2, "{mode}");
    }
    Ok(())
}

/// The cut outlives the savepoint that it was taken in.
#[test]
fn a_savepoint_that_is_rolled_back_leaves_the_cut() -> Outcome {
    let (fleet, mut session) = start()?;
    let sum = "SELECT count(*) FROM pt";
    session.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SAVEPOINT a")?;
    assert_eq!(one::<i64>(&mut session, sum)?, 0);
    session.batch_execute("ROLLBACK TO a")?;
    assert_commits(&fleet, &mut fleet.session()?, 1)?;
    assert_eq!(one::<i64>(&mut session, sum)?, 0);
    session.batch_execute("SAVEPOINT b; SELECT 1")?;
    expect_error(session.batch_execute("SELECT 1 / (count(*) - count(*)) FROM pt"), "22012");
    session.batch_execute("ROLLBACK TO b")?;
    assert_eq!(one::<i64>(&mut session, sum)?, 0);
    session.batch_execute("COMMIT")?;
    assert_eq!(one::<i64>(&mut session, sum)?, 2);
    Ok(())
}
