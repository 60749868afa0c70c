//! Queries that use parallel workers for tables of the coordinator's own.

use pg_test::Fleet;
use pg_test::oracle::one;
use postgres::Client;

use crate::support::{Outcome, assert_commits};

fn start() -> anyhow::Result<(Fleet, Client)> {
    let fleet = Fleet::start()?;
    let mut reader = fleet.session()?;
    assert_commits(&fleet, &mut fleet.session()?, 1)?;
    reader.batch_execute("SET pg_fdw_xacts.consistent_reads = on")?;
    Ok((fleet, reader))
}

/// Seen red: `cannot update SecondarySnapshot during a parallel operation`, as long as the
/// connections were new.
#[test]
fn foreign_servers_are_read_beside_parallel_workers() -> Outcome {
    let (_fleet, mut reader) = start()?;
    reader.batch_execute(
        "CREATE TABLE big AS SELECT n FROM generate_series(1, 1000) n; ANALYZE big;
         SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0;
         SET min_parallel_table_scan_size = 0",
    )?;
    let query = "SELECT (SELECT count(*) FROM big) + (SELECT count(*) FROM ft1) + (SELECT count(*) FROM ft2)";
    let plan = reader.query(&format!("EXPLAIN {query}"), &[])?;
    assert!(plan.iter().any(|row| row.get::<_, String>(0).contains("Gather")));
    assert_eq!(one::<i64>(&mut reader, query)?, 1002);
    Ok(())
}

/// A function that its author has taken for parallel safe. Seen red as the other.
#[test]
fn a_worker_reads_as_a_session_does() -> Outcome {
    let (_fleet, mut reader) = start()?;
    reader.batch_execute(
        "CREATE FUNCTION both_servers() RETURNS bigint LANGUAGE plpgsql PARALLEL SAFE AS $$ BEGIN
             RETURN (SELECT count(*) FROM ft1) + (SELECT count(*) FROM ft2); END $$;
         -- Its name since 16, and before.
         SELECT set_config(name, 'on', false) FROM pg_settings
             WHERE name IN ('debug_parallel_query', 'force_parallel_mode')",
    )?;
    for _ in 0..2 {
        assert_eq!(one::<i64>(&mut reader, "SELECT both_servers() FROM lt")?, 2);
    }
    Ok(())
}
