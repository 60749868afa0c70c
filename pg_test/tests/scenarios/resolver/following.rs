//! One transaction can be followed through the resolver by its gid, in the log at `DEBUG1`.

use pg_test::oracle::{assert_settled, prepared_gids, wait_for_attempts};
use pg_test::{Fleet, FleetOptions};

use crate::doubt::{leave_orphan, log_lines};
use crate::support::Outcome;

fn talkative() -> FleetOptions {
    FleetOptions {
        proxied: true,
        coordinator: vec![("log_min_messages", "debug1")],
        ..FleetOptions::default()
    }
}

#[test]
fn each_step_that_settles_a_commit_is_logged_with_its_gid() -> Outcome {
    let fleet = Fleet::start_with(&talkative())?;
    let mark = fleet.coordinator.log().mark()?;
    fleet.in_doubt(1)?;
    let gid = prepared_gids(fleet.shard(1))?.remove(0);
    wait_for_attempts(&fleet, 1, 1)?;
    let lines = |text: &str| log_lines(&fleet, mark, &[text, &gid]);
    assert!(lines(": left in doubt: ")? > 0);
    fleet.reconnect(1);
    assert_settled(&fleet);
    // By the session, and by the resolver.
    assert_eq!(lines(": sent COMMIT PREPARED")?, 2);
    for step in [": found prepared", ": verdict: commit", "LOG:  resolved: COMMIT PREPARED '"] {
        assert_eq!(lines(step)?, 1, "{step}");
    }
    Ok(())
}

#[test]
fn each_step_that_settles_an_abort_is_logged_with_its_gid() -> Outcome {
    let fleet = Fleet::start_with(&talkative())?;
    // The resolver comes to the shard because a transaction has been there.
    let mut session = fleet.session()?;
    session
        .batch_execute("BEGIN; INSERT INTO ft1 VALUES (1, 'x'); INSERT INTO ft2 VALUES (1, 'x')")?;
    session.batch_execute("COMMIT")?;
    let mark = fleet.coordinator.log().mark()?;
    let gid = leave_orphan(&fleet, 1, "postgres", 2)?;
    session.batch_execute("SELECT pg_fdw_xacts_resolve()")?;
    assert_settled(&fleet);
    for step in [
        ": found prepared",
        ": verdict: roll back",
        ": sent ROLLBACK PREPARED",
        "LOG:  resolved: ROLLBACK PREPARED '",
    ] {
        assert_eq!(log_lines(&fleet, mark, &[step, &gid])?, 1, "{step}");
    }
    Ok(())
}
