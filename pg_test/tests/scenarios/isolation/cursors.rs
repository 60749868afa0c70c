//! Cursors from which rows are fetched while others change them, and plans that open a cursor on
//! the shard more than once: they show what they show with local tables.

use pg_test::Fleet;
use pg_test::oracle::assert_settled;

use super::played::Step::{A, B};
use super::played::{Step, play};
use super::shapes::{reset, session, start};
use crate::support::Outcome;

const CHANGE: Step = B("BEGIN; UPDATE account SET money = 20; UPDATE other SET money = 20; COMMIT");

/// The inner side of the join has parameters, so it is opened for each row of the outer side, which
/// was opened before it.
const NESTED: &str = "SELECT a.id, a.money, o.money FROM account a,
     LATERAL (SELECT * FROM other o WHERE o.id = a.id OFFSET 0) o WHERE is_rich(a.money)";

/// The condition is checked here: the query for the shard has no parameters, and more rows than are
/// fetched at once.
const FILTERED: &str = "SELECT n, (SELECT sum(money) FROM other o WHERE is_rich(o.money + n))
     FROM generate_series(1, 4) n";

fn assert_same(fleet: &Fleet, name: &str, steps: &[Step]) -> Outcome {
    reset(fleet)?;
    let local = play(steps, || fleet.shard(1).client(), fleet.shard(1))?;
    reset(fleet)?;
    let foreign = play(steps, || session(fleet), fleet.shard(1))?;
    assert_eq!(foreign, local, "{name}");
    Ok(())
}

fn declare(query: &str) -> &'static str {
    format!("DECLARE c CURSOR FOR {query}").leak()
}

/// Red where the transaction there was READ COMMITTED because the first node of the plan opened its
/// cursor before the others were known, or because a scan without parameters was taken to be opened
/// once.
#[test]
fn a_cursor_shows_one_snapshot_however_often_its_scans_are_opened() -> Outcome {
    let fleet = start()?;
    fleet.session()?.batch_execute("ALTER FOREIGN TABLE other OPTIONS (ADD fetch_size '2')")?;
    for query in [NESTED, FILTERED] {
        let steps = [
            A("SET enable_hashjoin = off; SET enable_mergejoin = off; SET enable_material = off"),
            A("BEGIN"),
            A(declare(query)),
            A("FETCH 1 FROM c"),
            CHANGE,
            A("FETCH 2 FROM c"),
            A("FETCH 1 FROM c"),
            A("CLOSE c"),
            A("SELECT sum(money) FROM account"),
            A("UPDATE account SET money = money + 1 WHERE id = 1"),
            A("COMMIT"),
        ];
        assert_same(&fleet, query, &steps)?;
    }
    assert_settled(&fleet);
    Ok(())
}

/// Red where the rows behind the one that was asked for came with it, and stayed when their locks
/// were given up with the savepoint: what A computed from the third overwrote what B had committed.
#[test]
fn rows_of_a_cursor_are_locked_when_they_are_shown() -> Outcome {
    let fleet = start()?;
    let steps = [
        A("BEGIN"),
        A("DECLARE c CURSOR FOR SELECT * FROM account ORDER BY id FOR UPDATE"),
        A("SAVEPOINT s"),
        A("FETCH 1 FROM c"),
        A("ROLLBACK TO s"),
        B("UPDATE account SET money = money + 5 WHERE id <= 3"),
        A("FETCH 2 FROM c"),
        A("RELEASE s"),
        A("FETCH 2 FROM c"),
        A("FETCH 2 FROM c"),
        A("COMMIT"),
    ];
    assert_same(&fleet, "FOR UPDATE", &steps)?;
    assert_settled(&fleet);
    Ok(())
}
