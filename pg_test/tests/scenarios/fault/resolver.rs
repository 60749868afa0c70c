//! The resolver: what it may conclude and what not, where it cannot get in for a while, and how
//! fast it is.

use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::{Duration, Instant};

use pg_test::oracle::{
    assert_settled, one, prepared_gids, settled_within, statistic, wait_for_attempts,
};
use pg_test::proxy::NewConnections;
use pg_test::{DEADLINE, Fault, Fleet, FleetOptions, Point, lengthened_by_load, wait_until};

use crate::support::{
    Gid, NONE, Outcome, assert_commits, assert_everywhere, assert_recovered, begin_everywhere,
    serverid, session_with_notices, statuses,
};

/// Nothing protects but the rules of what may be concluded: a confirmed decision is forgotten at
/// once.
fn forgetful() -> FleetOptions {
    FleetOptions {
        proxied: true,
        coordinator: vec![("pg_fdw_xacts.forget_delay", "0")],
        ..FleetOptions::default()
    }
}

/// The gid that shard 1 has prepared.
fn only_gid(fleet: &Fleet) -> anyhow::Result<String> {
    let mut gids = prepared_gids(fleet.shard(1))?;
    assert_eq!(gids.len(), 1, "{gids:?}");
    Ok(gids.remove(0))
}

#[test]
fn a_rollback_by_hand_after_the_decision_is_a_heuristic_outcome() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    fleet.in_doubt(1)?;
    let gid = only_gid(&fleet)?;
    fleet.shard(1).client()?.batch_execute(&format!("ROLLBACK PREPARED '{gid}'"))?;
    let mark = fleet.coordinator.log().mark()?;
    fleet.reconnect(1);
    wait_until("it is counted", DEADLINE, || Ok(statistic(&fleet, 1, "heuristic")? == 1))?;
    wait_until("the log tells of it", DEADLINE, || {
        let log = fleet.coordinator.log().since(mark)?;
        let words = ["WARNING", "heuristic outcome", &gid, "shard1"];
        Ok(log.lines().any(|line| words.iter().all(|word| line.contains(word))))
    })?;
    assert_settled(&fleet);
    assert_eq!((fleet.ids_in_lt()?, fleet.ids_on_shard(2)?), (vec![1], vec![1]));
    assert_eq!(fleet.ids_on_shard(1)?, NONE);
    assert_eq!(statistic(&fleet, 2, "heuristic")?, 0);
    // Reported once, not in every round.
    let_the_resolver_come_again(&fleet)?;
    assert_eq!(statistic(&fleet, 1, "heuristic")?, 1);
    Ok(())
}

/// Something else is delivered to shard 1, so that the resolver has been there again.
fn let_the_resolver_come_again(fleet: &Fleet) -> Outcome {
    let before = statistic(fleet, 1, "attempts")?;
    fleet.in_doubt(100)?;
    fleet.reconnect(1);
    assert_settled(fleet);
    assert!(statistic(fleet, 1, "attempts")? > before);
    Ok(())
}

#[test]
fn a_commit_by_hand_after_the_decision_is_no_heuristic_outcome() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    fleet.in_doubt(1)?;
    let gid = only_gid(&fleet)?;
    fleet.shard(1).client()?.batch_execute(&format!("COMMIT PREPARED '{gid}'"))?;
    fleet.reconnect(1);
    assert_recovered(&fleet, 1, true)?;
    assert_eq!(statistic(&fleet, 1, "heuristic")?, 0);
    Ok(())
}

/// Names that look like ours: another coordinator's, and no coordinator's.
#[test]
fn what_others_have_prepared_is_left_alone() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    fleet.in_doubt(1)?;
    let ours = only_gid(&fleet)?;
    let parts = Gid::parse(&ours);
    let (identity, nonce) = parts.n.split_at(20);
    let number: u64 = identity.parse()?;
    let foreign = [
        format!("px_{:020}{nonce}_{}_{}", number ^ 1, parts.serverid, parts.userid),
        format!("px_{identity}_{}_{}", parts.serverid, parts.userid),
        format!("{ours}_1"),
        format!("PX{}", &ours[2..]),
        "px_1_2_3".to_owned(),
        "px_".to_owned(),
        "gxid".to_owned(),
    ];
    let mut shard = fleet.shard(1).client()?;
    for gid in &foreign {
        shard.batch_execute(&format!(
            "BEGIN; SELECT pg_current_xact_id(); PREPARE TRANSACTION '{gid}'"
        ))?;
    }
    fleet.reconnect(1);
    wait_until("ours is settled", DEADLINE, || {
        Ok(!prepared_gids(fleet.shard(1))?.contains(&ours) && statuses(&fleet, 1)?.is_empty())
    })?;
    assert_eq!(prepared_gids(fleet.shard(1))?.len(), foreign.len());
    for gid in &foreign {
        shard.batch_execute(&format!("ROLLBACK PREPARED '{gid}'"))?;
    }
    assert_recovered(&fleet, 1, true)
}

