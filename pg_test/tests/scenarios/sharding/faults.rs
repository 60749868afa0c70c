//! What dies in the midst of a distribution or a move leaves everything or nothing.

use pg_test::oracle::{assert_settled, expect_error};
use pg_test::{Fault, Fleet, Point};

use crate::sharding::{ORDERS, orders, tables_on};
use crate::support::{Outcome, commit_held_at, in_background};

const DISTRIBUTE: &str =
    "SELECT FROM pg_fdw_xacts_distribute('orders', 'customer', '{shard1,shard2}', 2)";
const MOVE: &str = "SELECT FROM pg_fdw_xacts_move_partition('orders_0', 'shard2')";

#[test]
fn a_shard_that_dies_leaves_nothing_anywhere() -> Outcome {
    let mut fleet = Fleet::start_proxied()?;
    fleet.session()?.batch_execute(ORDERS)?;
    let mut distributed = false;
    for (call, statement) in [
        (DISTRIBUTE, "CREATE TABLE public.orders_1"),
        (DISTRIBUTE, "ALTER TABLE public.orders_1"),
        (MOVE, "CREATE TABLE public.orders_0"),
        (MOVE, "ALTER TABLE public.orders_0"),
    ] {
        if call == MOVE && !distributed {
            fleet.session()?.batch_execute(DISTRIBUTE)?;
            distributed = true;
        }
        let before = (tables_on(&fleet, 1)?, tables_on(&fleet, 2)?);
        let hit = fleet.proxy(2).inject(Fault::hold(Point::Statement, statement));
        let running = in_background(fleet.session()?, call);
        hit.wait()?;
        fleet.shard_mut(2).kill9()?;
        hit.release();
        let (mut session, result) = running.join();
        expect_error(result, "08006");
        fleet.shard_mut(2).start()?;
        assert_settled(&fleet);
        assert_eq!((tables_on(&fleet, 1)?, tables_on(&fleet, 2)?), before, "{statement}");
        assert_eq!(orders(&mut session)?, 1000);
    }
    fleet.session()?.batch_execute(MOVE)?;
    assert_eq!(orders(&mut fleet.session()?)?, 1000);
    Ok(())
}

#[test]
fn a_coordinator_that_crashes_in_commit_leaves_everything_or_nothing() -> Outcome {
    let mut fleet = Fleet::start_proxied()?;
    fleet.session()?.batch_execute(ORDERS)?;
    let (none, spread, moved) = (("", ""), ("orders_0", "orders_1"), ("", "orders_0 orders_1"));
    for (call, point, statement, expected) in [
        (DISTRIBUTE, Point::Answer, "PREPARE TRANSACTION", none),
        (DISTRIBUTE, Point::Statement, "COMMIT PREPARED", spread),
        (MOVE, Point::Answer, "PREPARE TRANSACTION", spread),
        (MOVE, Point::Statement, "COMMIT PREPARED", moved),
    ] {
        let mut session = fleet.session()?;
        session.batch_execute("BEGIN")?;
        session.batch_execute(call)?;
        let (commit, hit) = commit_held_at(&fleet, session, 2, point, statement)?;
        fleet.coordinator.kill9()?;
        hit.release();
        assert!(commit.join().1.is_err(), "the client got an answer from a dead server");
        fleet.coordinator.start()?;
        assert_settled(&fleet);
        let (first, second) = (tables_on(&fleet, 1)?.join(" "), tables_on(&fleet, 2)?.join(" "));
        assert_eq!((first.as_str(), second.as_str()), expected, "{call} {statement}");
        assert_eq!(orders(&mut fleet.session()?)?, 1000);
    }
    Ok(())
}
