//! ANALYZE of foreign tables: what it learns, and that it reads in the remote transaction as
//! everything else.

use pg_test::oracle::{assert_settled, assert_usable, expect_error, one};
use pg_test::{DEADLINE, Installation, wait_until};
use postgres::{Client, NoTls};

use crate::support::{Outcome, in_background, session_with_notices, start, start_with_rows};

/// What is known of a table after ANALYZE: rows and pages.
fn size(session: &mut Client, table: &str) -> anyhow::Result<(i64, i64)> {
    let row = session.query_one(
        &format!("SELECT reltuples::bigint, relpages::bigint FROM pg_class WHERE oid = '{table}'::regclass"),
        &[],
    )?;
    Ok((row.get(0), row.get(1)))
}

#[test]
fn an_analyze_fills_the_statistics() -> Outcome {
    let (fleet, mut session) = start()?;
    let mut shard = fleet.shard(1).client()?;
    shard.batch_execute(
        "INSERT INTO t SELECT i, CASE WHEN i % 4 > 0 THEN 'v' || i % 4 END
         FROM generate_series(1, 10000) i",
    )?;
    session.batch_execute("ANALYZE ft1")?;
    let pages: i64 = one(&mut shard, "SELECT pg_relation_size('t') / 8192")?;
    assert_eq!(size(&mut session, "ft1")?, (10000, pages));
    let statistics = |session: &mut Client, column: &str| -> anyhow::Result<(f32, f32, String)> {
        let row = session.query_one(
            "SELECT null_frac, n_distinct,
                 coalesce((SELECT string_agg(x, ' ' ORDER BY x)
                           FROM unnest(most_common_vals::text::text[]) x), '')
             FROM pg_stats WHERE tablename = 'ft1' AND attname = $1",
            &[&column],
        )?;
        Ok((row.get(0), row.get(1), row.get(2)))
    };
    assert_eq!(statistics(&mut session, "id")?, (0.0, -1.0, String::new()));
    assert_eq!(statistics(&mut session, "v")?, (0.25, 3.0, "v1 v2 v3".to_owned()));
    // Now a sample of 3000 rows: the fractions are about the same, and the values are spread as
    // they are there.
    session.batch_execute("SET default_statistics_target = 10; ANALYZE ft1")?;
    assert_eq!(size(&mut session, "ft1")?.0, 10000);
    let (nulls, distinct, _) = statistics(&mut session, "v")?;
    assert!((0.2..0.3).contains(&nulls) && distinct == 3.0, "{nulls} {distinct}");
    let bounds: Vec<i32> = one(
        &mut session,
        "SELECT histogram_bounds::text::int[] FROM pg_stats
         WHERE tablename = 'ft1' AND attname = 'id'",
    )?;
    for (bound, expected) in bounds.iter().zip((0..=10).map(|n| n * 1000)) {
        assert!((bound - expected).abs() < 500, "{bounds:?}");
    }
    Ok(())
}

/// From 19 on, ANALYZE takes what the shard knows, if it is told so: here of rows that are gone.
/// A transaction that has done so can be prepared like any other.
#[test]
fn the_option_import_stats_takes_the_statistics_of_the_shard() -> Outcome {
    let (fleet, mut session) = start()?;
    let add = "ALTER FOREIGN TABLE ft1 OPTIONS (ADD import_stats 'true')";
    if Installation::from_env()?.major() < 19 {
        let error = expect_error(session.batch_execute(add), "HV00D");
        assert_eq!(error.message(), "invalid option \"import_stats\"");
        return Ok(());
    }
    fleet.shard(1).client()?.batch_execute(
        "ALTER TABLE t SET (autovacuum_enabled = off);
         INSERT INTO t SELECT i, 'x' FROM generate_series(1, 1000) i; ANALYZE t; DELETE FROM t",
    )?;
    session.batch_execute(&format!(
        "{add}; BEGIN; INSERT INTO ft2 VALUES (1); ANALYZE ft1; PREPARE TRANSACTION 'x'"
    ))?;
    session.batch_execute("COMMIT PREPARED 'x'")?;
    assert_eq!(size(&mut session, "ft1")?.0, 1000);
    let known: i64 = one(&mut session, "SELECT count(*) FROM pg_stats WHERE tablename = 'ft1'")?;
    assert_eq!(known, 2);
    session.batch_execute("ALTER FOREIGN TABLE ft1 OPTIONS (SET import_stats 'false')")?;
    session.batch_execute("ANALYZE ft1")?;
    assert_eq!(size(&mut session, "ft1")?.0, 0);
    assert_settled(&fleet);
    Ok(())
}

