//! Each shape of a statement that meets another session's changes does with foreign tables what it
//! does with local ones.

use pg_test::Fleet;
use pg_test::oracle::assert_settled;
use postgres::Client;

use super::played::Step::{A, B, GoesOn, Waits};
use super::played::{FUNCTIONS, Step, TABLES, play};
use crate::support::Outcome;

const SHOW: Step = B("SELECT * FROM account ORDER BY id");

/// A waits with `statement` for a row that B has changed; B commits.
macro_rules! met {
    ($change:literal, $statement:literal) => {
        &[
            A("BEGIN"),
            A("SELECT money FROM account WHERE id = 1"),
            B("BEGIN"),
            B($change),
            Waits($statement),
            B("COMMIT"),
            GoesOn,
            A("SELECT * FROM account ORDER BY id"),
            A("COMMIT"),
            SHOW,
        ]
    };
}

const SHAPES: &[(&str, &[Step])] = &[
    (
        "a direct UPDATE goes on with the new version",
        met!(
            "UPDATE account SET money = money + 5 WHERE id = 1",
            "UPDATE account SET money = money + 1 WHERE id = 1"
        ),
    ),
    (
        "one that does not fit the new version does nothing",
        met!(
            "UPDATE account SET money = 5 WHERE id = 1",
            "UPDATE account SET money = money + 1 WHERE money = 10 AND id = 1"
        ),
    ),
    (
        "row by row",
        met!(
            "UPDATE account SET money = money + 5 WHERE id = 1",
            "UPDATE account SET money = money + one() WHERE id = 1"
        ),
    ),
    (
        "row by row, where the condition is checked here",
        met!(
            "UPDATE account SET money = 5 WHERE id = 1",
            "UPDATE account SET money = money + one() WHERE id = 1 AND is_rich(money)"
        ),
    ),
    (
        "row by row, many rows",
        met!(
            "UPDATE account SET money = money + 5 WHERE id IN (2, 4)",
            "UPDATE account SET money = money + one() WHERE is_rich(money)"
        ),
    ),
    (
        "row by row, deleted meanwhile",
        met!(
            "DELETE FROM account WHERE id = 1",
            "UPDATE account SET money = money + one() WHERE id <= 2"
        ),
    ),
    (
        "row by row, with another key",
        met!(
            "UPDATE account SET id = 9 WHERE id = 1",
            "UPDATE account SET money = money + one() WHERE id <= 2"
        ),
    ),
    (
        "a direct DELETE",
        met!(
            "UPDATE account SET money = 5 WHERE id = 1",
            "DELETE FROM account WHERE money = 10 AND id <= 2"
        ),
    ),
    (
        "DELETE row by row",
        met!(
            "UPDATE account SET money = 5 WHERE id = 1",
            "DELETE FROM account WHERE id <= 2 AND is_rich(money)"
        ),
    ),
    (
        "UPDATE with a join there",
        met!(
            "UPDATE account SET money = money + 5 WHERE id = 1",
            "UPDATE account a SET money = a.money + o.money FROM other o WHERE a.id = o.id AND a.id = 1"
        ),
    ),
    (
        "UPDATE with a join here",
        met!(
            "UPDATE account SET money = money + 5 WHERE id = 1",
            "UPDATE account a SET money = a.money + o.money FROM other o WHERE a.id = o.id AND is_rich(o.money) AND a.id = 1"
        ),
    ),
    (
        "UPDATE with a subquery",
        met!(
            "UPDATE account SET money = money + 5 WHERE id = 1",
            "UPDATE account SET money = money + (SELECT max(money) FROM other) WHERE id = 1"
        ),
    ),
    (
        "FOR UPDATE",
        met!(
            "UPDATE account SET money = 5 WHERE id = 1",
            "SELECT * FROM account WHERE id = 1 FOR UPDATE"
        ),
    ),
    (
        "FOR SHARE that does not fit the new version",
        met!(
            "UPDATE account SET money = 5 WHERE id = 1",
            "SELECT * FROM account WHERE money = 10 AND id <= 2 FOR SHARE"
        ),
    ),
    (
        "in a savepoint",
        &[
            A("BEGIN"),
            A("SAVEPOINT s"),
            A("SELECT money FROM account WHERE id = 1"),
            B("BEGIN"),
            B("UPDATE account SET money = money + 5 WHERE id = 1"),
            Waits("UPDATE account SET money = money + 1 WHERE id = 1"),
            B("COMMIT"),
            GoesOn,
            A("ROLLBACK TO s"),
            A("SELECT money FROM account WHERE id = 1"),
            A("UPDATE account SET money = money + one() WHERE id = 1"),
            A("COMMIT"),
            SHOW,
        ],
    ),
    (
        "read again",
        &[
            A("BEGIN"),
            A("SELECT sum(money) FROM account"),
            B("UPDATE account SET money = 20 WHERE id = 1"),
            A("SELECT sum(money) FROM account"),
            A("SAVEPOINT s"),
            B("UPDATE account SET money = 30 WHERE id = 1"),
            A("SELECT sum(money) FROM account"),
            A("RELEASE s"),
            B("UPDATE account SET money = 40 WHERE id = 1"),
            A("SELECT sum(money) FROM account"),
            A("COMMIT"),
        ],
    ),
    (
        "two tables of a server read again",
        &[
            A("BEGIN"),
            A(
                "SELECT a.money, (SELECT sum(money) FROM other o WHERE is_rich(o.money)) FROM account a WHERE id = 1",
            ),
            B(
                "BEGIN; UPDATE account SET money = 20 WHERE id = 1; UPDATE other SET money = 20 WHERE id = 1; COMMIT",
            ),
            A(
                "SELECT a.money, (SELECT sum(money) FROM other o WHERE is_rich(o.money)) FROM account a WHERE id = 1",
            ),
            A("SELECT sum(money) FROM account"),
            A("COMMIT"),
        ],
    ),
    (
        "read again after a write",
        &[
            A("BEGIN"),
            A("SELECT sum(money) FROM account"),
            A("INSERT INTO account VALUES (6, 10, 'a')"),
            B("UPDATE account SET money = 20 WHERE id = 1"),
            A("SELECT sum(money) FROM account"),
            A("UPDATE account SET money = money + 1 WHERE id = 1"),
            B("UPDATE account SET money = 30 WHERE id = 2"),
            A(
                "SELECT sum(money), (SELECT sum(money) FROM other o WHERE is_rich(o.money)) FROM account",
            ),
            A("COMMIT"),
            SHOW,
        ],
    ),
    (
        "a cursor shows what was there when it was declared",
        &[
            A("BEGIN"),
            A("DECLARE c CURSOR FOR SELECT id, money FROM account ORDER BY id"),
            B("UPDATE account SET money = 20"),
            A("SELECT money FROM account WHERE id = 1"),
            A("FETCH 2 FROM c"),
            A("UPDATE account SET money = money + 1 WHERE id <= 3"),
            A("FETCH 2 FROM c"),
            A("COMMIT"),
            SHOW,
        ],
    ),
    (
        "a loop that updates what it reads",
        &[
            A("BEGIN"),
            A("SELECT money FROM account WHERE id = 1"),
            B("BEGIN; UPDATE account SET money = money + 5 WHERE id = 3"),
            Waits(
                "DO $$ DECLARE r record; BEGIN
                FOR r IN SELECT id FROM account ORDER BY id LOOP
                    UPDATE account SET money = money + 1 WHERE id = r.id;
                END LOOP; END $$",
            ),
            B("COMMIT"),
            GoesOn,
            A("COMMIT"),
            SHOW,
        ],
    ),
    (
        "an exception block",
        &[
            A("BEGIN"),
            B("BEGIN; UPDATE account SET money = 5 WHERE id = 1"),
            Waits(
                "DO $$ DECLARE m int; BEGIN
                BEGIN
                    SELECT money INTO m FROM account WHERE id = 1 FOR UPDATE;
                    UPDATE account SET money = m / 0 WHERE id = 1;
                EXCEPTION WHEN division_by_zero THEN
                    UPDATE account SET money = money + one() WHERE id = 1;
                END; END $$",
            ),
            B("COMMIT"),
            GoesOn,
            A("COMMIT"),
            SHOW,
        ],
    ),
    (
        "INSERT after another session's row with the same key",
        &[
            A("BEGIN"),
            A("SELECT count(*) FROM account"),
            B("BEGIN; INSERT INTO account VALUES (7, 1, 'b')"),
            Waits("INSERT INTO account VALUES (7, 2, 'a') ON CONFLICT DO NOTHING"),
            B("COMMIT"),
            GoesOn,
            A("SELECT count(*) FROM account"),
            A("COMMIT"),
            SHOW,
        ],
    ),
];

