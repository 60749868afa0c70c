//! What is left of a unit that has failed, or was given up.

use std::time::{Duration, Instant};

use pg_test::oracle::{expect_error, one};
use pg_test::{Fault, Fleet, Point};
use postgres::Client;

use crate::support::{Outcome, assert_commits, assert_interruptible, in_background, signal};

fn reader(fleet: &Fleet) -> anyhow::Result<Client> {
    let mut reader = fleet.session()?;
    reader.batch_execute("SET pg_fdw_xacts.consistent_reads = on")?;
    Ok(reader)
}

/// The savepoint is rolled back, and with it the attempt to read the other server. Seen red: 40001 on
/// the server that had been read before.
#[test]
fn a_server_that_could_not_join_does_not_keep_the_others_from_being_read() -> Outcome {
    let fleet = Fleet::start()?;
    let mut reader = reader(&fleet)?;
    reader.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ")?;
    assert_eq!(one::<i64>(&mut reader, "SELECT count(*) FROM ft1")?, 0);
    assert_commits(&fleet, &mut fleet.session()?, 1)?;
    reader.batch_execute("SAVEPOINT a")?;
    expect_error(reader.query("SELECT count(*) FROM ft2", &[]), "40001");
    reader.batch_execute("ROLLBACK TO a")?;
    assert_eq!(one::<i64>(&mut reader, "SELECT count(*) FROM ft1")?, 0);
    reader.batch_execute("INSERT INTO ft1 VALUES (2, 'x')")?;
    assert_eq!(one::<i64>(&mut reader, "SELECT count(*) FROM ft1")?, 1);
    reader.batch_execute("COMMIT")?;
    assert_eq!(fleet.ids_on_shard(1)?, [1, 2]);
    Ok(())
}

/// A shard does not tell its snapshot, and does not take a cancel either. Seen red: the abort waited
/// for half a minute.
#[test]
fn a_cancel_ends_the_wait_for_a_snapshot() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let mut reader = reader(&fleet)?;
    let both = "SELECT (SELECT count(*) FROM ft1) + (SELECT count(*) FROM ft2)";
    reader.query(both, &[])?;
    let pid: i32 = one(&mut reader, "SELECT pg_backend_pid()")?;
    let hit = fleet.proxy(2).inject(Fault::hold(Point::Statement, "START"));
    let reading = in_background(reader, both);
    hit.wait()?;
    fleet.proxy(2).set_new_connections(pg_test::proxy::NewConnections::Hanging);
    let start = Instant::now();
    signal(&fleet, "pg_cancel_backend", pid)?;
    let (mut reader, result) = reading.join();
    expect_error(result, "57014");
    // The error comes before the transaction has been rolled back.
    assert_eq!(one::<i32>(&mut reader, "SELECT 1")?, 1);
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    fleet.proxy(2).set_new_connections(pg_test::proxy::NewConnections::Served);
    hit.release();
    assert_eq!(one::<i64>(&mut reader, both)?, 0);
    assert_interruptible(&fleet, reader)
}
