//! The decision table stays small.

use pg_test::oracle::{assert_settled, one};
use pg_test::{DEADLINE, Fleet, FleetOptions, wait_until};

use crate::support::{Outcome, transaction};

const TRANSACTIONS: i64 = 1000;

#[test]
fn a_decision_takes_less_than_200_bytes_and_goes_when_its_time_has_come() -> Outcome {
    let fleet = Fleet::start_with(&FleetOptions {
        coordinator: vec![("log_statement", "none"), ("autovacuum_naptime", "1s")],
        shard: vec![("log_statement", "none")],
        ..FleetOptions::default()
    })?;
    let mut session = fleet.session()?;
    for id in 1..=TRANSACTIONS {
        let [first, second] = [1, 2].map(|n| format!("INSERT INTO ft{n} VALUES ({id})"));
        transaction(&mut session, &[&first, &second])?;
    }
    assert_settled(&fleet);
    let count = "SELECT count(*) FROM fdw_xacts.decision";
    assert_eq!(one::<i64>(&mut session, count)?, TRANSACTIONS);
    let size: i64 = one(&mut session, "SELECT pg_total_relation_size('fdw_xacts.decision')")?;
    assert!(size / TRANSACTIONS <= 200, "{size} bytes for {TRANSACTIONS} decisions");
    // However few rows are left over when it has run.
    session.batch_execute(
        "ALTER TABLE fdw_xacts.decision
         SET (autovacuum_analyze_threshold = 0, autovacuum_analyze_scale_factor = 0)",
    )?;
    // From here on only what the resolver reports can make autovacuum run.
    wait_until("the rows are analyzed", DEADLINE, || {
        one(
            &mut session,
            "SELECT n_mod_since_analyze = 0 AND last_autoanalyze IS NOT NULL FROM pg_stat_all_tables
             WHERE relid = 'fdw_xacts.decision'::regclass",
        )
    })?;
    fleet.coordinator.configure(&[("pg_fdw_xacts.forget_delay", "0")])?;
    fleet.coordinator.reload()?;
    wait_until("the decisions are forgotten", DEADLINE, || {
        Ok(one::<i64>(&mut session, count)? == 0)
    })?;
    // It does not come for as few as these by itself.
    session
        .batch_execute("ALTER TABLE fdw_xacts.decision SET (autovacuum_vacuum_threshold = 100)")?;
    wait_until("their room is given back", DEADLINE, || {
        Ok(one::<i64>(&mut session, "SELECT pg_relation_size('fdw_xacts.decision')")? == 0)
    })
}