/// Another server answers at the address: that it has nothing prepared proves nothing.
#[test]
fn a_server_whose_address_is_changed_and_changed_back_is_settled() -> Outcome {
    for committed in [true, false] {
        let fleet = Fleet::start_with(&forgetful())?;
        if committed {
            fleet.in_doubt(1)?;
        } else {
            let mut session = fleet.session()?;
            begin_everywhere(&mut session, 1)?;
            let hit = fleet.proxy(1).inject(Fault::cut(Point::Answer, "PREPARE TRANSACTION"));
            fleet.proxy(1).set_new_connections(NewConnections::Refused);
            session.batch_execute("COMMIT").expect_err("shard 1 was cut off");
            hit.wait()?;
        }
        let point_at = |port: u16| {
            let sql = format!("ALTER SERVER shard1 OPTIONS (SET port '{port}')");
            fleet.session()?.batch_execute(&sql)?;
            anyhow::Ok(())
        };
        point_at(fleet.shard(2).port())?;
        wait_until("the resolver has come to the wrong server", DEADLINE, || {
            let sql = "SELECT coalesce((SELECT last_error FROM pg_stat_fdw_xacts
                           WHERE server = 'shard1'), '')";
            let error: String = one(&mut fleet.session()?, sql)?;
            Ok(error.contains("is not the one that was used before"))
        })?;
        wait_for_attempts(&fleet, 1, 2)?;
        assert_eq!(statuses(&fleet, 1)?.len(), 1, "the wrong server was believed");
        fleet.reconnect(1);
        point_at(fleet.port_of_shard(1))?;
        assert_recovered(&fleet, 1, committed)?;
        assert_eq!(statistic(&fleet, 1, "heuristic")?, 0);
    }
    Ok(())
}

#[test]
fn a_wrong_password_for_a_while_delays_and_loses_nothing() -> Outcome {
    let fleet = Fleet::start_with(&forgetful())?;
    let shard = fleet.shard(1);
    shard.client()?.batch_execute("CREATE ROLE app LOGIN SUPERUSER PASSWORD 'right'")?;
    let rules = shard.data().join("pg_hba.conf");
    let others = std::fs::read_to_string(&rules)?;
    std::fs::write(&rules, format!("host all app 127.0.0.1/32 scram-sha-256\n{others}"))?;
    shard.reload()?;
    let mut session = fleet.session()?;
    session.batch_execute(
        "ALTER USER MAPPING FOR CURRENT_USER SERVER shard1
             OPTIONS (SET user 'app', ADD password 'right')",
    )?;
    fleet.in_doubt(1)?;
    session.batch_execute(
        "ALTER USER MAPPING FOR CURRENT_USER SERVER shard1 OPTIONS (SET password 'wrong')",
    )?;
    // An attempt that has begun before may still have the right one.
    let failures = "SELECT failures FROM pg_stat_fdw_xacts WHERE server = 'shard1'";
    let before = one::<i64>(&mut session, failures)?;
    wait_until("another attempt has begun and failed", DEADLINE, || {
        Ok(one::<i64>(&mut session, failures)? >= before + 2)
    })?;
    fleet.reconnect(1);
    wait_until("the password is refused", DEADLINE, || {
        let sql = "SELECT coalesce((SELECT last_error FROM pg_stat_fdw_xacts
                       WHERE server = 'shard1'), '')";
        Ok(one::<String>(&mut session, sql)?.contains("password"))
    })?;
    assert_eq!(statuses(&fleet, 1)?, ["committing"]);
    session.batch_execute(
        "ALTER USER MAPPING FOR CURRENT_USER SERVER shard1 OPTIONS (SET password 'right')",
    )?;
    assert_recovered(&fleet, 1, true)
}

