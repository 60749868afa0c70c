//! `pg_fdw_xacts_distribute()`, `pg_fdw_xacts_move_partition()`, `pg_fdw_xacts_replicate()`: tables
//! are spread over shards by one call, with everything or not at all.

use pg_test::Fleet;
use pg_test::oracle::one;
use postgres::Client;

mod distribute;
mod faults;
mod moves;
mod names;
mod refused;
mod replicate;
mod roles;

/// What a call says that it has done: server and statement.
fn steps(session: &mut Client, call: &str) -> anyhow::Result<Vec<(Option<String>, String)>> {
    let rows = session.query(&format!("SELECT server::text, statement FROM {call}"), &[])?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// The tables on shard `number`, but for the fleet's own.
fn tables_on(fleet: &Fleet, number: usize) -> anyhow::Result<Vec<String>> {
    let rows = fleet.shard(number).client()?.query(
        "SELECT relname::text FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace
             AND relname <> 't' ORDER BY 1",
        &[],
    )?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// A local table of orders with 1000 rows of 100 customers.
const ORDERS: &str = "
    CREATE TABLE orders (id int NOT NULL, customer int, total int, PRIMARY KEY (customer, id));
    INSERT INTO orders SELECT n, n % 100, n % 7 FROM generate_series(1, 1000) n";

/// How many orders there are.
fn orders(session: &mut Client) -> anyhow::Result<i64> {
    one(session, "SELECT count(*) FROM orders")
}
