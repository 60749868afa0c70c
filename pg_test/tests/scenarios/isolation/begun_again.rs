//! A transaction on a shard that is rolled back and begun again, because a query needs one snapshot
//! that is newer: the connection is cut just then.

use pg_test::oracle::{assert_settled, assert_usable, expect_error};
use pg_test::{Fault, Fleet, Point};
use postgres::Client;

use crate::support::Outcome;

/// Two cursors on the first shard.
const READ: &str =
    "SELECT count(*), (SELECT count(*) FROM ft1 b WHERE b.id + random() > 0) FROM ft1 a
     WHERE a.id + random() > 0";

fn session(fleet: &Fleet, consistent: &str) -> anyhow::Result<Client> {
    let mut session = fleet.session()?;
    session.batch_execute(&format!("SET pg_fdw_xacts.consistent_reads = {consistent}"))?;
    Ok(session)
}

fn read(session: &mut Client) -> anyhow::Result<i64> {
    let row = session.query_one(READ, &[])?;
    let (a, b): (i64, i64) = (row.get(0), row.get(1));
    assert_eq!(a, b);
    Ok(a)
}

#[test]
fn nobody_notices_that_the_connection_is_cut_then() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let mut other = fleet.shard(1).client()?;
    let mut rows = 0;
    for consistent in ["off", "on"] {
        for begin in ["BEGIN", "BEGIN; SAVEPOINT a"] {
            for command in ["ROLLBACK", "START TRANSACTION"] {
                for point in [Point::Statement, Point::Answer] {
                    let name = format!("{consistent}, {begin}, {command}, {point:?}");
                    let mut session = session(&fleet, consistent)?;
                    session.batch_execute(begin)?;
                    assert_eq!(read(&mut session)?, rows, "{name}");
                    other.execute("INSERT INTO t SELECT max(id) + 1, 'o' FROM (SELECT id FROM t UNION SELECT 0) i (id)", &[])?;
                    let hit = fleet.proxy(1).inject(Fault::cut(point, command));
                    assert_eq!(read(&mut session)?, rows + 1, "{name}");
                    assert!(hit.has_struck(), "{name}");
                    // What is written then is written once.
                    session.batch_execute(
                        "SAVEPOINT b; INSERT INTO ft1 VALUES (1000, 'x'); ROLLBACK TO b",
                    )?;
                    session.batch_execute("INSERT INTO ft1 SELECT max(id) + 1, 'x' FROM ft1")?;
                    assert_eq!(read(&mut session)?, rows + 2, "{name}");
                    session.batch_execute("COMMIT")?;
                    rows += 2;
                    assert_eq!(fleet.ids_on_shard(1)?.len() as i64, rows, "{name}");
                }
            }
        }
    }
    assert_settled(&fleet);
    Ok(())
}

/// A statement that modifies has the transaction begun again, too, at another level.
#[test]
fn what_is_written_behind_it_is_written_once_or_not_at_all() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let mut rows = 0;
    for command in ["ROLLBACK", "START TRANSACTION", "INSERT"] {
        for point in [Point::Statement, Point::Answer] {
            let name = format!("{command}, {point:?}");
            let mut session = session(&fleet, "off")?;
            session.batch_execute("BEGIN")?;
            assert_eq!(read(&mut session)?, rows, "{name}");
            let hit = fleet.proxy(1).inject(Fault::cut(point, command));
            let written = session
                .batch_execute(&format!("INSERT INTO ft1 VALUES ({}, 'x')", rows + 1))
                .and_then(|()| session.batch_execute("COMMIT"));
            assert!(hit.has_struck(), "{name}");
            match written {
                Ok(()) => rows += 1,
                Err(error) if command == "INSERT" => {
                    drop(expect_error::<()>(Err(error), "08006"));
                    session.batch_execute("ROLLBACK")?;
                }
                Err(error) => panic!("{name}: {error}"),
            }
            assert_usable(&mut session);
            assert_eq!(fleet.ids_on_shard(1)?.len() as i64, rows, "{name}");
        }
    }
    assert_settled(&fleet);
    Ok(())
}