/// Connections are cut in the second phase again and again, so that the resolver always has
/// something to do while all sessions commit. A longer run is the bank's.
#[test]
fn beside_busy_sessions_the_resolver_disturbs_none() -> Outcome {
    const SESSIONS: i32 = 16;
    let fleet = Fleet::start_with(&FleetOptions {
        shard: vec![("max_prepared_transactions", "500")],
        ..forgetful()
    })?;
    assert_commits(&fleet, &mut fleet.session()?, 0)?;
    let (stop, last) = (AtomicBool::new(false), AtomicI32::new(0));
    let (mut cuts, mut warnings) = (0, 0);
    std::thread::scope(|scope| -> Outcome {
        let threads: Vec<_> = (0..SESSIONS)
            .map(|_| {
                scope.spawn(|| -> anyhow::Result<usize> {
                    let (mut session, notices) = session_with_notices(&fleet)?;
                    while !stop.load(Ordering::Relaxed) {
                        begin_everywhere(&mut session, last.fetch_add(1, Ordering::Relaxed) + 1)?;
                        session.batch_execute("COMMIT")?;
                    }
                    Ok(notices.take().len())
                })
            })
            .collect();
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(4) {
            for number in [1, 2] {
                let before = statistic(&fleet, number, "attempts")?;
                for point in [Point::Statement, Point::Answer] {
                    fleet.proxy(number).inject(Fault::cut(point, "COMMIT PREPARED")).wait()?;
                    cuts += 1;
                }
                wait_until("the resolver comes", DEADLINE, || {
                    Ok(statistic(&fleet, number, "attempts")? > before)
                })?;
            }
        }
        stop.store(true, Ordering::Relaxed);
        for thread in threads {
            warnings += thread.join().expect("a session panicked")?;
        }
        Ok(())
    })?;
    assert!(warnings <= cuts, "{warnings} warnings for {cuts} cuts: the resolver interfered");
    assert_settled(&fleet);
    let expected: Vec<i32> = (0..=last.load(Ordering::Relaxed)).collect();
    assert_eq!(fleet.ids_in_lt()?, expected);
    for number in [1, 2] {
        assert_eq!(fleet.ids_on_shard(number)?, expected);
        assert_eq!(statistic(&fleet, number, "heuristic")?, 0, "a false alarm");
    }
    Ok(())
}

/// Half of them decided to commit, the others without a decision.
#[test]
fn ten_thousand_in_doubt_are_settled_within_ten_seconds() -> Outcome {
    const COUNT: i32 = 10_000;
    let fleet = Fleet::start_with(&FleetOptions {
        proxied: true,
        shard: vec![("max_prepared_transactions", "10100")],
        ..FleetOptions::default()
    })?;
    fleet.in_doubt(1)?;
    let real = Gid::parse(&only_gid(&fleet)?);
    let identity = &real.n[..20];
    let mut shard = fleet.shard(1).client()?;
    shard.batch_execute("SET log_statement = 'none'; CREATE TABLE many (id int)")?;
    for first in (1..=COUNT).step_by(500) {
        let batch: String = (first..first + 500)
            .map(|n| {
                let Gid { serverid, userid, .. } = real;
                format!(
                    "BEGIN; INSERT INTO many VALUES ({n});
                     PREPARE TRANSACTION 'px_{identity}{n:018}_{serverid}_{userid}';"
                )
            })
            .collect();
        shard.batch_execute(&batch)?;
    }
    fleet.session()?.batch_execute(&format!(
        "INSERT INTO fdw_xacts.decision SELECT n, ARRAY[p.id], ARRAY[0]
         FROM fdw_xacts.participant p, generate_series(1, {COUNT}, 2) n
         WHERE p.serverid = {}",
        serverid(&fleet, 1)?
    ))?;
    assert_eq!(prepared_gids(fleet.shard(1))?.len(), COUNT as usize + 1);
    let back = Instant::now();
    fleet.reconnect(1);
    settled_within(&fleet, lengthened_by_load(Duration::from_secs(10)))?;
    eprintln!("{COUNT} in-doubt transactions settled in {:?}", back.elapsed());
    let wrong: i64 = one(&mut shard, "SELECT count(*) FROM many WHERE id % 2 = 0")?;
    let right: i64 = one(&mut shard, "SELECT count(*) FROM many")?;
    assert_eq!((wrong, right), (0, i64::from(COUNT) / 2));
    assert_everywhere(&fleet, 1, true)
}
