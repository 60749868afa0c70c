//! Names with everything that a name can have.

use pg_test::oracle::{assert_settled, one};

use crate::support::{Outcome, start};

/// 63 bytes with a quote of each kind, a format's %, a dollar, a backslash, a dot and a letter of
/// two bytes.
const TABLE: &str = "Sélect.from 'x' \"y\" %s $1 \\ 0123456789012345678901234567890123";

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[test]
fn odd_names_are_quoted_everywhere() -> Outcome {
    let (fleet, mut session) = start()?;
    let (schema, table) = (quoted("Odd \"schema\" %I"), quoted(TABLE));
    assert_eq!(TABLE.len(), 63);
    for number in 1..=2 {
        fleet.shard(number).client()?.batch_execute(&format!(
            "CREATE SCHEMA {schema}; CREATE TYPE {schema}.\"Mood\" AS ENUM ('sad', 'it''s \\')"
        ))?;
    }
    // What is in search_path is not what is meant.
    session.batch_execute(&format!(
        "CREATE SCHEMA {schema};
         CREATE SCHEMA trap; CREATE FUNCTION trap.upper(text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT NULL::text';
         SET search_path = trap, {schema}, pg_catalog, public;
         CREATE TYPE {schema}.\"Mood\" AS ENUM ('sad', 'it''s \\');
         CREATE TABLE {schema}.{table} (
             \"Key %I\" text COLLATE \"C\",
             \"order\" int GENERATED ALWAYS AS IDENTITY,
             \"gen\"\"%s\" text GENERATED ALWAYS AS (pg_catalog.upper(\"Key %I\") || '%s') STORED,
             m \"Mood\" DEFAULT E'it\\'s \\\\',
             UNIQUE (\"Key %I\", \"order\"), CONSTRAINT \"check %s\" CHECK (\"order\" % 7 < 10));
         CREATE INDEX \"index %s\" ON {schema}.{table} (\"gen\"\"%s\") WHERE m = E'it\\'s \\\\';
         CREATE ROLE \"role %s\";
         GRANT UPDATE (\"Key %I\"), SELECT ON {schema}.{table} TO \"role %s\", PUBLIC;
         INSERT INTO {schema}.{table} (\"Key %I\") SELECT chr(64 + n) FROM generate_series(1, 26) n"
    ))?;
    let name = format!("{schema}.{table}").replace('\'', "''");
    let call = format!(
        "SELECT FROM public.pg_fdw_xacts_distribute('{name}', 'Key %I', '{{shard1,shard2,shard1}}', bounds => '{{F,T}}')"
    );
    session.batch_execute(&call)?;
    let everything = format!(
        "SELECT count(*)::text || max(\"gen\"\"%s\") || max(m) || max(\"order\") FROM {schema}.{table}"
    );
    assert_eq!(one::<String>(&mut session, &everything)?, "26Z%sit's \\26");

    let partition: String = one(
        &mut session,
        "SELECT quote_literal(min(inhrelid::regclass::text)) FROM pg_catalog.pg_inherits i
             JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid WHERE c.relkind = 'f'",
    )?;
    session.batch_execute(&format!(
        "SELECT FROM public.pg_fdw_xacts_move_partition({partition}, 'shard2')"
    ))?;
    assert_eq!(one::<String>(&mut session, &everything)?, "26Z%sit's \\26");
    assert_settled(&fleet);
    Ok(())
}

#[test]
fn a_replicated_table_may_be_called_anything() -> Outcome {
    let (fleet, mut session) = start()?;
    let table = quoted(TABLE);
    session.batch_execute(&format!(
        "CREATE TABLE {table} (\"K %s\" text PRIMARY KEY, \"V\"\"\" int, \"select\" text GENERATED ALWAYS AS (\"K %s\" || '%s') STORED);
         INSERT INTO {table} VALUES ('a', 1), ('b', 2);
         SELECT FROM pg_fdw_xacts_replicate('{}', '{{shard1,shard2}}');
         UPDATE {table} SET \"K %s\" = E'c\\'\\\\' WHERE \"K %s\" = 'a';
         INSERT INTO {table} VALUES ('z', NULL);
         DELETE FROM {table} WHERE \"V\"\"\" = 2",
        table.replace('\'', "''")
    ))?;
    for number in 1..=2 {
        let query = format!(
            "SELECT string_agg(\"K %s\" || coalesce(\"V\"\"\", 0) || \"select\", ' ' ORDER BY 1) FROM {table}"
        );
        let found: String = one(
            &mut fleet.shard(number).client()?,
            &query.replace("ORDER BY 1", "ORDER BY \"K %s\""),
        )?;
        assert_eq!(found, "c'\\1c'\\%s z0z%s");
    }
    Ok(())
}
