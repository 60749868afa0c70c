//! Who may do it: whoever owns the table, may use the servers, and was granted exec and query.

use pg_test::Fleet;
use pg_test::oracle::{expect_error, one};

use crate::sharding::tables_on;
use crate::support::{Outcome, start};

#[test]
fn a_role_that_is_no_superuser_needs_what_it_uses() -> Outcome {
    let fleet = Fleet::start()?;
    for number in 1..=2 {
        fleet.shard(number).client()?.batch_execute(
            "CREATE ROLE remote_alice LOGIN; GRANT CREATE ON SCHEMA public TO remote_alice",
        )?;
    }
    let mut operator = fleet.session()?;
    operator.batch_execute(
        "CREATE ROLE alice LOGIN; CREATE ROLE bob LOGIN; GRANT CREATE ON SCHEMA public TO alice;
         GRANT USAGE ON FOREIGN SERVER shard1, shard2 TO alice, bob;
         CREATE USER MAPPING FOR alice SERVER shard1 OPTIONS (user 'remote_alice', password_required 'false');
         CREATE USER MAPPING FOR alice SERVER shard2 OPTIONS (user 'remote_alice', password_required 'false');
         CREATE USER MAPPING FOR bob SERVER shard1 OPTIONS (user 'remote_alice', password_required 'false');
         CREATE USER MAPPING FOR bob SERVER shard2 OPTIONS (user 'remote_alice', password_required 'false')",
    )?;
    let mut alice = fleet.coordinator.client_for("postgres", "alice")?;
    alice.batch_execute(
        "CREATE TABLE orders (id int PRIMARY KEY); INSERT INTO orders SELECT generate_series(1, 500);
         CREATE TABLE kind (id int PRIMARY KEY); GRANT INSERT ON kind TO bob",
    )?;
    let distribute = "SELECT FROM pg_fdw_xacts_distribute('orders', 'id', '{shard1,shard2}', 2)";
    expect_error(alice.batch_execute(distribute), "42501");
    operator.batch_execute(
        "GRANT EXECUTE ON FUNCTION pg_fdw_xacts_exec(name, text), pg_fdw_xacts_query(name, text) TO alice, bob",
    )?;
    let mut bob = fleet.coordinator.client_for("postgres", "bob")?;
    expect_error(bob.batch_execute(distribute), "42501");
    assert!(tables_on(&fleet, 1)?.is_empty() && tables_on(&fleet, 2)?.is_empty());

    alice.batch_execute(distribute)?;
    alice.batch_execute("SELECT FROM pg_fdw_xacts_move_partition('orders_0', 'shard2')")?;
    assert_eq!(one::<i64>(&mut alice, "SELECT count(*) FROM orders")?, 500);
    // Who may write the table may write its copies.
    alice.batch_execute("SELECT FROM pg_fdw_xacts_replicate('kind', '{shard1,shard2}')")?;
    bob.batch_execute("INSERT INTO kind VALUES (1)")?;
    assert_eq!(one::<i64>(&mut fleet.shard(2).client()?, "SELECT count(*) FROM kind")?, 1);
    expect_error(bob.batch_execute("DELETE FROM kind"), "42501");
    Ok(())
}

/// A superuser distributes somebody's table. Red before: the partitions were the superuser's, and
/// the sequence of an identity column had another name and no privileges.
#[test]
fn partitions_and_sequences_keep_owner_and_privileges() -> Outcome {
    let (_fleet, mut operator) = start()?;
    operator.batch_execute(
        "CREATE ROLE alice; CREATE ROLE bob; GRANT CREATE ON SCHEMA public TO alice;
         GRANT USAGE ON FOREIGN SERVER shard1, shard2 TO alice; SET ROLE alice;
         CREATE TABLE orders (customer int,
             id int GENERATED ALWAYS AS IDENTITY (SEQUENCE NAME \"odd %s\" INCREMENT 10 MAXVALUE 1000 CYCLE));
         INSERT INTO orders VALUES (1), (2); GRANT USAGE ON SEQUENCE \"odd %s\" TO bob; RESET ROLE",
    )?;
    const FACTS: &str = "
        SELECT concat_ws(' ', pg_get_serial_sequence('orders', 'id'), s.*, c.relacl, c.relowner::regrole)
        FROM pg_class c JOIN pg_sequences s ON s.sequencename = c.relname";
    let before: String = one(&mut operator, FACTS)?;
    operator.batch_execute(
        "SELECT FROM pg_fdw_xacts_distribute('orders', 'customer', '{shard1,shard2}', 2);
         SET ROLE alice; ALTER TABLE orders ADD COLUMN here_only int; RESET ROLE",
    )?;
    assert_eq!(one::<String>(&mut operator, FACTS)?, before);
    assert_eq!(one::<i64>(&mut operator, "SELECT nextval('\"odd %s\"')")?, 21);
    Ok(())
}
