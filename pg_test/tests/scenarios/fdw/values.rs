//! Names and values of any kind, drawn at random, in several encodings: what is quoted, sent,
//! decoded and compared on the shard is what was meant.

use std::cell::RefCell;

use pg_test::Fleet;
use pg_test::oracle::{expect_error, one};
use postgres::{Client, NoTls};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};

use crate::support::Outcome;

/// As an identifier of SQL.
fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// As a literal of SQL, without E'': backslashes stand for themselves.
fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// Names and texts with everything that some layer might take for its own.
fn tricky(length: usize) -> impl Strategy<Value = String> {
    let part = prop_oneof![
        4 => prop::sample::select(vec!["a", "B", "1", "_", "select", "öß", "漢", "🦀"]),
        6 => prop::sample::select(vec![
            "\"", "'", "\\", "''", "$1", "$$", "%s", ".", ",", " ", "(", ")", ";", "--", "/*", "E'", "\n", "\t", "{", "}", "=",
        ]),
    ];
    prop::collection::vec(part, 1..length).prop_map(|parts| parts.concat())
}

#[derive(Debug, Clone)]
struct Case {
    schema: String,
    table: String,
    columns: [String; 3],
    rows: Vec<(Option<String>, Vec<u8>)>,
}

fn case() -> impl Strategy<Value = Case> {
    let row = (prop::option::weighted(0.9, tricky(12)), prop::collection::vec(any::<u8>(), 0..20));
    // 63 bytes is the longest name there is.
    let name = || tricky(6).prop_filter("too long", |name| name.len() <= 50);
    (name(), name(), [name(), name(), name()], prop::collection::vec(row, 1..6)).prop_map(
        |(schema, table, columns, rows)| {
            let columns = columns.into_iter().enumerate().map(|(n, c)| format!("{n}{c}"));
            let columns = columns.collect::<Vec<_>>().try_into().expect("three");
            Case { schema, table, columns, rows }
        },
    )
}

/// Plays one case: everything comes back as it went, by insert, by scan, by condition, by update
/// and by delete.
fn play(case: &Case, shard: &mut Client, session: &mut Client) -> Result<(), postgres::Error> {
    // The schema's name may be one that exists.
    let schema = format!("s {}", case.schema);
    let table = format!("{}.{}", identifier(&schema), identifier(&case.table));
    let [id, text, bytes] = case.columns.each_ref().map(|c| identifier(c));
    shard.batch_execute(&format!(
        "CREATE SCHEMA {}; CREATE TABLE {table} ({id} int PRIMARY KEY, {text} text, {bytes} bytea)",
        identifier(&schema)
    ))?;
    let [of_id, of_text, of_bytes] = case.columns.each_ref().map(|c| literal(c));
    session.batch_execute(&format!(
        "DROP FOREIGN TABLE IF EXISTS f;
         CREATE FOREIGN TABLE f (id int OPTIONS (column_name {of_id}), t text OPTIONS (column_name {of_text}),
             b bytea OPTIONS (column_name {of_bytes})) SERVER shard1
             OPTIONS (schema_name {}, table_name {})",
        literal(&schema),
        literal(&case.table)
    ))?;
    for (n, (text, bytes)) in case.rows.iter().enumerate() {
        let n = n as i32;
        session.execute("INSERT INTO f VALUES ($1, $2, $3)", &[&n, text, bytes])?;
        let found = session.query_one("SELECT t, b FROM f WHERE id = $1", &[&n])?;
        assert_eq!(
            (&found.get::<_, Option<String>>(0), &found.get::<_, Vec<u8>>(1)),
            (text, bytes)
        );
        let stored = shard.query_one(
            &format!("SELECT {} FROM {table} WHERE {id} = $1", identifier(&case.columns[1])),
            &[&n],
        )?;
        assert_eq!(&stored.get::<_, Option<String>>(0), text);
        // A constant in a condition, which the shard evaluates, and one in SET.
        if let Some(text) = text {
            let there = format!("SELECT count(*) FROM f WHERE id = {n} AND t = {}", literal(text));
            assert_eq!(session.query_one(&there, &[])?.get::<_, i64>(0), 1, "{there}");
            let update =
                format!("UPDATE f SET t = {0} || t WHERE id = {n} AND t = {0}", literal(text));
            assert_eq!(session.execute(&update, &[])?, 1, "{update}");
        }
    }
    let deleted = session.execute("DELETE FROM f WHERE b IS NOT NULL", &[])?;
    assert_eq!(deleted, case.rows.len() as u64);
    shard.batch_execute(&format!("DROP SCHEMA {} CASCADE", identifier(&schema)))
}

#[test]
fn any_name_and_any_value_comes_back_as_it_went() -> Outcome {
    let fleet = Fleet::start()?;
    let shard = RefCell::new(fleet.shard(1).client()?);
    let session = RefCell::new(fleet.session()?);
    let mut runner =
        TestRunner::new(Config { cases: 60, failure_persistence: None, ..Config::default() });
    runner
        .run(&case(), |case| {
            play(&case, &mut shard.borrow_mut(), &mut session.borrow_mut())
                .map_err(|error| TestCaseError::fail(format!("{error:?}")))
        })
        .map_err(|failure| anyhow::anyhow!("{failure}"))
}

