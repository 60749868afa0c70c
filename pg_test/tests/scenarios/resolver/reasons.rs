//! Whatever the resolver leaves has a reason, and every interface gives the same one: the view, the
//! statistics, `pg_fdw_xacts_resolve()`, and one line of the log.
//!
//! Red on 0.2.0: what a sweep left counted as a success, stood in no view, and was named by no
//! line of the log.

use pg_test::oracle::{assert_settled, expect_error, one, prepared_gids, wait_for_attempts};
use pg_test::{DEADLINE, Fleet, FleetOptions, wait_until};
use postgres::Client;

use crate::doubt::{identity, leave_orphan, log_lines, resolve, told};
use crate::support::{Outcome, assert_commits, begin_everywhere, serverid};

fn start() -> anyhow::Result<Fleet> {
    let fleet = Fleet::start()?;
    assert_commits(&fleet, &mut fleet.session()?, 100)?;
    Ok(fleet)
}

/// What is in doubt on shard 1 stays so, and every interface says why; `end` removes the reason.
fn stays_and_is_told(
    fleet: &Fleet,
    gid: &str,
    reason: &str,
    end: impl FnOnce() -> Outcome,
) -> Outcome {
    let mark = fleet.coordinator.log().mark()?;
    let before = told(fleet, 1)?;
    let rows = resolve(&mut fleet.session()?)?;
    let shown = told(fleet, 1)?;
    let [(identifier, status, why)] = shown.view.as_slice() else { panic!("{shown:#?}") };
    assert_eq!((identifier.as_str(), status.as_str()), (gid, "aborting"));
    assert!(why.contains(reason), "{why}");
    assert_eq!(shown.in_doubt, (1, true));
    assert!(shown.last_error.contains(reason), "{shown:#?}");
    assert!(shown.failures > before.failures, "{before:#?} {shown:#?}");
    let rows: Vec<_> = rows.iter().map(|(g, o, r)| (g.as_str(), o.as_str(), r.as_str())).collect();
    assert_eq!(rows, [(gid, "in doubt", why.as_str())]);
    // Once for each change, not for each attempt.
    wait_for_attempts(fleet, 1, 3)?;
    assert_eq!(log_lines(fleet, mark, &["LOG:", gid, "shard1", reason])?, 1);
    assert_eq!(prepared_gids(fleet.shard(1))?, [gid]);
    end()?;
    assert_settled(fleet);
    assert_eq!(told(fleet, 1)?.in_doubt, (0, false));
    assert_eq!(log_lines(fleet, mark, &["resolved", gid])?, 1);
    Ok(())
}

/// A session on shard 1 that holds a lock until it is dropped.
fn holds(fleet: &Fleet, lock: &str) -> anyhow::Result<Client> {
    let mut session = fleet.shard(1).client()?;
    session.batch_execute(&format!("SELECT {lock}"))?;
    Ok(session)
}