#[test]
fn the_option_analyze_sampling_has_the_shard_draw_the_rows() -> Outcome {
    let (fleet, mut session) = start()?;
    let add = "ALTER SERVER shard1 OPTIONS (ADD analyze_sampling 'off')";
    if one::<i32>(&mut session, "SELECT current_setting('server_version_num')::int")? < 160000 {
        let error = expect_error(session.batch_execute(add), "HV00D");
        assert_eq!(error.message(), "invalid option \"analyze_sampling\"");
        return Ok(());
    }
    fleet
        .shard(1)
        .client()?
        .batch_execute("INSERT INTO t SELECT i, 'x' FROM generate_series(1, 10000) i; ANALYZE t")?;
    session.batch_execute(&format!(
        "SET default_statistics_target = 10; {add};
         ALTER FOREIGN TABLE ft1 OPTIONS (ADD analyze_sampling 'off')"
    ))?;
    for (method, clause) in [
        ("off", ""),
        ("random", " WHERE pg_catalog.random() < 0.300000"),
        ("system", " TABLESAMPLE SYSTEM(30.000000)"),
        ("bernoulli", " TABLESAMPLE BERNOULLI(30.000000)"),
        ("auto", " TABLESAMPLE BERNOULLI(30.000000)"),
    ] {
        let mark = fleet.shard(1).log().mark()?;
        session.batch_execute(&format!(
            "ALTER FOREIGN TABLE ft1 OPTIONS (SET analyze_sampling '{method}'); ANALYZE ft1"
        ))?;
        assert_eq!(size(&mut session, "ft1")?.0, 10000, "{method}");
        let statements = fleet.shard(1).log().statements_since(mark)?;
        let declare = format!("DECLARE c1 CURSOR FOR SELECT id, v FROM public.t{clause}");
        assert!(statements.contains(&declare), "{declare}: {statements:#?}");
    }
    Ok(())
}

#[test]
fn an_analyze_counts_every_row_whatever_the_fetch_size_is() -> Outcome {
    let (fleet, session) = start()?;
    drop(session);
    let (mut session, notices) = session_with_notices(&fleet)?;
    session.batch_execute("ALTER FOREIGN TABLE ft1 OPTIONS (ADD fetch_size '10')")?;
    for rows in [0, 1, 9, 10, 11, 20, 25] {
        session.batch_execute(&format!(
            "TRUNCATE ft1; INSERT INTO ft1 SELECT i, 'v' FROM generate_series(1, {rows}) i"
        ))?;
        notices.take();
        session.batch_execute("ANALYZE VERBOSE ft1")?;
        assert_eq!(size(&mut session, "ft1")?.0, rows);
        let expected =
            format!("INFO: \"ft1\": table contains {rows} rows, {rows} rows in sample /  / ");
        let told = notices.take();
        assert!(told.contains(&expected), "{told:#?}");
    }
    Ok(())
}

#[test]
fn an_analyze_sees_what_its_transaction_has_written() -> Outcome {
    let (fleet, mut session) = start_with_rows()?;
    session.batch_execute("BEGIN; INSERT INTO ft1 VALUES (4, 'x'); ANALYZE ft1")?;
    assert_eq!(size(&mut session, "ft1")?.0, 4);
    session.batch_execute("ROLLBACK; ANALYZE ft1")?;
    assert_eq!(size(&mut session, "ft1")?.0, 3);
    assert_settled(&fleet);
    Ok(())
}

