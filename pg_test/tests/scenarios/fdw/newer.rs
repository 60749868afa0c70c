//! What PostgreSQL 19 has new, beside postgres_fdw: the same rows, plans, warnings and errors. An
//! older server has an error for it, the same for both.

use super::side_by_side::{both, same_answers};
use crate::support::Outcome;

#[test]
fn new_statements_have_the_answers_of_postgres_fdw() -> Outcome {
    let fleet = both()?;
    same_answers(
        &fleet,
        &[
            "INSERT INTO {table} VALUES (1, 'y') ON CONFLICT DO SELECT RETURNING id, v",
            "INSERT INTO {table} VALUES (1, 'y') ON CONFLICT (id) DO SELECT FOR UPDATE RETURNING v",
            "UPDATE {table} FOR PORTION OF id FROM 1 TO 2 SET v = 'y'",
            "DELETE FROM {table} FOR PORTION OF id FROM 1 TO 2",
            "SELECT v, count(*) FROM {table} GROUP BY ALL",
            "EXPLAIN (VERBOSE, COSTS OFF) SELECT v, count(*) FROM {table} GROUP BY ALL",
            "EXPLAIN (VERBOSE, COSTS OFF) SELECT id FROM {table} WHERE id = ANY ('{1,2}'::bigint[]::int[])",
            "SELECT lag(v) IGNORE NULLS OVER (ORDER BY id) FROM {table} WHERE id < 3",
            "EXPLAIN (VERBOSE, COSTS OFF) SELECT lag(v) IGNORE NULLS OVER (ORDER BY id) FROM {table}",
            "REPACK {table}",
        ],
    )?;
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
    same_answers(&fleet, &[&first[..], &RESULT].concat())?;
    fleet.shard(1).client()?.batch_execute("ANALYZE t; DELETE FROM t")?;
    same_answers(&fleet, &RESULT)?;
    let last = ["CREATE STATISTICS of_{table} ON id, v FROM {table}"];
    same_answers(&fleet, &[&last[..], &RESULT].concat())?;
    Ok(())
}

#[test]
fn modifications_and_modes_have_the_answers_of_postgres_fdw() -> Outcome {
    let fleet = both()?;
    fleet.shard(1).client()?.batch_execute(
        "CREATE FUNCTION write() RETURNS int LANGUAGE sql AS
             'INSERT INTO t VALUES (0) RETURNING id';
         CREATE VIEW modes AS SELECT current_setting('transaction_read_only') AS read_only,
             current_setting('transaction_deferrable') AS deferrable;
         CREATE VIEW written AS SELECT write() AS id",
    )?;
    let explained = "EXPLAIN (VERBOSE, COSTS OFF)
        INSERT INTO {table} SELECT i, 'z' FROM generate_series(1001, 1025) i";
    same_answers(
        &fleet,
        &[
            "CREATE FOREIGN TABLE modes_{server} (read_only text, deferrable text) SERVER {server}
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
    Ok(())
}
