//! What consistent reads cost on the wire.

use pg_test::Fleet;
use postgres::Client;

use crate::support::{Outcome, assert_commits};

/// `Remote Waits` and `Snapshot Rounds` of each scan.
fn waits(session: &mut Client, sql: &str) -> anyhow::Result<(Vec<String>, Vec<String>)> {
    let plan = session.query(&format!("EXPLAIN (ANALYZE, VERBOSE, COSTS OFF) {sql}"), &[])?;
    let lines: Vec<String> = plan.iter().map(|row| row.get::<_, String>(0)).collect();
    let of = |label: &str| {
        let values = lines.iter().filter_map(|line| line.trim().strip_prefix(label));
        values.map(|value| value.trim_start_matches(": ").to_owned()).collect::<Vec<_>>()
    };
    Ok((of("Remote Waits"), of("Snapshot Rounds")))
}

const BOTH: &str = "SELECT * FROM ft1 UNION ALL SELECT * FROM ft2";

#[test]
fn several_servers_cost_no_wait_more() -> Outcome {
    let fleet = Fleet::start()?;
    let mut session = fleet.session()?;
    assert_commits(&fleet, &mut session, 1)?;
    session.batch_execute(
        "CREATE TABLE parts (id int, v text) PARTITION BY LIST (v);
         ALTER TABLE parts ATTACH PARTITION ft1 FOR VALUES IN ('x');
         ALTER TABLE parts ATTACH PARTITION ft2 FOR VALUES IN ('y')",
    )?;
    let plain = waits(&mut session, BOTH)?;
    assert_eq!(plain, (vec!["1".to_owned(); 2], vec![]));
    session.batch_execute("SET pg_fdw_xacts.consistent_reads = on")?;
    // The first time it may wait for the resolver to have asked.
    session.query(BOTH, &[])?;
    assert_eq!(waits(&mut session, BOTH)?, (vec!["1".to_owned(); 2], vec!["1".to_owned(); 2]));
    // What would change something waits until the snapshots are known.
    let update = "UPDATE parts SET v = 'y' WHERE id = 1";
    assert_eq!(waits(&mut session, update)?, (vec!["2".to_owned(); 2], vec!["1".to_owned(); 2]));
    assert_eq!(waits(&mut session, "SELECT * FROM ft1")?, (vec!["1".to_owned()], vec![]));
    let insert = "INSERT INTO ft1 VALUES (100, 'x')";
    assert_eq!(waits(&mut session, insert)?, (vec!["1".to_owned()], vec![]));
    Ok(())
}

/// With the setting off nothing of it is sent.
#[test]
fn nothing_is_sent_when_it_is_off() -> Outcome {
    let fleet = Fleet::start()?;
    let mut session = fleet.session()?;
    let mark = fleet.shard(1).log().mark()?;
    session.query(BOTH, &[])?;
    let sent = fleet.shard(1).log().since(mark)?;
    assert!(sent.contains("START TRANSACTION") && !sent.contains("pg_current_snapshot"), "{sent}");
    session.batch_execute("SET pg_fdw_xacts.consistent_reads = on")?;
    session.query(BOTH, &[])?;
    let sent = fleet.shard(1).log().since(mark)?;
    assert!(sent.contains("pg_current_snapshot"), "{sent}");
    Ok(())
}
