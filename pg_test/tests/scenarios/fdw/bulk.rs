//! Many rows of an INSERT or a COPY go by COPY, where that does what INSERT does.

use std::io::Write;

use pg_test::Fleet;
use pg_test::oracle::{assert_usable, expect_error, one};
use postgres::Client;

use crate::support::{Outcome, start};

/// How many INSERT and COPY commands shard 1 executes for `sql`.
fn commands(fleet: &Fleet, session: &mut Client, sql: &str) -> anyhow::Result<(usize, usize)> {
    let mark = fleet.shard(1).log().mark()?;
    session.batch_execute(sql)?;
    let statements = fleet.shard(1).log().statements_since(mark)?;
    let count = |verb: &str| statements.iter().filter(|s| s.starts_with(verb)).count();
    Ok((count("INSERT INTO public."), count("COPY public.")))
}

/// Puts `text` into a table through COPY … FROM STDIN; returns how many rows that were.
fn copy(session: &mut Client, sql: &str, text: &str) -> Result<u64, postgres::Error> {
    let mut writer = session.copy_in(sql)?;
    writer.write_all(text.as_bytes()).expect("the client's own buffer");
    writer.finish()
}

fn insert_of(rows: u32) -> String {
    format!("INSERT INTO ft1 SELECT i, 'v' || i FROM generate_series(1, {rows}) i")
}

/// Red on 0.2.0: all of them went by INSERT.
#[test]
fn what_is_more_than_two_batches_goes_by_copy() -> Outcome {
    let (fleet, mut session) = start()?;
    for (rows, expected) in
        [(1, (1, 0)), (200, (1, 0)), (400, (2, 0)), (401, (1, 1)), (5000, (1, 1)), (30_000, (1, 2))]
    {
        let done = commands(&fleet, &mut session, &insert_of(rows))?;
        if rows < 30_000 {
            assert_eq!(done, expected, "{rows} rows");
        } else {
            // As many as rows come slowly.
            assert!(done.0 <= 2 && done.1 >= 1, "{rows} rows: {done:?}");
        }
        let there: i64 = one(
            &mut fleet.shard(1).client()?,
            "SELECT count(*) FILTER (WHERE v = 'v' || id) FROM t",
        )?;
        assert_eq!(there, i64::from(rows));
        session.batch_execute("DELETE FROM ft1")?;
    }
    for (set, reset) in [
        ("SET pg_fdw_xacts.batch_size = 200", "RESET pg_fdw_xacts.batch_size"),
        (
            "ALTER SERVER shard1 OPTIONS (ADD batch_size '200')",
            "ALTER SERVER shard1 OPTIONS (DROP batch_size)",
        ),
    ] {
        session.batch_execute(set)?;
        assert_eq!(commands(&fleet, &mut session, &insert_of(1000))?, (5, 0), "{set}");
        session.batch_execute(&format!("DELETE FROM ft1; {reset}"))?;
    }
    for other in [
        format!("{} ON CONFLICT DO NOTHING", insert_of(1000)),
        format!("WITH i AS ({}) SELECT 1", insert_of(1000)),
    ] {
        assert_eq!(commands(&fleet, &mut session, &other)?.1, 0, "{other}");
        session.batch_execute("DELETE FROM ft1")?;
    }
    Ok(())
}

/// Row security is not for superusers, so it is another role that inserts.
#[test]
fn row_security_is_kept() -> Outcome {
    let (fleet, mut session) = start()?;
    fleet.shard(1).client()?.batch_execute(
        "CREATE ROLE plain LOGIN; ALTER TABLE t ENABLE ROW LEVEL SECURITY;
         CREATE POLICY low ON t USING (true) WITH CHECK (id < 1500); GRANT ALL ON t TO plain",
    )?;
    session.batch_execute(
        "ALTER USER MAPPING FOR CURRENT_USER SERVER shard1 OPTIONS (SET user 'plain')",
    )?;
    assert_eq!(commands(&fleet, &mut session, &insert_of(1000))?, (5, 0));
    session.batch_execute("DELETE FROM ft1")?;
    expect_error(session.batch_execute(&insert_of(2000)), "42501");
    assert_eq!(fleet.ids_on_shard(1)?.len(), 0);
    Ok(())
}

