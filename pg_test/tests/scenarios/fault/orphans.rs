//! Orphans: what a dead coordinator has prepared on a shard, beside processes that it has left
//! there. Such a process does not read from its connection while it waits for a lock or works, and
//! it still holds its session lock: as long as it lives, nothing of the coordinator's can be
//! settled. Everything must be settled within 30 s, with the resolver's defaults and without
//! `lock_timeout` or `statement_timeout` anywhere.

use std::time::Duration;

use pg_test::oracle::{one, prepared_gids, settled_within};
use pg_test::pooler::Pooler;
use pg_test::{
    Cluster, DEADLINE, Fleet, FleetOptions, Frozen, StopMode, lengthened_by_load, wait_until,
};
use postgres::Client;

use crate::support::{
    Background, Outcome, assert_commits, assert_everywhere, assert_recovered, begin_everywhere,
    in_background,
};

/// How long settling may take once all servers can be reached.
const LIVELY: Duration = Duration::from_secs(30);

/// A statement of the bystander's, which has prepared before and so holds its session lock.
#[derive(Debug, Clone, Copy)]
enum Work {
    /// Waits for the row that the orphan holds.
    WaitsForTheOrphan,
    /// Waits for a lock that somebody else holds, on and on.
    WaitsForAnother,
    /// Works, and waits for nobody.
    IsLong,
}

/// What becomes of the coordinator.
#[derive(Debug, Clone, Copy)]
enum End {
    Killed,
    Stopped(StopMode),
    /// By its own postmaster, which ends all sessions when one was killed.
    Restarted,
    /// Its processes are halted before they are killed, and say nothing more.
    FrozenAndKilled,
}

/// Shards without proxies, so that the kernel alone tells them that the coordinator has died.
fn fleet() -> anyhow::Result<Fleet> {
    let fleet = Fleet::start_with(&FleetOptions {
        coordinator: vec![
            ("pg_fdw_xacts.resolver_interval", "1min"),
            ("pg_fdw_xacts.resolver_retry_max", "10s"),
        ],
        ..FleetOptions::default()
    })?;
    assert_commits(&fleet, &mut fleet.session()?, 1)?;
    Ok(fleet)
}

/// A transaction that has prepared on shard 1 and not on shard 2, and a bystander's work on shard
/// 1.
struct Orphan {
    commit: Background,
    bystander: Background,
    /// The backend of the transaction.
    pid: i32,
    /// Shard 2, which does not answer.
    slow: Frozen,
    /// Holds an advisory lock on shard 1.
    _another: Client,
}

impl Orphan {
    fn make(fleet: &Fleet, work: Work) -> anyhow::Result<Self> {
        let mut bystander = fleet.session()?;
        assert_commits(fleet, &mut bystander, 2)?;
        let mut another = fleet.shard(1).client()?;
        another.batch_execute("SELECT pg_advisory_lock(1)")?;
        let mut session = fleet.session()?;
        let pid = one(&mut session, "SELECT pg_backend_pid()")?;
        begin_everywhere(&mut session, 3)?;
        session.batch_execute("UPDATE ft1 SET v = 'y' WHERE id = 1")?;
        let slow = fleet.shard(2).freeze()?;
        let commit = in_background(session, "COMMIT");
        wait_until("shard 1 has prepared", DEADLINE, || {
            Ok(prepared_gids(fleet.shard(1))?.len() == 1)
        })?;
        let (statement, event) = match work {
            Work::WaitsForTheOrphan => ("UPDATE ft1 SET v = 'z' WHERE id = 1", "transactionid"),
            Work::WaitsForAnother => (
                "SELECT pg_fdw_xacts_exec('shard1', 'SELECT pg_advisory_xact_lock(1)')",
                "advisory",
            ),
            Work::IsLong => {
                ("SELECT pg_fdw_xacts_exec('shard1', 'SELECT pg_sleep(1000)')", "PgSleep")
            }
        };
        let bystander = in_background(bystander, statement);
        wait_until("the bystander is at work on shard 1", DEADLINE, || {
            let sql = format!("SELECT count(*) FROM pg_stat_activity WHERE wait_event = '{event}'");
            Ok(one::<i64>(&mut fleet.shard(1).client()?, &sql)? == 1)
        })?;
        Ok(Self { commit, bystander, pid, slow, _another: another })
    }
}

fn settled_in_spite_of(work: Work, end: End) -> Outcome {
    settled_in(fleet()?, work, end)
}

