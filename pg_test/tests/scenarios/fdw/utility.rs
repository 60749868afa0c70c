//! TRUNCATE and IMPORT FOREIGN SCHEMA: in the remote transaction as everything else.

use pg_test::Fleet;
use pg_test::fleet::ids;
use pg_test::oracle::{assert_settled, assert_usable, expect_error, one};
use postgres::Client;

use crate::support::{NONE, Outcome, gid_of, start, start_with_rows};

// TRUNCATE

#[test]
fn a_truncate_over_two_shards_is_rolled_back_on_both() -> Outcome {
    let (fleet, mut session) = start_with_rows()?;
    session.batch_execute("BEGIN; TRUNCATE ft1, ft2")?;
    assert_eq!((ids(&mut session, "ft1")?, ids(&mut session, "ft2")?), (vec![], vec![]));
    session.batch_execute("ROLLBACK")?;
    assert_eq!((fleet.ids_on_shard(1)?, fleet.ids_on_shard(2)?), (vec![1, 2, 3], vec![1, 2, 3]));
    assert_settled(&fleet);
    Ok(())
}

#[test]
fn a_truncate_over_two_shards_is_committed_by_two_phases() -> Outcome {
    let (fleet, mut session) = start_with_rows()?;
    let marks = [fleet.shard(1).log().mark()?, fleet.shard(2).log().mark()?];
    session.batch_execute("TRUNCATE ft1, ft2")?;
    let mut numbers = Vec::new();
    for (number, mark) in [1, 2].into_iter().zip(marks) {
        assert_eq!(fleet.ids_on_shard(number)?, NONE);
        let statements = fleet.shard(number).log().statements_since(mark)?;
        let gid = gid_of(&statements, "PREPARE TRANSACTION");
        assert_eq!(gid, gid_of(&statements, "COMMIT PREPARED"));
        numbers.push(gid.n);
    }
    assert_eq!(numbers[0], numbers[1], "two transactions");
    assert_settled(&fleet);
    Ok(())
}

#[test]
fn one_truncate_per_server_with_all_its_tables() -> Outcome {
    let (fleet, mut session) = start()?;
    fleet.shard(1).client()?.batch_execute(
        "CREATE TABLE parent (id int PRIMARY KEY);
         CREATE TABLE child (id int REFERENCES parent);
         INSERT INTO parent VALUES (1); INSERT INTO child VALUES (1)",
    )?;
    session.batch_execute(
        "CREATE FOREIGN TABLE parent (id int) SERVER shard1;
         CREATE FOREIGN TABLE child (id int) SERVER shard1",
    )?;
    let error = expect_error(session.batch_execute("TRUNCATE parent"), "0A000");
    let context = error.where_().unwrap_or_default();
    assert_eq!(context, "remote SQL command: TRUNCATE public.parent CONTINUE IDENTITY RESTRICT");
    assert_usable(&mut session);
    // Only together does the shard take them.
    session.batch_execute("TRUNCATE parent, child")?;
    assert_eq!(ids(&mut fleet.shard(1).client()?, "child")?, NONE);
    Ok(())
}

#[test]
fn truncate_cascade_and_restart_identity() -> Outcome {
    let (fleet, mut session) = start()?;
    let mut shard = fleet.shard(1).client()?;
    shard.batch_execute(
        "CREATE TABLE parent (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v int);
         CREATE TABLE child (id int REFERENCES parent);
         INSERT INTO parent (v) VALUES (1), (2); INSERT INTO child VALUES (1)",
    )?;
    session.batch_execute("CREATE FOREIGN TABLE parent (id int, v int) SERVER shard1")?;
    session.batch_execute("TRUNCATE parent CASCADE")?;
    assert_eq!((ids(&mut shard, "parent")?, ids(&mut shard, "child")?), (vec![], vec![]));
    shard.batch_execute("INSERT INTO parent (v) VALUES (1)")?;
    assert_eq!(ids(&mut shard, "parent")?, [3]);
    session.batch_execute("TRUNCATE parent RESTART IDENTITY CASCADE")?;
    shard.batch_execute("INSERT INTO parent (v) VALUES (1)")?;
    assert_eq!(ids(&mut shard, "parent")?, [1]);
    Ok(())
}