#[test]
fn values_arrive_as_they_are() -> Outcome {
    let (fleet, mut session) = start()?;
    let columns = "\"a \"\"b\" int, \"Ü, (\" text[], c bytea, j jsonb, p point, t timestamptz,
         f float8, i interval, r int4range, e \"char\", n name, b boolean, big text";
    fleet.shard(1).client()?.batch_execute(&format!("CREATE TABLE \"T ;\" ({columns})"))?;
    session.batch_execute(&format!(
        "CREATE FOREIGN TABLE v ({columns}, g int GENERATED ALWAYS AS (\"a \"\"b\" * 2) STORED)
             SERVER shard1 OPTIONS (table_name 'T ;');
         CREATE TABLE l ({columns}, g int GENERATED ALWAYS AS (\"a \"\"b\" * 2) STORED);
         SET datestyle = 'German'; SET intervalstyle = 'iso_8601'; SET extra_float_digits = 0"
    ))?;
    fleet.shard(1).client()?.batch_execute(
        "ALTER TABLE \"T ;\" ADD g int GENERATED ALWAYS AS (\"a \"\"b\" * 2) STORED",
    )?;
    session.batch_execute(
        "INSERT INTO l SELECT i, ARRAY[E'\\\\', NULL, '', E'\\n\\t\\r', '\"{}', 'ß' || i],
             decode(lpad(to_hex(i), 8, '0'), 'hex') || '\\\\x0a0d095c', jsonb_build_object('k', E'\\\\u00e4\\n'),
             point(i, 0.1), '2024-03-31 01:30+01'::timestamptz + i * interval '1 minute 0.000001 s',
             i * 0.1::float8 / 3, i * interval '1 mon 2 days 3.5 s', int4range(i, i + 3), 'x',
             'n' || i, i % 2 = 0, CASE WHEN i % 300 = 0 THEN repeat('long', 100000) END
         FROM generate_series(1, 1000) i;
         INSERT INTO v (\"a \"\"b\", \"Ü, (\", c, j, p, t, f, i, r, e, n, b, big)
             SELECT \"a \"\"b\", \"Ü, (\", c, j, p, t, f, i, r, e, n, b, big FROM l",
    )?;
    let differ: i64 = one(
        &mut session,
        "SELECT count(*) FROM l FULL JOIN v ON l::text = v::text
             WHERE l.\"a \"\"b\" IS NULL OR v.\"a \"\"b\" IS NULL",
    )?;
    assert_eq!(differ, 0);
    let mark = fleet.shard(1).log().mark()?;
    session.batch_execute("INSERT INTO v (\"a \"\"b\") SELECT i FROM generate_series(1, 500) i")?;
    let log = fleet.shard(1).log().statements_since(mark)?;
    assert!(
        log.iter().any(|s| s.starts_with("COPY public.\"T ;\"(\"a \"\"b\", \"Ü, (\", c,")),
        "{log:#?}"
    );
    Ok(())
}

/// Red on 0.2.0 with PostgreSQL 15: 3000 INSERTs.
#[test]
fn copy_into_a_foreign_table_is_copied() -> Outcome {
    let (fleet, mut session) = start()?;
    let text = |rows: std::ops::Range<i32>| -> String {
        rows.map(|i| format!("{i}\ta\\tb\\\\{i}\n")).collect()
    };
    let mark = fleet.shard(1).log().mark()?;
    assert_eq!(copy(&mut session, "COPY ft1 FROM STDIN", &text(0..3000))?, 3000);
    let statements = fleet.shard(1).log().statements_since(mark)?;
    let inserts = statements.iter().filter(|s| s.starts_with("INSERT")).count();
    assert!(inserts <= 2 && statements.iter().any(|s| s.starts_with("COPY")), "{statements:#?}");
    let right = "SELECT count(*) FROM t WHERE v = E'a\\tb\\\\' || id";
    assert_eq!(one::<i64>(&mut fleet.shard(1).client()?, right)?, 3000);
    let error = expect_error(copy(&mut session, "COPY ft1 FROM STDIN", &text(2995..4000)), "23505");
    assert!(error.where_().unwrap_or_default().contains("remote SQL command: "), "{error:?}");
    assert_eq!(copy(&mut session, "COPY ft1 FROM STDIN", &text(3000..3002))?, 2);
    let few = one::<i64>(&mut session, "SELECT count(*) FROM ft1")?;
    assert_eq!(few, 3002);
    // The condition looks for rows before its own.
    session.batch_execute(
        "DELETE FROM ft1;
         CREATE FUNCTION is_new(int) RETURNS boolean LANGUAGE sql VOLATILE AS
             'SELECT NOT EXISTS (SELECT FROM ft1 WHERE id = $1 / 2)'",
    )?;
    let some = copy(&mut session, "COPY ft1 FROM STDIN WHERE is_new(id)", &text(1..20))?;
    assert_eq!(some as i64, one::<i64>(&mut session, "SELECT count(*) FROM ft1")?);
    assert!(some < 15, "{some} rows");
    Ok(())
}

#[test]
fn rows_are_routed_to_several_servers() -> Outcome {
    let (fleet, mut session) = start()?;
    session.batch_execute(
        "CREATE TABLE r (id int, v text) PARTITION BY LIST ((id % 3));
         CREATE FOREIGN TABLE r1 PARTITION OF r FOR VALUES IN (0) SERVER shard1 OPTIONS (table_name 't');
         CREATE FOREIGN TABLE r2 PARTITION OF r FOR VALUES IN (1) SERVER shard2 OPTIONS (table_name 't');
         CREATE TABLE r3 PARTITION OF r FOR VALUES IN (2)",
    )?;
    let (inserts, copies) = commands(
        &fleet,
        &mut session,
        "INSERT INTO r SELECT i, 'v' FROM generate_series(1, 9000) i",
    )?;
    assert!(inserts == 1 && copies >= 1, "{inserts} INSERTs, {copies} COPYs");
    let text: String = (9001..=12000).map(|i| format!("{i}\tw\n")).collect();
    assert_eq!(copy(&mut session, "COPY r FROM STDIN", &text)?, 3000);
    for table in ["r1", "r2", "r3"] {
        let there = format!("SELECT count(DISTINCT id) FROM {table}");
        assert_eq!(one::<i64>(&mut session, &there)?, 4000, "{table}");
    }
    // A trigger of one partition may look for the rows in another.
    session.batch_execute(
        "CREATE TABLE counted (n bigint);
         CREATE FUNCTION count_them() RETURNS trigger LANGUAGE plpgsql AS
             'BEGIN INSERT INTO counted SELECT count(*) FROM r1 WHERE v = ''x''; RETURN NULL; END';
         CREATE TRIGGER count_them AFTER INSERT ON r3 FOR EACH ROW WHEN (NEW.id = 20000)
             EXECUTE FUNCTION count_them()",
    )?;
    let text: String = (20_000..21_500).map(|i| format!("{i}\tx\n")).collect();
    copy(&mut session, "COPY r FROM STDIN", &text)?;
    assert_eq!(one::<i64>(&mut session, "SELECT sum(n)::bigint FROM counted")?, 500);
    Ok(())
}

/// Triggers that fire when the statement has ended find all rows.
#[test]
fn all_rows_are_there_when_triggers_fire() -> Outcome {
    let (_fleet, mut session) = start()?;
    session.batch_execute(
        "CREATE TABLE counted (n bigint);
         CREATE FUNCTION count_them() RETURNS trigger LANGUAGE plpgsql AS
             'BEGIN INSERT INTO counted SELECT count(*) FROM ft1; RETURN NULL; END';
         CREATE TRIGGER count_them AFTER INSERT ON ft1 EXECUTE FUNCTION count_them()",
    )?;
    session.batch_execute(&insert_of(1234))?;
    assert_eq!(one::<i64>(&mut session, "SELECT n FROM counted")?, 1234);
    let text: String = (2001..=3000).map(|i| format!("{i}\tx\n")).collect();
    copy(&mut session, "COPY ft1 FROM STDIN", &text)?;
    assert_eq!(one::<i64>(&mut session, "SELECT max(n) FROM counted")?, 2234);
    Ok(())
}

/// A savepoint undoes what was copied in it and nothing else, and a failure ends there.
#[test]
fn savepoints_hold() -> Outcome {
    let (fleet, mut session) = start()?;
    session.batch_execute(&format!("BEGIN; {}; SAVEPOINT a", insert_of(1000)))?;
    expect_error(session.batch_execute(&insert_of(900)), "23505");
    session.batch_execute("ROLLBACK TO a")?;
    let insert = "INSERT INTO ft1 SELECT i, 'w' FROM generate_series(1001, 2000) i";
    session.batch_execute(&format!("{insert}; ROLLBACK TO a; {insert}; RELEASE a"))?;
    session.batch_execute(&format!(
        "DO $$ BEGIN
             FOR n IN 2..4 LOOP
                 BEGIN
                     INSERT INTO ft1 SELECT i + n * 1000, 'x' FROM generate_series(1, 1000) i;
                     IF n = 3 THEN RAISE 'no'; END IF;
                 EXCEPTION WHEN raise_exception THEN NULL;
                 END;
             END LOOP;
         END $$; {}",
        "INSERT INTO ft2 VALUES (1, 'x'); COMMIT"
    ))?;
    let there = "SELECT count(DISTINCT id) FROM t WHERE id <= 3000 OR id > 4000";
    assert_eq!(one::<i64>(&mut fleet.shard(1).client()?, there)?, 4000);
    assert_eq!(one::<i64>(&mut fleet.shard(1).client()?, "SELECT count(*) FROM t")?, 4000);
    assert_usable(&mut session);
    Ok(())
}

/// The source fails while the shard works on what it has got.
#[test]
fn a_source_that_fails_leaves_the_connection_usable() -> Outcome {
    let (fleet, mut session) = start()?;
    let fails =
        "INSERT INTO ft1 SELECT i, (1 / (20000 - i))::text FROM generate_series(1, 30000) i";
    session.batch_execute("BEGIN; INSERT INTO ft1 VALUES (0, 'x'); SAVEPOINT a")?;
    expect_error(session.batch_execute(fails), "22012");
    session.batch_execute(&format!("ROLLBACK TO a; {}; COMMIT", insert_of(1000)))?;
    expect_error(session.batch_execute(&fails.replace("SELECT i", "SELECT 2000 + i")), "22012");
    assert_eq!(fleet.ids_on_shard(1)?.len(), 1001);
    session.batch_execute("DELETE FROM ft1")?;
    Ok(())
}

/// Cursors, and what functions in the source ask, use the connection that copies.
#[test]
fn the_source_may_be_on_the_same_server() -> Outcome {
    let (fleet, mut session) = start()?;
    session.batch_execute(&insert_of(4000))?;
    fleet.shard(1).client()?.batch_execute("CREATE TABLE u (id int, v text)")?;
    session.batch_execute(
        "CREATE FOREIGN TABLE u (id int, v text) SERVER shard1;
         CREATE FUNCTION name_of(n int) RETURNS text LANGUAGE plpgsql STABLE AS $$
             DECLARE found text;
             BEGIN
                 SELECT v INTO found FROM ft1 WHERE id = n;
                 IF n % 10 = 0 THEN RAISE 'no'; END IF;
                 RETURN found;
             EXCEPTION WHEN raise_exception THEN RETURN 'none';
             END $$",
    )?;
    let rows = session.execute("INSERT INTO u SELECT id, v FROM ft1", &[])?;
    assert_eq!(rows, 4000);
    let insert = "INSERT INTO u SELECT id + 10000, name_of(id) FROM ft1 WHERE id <= 800";
    assert_eq!(session.execute(insert, &[])?, 800);
    let both = "INSERT INTO ft1 SELECT id + 20000, v FROM ft1 WHERE id <= 2000";
    assert_eq!(session.execute(both, &[])?, 2000);
    let named = "SELECT count(*) FROM u WHERE v = CASE WHEN id <= 4000 THEN 'v' || id
         WHEN id % 10 = 0 THEN 'none' ELSE 'v' || (id - 10000) END";
    assert_eq!(one::<i64>(&mut session, named)?, 4800);
    Ok(())
}

#[test]
fn a_failure_names_the_row_and_the_command() -> Outcome {
    let (fleet, mut session) = start()?;
    let insert = "INSERT INTO ft1 SELECT least(i, 2500), 'v' FROM generate_series(1, 3000) i";
    let error = expect_error(session.batch_execute(insert), "23505");
    let context = error.where_().unwrap_or_default();
    assert!(context.contains("COPY t, line "), "{context}");
    assert!(context.contains("remote SQL command: COPY public.t(id, v) FROM STDIN"), "{context}");
    assert_usable(&mut session);
    assert_eq!(fleet.ids_on_shard(1)?.len(), 0);
    session.batch_execute(&insert_of(3000))?;
    Ok(())
}

/// Rows much larger than what one COPY carries otherwise, and no more memory than they need.
#[test]
fn wide_rows_are_copied() -> Outcome {
    let (fleet, mut session) = start()?;
    session.batch_execute(
        "INSERT INTO ft1 SELECT i, repeat('x', CASE WHEN i % 100 = 0 THEN 3000000 ELSE 10 END)
         FROM generate_series(1, 600) i",
    )?;
    let lengths: i64 =
        one(&mut fleet.shard(1).client()?, "SELECT sum(length(v)) FROM t WHERE id <= 600")?;
    assert_eq!(lengths, 6 * 3_000_000 + 594 * 10);
    Ok(())
}

/// The condition of a domain may look at the table, too. Red before: it saw the rows of the first
/// batch only.
#[test]
fn a_domain_may_look_at_the_rows_before() -> Outcome {
    let (_fleet, mut session) = start()?;
    session.batch_execute(
        "CREATE TABLE seen (rows bigint);
         CREATE FUNCTION look() RETURNS bool LANGUAGE sql VOLATILE AS
             $$INSERT INTO seen SELECT count(*) FROM ft1; SELECT true$$;
         CREATE DOMAIN looking AS int CHECK (look());
         INSERT INTO ft1 SELECT i::looking, 'x' FROM generate_series(1, 450) i",
    )?;
    assert_eq!(one::<i64>(&mut session, "SELECT max(rows) FROM seen")?, 449);
    Ok(())
}
