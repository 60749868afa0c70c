//! Servers that are restored at other addresses than they had.

use pg_test::oracle::{assert_settled, one};
use pg_test::proxy::NewConnections;
use pg_test::{DEADLINE, Fleet, Point, wait_until};
use postgres::Client;

use crate::support::{
    Outcome, assert_commits, assert_everywhere, begin_everywhere, commit_held_at,
};

/// The coordinator starts anew, as restored, and finds its shards at addresses that are not
/// recorded: what is prepared there is settled, and what was confirmed before the start is shown
/// until the servers are given up.
#[test]
fn what_was_confirmed_is_shown_until_the_server_is_given_up() -> Outcome {
    shown_until_given_up(false)
}

/// The same when the resolver comes to the new addresses before it has read its decisions.
#[test]
fn a_server_that_moves_during_a_restart_is_followed() -> Outcome {
    shown_until_given_up(true)
}

fn shown_until_given_up(moves_before_the_start: bool) -> Outcome {
    let mut fleet = Fleet::start_proxied()?;
    let mut session = fleet.session()?;
    begin_everywhere(&mut session, 1)?;
    session.batch_execute("COMMIT")?;
    assert_settled(&fleet);
    // Committed on shard 1, prepared on shard 2.
    begin_everywhere(&mut session, 2)?;
    let (commit, hit) = commit_held_at(&fleet, session, 2, Point::Statement, "COMMIT PREPARED")?;
    wait_until("shard 1 has committed", DEADLINE, || Ok(fleet.ids_on_shard(1)? == [1, 2]))?;
    for number in [1, 2] {
        fleet.proxy(number).set_new_connections(NewConnections::Refused);
    }
    if moves_before_the_start {
        lead_past_the_proxies(&fleet, &mut fleet.session()?)?;
    }
    fleet.coordinator.kill9()?;
    let _ = commit.join();
    for number in [1, 2] {
        fleet.proxy(number).cut_all();
    }
    drop(hit);
    fleet.coordinator.start()?;

    let mut session = fleet.session()?;
    if !moves_before_the_start {
        lead_past_the_proxies(&fleet, &mut session)?;
    }
    wait_until("what is prepared is committed", DEADLINE, || {
        session.batch_execute("SELECT * FROM pg_fdw_xacts_resolve()")?;
        Ok(fleet.ids_on_shard(2)? == [1, 2])
    })?;
    assert_everywhere(&fleet, 2, true)?;
    let shown = "SELECT count(*) FROM pg_fdw_xacts x JOIN pg_foreign_server s ON s.oid = x.serverid
        WHERE srvname = 'shard1' AND reason LIKE '%is not where it was%'";
    wait_until("shard 1 is in doubt", DEADLINE, || Ok(one::<i64>(&mut session, shown)? == 2))?;
    session.batch_execute("SELECT pg_fdw_xacts_forget('shard1')")?;
    assert_settled(&fleet);
    assert_commits(&fleet, &mut session, 3)
}

fn lead_past_the_proxies(fleet: &Fleet, session: &mut Client) -> Outcome {
    for number in [1, 2] {
        session.batch_execute(&format!(
            "ALTER SERVER shard{number} OPTIONS (SET port '{}')",
            fleet.shard(number).port()
        ))?;
    }
    Ok(())
}
