//! What an operator looks at when everything hangs.

use pg_test::oracle::{expect_error, one};
use pg_test::{DEADLINE, Fleet, wait_until};

use super::{session_that, start, waits_on};
use crate::support::{Outcome, in_background};

const COUNT: &str = "SELECT count(*) FROM pg_fdw_xacts_waits";

fn shown(fleet: &Fleet, condition: &str) -> anyhow::Result<bool> {
    one(
        &mut fleet.session()?,
        &format!("SELECT EXISTS (SELECT FROM pg_fdw_xacts_waits WHERE {condition})"),
    )
}

/// First waits on shard 1 for a stranger there, who waits for second, who waits here for third, who
/// waits for no lock: each is shown with whom it waits for.
#[test]
fn everybody_is_shown_with_whom_he_waits_for() -> Outcome {
    let fleet = start()?;
    let mut operator = fleet.session()?;
    assert_eq!(one::<i64>(&mut operator, COUNT)?, 0);
    let mut stranger = fleet.shard(1).client()?;
    stranger.batch_execute("BEGIN; UPDATE t SET v = 's' WHERE id = 1")?;
    let there: i32 = one(&mut stranger, "SELECT pg_backend_pid()")?;
    let mut first = session_that(&fleet, "SELECT FROM ft1")?;
    let mut second = session_that(&fleet, "UPDATE ft1 SET v = 'b' WHERE id = 2")?;
    let mut third = session_that(&fleet, "UPDATE lt SET v = 'c' WHERE id = 1")?;
    let mut pids = [0; 3];
    for (pid, session) in pids.iter_mut().zip([&mut first, &mut second, &mut third]) {
        *pid = one(session, "SELECT pg_backend_pid()")?;
    }
    let stranger = waits_on(&fleet, 1, stranger, "UPDATE t SET v = 's' WHERE id = 2; ROLLBACK")?;
    let second = waits_on(&fleet, 0, second, "UPDATE lt SET v = 'b' WHERE id = 1; ROLLBACK")?;
    let first = waits_on(&fleet, 1, first, "UPDATE ft1 SET v = 'a' WHERE id = 1; ROLLBACK")?;
    let third = in_background(third, "SELECT pg_fdw_xacts_exec('shard2', 'SELECT pg_sleep(600)')");
    let [one, two, three] = pids;
    for condition in [
        format!(
            "pid = {one} AND server = 'shard1' AND waits_for ~ '^ShareLock on transaction [0-9]+$'
             AND blocked_by IS NULL AND blocked_by_remote_pid = {there}"
        ),
        format!(
            "pid IS NULL AND server = 'shard1' AND remote_pid = {there}
             AND blocked_by = {two} AND blocked_by_remote_pid IS NOT NULL"
        ),
        format!(
            "pid = {two} AND server IS NULL AND remote_pid IS NULL AND blocked_by = {three}
             AND waits_for LIKE 'ShareLock on transaction %' AND blocked_by_remote_pid IS NULL"
        ),
        // It is at work there.
        format!(
            "pid = {three} AND server = 'shard2' AND waits_for IS NULL AND blocked_by IS NULL
             AND remote_pid IS NOT NULL AND since > now() - interval '1 min'"
        ),
    ] {
        wait_until(&condition, DEADLINE, || shown(&fleet, &condition))?;
    }
    let wake = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    fleet.shard(2).client()?.batch_execute(wake)?;
    expect_error(third.join().1, "57014");
    for waits in [second, stranger, first] {
        waits.join().1?;
    }
    wait_until("nobody is shown any more", DEADLINE, || {
        Ok(pg_test::oracle::one::<i64>(&mut operator, COUNT)? == 0)
    })
}

#[test]
fn monitoring_roles_may_read_it_and_nobody_else() -> Outcome {
    let fleet = start()?;
    fleet
        .session()?
        .batch_execute("CREATE ROLE watcher LOGIN IN ROLE pg_monitor; CREATE ROLE anybody LOGIN")?;
    let mut watcher = fleet.coordinator.client_for("postgres", "watcher")?;
    assert_eq!(one::<i64>(&mut watcher, COUNT)?, 0);
    let mut anybody = fleet.coordinator.client_for("postgres", "anybody")?;
    expect_error(anybody.query(COUNT, &[]), "42501");
    expect_error(anybody.query("SELECT * FROM pg_fdw_xacts_waiting()", &[]), "42501");
    Ok(())
}
