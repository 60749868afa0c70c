//! From postgres_fdw to this extension by one statement, and back by another, in sessions that are
//! at work.

use pg_test::Fleet;
use pg_test::oracle::{assert_settled, expect_error, one};
use postgres::Client;

use crate::support::Outcome;

const SWITCH: &str = "ALTER FOREIGN DATA WRAPPER postgres_fdw
    HANDLER pg_fdw_xacts_handler VALIDATOR pg_fdw_xacts_validator";
const BACK: &str = "ALTER FOREIGN DATA WRAPPER postgres_fdw
    HANDLER postgres_fdw_handler VALIDATOR postgres_fdw_validator";

/// Whether a transaction of this session over both shards is prepared there.
fn prepares(fleet: &Fleet, session: &mut Client, id: i32) -> anyhow::Result<bool> {
    let mark = fleet.shard(1).log().mark()?;
    session.batch_execute(&format!(
        "BEGIN; INSERT INTO old1 VALUES ({id}, 'x'); INSERT INTO old2 VALUES ({id}, 'x'); COMMIT"
    ))?;
    let statements = fleet.shard(1).log().statements_since(mark)?;
    Ok(statements.iter().any(|statement| statement.starts_with("PREPARE TRANSACTION")))
}

/// The statements of the book's page that switch while the application goes on.
fn switch_under_traffic() -> &'static str {
    let page = include_str!("../../../../docs/src/from-postgres-fdw.md");
    let begin = page.find("BEGIN;\nSET LOCAL lock_timeout").expect("the page locks the tables");
    let end = page[begin..].find("```").expect("the end of the block");
    &page[begin..begin + end]
}

/// Two servers of stock postgres_fdw, and a table on each.
fn make_old_tables(fleet: &Fleet, operator: &mut Client) -> anyhow::Result<()> {
    for number in [1, 2] {
        operator.batch_execute(&format!(
            "CREATE SERVER old{number} FOREIGN DATA WRAPPER postgres_fdw
                 OPTIONS (host '127.0.0.1', port '{}', dbname 'postgres', fetch_size '50');
             CREATE USER MAPPING FOR CURRENT_USER SERVER old{number} OPTIONS (user 'postgres');
             CREATE FOREIGN TABLE old{number} (id int, v text) SERVER old{number}
                 OPTIONS (table_name 't', batch_size '10')",
            fleet.port_of_shard(number)
        ))?;
    }
    Ok(())
}

/// Red with the plain `ALTER FOREIGN DATA WRAPPER`, which waits for nobody.
#[test]
fn the_switch_under_traffic_waits_for_those_who_use_the_tables() -> Outcome {
    let fleet = Fleet::start()?;
    let mut operator = fleet.session()?;
    make_old_tables(&fleet, &mut operator)?;
    let mut session = fleet.session()?;
    session.batch_execute("BEGIN; INSERT INTO old1 VALUES (1, 'x')")?;
    // It has written with postgres_fdw, and goes on with it.
    let error = expect_error(operator.batch_execute(switch_under_traffic()), "55P03");
    assert_eq!(error.message(), "canceling statement due to lock timeout");
    operator.batch_execute("ROLLBACK")?;
    session.batch_execute("INSERT INTO old2 VALUES (1, 'x'); COMMIT")?;
    operator.batch_execute(switch_under_traffic())?;
    assert!(prepares(&fleet, &mut session, 2)?);
    assert_settled(&fleet);
    Ok(())
}

#[test]
fn sessions_that_have_used_the_tables_follow_the_switch_and_the_way_back() -> Outcome {
    let fleet = Fleet::start()?;
    let mut operator = fleet.session()?;
    make_old_tables(&fleet, &mut operator)?;
    let mut session = fleet.session()?;
    session.batch_execute("PREPARE joined AS SELECT count(*) FROM old1 JOIN old2 USING (id)")?;
    assert!(!prepares(&fleet, &mut session, 1)?);
    assert_eq!(one::<i64>(&mut session, "EXECUTE joined")?, 1);

    operator.batch_execute(SWITCH)?;
    assert!(prepares(&fleet, &mut session, 2)?);
    assert_eq!(one::<i64>(&mut session, "EXECUTE joined")?, 2);
    operator.batch_execute("ALTER SERVER old1 OPTIONS (ADD two_phase_commit 'on')")?;

    operator.batch_execute(BACK)?;
    assert!(!prepares(&fleet, &mut session, 3)?);
    assert_eq!(one::<i64>(&mut session, "EXECUTE joined")?, 3);
    // An option of our own would be unknown there.
    expect_error(
        operator.batch_execute("ALTER SERVER old1 OPTIONS (SET two_phase_commit 'off')"),
        "HV00D",
    );
    operator.batch_execute("ALTER SERVER old1 OPTIONS (DROP two_phase_commit)")?;
    assert_settled(&fleet);
    Ok(())
}
