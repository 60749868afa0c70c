//! Many decisions whose delivery nobody has asked for yet, as after a crash under load.

use pg_test::Fleet;
use pg_test::oracle::one;
use pg_test::proxy::NewConnections;

use crate::doubt::told;
use crate::fdw::memory::growth;
use crate::support::{Outcome, assert_commits, serverid};

/// Monitoring asks every few seconds. Red when each row that was read left its arrays behind: 33 MB.
#[test]
fn statistics_count_what_is_in_doubt_without_keeping_it() -> Outcome {
    const COUNT: i64 = 200_000;
    let mut fleet = Fleet::start_proxied()?;
    let mut session = fleet.session()?;
    assert_commits(&fleet, &mut session, 1)?;
    session.batch_execute(&format!(
        "INSERT INTO fdw_xacts.decision SELECT n, ARRAY[p.id], ARRAY[1]
         FROM fdw_xacts.participant p, generate_series(1, {COUNT}) n WHERE p.serverid = {}",
        serverid(&fleet, 1)?
    ))?;
    drop(session);
    fleet.coordinator.kill9()?;
    fleet.proxy(1).set_new_connections(NewConnections::Refused);
    fleet.proxy(1).cut_all();
    fleet.coordinator.start()?;
    let mut session = fleet.session()?;
    // Whoever reads the table has its pages in memory, too.
    session.batch_execute("SET max_parallel_workers_per_gather = 0")?;
    assert!(one::<i64>(&mut session, "SELECT count(*) FROM fdw_xacts.decision")? > COUNT);
    let grown = growth(&mut session, "SELECT in_doubt FROM pg_stat_fdw_xacts")?;
    assert!(grown < 20 << 20, "{grown} bytes");
    // And the transaction that was delivered before.
    assert_eq!(told(&fleet, 1)?.in_doubt, (COUNT + 1, true));
    Ok(())
}