#[test]
fn a_session_of_another_start_is_alive_there() -> Outcome {
    let fleet = start()?;
    let number = identity(&mut fleet.session()?)? as u64;
    let key = (number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as u32 as i32;
    let stranger = holds(&fleet, &format!("pg_advisory_lock_shared({key}, 1)"))?;
    let gid = leave_orphan(&fleet, 1, "postgres", 1)?;
    stays_and_is_told(&fleet, &gid, "another start", move || {
        drop(stranger);
        Ok(())
    })
}

#[test]
fn another_process_holds_the_fence_there() -> Outcome {
    let fleet = start()?;
    let number = identity(&mut fleet.session()?)?;
    // The resolver is not there to have it: nothing is in doubt.
    let other = holds(&fleet, &format!("pg_advisory_lock({number})"))?;
    let gid = leave_orphan(&fleet, 1, "postgres", 1)?;
    // Nobody may look, so nobody knows of it; but the attempt fails, and says why.
    resolve(&mut fleet.session()?)?;
    let shown = told(&fleet, 1)?;
    assert!(shown.last_error.contains("another process settles"), "{shown:#?}");
    assert_eq!(prepared_gids(fleet.shard(1))?, [gid]);
    drop(other);
    assert_settled(&fleet);
    Ok(())
}

/// Maps to the role `app` on shard 1, which may not settle what the role `other` has prepared
/// there; returns a superuser's session with the shard.
fn map_to_app(fleet: &Fleet) -> anyhow::Result<Client> {
    let mut shard = fleet.shard(1).client()?;
    shard.batch_execute(
        "CREATE ROLE app LOGIN; GRANT ALL ON t TO app; CREATE ROLE other; GRANT ALL ON t TO other",
    )?;
    fleet.session()?.batch_execute(
        "ALTER USER MAPPING FOR CURRENT_USER SERVER shard1 OPTIONS (SET user 'app')",
    )?;
    Ok(shard)
}

#[test]
fn the_role_may_not_settle_it() -> Outcome {
    let fleet = start()?;
    let mut shard = map_to_app(&fleet)?;
    let gid = leave_orphan(&fleet, 1, "other", 1)?;
    stays_and_is_told(&fleet, &gid, "permission denied", || {
        Ok(shard.batch_execute("ALTER ROLE app SUPERUSER")?)
    })
}

#[test]
fn what_waits_for_the_application_says_so_and_is_no_failure() -> Outcome {
    let fleet = start()?;
    let mut session = fleet.session()?;
    begin_everywhere(&mut session, 1)?;
    session.batch_execute("PREPARE TRANSACTION 'gxid'")?;
    let rows = resolve(&mut session)?;
    assert_eq!(rows.len(), 2);
    let shown = told(&fleet, 1)?;
    let why = &shown.view[0].2;
    assert!(why.contains("COMMIT PREPARED"), "{shown:#?}");
    assert!(
        rows.iter().all(|(_, outcome, reason)| outcome == "prepared" && reason == why),
        "{rows:#?}"
    );
    assert_eq!((shown.failures, shown.last_error.as_str()), (0, ""));
    session.batch_execute("COMMIT PREPARED 'gxid'")?;
    assert_settled(&fleet);
    Ok(())
}

/// The gid belongs to a mapping that does not exist any more, and the role of the one that is left
/// may not settle it.
#[test]
fn a_place_that_nobody_may_reach() -> Outcome {
    let fleet = start()?;
    let mut shard = map_to_app(&fleet)?;
    let gid = leave_orphan_of_nobody(&fleet)?;
    stays_and_is_told(&fleet, &gid, "permission denied", || {
        Ok(shard.batch_execute("ALTER ROLE app SUPERUSER")?)
    })
}

/// As one of a user that has gone: nobody is registered for it.
fn leave_orphan_of_nobody(fleet: &Fleet) -> anyhow::Result<String> {
    let own = leave_orphan(fleet, 1, "other", 1)?;
    let gid = format!("{}_{}", &own[..own.rfind('_').expect("a gid")], 4_000_000_000_u32);
    let mut shard = fleet.shard(1).client()?;
    shard.batch_execute(&format!("ROLLBACK PREPARED '{own}'"))?;
    shard.batch_execute(&format!(
        "BEGIN; SET LOCAL ROLE other; INSERT INTO t VALUES (1); PREPARE TRANSACTION '{gid}'"
    ))?;
    Ok(gid)
}

/// Red: it ended in the view, as not listed any more, and the server could be dropped.
#[test]
fn what_nobody_may_reach_stays_in_view_when_its_server_is_moved() -> Outcome {
    let fleet = start()?;
    let _shard = map_to_app(&fleet)?;
    let gid = leave_orphan_of_nobody(&fleet)?;
    let mut session = fleet.session()?;
    resolve(&mut session)?;
    let (here, there) = (fleet.port_of_shard(1), fleet.port_of_shard(2));
    session.batch_execute(&format!(
        "ALTER SERVER shard1 OPTIONS (SET port '{there}');
         ALTER USER MAPPING FOR CURRENT_USER SERVER shard1 OPTIONS (SET user 'postgres')"
    ))?;
    for _ in 0..3 {
        resolve(&mut session)?;
        let shown = told(&fleet, 1)?;
        assert_eq!(shown.view[0].0, gid);
        assert_eq!(shown.in_doubt, (1, true));
        for statement in
            ["DROP SERVER shard1 CASCADE", "DROP USER MAPPING FOR CURRENT_USER SERVER shard1"]
        {
            expect_error(session.batch_execute(statement), "55006");
        }
    }
    // Nobody is registered for it, and it can be given up all the same.
    session.batch_execute(&format!("SELECT pg_fdw_xacts_forget('{gid}')"))?;
    assert_eq!(told(&fleet, 1)?.in_doubt, (0, false));
    session.batch_execute(&format!("ALTER SERVER shard1 OPTIONS (SET port '{here}')"))?;
    assert_settled(&fleet);
    Ok(())
}

/// A hundred that fail for one reason are not logged in a hundred lines.
#[test]
fn many_that_are_left_for_one_reason_are_told_together() -> Outcome {
    let fleet = Fleet::start_with(&FleetOptions {
        shard: vec![("max_prepared_transactions", "200")],
        ..FleetOptions::default()
    })?;
    assert_commits(&fleet, &mut fleet.session()?, 1000)?;
    let mut shard = fleet.shard(1).client()?;
    shard.batch_execute("CREATE ROLE app LOGIN; CREATE ROLE other; GRANT ALL ON t TO other")?;
    let mut session = fleet.session()?;
    session.batch_execute(
        "ALTER USER MAPPING FOR CURRENT_USER SERVER shard1 OPTIONS (SET user 'app')",
    )?;
    for id in 1..=100 {
        leave_orphan(&fleet, 1, "other", id)?;
    }
    let mark = fleet.coordinator.log().mark()?;
    assert_eq!(resolve(&mut session)?.len(), 100);
    wait_until("all are shown", DEADLINE, || Ok(told(&fleet, 1)?.in_doubt.0 == 100))?;
    assert_eq!(log_lines(&fleet, mark, &["100 transactions", "shard1", "permission denied"])?, 1);
    // Not all lines: the statements of this test are logged, too, however often it has to ask.
    let told = log_lines(&fleet, mark, &["LOG:", "permission denied"])?;
    assert!(told < 20, "{}", fleet.coordinator.log().since(mark)?);
    let server: i64 = one(
        &mut session,
        &format!("SELECT count(*) FROM pg_fdw_xacts WHERE serverid = {}", serverid(&fleet, 1)?),
    )?;
    assert_eq!(server, 100);
    shard.batch_execute("ALTER ROLE app SUPERUSER")?;
    assert_settled(&fleet);
    Ok(())
}
