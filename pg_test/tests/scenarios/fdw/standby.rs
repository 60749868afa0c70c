//! A hot standby of the coordinator reads foreign tables, and nothing else.

use pg_test::oracle::{assert_usable, expect_error, one};
use pg_test::{Cluster, Fleet, StopMode};

use crate::support::Outcome;

#[test]
fn a_standby_of_the_coordinator_reads_and_does_not_write_or_resolve() -> Outcome {
    let fleet = Fleet::start()?;
    let mut standby = Cluster::standby_of(&fleet.coordinator, "standby")?;
    standby.start()?;
    fleet.session()?.batch_execute(
        "BEGIN; INSERT INTO ft1 VALUES (1, 'a'), (2, 'b'); INSERT INTO ft2 VALUES (2, 'c'); COMMIT",
    )?;
    fleet.coordinator.wait_for_standby(&standby)?;
    let mut session = standby.client()?;
    assert_eq!(one::<i64>(&mut session, "SELECT count(*) FROM ft1")?, 2);
    let join = "SELECT ft1.v || ft2.v FROM ft1 JOIN ft2 USING (id)";
    assert_eq!(one::<String>(&mut session, join)?, "bc");
    session
        .batch_execute("BEGIN; DECLARE c CURSOR FOR SELECT * FROM ft1; FETCH 1 FROM c; COMMIT")?;
    for write in ["INSERT INTO ft1 VALUES (3, 'x')", "UPDATE ft1 SET v = 'x'", "DELETE FROM ft1"] {
        expect_error(session.batch_execute(write), "25006");
        assert_usable(&mut session);
    }
    let resolvers: i64 = one(
        &mut session,
        "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'pg_fdw_xacts resolver%'",
    )?;
    assert_eq!(resolvers, 0);
    assert_eq!(one::<i64>(&mut session, "SELECT count(*) FROM pg_fdw_xacts")?, 0);
    standby.stop(StopMode::Fast)
}