#[test]
fn an_analyze_of_a_partitioned_table_samples_its_foreign_partitions() -> Outcome {
    let (fleet, mut session) = start()?;
    for (number, from) in [(1, 1), (2, 1001)] {
        fleet.shard(number).client()?.batch_execute(&format!(
            "INSERT INTO t SELECT i, 'x' FROM generate_series({from}, {from} + 999) i"
        ))?;
    }
    session.batch_execute(
        "CREATE TABLE p (id int, v text) PARTITION BY RANGE (id);
         CREATE FOREIGN TABLE p1 PARTITION OF p FOR VALUES FROM (1) TO (1001) SERVER shard1
             OPTIONS (table_name 't');
         CREATE FOREIGN TABLE p2 PARTITION OF p FOR VALUES FROM (1001) TO (2001) SERVER shard2
             OPTIONS (table_name 't');
         ANALYZE p",
    )?;
    assert_eq!(size(&mut session, "p")?.0, 2000);
    let bounds: String = one(
        &mut session,
        "SELECT format('%s %s', b[1], b[array_upper(b, 1)])
         FROM (SELECT histogram_bounds::text::int[] AS b FROM pg_stats
               WHERE tablename = 'p' AND attname = 'id' AND inherited) s",
    )?;
    assert_eq!(bounds, "1 2000");
    for partition in ["p1", "p2"] {
        assert_eq!(size(&mut session, partition)?.0, 1000);
    }
    Ok(())
}

#[test]
fn an_analyze_connects_as_the_owner_of_the_table() -> Outcome {
    let (fleet, mut session) = start_with_rows()?;
    session.batch_execute("CREATE ROLE alice SUPERUSER; ALTER FOREIGN TABLE ft1 OWNER TO alice")?;
    let error = expect_error(session.batch_execute("ANALYZE ft1"), "42704");
    // From 17 on PostgreSQL names the server as well.
    let texts = [
        "user mapping not found for \"alice\"",
        "user mapping not found for user \"alice\", server \"shard1\"",
    ];
    assert!(texts.contains(&error.message()), "{error:#?}");
    session.batch_execute(
        "CREATE USER MAPPING FOR alice SERVER shard1 OPTIONS (user 'postgres');
         DROP USER MAPPING FOR CURRENT_USER SERVER shard1;
         ANALYZE ft1",
    )?;
    assert_eq!(size(&mut session, "ft1")?.0, 3);
    drop(fleet);
    Ok(())
}

#[test]
fn errors_of_an_analyze() -> Outcome {
    let (_fleet, mut session) = start_with_rows()?;
    session.batch_execute(
        "CREATE FOREIGN TABLE nowhere (id int) SERVER shard1;
         CREATE FOREIGN TABLE wrong (number int OPTIONS (column_name 'v')) SERVER shard1
             OPTIONS (table_name 't');
         CREATE FOREIGN TABLE empty () SERVER shard1 OPTIONS (table_name 't')",
    )?;
    let error = expect_error(session.batch_execute("ANALYZE nowhere"), "42P01");
    assert_eq!(error.message(), "relation \"public.nowhere\" does not exist");
    assert_eq!(
        error.where_(),
        Some(
            "remote SQL command: SELECT pg_catalog.pg_relation_size('public.nowhere'\
             ::pg_catalog.regclass) / 8192"
        )
    );
    let error = expect_error(session.batch_execute("ANALYZE wrong"), "22P02");
    assert_eq!(error.message(), "invalid input syntax for type integer: \"x\"");
    assert_eq!(error.where_(), Some("column \"number\" of foreign table \"wrong\""));
    session.batch_execute("ANALYZE empty")?;
    assert_eq!(size(&mut session, "empty")?.0, 3);
    Ok(())
}

#[test]
fn a_cancelled_analyze_ends_on_the_shard_too() -> Outcome {
    let (fleet, mut session) = start()?;
    fleet
        .shard(1)
        .client()?
        .batch_execute("CREATE VIEW slow AS SELECT 1 AS id FROM (SELECT pg_sleep(3600)) s")?;
    session.batch_execute("CREATE FOREIGN TABLE slow (id int) SERVER shard1")?;
    let cancel = session.cancel_token();
    let analyze = in_background(session, "ANALYZE slow");
    let sleeping = || {
        let query = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'PgSleep')";
        one::<bool>(&mut fleet.shard(1).client()?, query)
    };
    wait_until("the shard works on it", DEADLINE, sleeping)?;
    cancel.cancel_query(NoTls)?;
    let (mut session, result) = analyze.join();
    expect_error(result, "57014");
    assert_usable(&mut session);
    wait_until("the shard has stopped", DEADLINE, || Ok(!sleeping()?))
}