#[test]
fn a_truncate_in_a_savepoint_is_undone_with_it() -> Outcome {
    let (fleet, mut session) = start_with_rows()?;
    session.batch_execute(
        "BEGIN; DELETE FROM ft1 WHERE id = 1; SAVEPOINT a; TRUNCATE ft1; ROLLBACK TO a; COMMIT",
    )?;
    assert_eq!(fleet.ids_on_shard(1)?, [2, 3]);
    Ok(())
}

#[test]
fn the_option_truncatable_of_the_table_comes_before_that_of_the_server() -> Outcome {
    let (fleet, mut session) = start_with_rows()?;
    let refused = |session: &mut Client| {
        let error = expect_error(session.batch_execute("TRUNCATE ft2, ft1"), "55000");
        assert_eq!(error.message(), "foreign table \"ft1\" does not allow truncates");
        assert_usable(session);
    };
    session.batch_execute("ALTER FOREIGN TABLE ft1 OPTIONS (ADD truncatable 'false')")?;
    refused(&mut session);
    session.batch_execute(
        "ALTER FOREIGN TABLE ft1 OPTIONS (DROP truncatable);
         ALTER SERVER shard1 OPTIONS (ADD truncatable 'false')",
    )?;
    refused(&mut session);
    assert_eq!(fleet.ids_on_shard(2)?, [1, 2, 3]);
    session.batch_execute("ALTER FOREIGN TABLE ft1 OPTIONS (ADD truncatable 'true')")?;
    session.batch_execute("TRUNCATE ft2, ft1")?;
    assert_eq!((fleet.ids_on_shard(1)?, fleet.ids_on_shard(2)?), (vec![], vec![]));
    Ok(())
}

#[test]
fn a_truncate_of_a_partitioned_table_reaches_its_foreign_partitions() -> Outcome {
    let (fleet, mut session) = start()?;
    session.batch_execute(
        "CREATE TABLE p (id int, v text) PARTITION BY LIST (id);
         CREATE TABLE p0 PARTITION OF p FOR VALUES IN (0);
         CREATE FOREIGN TABLE p1 PARTITION OF p FOR VALUES IN (1) SERVER shard1
             OPTIONS (table_name 't');
         CREATE FOREIGN TABLE p2 PARTITION OF p FOR VALUES IN (2) SERVER shard2
             OPTIONS (table_name 't');
         INSERT INTO p VALUES (0), (1), (2)",
    )?;
    assert_eq!(ids(&mut session, "p")?, [0, 1, 2]);
    session.batch_execute("TRUNCATE p")?;
    assert_eq!((fleet.ids_on_shard(1)?, fleet.ids_on_shard(2)?), (vec![], vec![]));
    assert_eq!(ids(&mut session, "p")?, NONE);
    Ok(())
}

// Odd names

/// A schema, a table and columns whose names need quotes, on shard 1.
fn with_odd_names() -> anyhow::Result<(Fleet, Client)> {
    let (fleet, session) = start()?;
    fleet.shard(1).client()?.batch_execute(
        r#"CREATE SCHEMA "S ""q"" 'x' \y";
           CREATE TABLE "S ""q"" 'x' \y"."T 'b' \c" ("C 1" int, "select" text, "it's" int, "d\e" int);
           INSERT INTO "S ""q"" 'x' \y"."T 'b' \c" VALUES (1, 'a', 2, 3), (2, 'b', NULL, 4)"#,
    )?;
    Ok((fleet, session))
}

const IMPORT_ODD: &str = r#"IMPORT FOREIGN SCHEMA "S ""q"" 'x' \y" FROM SERVER shard1 INTO public"#;

