//! Subscriptions to what a foreign server publishes, from PostgreSQL 19 on: `CREATE SUBSCRIPTION …
//! SERVER`.

use pg_test::oracle::{assert_settled, expect_error, one};
use pg_test::{DEADLINE, Fleet, FleetOptions, Installation, wait_until};

use crate::support::{Outcome, transaction};

#[test]
fn a_subscription_may_name_a_server() -> Outcome {
    if Installation::from_env()?.major() < 19 {
        return Ok(());
    }
    let fleet = Fleet::start_with(&FleetOptions {
        shard: vec![("wal_level", "logical")],
        ..FleetOptions::default()
    })?;
    let mut session = fleet.session()?;
    fleet.shard(1).client()?.batch_execute(
        "INSERT INTO t VALUES (1, 'it was there'); CREATE PUBLICATION p FOR TABLE t",
    )?;
    // Options that postgres_fdw does not have are no part of the connection.
    session.batch_execute(
        "ALTER SERVER shard1 OPTIONS (ADD remote_isolation 'repeatable read');
         CREATE TABLE t (id int PRIMARY KEY, v text)",
    )?;
    session.batch_execute("CREATE SUBSCRIPTION s SERVER shard1 PUBLICATION p")?;
    transaction(&mut session, &["INSERT INTO ft1 VALUES (2)", "INSERT INTO ft2 VALUES (2)"])?;
    wait_until("the subscriber has both rows", DEADLINE, || {
        Ok(one::<i64>(&mut session, "SELECT count(*) FROM t")? == 2)
    })?;
    session.batch_execute("DROP SUBSCRIPTION s")?;
    assert_settled(&fleet);
    Ok(())
}

/// As each wrapper was before. So it is after pg_upgrade until `ALTER EXTENSION postgres_fdw UPDATE`, and with a wrapper that
/// was made without it.
#[test]
fn a_wrapper_without_a_connection_function_says_so_and_can_be_given_it() -> Outcome {
    if Installation::from_env()?.major() < 19 {
        return Ok(());
    }
    let fleet = Fleet::start()?;
    let mut session = fleet.session()?;
    session.batch_execute(
        "DROP EXTENSION postgres_fdw CASCADE; CREATE EXTENSION postgres_fdw VERSION '1.2';
         CREATE EXTENSION pg_fdw_xacts",
    )?;
    fleet.connect_shards(&mut session)?;
    let create = "CREATE SUBSCRIPTION s SERVER shard1 PUBLICATION p WITH (connect = false)";
    let error = expect_error(session.batch_execute(create), "0A000");
    let message = "foreign-data wrapper \"pg_fdw_xacts\" does not support subscription connections";
    assert_eq!(error.message(), message);
    session.batch_execute(
        "ALTER EXTENSION postgres_fdw UPDATE;
         ALTER FOREIGN DATA WRAPPER pg_fdw_xacts CONNECTION postgres_fdw_connection",
    )?;
    session.batch_execute(create)?;
    Ok(())
}
