//! What PostgreSQL 19 has new, beside postgres_fdw: the same rows, plans, warnings and errors. An
//! older server has an error for it, the same for both.

use pg_test::Installation;

use super::side_by_side::{both, same_answers};
use crate::support::Outcome;

fn is_19() -> anyhow::Result<bool> {
    Ok(Installation::from_env()?.major() >= 19)
}

#[test]
fn new_statements_have_the_answers_of_postgres_fdw() -> Outcome {
    let fleet = both()?;
    let given = same_answers(
        &fleet,
        &[
            "INSERT INTO {table} VALUES (1, 'y') ON CONFLICT DO SELECT RETURNING id, v",
            "INSERT INTO {table} VALUES (1, 'y') ON CONFLICT (id) DO SELECT FOR UPDATE RETURNING v",
            "EXPLAIN (VERBOSE, COSTS OFF) SELECT id FROM {table} WHERE id = ANY ('{1,2}'::bigint[]::int[])",
            "SELECT lag(v) IGNORE NULLS OVER (ORDER BY id) FROM {table} WHERE id < 3",
            "EXPLAIN (VERBOSE, COSTS OFF) SELECT lag(v) IGNORE NULLS OVER (ORDER BY id) FROM {table}",
            "REPACK {table}",
        ],
    )?;
    if is_19()? {
        assert_eq!(given[3], "NULL\nx");
        assert_eq!(given[5], "42809\n\"{table}\" is not a table or materialized view");
    }
    Ok(())
}

/// Of a table that its shard has not analyzed, of one that it has, and of one with extended
/// statistics here.
#[test]
fn imported_statistics_are_those_of_postgres_fdw() -> Outcome {
    let fleet = both()?;
    fleet.shard(1).client()?.batch_execute("ALTER TABLE t SET (autovacuum_enabled = off)")?;
    const RESULT: [&str; 3] = [
        "ANALYZE {table}",
        "SELECT relpages, reltuples FROM pg_class WHERE oid = '{table}'::regclass",
        "SELECT attname, null_frac, n_distinct, most_common_vals, histogram_bounds
         FROM pg_stats WHERE tablename = '{table}' ORDER BY attname",
    ];
    let first = ["ALTER FOREIGN TABLE {table} OPTIONS (ADD import_stats 'true')"];
    let of_none = same_answers(&fleet, &[&first[..], &RESULT].concat())?;
    fleet.shard(1).client()?.batch_execute("ANALYZE t; DELETE FROM t")?;
    let imported = same_answers(&fleet, &RESULT)?;
    let last = ["CREATE STATISTICS of_{table} ON id, v FROM {table}"];
    let of_rows = same_answers(&fleet, &[&last[..], &RESULT].concat())?;
    if is_19()? {
        assert!(of_none[1].contains("has no relation statistics to import"), "{of_none:?}");
        assert_eq!((&*imported[0], &*imported[1]), ("", "2 | 300"));
        assert!(of_rows[1].contains("has extended statistics objects"), "{of_rows:?}");
    }
    Ok(())
}

#[test]
fn modifications_and_modes_have_the_answers_of_postgres_fdw() -> Outcome {
    let fleet = both()?;
    fleet.shard(1).client()?.batch_execute(
        "CREATE FUNCTION write() RETURNS int LANGUAGE sql AS
             'INSERT INTO public.t VALUES (0) RETURNING id';
         CREATE VIEW modes AS SELECT current_setting('transaction_read_only') AS r,
             current_setting('transaction_deferrable') AS d;
         CREATE VIEW written AS SELECT write() AS id",
    )?;
    let explained = "EXPLAIN (VERBOSE, COSTS OFF)
        INSERT INTO {table} SELECT i, 'z' FROM generate_series(1001, 1025) i";
    let given = same_answers(
        &fleet,
        &[
            "CREATE FOREIGN TABLE modes_{server} (r text, d text) SERVER {server}
                 OPTIONS (table_name 'modes')",
            "CREATE FOREIGN TABLE written_{server} (id int) SERVER {server}
                 OPTIONS (table_name 'written')",
            "BEGIN READ ONLY",
            "SELECT * FROM modes_{server}",
            "SELECT * FROM written_{server}",
            "ROLLBACK",
            "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY DEFERRABLE",
            "SELECT * FROM modes_{server}",
            "COMMIT",
            "ALTER SERVER {server} OPTIONS (ADD batch_size '10')",
            explained,
            "BEGIN",
            "INSERT INTO {table} SELECT i, 'z' FROM generate_series(1001, 1025) i",
            "COPY {table} FROM PROGRAM 'seq -f \"%g,w\" 2001 2025' WITH (FORMAT csv)",
            "SELECT v, count(*) FROM {table} GROUP BY v ORDER BY v",
            "SELECT * FROM modes_{server}",
            "INSERT INTO {table} SELECT i, 'z' FROM generate_series(1020, 1030) i",
            "ROLLBACK",
        ],
    )?;
    let (read_only, deferrable) =
        if is_19()? { ("on | off", "on | on") } else { ("off | off", "off | off") };
    assert_eq!((&*given[3], &*given[7], &*given[15]), (read_only, deferrable, "off | off"));
    assert_eq!(given[4].starts_with("25006\n"), is_19()?, "{}", given[4]);
    assert_eq!(given[14], "w | 25\nx | 300\nz | 25");
    assert!(given[16].starts_with("23505\n"), "{}", given[16]);
    Ok(())
}
