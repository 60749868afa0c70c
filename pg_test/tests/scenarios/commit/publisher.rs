//! A coordinator that publishes all its tables, the extension's among them.

use pg_test::oracle::{assert_settled, expect_error, one};
use pg_test::{DEADLINE, Fleet, FleetOptions, wait_until};

use crate::support::{Outcome, transaction};

/// A subscriber has no tables of the extension, and its worker would fail for ever at the first row
/// of theirs.
#[test]
fn subscribers_of_all_tables_are_sent_nothing_of_the_extension() -> Outcome {
    let fleet = Fleet::start_with(&FleetOptions {
        coordinator: vec![("wal_level", "logical"), ("pg_fdw_xacts.forget_delay", "0")],
        ..FleetOptions::default()
    })?;
    let mut session = fleet.session()?;
    let mut subscriber = fleet.shard(1).client()?;
    let subscription = |name: &str| {
        let port = fleet.coordinator.port();
        format!(
            "CREATE SUBSCRIPTION {name} CONNECTION 'host=127.0.0.1 port={port} user=postgres dbname=postgres'
                 PUBLICATION p WITH (copy_data = false)"
        )
    };
    // From before the extension was there.
    session.batch_execute("CREATE PUBLICATION p FOR TABLE lt")?;
    subscriber.batch_execute("CREATE TABLE lt (id int PRIMARY KEY, v text)")?;
    subscriber.batch_execute(&subscription("s"))?;
    session
        .batch_execute("BEGIN; DROP PUBLICATION p; CREATE PUBLICATION p FOR ALL TABLES; COMMIT")?;
    for id in 1..=2 {
        let statements = ["lt", "ft1", "ft2"].map(|t| format!("INSERT INTO {t} VALUES ({id})"));
        transaction(&mut session, &statements.each_ref().map(String::as_str))?;
        wait_until("the decision is forgotten", DEADLINE, || {
            Ok(one::<i64>(&mut session, "SELECT count(*) FROM fdw_xacts.decision")? == 0)
        })?;
    }
    wait_until("the subscriber has both rows", DEADLINE, || {
        Ok(one::<i64>(&mut subscriber, "SELECT count(*) FROM lt")? == 2)
    })?;
    let errors = "SELECT apply_error_count FROM pg_stat_subscription_stats WHERE subname = 's'";
    assert_eq!(one::<i64>(&mut subscriber, errors)?, 0);
    // Any other table that the subscriber lacks is noticed.
    session.batch_execute("CREATE TABLE lacking (id int); INSERT INTO lacking VALUES (1)")?;
    wait_until("the subscriber's worker fails", DEADLINE, || {
        Ok(one::<i64>(&mut subscriber, errors)? > 0)
    })?;
    // A new subscription asks for all of them, as the book says.
    let error = expect_error(subscriber.batch_execute(&subscription("another")), "3F000");
    assert_eq!(error.message(), "schema \"fdw_xacts\" does not exist");
    subscriber.batch_execute("DROP SUBSCRIPTION s")?;
    assert_settled(&fleet);
    Ok(())
}