fn settled_in(mut fleet: Fleet, work: Work, end: End) -> Outcome {
    let orphan = Orphan::make(&fleet, work)?;
    let mut witness = fleet.session()?;
    match end {
        End::Killed => fleet.coordinator.kill9()?,
        End::FrozenAndKilled => {
            let _frozen = fleet.coordinator.freeze()?;
            fleet.coordinator.kill9()?;
        }
        End::Stopped(mode) => fleet.coordinator.stop(mode)?,
        End::Restarted => fleet.coordinator.kill9_backend(orphan.pid)?,
    }
    assert!(orphan.commit.join().1.is_err(), "an answer from a dead server");
    assert!(orphan.bystander.join().1.is_err(), "an answer from a dead server");
    drop(orphan.slow);
    if let End::Restarted = end {
        wait_until("the coordinator has noticed", DEADLINE, || {
            Ok(witness.batch_execute("SELECT 1").is_err())
        })?;
        wait_until("the coordinator has restarted", DEADLINE, || Ok(fleet.session().is_ok()))?;
    } else {
        fleet.coordinator.start()?;
    }
    settled_within(&fleet, lengthened_by_load(LIVELY))?;
    assert_everywhere(&fleet, 3, false)?;
    drop(orphan._another);
    assert_recovered(&fleet, 3, false)
}

/// Red on 0.2.0: the one waited for the other, for ever.
#[test]
fn a_session_that_waits_for_the_orphan_of_a_killed_coordinator() -> Outcome {
    settled_in_spite_of(Work::WaitsForTheOrphan, End::Killed)
}

/// Red on 0.2.0, as above.
#[test]
fn a_session_that_waits_for_the_orphan_of_a_halted_and_killed_coordinator() -> Outcome {
    settled_in_spite_of(Work::WaitsForTheOrphan, End::FrozenAndKilled)
}

/// Red on 0.2.0, as above.
#[test]
fn a_session_that_waits_for_the_orphan_of_an_immediate_shutdown() -> Outcome {
    settled_in_spite_of(Work::WaitsForTheOrphan, End::Stopped(StopMode::Immediate))
}

/// Red on 0.2.0, as above: what the OOM killer does.
#[test]
fn a_session_that_waits_for_the_orphan_of_a_killed_backend() -> Outcome {
    settled_in_spite_of(Work::WaitsForTheOrphan, End::Restarted)
}

/// A pooler ends the session of a client that went away in the middle of a statement.
#[test]
fn a_session_that_waits_for_the_orphan_behind_a_pooler() -> Outcome {
    let fleet = fleet()?;
    let pooler = Pooler::start(fleet.shard(1), "session", 20)?;
    fleet
        .session()?
        .batch_execute(&format!("ALTER SERVER shard1 OPTIONS (SET port '{}')", pooler.port()))?;
    settled_in(fleet, Work::WaitsForTheOrphan, End::Killed)
}

/// Red on 0.2.0: nothing was settled as long as the other lock was held.
#[test]
fn a_session_that_waits_for_somebody_elses_lock() -> Outcome {
    settled_in_spite_of(Work::WaitsForAnother, End::Killed)
}

/// Red on 0.2.0: nothing was settled as long as the statement ran.
#[test]
fn a_long_statement_of_a_killed_coordinator() -> Outcome {
    settled_in_spite_of(Work::IsLong, End::Killed)
}

/// Red on 0.2.0, as above.
#[test]
fn a_long_statement_beside_a_killed_backend() -> Outcome {
    settled_in_spite_of(Work::IsLong, End::Restarted)
}

/// Red on 0.2.0: the old leader is halted with all its sessions, and its standby promoted. As
/// long as those sessions live nothing may be rolled back; once the old leader is killed, what they
/// leave must not live on.
#[test]
fn a_session_that_waits_for_the_orphan_of_a_leader_that_was_halted() -> Outcome {
    let mut fleet = fleet()?;
    let mut standby = Cluster::standby_of(&fleet.coordinator, "coordinator-standby")?;
    standby.start()?;
    let orphan = Orphan::make(&fleet, Work::WaitsForTheOrphan)?;
    let frozen = fleet.coordinator.freeze()?;
    drop(orphan.slow);
    standby.promote()?;
    let mut leader = std::mem::replace(&mut fleet.coordinator, standby);
    wait_until("the promoted one has come to shard 1 and left the orphan", DEADLINE, || {
        let sql = "SELECT coalesce(sum(attempts), 0)::bigint FROM pg_stat_fdw_xacts";
        Ok(one::<i64>(&mut fleet.session()?, sql)? > 1)
    })?;
    assert_eq!(prepared_gids(fleet.shard(1))?.len(), 1, "rolled back beside a living owner");
    leader.kill9()?;
    drop(frozen);
    settled_within(&fleet, lengthened_by_load(LIVELY))?;
    assert!(orphan.commit.join().1.is_err(), "an answer from a dead server");
    assert!(orphan.bystander.join().1.is_err(), "an answer from a dead server");
    assert_recovered(&fleet, 3, false)
}

/// Where the platform cannot tell whether a client is there, the setting is refused. Nothing else
/// is lost by that: the proxy misspells it, so that the server refuses it.
#[test]
fn a_server_that_refuses_to_watch_its_client_is_used_all_the_same() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    fleet.proxy(1).reword("client_connection_check", "client_connection_czech");
    let mark = fleet.shard(1).log().mark()?;
    let mut session = fleet.session()?;
    assert_commits(&fleet, &mut session, 1)?;
    assert_commits(&fleet, &mut session, 2)?;
    let refused = fleet.shard(1).log().since(mark)?.matches("unrecognized configuration").count();
    assert!(refused > 0, "the setting was not refused");
    Ok(())
}