/// The coordinator's database has another encoding than the shard's, and the client yet another.
#[test]
fn encodings_are_converted_between_client_coordinator_and_shard() -> Outcome {
    let fleet = Fleet::start()?;
    let port = fleet.shard(1).port();
    for encoding in ["LATIN1", "UTF8", "WIN1252"] {
        let database = format!("enc_{}", encoding.to_lowercase());
        fleet.session()?.batch_execute(&format!(
            "CREATE DATABASE {database} TEMPLATE template0 ENCODING '{encoding}' LOCALE 'C'"
        ))?;
        let mut session = fleet.coordinator.config().dbname(&database).connect(NoTls)?;
        fleet
            .shard(1)
            .client()?
            .batch_execute("DROP TABLE IF EXISTS \"größe\"; CREATE TABLE \"größe\" (\"ä\" text)")?;
        session.batch_execute(&format!(
            "CREATE EXTENSION pg_fdw_xacts CASCADE;
             CREATE SERVER s FOREIGN DATA WRAPPER pg_fdw_xacts OPTIONS (host '127.0.0.1', port '{port}', dbname 'postgres');
             CREATE USER MAPPING FOR CURRENT_USER SERVER s OPTIONS (user 'postgres');
             CREATE FOREIGN TABLE \"größe\" (\"ä\" text) SERVER s"
        ))?;
        for client in ["UTF8", "SQL_ASCII", encoding] {
            // The statements are ASCII: this client writes UTF-8, whatever encoding it has
            // announced.
            session.batch_execute(&format!("SET client_encoding = {client}"))?;
            session.batch_execute("DO $$ BEGIN EXECUTE format('INSERT INTO %I VALUES (%L)', 'gr' || chr(246) || chr(223) || 'e', chr(252) || 'x'); END $$")?;
            let found: String =
                one(&mut fleet.shard(1).client()?, "SELECT string_agg(\"ä\", '') FROM \"größe\"")?;
            assert_eq!(found, "üx", "{encoding}, client {client}");
            session.batch_execute("DO $$ DECLARE n int; BEGIN EXECUTE format('DELETE FROM %I WHERE %I = %L',
                 'gr' || chr(246) || chr(223) || 'e', chr(228), chr(252) || 'x'); GET DIAGNOSTICS n = ROW_COUNT;
                 ASSERT n = 1; END $$")?;
        }
        session.batch_execute("SET client_encoding = UTF8")?;
        if encoding != "UTF8" {
            fleet.shard(1).client()?.batch_execute("INSERT INTO \"größe\" VALUES ('漢')")?;
            expect_error(session.batch_execute("SELECT * FROM \"größe\""), "22P05");
        }
        session.batch_execute("SELECT 1")?;
    }
    Ok(())
}

#[test]
fn large_values_go_and_come() -> Outcome {
    let fleet = Fleet::start()?;
    let mut session = fleet.session()?;
    session.batch_execute(
        "INSERT INTO ft1 SELECT i, repeat(md5(i::text), 300000) FROM generate_series(1, 3) i",
    )?;
    let same =
        "SELECT count(*) FROM ft1 WHERE v = repeat(md5(id::text), 300000) AND length(v) = 9600000";
    assert_eq!(one::<i64>(&mut session, same)?, 3);
    let here = "SELECT count(*) FROM (SELECT * FROM ft1 OFFSET 0) f WHERE md5(v) = md5(repeat(md5(id::text), 300000))";
    assert_eq!(one::<i64>(&mut session, here)?, 3);
    Ok(())
}

#[test]
fn domains_enums_arrays_and_composites_are_checked_and_kept() -> Outcome {
    let fleet = Fleet::start()?;
    let types = "CREATE TYPE mood AS ENUM ('sad', 'it''s \"ok\"'); CREATE DOMAIN positive AS int CHECK (VALUE > 0);
         CREATE TYPE pair AS (a int, b text)";
    let columns = "id int, m mood, ms mood[], p positive, c pair, cs pair[]";
    fleet.shard(1).client()?.batch_execute(&format!("{types}; CREATE TABLE kinds ({columns})"))?;
    let mut session = fleet.session()?;
    session.batch_execute(&format!(
        "{types}; CREATE FOREIGN TABLE kinds ({columns}) SERVER shard1;
         CREATE TABLE original ({columns});
         INSERT INTO original VALUES (1, 'it''s \"ok\"', '{{sad,NULL}}', 5, ROW(1, 'a,\"b\\'), ARRAY[ROW(2, NULL)::pair, NULL]),
             (2, NULL, NULL, NULL, NULL, NULL);
         INSERT INTO kinds SELECT * FROM original"
    ))?;
    let same = "SELECT count(*) FROM original o JOIN kinds k ON (o.*) IS NOT DISTINCT FROM (k.*)";
    assert_eq!(one::<i64>(&mut session, same)?, 2);
    // What the shard has must pass the domain here.
    fleet.shard(1).client()?.batch_execute(
        "ALTER DOMAIN positive DROP CONSTRAINT positive_check; UPDATE kinds SET p = -1 WHERE id = 1",
    )?;
    let error = expect_error(session.batch_execute("SELECT * FROM kinds"), "23514");
    let context = error.where_().unwrap_or_default();
    assert!(context.contains("column \"p\" of foreign table \"kinds\""), "{error:#?}");
    Ok(())
}