#[test]
fn odd_names_survive_import_analyze_and_truncate() -> Outcome {
    let (_fleet, mut session) = with_odd_names()?;
    session.batch_execute(IMPORT_ODD)?;
    session.batch_execute(
        r#"ALTER FOREIGN TABLE "T 'b' \c" RENAME COLUMN "C 1" TO id;
           ALTER FOREIGN TABLE "T 'b' \c" RENAME TO "Mine""#,
    )?;
    assert_eq!(ids(&mut session, "\"Mine\"")?, [1, 2]);
    session.batch_execute("ANALYZE \"Mine\"")?;
    let columns: String = one(
        &mut session,
        "SELECT string_agg(attname, '; ' ORDER BY attname COLLATE \"C\") FROM pg_stats
         WHERE tablename = 'Mine'",
    )?;
    assert_eq!(columns, r"d\e; id; it's; select");
    session.batch_execute("TRUNCATE \"Mine\"")?;
    assert_eq!(ids(&mut session, "\"Mine\"")?, NONE);
    Ok(())
}

// IMPORT FOREIGN SCHEMA

/// A schema `src` on shard 1 with a table of every kind, and a schema `dst` on the coordinator.
fn with_a_schema() -> anyhow::Result<(Fleet, Client)> {
    let (fleet, mut session) = start()?;
    fleet.shard(1).client()?.batch_execute(
        "CREATE SCHEMA src;
         CREATE TYPE public.mood AS ENUM ('good', 'bad');
         CREATE DOMAIN public.positive AS int CHECK (VALUE > 0);
         CREATE TABLE src.a (id int NOT NULL DEFAULT 42, v varchar(10) COLLATE \"C\" DEFAULT 'a''b',
             n numeric(10, 2), twice int GENERATED ALWAYS AS (id * 2) STORED, gone int);
         ALTER TABLE src.a DROP COLUMN gone;
         CREATE TABLE src.b (t timestamptz DEFAULT now(), d public.positive);
         CREATE TABLE src.none ();
         CREATE VIEW src.v AS SELECT 1 AS one;
         CREATE MATERIALIZED VIEW src.m AS SELECT 2 AS two;
         CREATE SEQUENCE src.s;
         CREATE INDEX i ON src.a (id);
         CREATE TABLE src.parts (k int NOT NULL) PARTITION BY LIST (k);
         CREATE TABLE src.part1 PARTITION OF src.parts FOR VALUES IN (1)",
    )?;
    session.batch_execute(
        "CREATE SCHEMA dst; CREATE DOMAIN public.positive AS int CHECK (VALUE > 0)",
    )?;
    Ok((fleet, session))
}

/// The foreign tables in `dst`.
fn imported(session: &mut Client) -> anyhow::Result<String> {
    one(
        session,
        "SELECT coalesce(string_agg(relname, ' ' ORDER BY relname), '') FROM pg_class
         WHERE relnamespace = 'dst'::regnamespace AND relkind = 'f'",
    )
}

/// Drops what is in `dst` and imports again, with what comes between the schema and FROM, and with
/// options.
fn import(session: &mut Client, tables: &str, options: &str) -> Result<(), postgres::Error> {
    session.batch_execute("DROP SCHEMA dst CASCADE; CREATE SCHEMA dst")?;
    session.batch_execute(&format!(
        "IMPORT FOREIGN SCHEMA src {tables} FROM SERVER shard1 INTO dst {options}"
    ))
}

/// The columns of `dst.a`: name, type, NOT NULL, default or generation expression, collation.
fn columns(session: &mut Client) -> anyhow::Result<Vec<String>> {
    let rows = session.query(
        "SELECT concat_ws(' ', attname, format_type(atttypid, atttypmod),
             CASE WHEN attnotnull THEN 'NOT NULL' END,
             CASE attgenerated WHEN 's' THEN 'STORED' END, pg_get_expr(adbin, adrelid),
             nullif(collname, 'default'), attfdwoptions::text)
         FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
             LEFT JOIN pg_collation c ON c.oid = attcollation
         WHERE attrelid = 'dst.a'::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
        &[],
    )?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

#[test]
fn an_import_brings_tables_of_every_kind_but_no_partitions() -> Outcome {
    let (_fleet, mut session) = with_a_schema()?;
    import(&mut session, "", "")?;
    assert_eq!(imported(&mut session)?, "a b m none parts v");
    let options: String = one(
        &mut session,
        "SELECT ftoptions::text FROM pg_foreign_table WHERE ftrelid = 'dst.b'::regclass",
    )?;
    assert_eq!(options, "{schema_name=src,table_name=b}");
    assert_eq!(one::<i32>(&mut session, "SELECT one + two FROM dst.v, dst.m")?, 3);
    let row = session.query_one("SELECT * FROM dst.none RIGHT JOIN (SELECT 1) x ON true", &[])?;
    assert_eq!(row.len(), 1);
    Ok(())
}