/// A coordinator whose foreign tables have the names of the tables on its first shard.
pub fn start() -> anyhow::Result<Fleet> {
    let fleet = Fleet::start()?;
    fleet.shard(1).client()?.batch_execute(&format!("{TABLES} {FUNCTIONS}"))?;
    fleet.session()?.batch_execute(&format!(
        "{FUNCTIONS}
         CREATE FOREIGN TABLE account (id int, money int, note text) SERVER shard1;
         CREATE FOREIGN TABLE other (id int, money int) SERVER shard1"
    ))?;
    Ok(fleet)
}

/// A session whose transactions see what READ COMMITTED says.
pub fn session(fleet: &Fleet) -> anyhow::Result<Client> {
    let mut session = fleet.session()?;
    session.batch_execute("SET pg_fdw_xacts.remote_isolation = 'match'")?;
    Ok(session)
}

/// The tables hold what they held at first.
pub fn reset(fleet: &Fleet) -> Outcome {
    fleet.shard(1).client()?.batch_execute(
        "TRUNCATE account, other;
         INSERT INTO account SELECT n, 10, 'x' FROM generate_series(1, 5) n;
         INSERT INTO other SELECT n, 10 FROM generate_series(1, 5) n",
    )?;
    Ok(())
}

#[test]
fn each_shape_does_what_it_does_with_local_tables() -> Outcome {
    let fleet = start()?;
    for (name, steps) in SHAPES {
        reset(&fleet)?;
        let local = play(steps, || fleet.shard(1).client(), fleet.shard(1))?;
        reset(&fleet)?;
        let foreign = play(steps, || session(&fleet), fleet.shard(1))?;
        assert_eq!(foreign, local, "{name}");
    }
    assert_settled(&fleet);
    Ok(())
}

/// The same as postgres_fdw does it: what has changed since the first statement is refused, and a
/// second SELECT shows what the first did.
#[test]
fn repeatable_read_is_what_it_says() -> Outcome {
    let fleet = start()?;
    for (name, steps) in SHAPES {
        reset(&fleet)?;
        let local = play(steps, || fleet.shard(1).client(), fleet.shard(1))?;
        reset(&fleet)?;
        let repeatable = || {
            let mut session = fleet.session()?;
            session.batch_execute("SET pg_fdw_xacts.remote_isolation = 'repeatable read'")?;
            Ok(session)
        };
        let foreign = play(steps, repeatable, fleet.shard(1))?;
        assert_ne!(foreign, local, "{name}");
    }
    assert_settled(&fleet);
    Ok(())
}
