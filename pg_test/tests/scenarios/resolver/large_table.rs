//! What is told while the resolver looks through a large decision table, which takes it a while.

use std::time::{Duration, Instant};

use pg_test::oracle::{one, prepared_gids};
use pg_test::{Fleet, FleetOptions, wait_until};
use postgres::Client;

use crate::support::Outcome;

/// The decisions are of participants that nobody knows: the resolver reads them, and has nothing to
/// do with them.
fn start() -> anyhow::Result<(Fleet, Client)> {
    let room = ("max_prepared_transactions", "200");
    let fleet = Fleet::start_with(&FleetOptions {
        coordinator: vec![room],
        shard: vec![room],
        ..FleetOptions::default()
    })?;
    let mut session = fleet.session()?;
    session.batch_execute(
        "INSERT INTO fdw_xacts.decision
         SELECT n, '{1000000,1000001}', '{0,0}' FROM generate_series(1, 400000) n",
    )?;
    // New rows find room at its beginning, which the resolver has passed for most of the time that
    // it looks.
    session.batch_execute("DELETE FROM fdw_xacts.decision WHERE nonce <= 20000")?;
    session.batch_execute("VACUUM fdw_xacts.decision")?;
    Ok((fleet, session))
}

fn shown(session: &mut Client) -> anyhow::Result<String> {
    one(session, "SELECT coalesce(string_agg(DISTINCT status, ' '), 'none') FROM pg_fdw_xacts")
}

/// Red on 0.2.0: what was prepared during the look was shown as `aborting`, and its COMMIT
/// PREPARED returned before anything was delivered.
#[test]
fn what_becomes_pending_while_the_resolver_looks_stays_pending() -> Outcome {
    let (fleet, mut session) = start()?;
    let count = 100;
    for id in 1..=count {
        session.batch_execute(&format!(
            "BEGIN; INSERT INTO lt VALUES ({id}); INSERT INTO ft1 VALUES ({id});
             PREPARE TRANSACTION 'g{id}'"
        ))?;
        // The looks are a second apart: some are prepared in each part of one.
        std::thread::sleep(Duration::from_millis(30));
    }
    let start = Instant::now();
    wait_until("two looks have passed", Duration::from_secs(60), || {
        assert_eq!(shown(&mut session)?, "prepared", "while they wait for the application");
        Ok(start.elapsed() > Duration::from_secs(5))
    })?;
    for id in 1..=count {
        session.batch_execute(&format!("COMMIT PREPARED 'g{id}'"))?;
        let left = prepared_gids(fleet.shard(1))?.len();
        assert_eq!(left, count - id, "when COMMIT PREPARED 'g{id}' has returned");
    }
    assert_eq!(shown(&mut session)?, "none");
    Ok(())
}

/// The other way round. Red on 0.2.0: what had run during the look was shown as `prepared`
/// until the next one.
#[test]
fn what_runs_while_the_resolver_looks_leaves_no_row_behind() -> Outcome {
    let (fleet, mut session) = start()?;
    let mut loads: Vec<_> = (0..4).map(|_| fleet.session()).collect::<anyhow::Result<_>>()?;
    let every = |interval: &'static str| {
        fleet.coordinator.configure(&[("pg_fdw_xacts.resolver_interval", interval)])?;
        fleet.coordinator.reload()
    };
    for round in 0..4 {
        every("1s")?;
        session.batch_execute("SELECT pg_fdw_xacts_resolve()")?;
        std::thread::scope(|scope| {
            for (n, load) in loads.iter_mut().enumerate() {
                scope.spawn(move || {
                    let start = Instant::now();
                    let mut id = (round * 4 + n) * 100_000;
                    while start.elapsed() < Duration::from_secs(4) {
                        id += 1;
                        load.batch_execute(&format!(
                            "BEGIN; INSERT INTO lt VALUES ({id}); INSERT INTO ft1 VALUES ({id}); COMMIT"
                        ))
                        .expect("nothing is in its way");
                    }
                });
            }
            // The last look comes while they run: what it leaves behind stays for half an hour.
            every("30min")
        })?;
        wait_until("no row is left behind", Duration::from_secs(5), || {
            Ok(shown(&mut session)? == "none")
        })?;
    }
    Ok(())
}