#[test]
fn import_options_say_what_comes_with_a_column() -> Outcome {
    let (_fleet, mut session) = with_a_schema()?;
    import(&mut session, "", "")?;
    assert_eq!(
        columns(&mut session)?,
        [
            "id integer NOT NULL {column_name=id}",
            "v character varying(10) C {column_name=v}",
            "n numeric(10,2) {column_name=n}",
            "twice integer STORED (id * 2) {column_name=twice}",
        ]
    );
    import(
        &mut session,
        "LIMIT TO (a)",
        "OPTIONS (import_default 'true', import_collate 'false')",
    )?;
    assert_eq!(
        columns(&mut session)?,
        [
            "id integer NOT NULL 42 {column_name=id}",
            "v character varying(10) 'a''b'::character varying {column_name=v}",
            "n numeric(10,2) {column_name=n}",
            "twice integer STORED (id * 2) {column_name=twice}",
        ]
    );
    import(
        &mut session,
        "LIMIT TO (a)",
        "OPTIONS (import_generated 'false', import_not_null 'false', import_default 'true')",
    )?;
    let found = columns(&mut session)?;
    assert_eq!(found[0], "id integer 42 {column_name=id}");
    assert_eq!(found[3], "twice integer {column_name=twice}");
    Ok(())
}

#[test]
fn an_import_can_be_limited_to_tables_and_leave_out_others() -> Outcome {
    let (_fleet, mut session) = with_a_schema()?;
    import(&mut session, "LIMIT TO (b, part1, missing)", "")?;
    assert_eq!(imported(&mut session)?, "b part1");
    import(&mut session, "EXCEPT (a, \"none\", missing)", "")?;
    assert_eq!(imported(&mut session)?, "b m parts v");
    import(&mut session, "LIMIT TO (missing)", "")?;
    assert_eq!(imported(&mut session)?, "");
    Ok(())
}

#[test]
fn what_an_import_refuses() -> Outcome {
    let (fleet, mut session) = with_a_schema()?;
    let error = expect_error(import(&mut session, "", "OPTIONS (import_nothing 'x')"), "HV00D");
    assert_eq!(error.message(), "invalid option \"import_nothing\"");
    let error = expect_error(import(&mut session, "", "OPTIONS (import_collate 'x')"), "42601");
    assert_eq!(error.message(), "import_collate requires a Boolean value");
    let absent = "IMPORT FOREIGN SCHEMA \"No\" FROM SERVER shard1 INTO dst";
    let error = expect_error(session.batch_execute(absent), "HV00Q");
    assert_eq!(error.message(), "schema \"No\" is not present on foreign server \"shard1\"");
    // A type that is only there: nothing of the schema comes.
    fleet.shard(1).client()?.batch_execute("CREATE TABLE src.c (m public.mood)")?;
    let error = expect_error(import(&mut session, "", ""), "42704");
    assert_eq!(error.message(), "type \"public.mood\" does not exist");
    assert!(
        error.where_().unwrap_or_default().contains("importing foreign table \"c\""),
        "{error:#?}"
    );
    assert_eq!(imported(&mut session)?, "");
    assert_usable(&mut session);
    Ok(())
}

#[test]
fn an_import_uses_the_session_of_the_transaction() -> Outcome {
    let (fleet, mut session) = with_a_schema()?;
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'postgres_fdw'";
    session.batch_execute("BEGIN; INSERT INTO ft1 VALUES (1, 'x')")?;
    session.batch_execute("IMPORT FOREIGN SCHEMA src FROM SERVER shard1 INTO dst; ANALYZE ft1")?;
    assert_eq!(one::<i64>(&mut fleet.shard(1).client()?, sessions)?, 1);
    session.batch_execute("COMMIT")?;
    assert_eq!(fleet.ids_on_shard(1)?, [1]);
    assert_settled(&fleet);
    Ok(())
}
