//! The setting, the server option of the same name, and what each transaction begins with.

use pg_test::Fleet;
use pg_test::oracle::{assert_settled, expect_error, one};
use postgres::Client;

use super::shapes::{session, start};
use crate::support::Outcome;

const THERE: &str = "SELECT level FROM there";

/// A view that tells the isolation level of the transaction that reads it.
fn with_view() -> anyhow::Result<Fleet> {
    let fleet = start()?;
    fleet.shard(1).client()?.batch_execute(
        "CREATE VIEW there AS SELECT current_setting('transaction_isolation') AS level",
    )?;
    fleet.session()?.batch_execute("CREATE FOREIGN TABLE there (level text) SERVER shard1")?;
    Ok(fleet)
}

fn level(session: &mut Client, begin: &str) -> anyhow::Result<String> {
    session.batch_execute(begin)?;
    let level = one::<String>(session, THERE)?;
    session.batch_execute("ROLLBACK")?;
    Ok(level)
}

/// Red for commands behind a query of several cursors, where the session was marked for them before
/// its transaction could be begun again.
#[test]
fn each_transaction_has_the_level_that_it_asks_for() -> Outcome {
    let fleet = with_view()?;
    let mut session = session(&fleet)?;
    for (begin, expected) in [
        ("BEGIN", "read committed"),
        ("BEGIN ISOLATION LEVEL READ UNCOMMITTED", "read committed"),
        ("BEGIN ISOLATION LEVEL REPEATABLE READ", "repeatable read"),
        ("BEGIN ISOLATION LEVEL SERIALIZABLE", "serializable"),
        (
            "BEGIN; SELECT * FROM account a JOIN other o USING (id) WHERE is_rich(a.money)",
            "read committed",
        ),
        ("BEGIN; UPDATE account SET money = 1", "read committed"),
        ("BEGIN; SELECT * FROM account; UPDATE account SET money = one()", "read committed"),
        ("BEGIN; SELECT pg_fdw_xacts_exec('shard1', 'SELECT 1')", "read committed"),
        (
            "BEGIN; SELECT count(*) FROM account WHERE money > (SELECT sum(money) FROM other WHERE is_rich(money));
             SELECT pg_fdw_xacts_exec('shard1', 'SELECT 1')",
            "read committed",
        ),
        (
            "BEGIN; SELECT count(*) FROM account WHERE money > (SELECT sum(money) FROM other WHERE is_rich(money));
             SELECT * FROM pg_fdw_xacts_query('shard1', 'SELECT 1') AS t (n int)",
            "read committed",
        ),
        ("BEGIN; SELECT pg_fdw_xacts_snapshot()", "repeatable read"),
    ] {
        assert_eq!(level(&mut session, begin)?, expected, "{begin}");
    }
    session.batch_execute("SET pg_fdw_xacts.remote_isolation = 'repeatable read'")?;
    assert_eq!(level(&mut session, "BEGIN")?, "repeatable read");
    Ok(())
}

#[test]
fn the_option_counts_before_the_setting() -> Outcome {
    let fleet = with_view()?;
    let mut session = fleet.session()?;
    for (setting, other) in [("repeatable read", "match"), ("match", "repeatable read")] {
        let level_of =
            |value: &str| if value == "match" { "read committed" } else { value }.to_owned();
        session.batch_execute(&format!("SET pg_fdw_xacts.remote_isolation = '{setting}'"))?;
        assert_eq!(level(&mut session, "BEGIN")?, level_of(setting));
        session.batch_execute(&format!(
            "ALTER SERVER shard1 OPTIONS (ADD remote_isolation '{other}')"
        ))?;
        assert_eq!(level(&mut session, "BEGIN")?, level_of(other));
        session.batch_execute("ALTER SERVER shard1 OPTIONS (DROP remote_isolation)")?;
    }
    let wrong = "ALTER SERVER shard1 OPTIONS (ADD remote_isolation 'serializable')";
    let error = expect_error(session.batch_execute(wrong), "22023");
    assert_eq!(error.message(), "invalid value for option \"remote_isolation\": serializable");
    assert_eq!(error.hint(), Some("Valid values are \"repeatable read\" and \"match\"."));
    Ok(())
}

/// What a query reads of one server with several cursors has one snapshot, as long as nothing was
/// written there.
#[test]
fn several_cursors_of_a_query_have_one_snapshot() -> Outcome {
    let fleet = with_view()?;
    fleet
        .shard(1)
        .client()?
        .batch_execute("CREATE VIEW seen AS SELECT pg_current_snapshot()::text AS snapshot")?;
    let mut session = session(&fleet)?;
    session.batch_execute("CREATE FOREIGN TABLE seen (snapshot text) SERVER shard1")?;
    let sql = "SELECT (SELECT snapshot FROM seen WHERE length(snapshot) > one()) =
                      (SELECT snapshot FROM seen s WHERE length(snapshot) > one() AND pg_sleep(0.1) IS NOT NULL)
                      , (SELECT level FROM there)";
    let mut other = fleet.shard(1).client()?;
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| -> Outcome {
        let writer = scope.spawn(|| -> Outcome {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                other.batch_execute("UPDATE account SET money = money + 1 WHERE id = 1")?;
            }
            Ok(())
        });
        let rows = (0..3).map(|_| session.query_one(sql, &[])).collect::<Vec<_>>();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        writer.join().expect("the writer panicked")?;
        for row in rows {
            let row = row?;
            assert_eq!((row.get(0), row.get(1)), (true, "repeatable read"));
        }
        Ok(())
    })?;
    assert_settled(&fleet);
    Ok(())
}
