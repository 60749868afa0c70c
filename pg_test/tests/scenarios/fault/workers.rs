//! The background workers end in any order, and many mappings share one database of a shard:
//! everything is settled all the same.

use pg_test::oracle::{assert_settled, one, prepared_gids};
use pg_test::{DEADLINE, Fleet, Point, wait_until};
use postgres::Client;

use crate::support::{Outcome, assert_commits, begin_everywhere, commit_held_at};

/// The process of a worker, once there is one other than `than`.
fn worker(session: &mut Client, kind: &str, than: i32) -> anyhow::Result<i32> {
    let query = format!(
        "SELECT coalesce(max(pid), 0) FROM pg_stat_activity
         WHERE backend_type = 'pg_fdw_xacts {kind}' AND pid <> {than}"
    );
    let mut pid = 0;
    wait_until("the worker is there", DEADLINE, || {
        pid = one(session, &query)?;
        Ok(pid != 0)
    })?;
    Ok(pid)
}

#[test]
fn launcher_and_resolver_end_in_any_order() -> Outcome {
    let fleet = Fleet::start()?;
    let mut session = fleet.session()?;
    assert_commits(&fleet, &mut session, 1)?;
    for (id, kinds) in [(2, ["launcher", "resolver"]), (3, ["resolver", "launcher"])] {
        for kind in kinds {
            let pid = worker(&mut session, kind, 0)?;
            one::<bool>(&mut session, &format!("SELECT pg_terminate_backend({pid})"))?;
            worker(&mut session, kind, pid)?;
        }
        // A new session has to ask the resolver for the numbers of its participants.
        assert_commits(&fleet, &mut fleet.session()?, id)?;
    }
    assert_settled(&fleet);
    Ok(())
}

/// Each of two users may settle only what its own role has prepared there, and only one session can
/// hold the fence.
#[test]
fn two_mappings_on_one_database_settle_side_by_side() -> Outcome {
    let mut fleet = Fleet::start_proxied()?;
    for number in [1, 2] {
        fleet.shard(number).client()?.batch_execute(
            "CREATE ROLE ra LOGIN; CREATE ROLE rb LOGIN; GRANT ALL ON t TO ra, rb",
        )?;
    }
    let mut session = fleet.session()?;
    for (user, role) in [("alice", "ra"), ("bob", "rb")] {
        session.batch_execute(&format!(
            "CREATE ROLE {user} LOGIN; GRANT ALL ON lt, ft1, ft2 TO {user};
             CREATE USER MAPPING FOR {user} SERVER shard1
                 OPTIONS (user '{role}', password_required 'false');
             CREATE USER MAPPING FOR {user} SERVER shard2
                 OPTIONS (user '{role}', password_required 'false')"
        ))?;
    }
    let mut alice = fleet.coordinator.client_for("postgres", "alice")?;
    begin_everywhere(&mut alice, 1)?;
    alice.batch_execute("PREPARE TRANSACTION 'pending'")?;
    // Bob's is left behind by a crash: one that has to be committed.
    let mut bob = fleet.coordinator.client_for("postgres", "bob")?;
    begin_everywhere(&mut bob, 2)?;
    let (commit, hit) = commit_held_at(&fleet, bob, 1, Point::Statement, "COMMIT PREPARED")?;
    fleet.coordinator.kill9()?;
    hit.release();
    assert!(commit.join().1.is_err(), "the client got an answer from a dead server");
    fleet.coordinator.start()?;
    wait_until("bob's is settled and alice's still pending", DEADLINE, || {
        Ok([1, 2].iter().all(|n| prepared_gids(fleet.shard(*n)).is_ok_and(|g| g.len() == 1)))
    })?;
    assert_eq!(fleet.ids_on_shard(1)?, [2]);
    fleet.session()?.batch_execute("COMMIT PREPARED 'pending'")?;
    assert_settled(&fleet);
    assert_eq!((fleet.ids_on_shard(1)?, fleet.ids_on_shard(2)?), (vec![1, 2], vec![1, 2]));
    Ok(())
}
