//! `PREPARE TRANSACTION` by the application: the coordinator as one resource manager, its
//! participants behind it, settled from any session and after any restart.

use pg_test::oracle::{assert_settled, assert_usable, one, prepared_gids};
use pg_test::{Fleet, FleetOptions, StopMode};
use postgres::Client;

use crate::support::{
    Gid, Outcome, assert_commits, assert_everywhere, begin_everywhere, serverid,
    session_with_notices,
};

/// One row of the view, `transaction` as text because the client has no type for xid.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    dbid: u32,
    transaction: String,
    serverid: u32,
    userid: u32,
    status: String,
    identifier: String,
}

fn view(session: &mut Client) -> anyhow::Result<Vec<Row>> {
    let rows = session.query(
        "SELECT dbid, transaction::text, serverid, userid, status, identifier
         FROM pg_fdw_xacts ORDER BY serverid",
        &[],
    )?;
    Ok(rows
        .iter()
        .map(|row| Row {
            dbid: row.get(0),
            transaction: row.get(1),
            serverid: row.get(2),
            userid: row.get(3),
            status: row.get(4),
            identifier: row.get(5),
        })
        .collect())
}

fn prepare(fleet: &Fleet) -> Outcome {
    let mut session = fleet.session()?;
    begin_everywhere(&mut session, 1)?;
    session.batch_execute("PREPARE TRANSACTION 'gxid'")?;
    Ok(())
}

/// What must be seen while 'gxid' is pending, whatever happened since.
fn assert_pending(fleet: &Fleet) -> Outcome {
    let mut session = fleet.session()?;
    let rows = view(&mut session)?;
    let transaction: String =
        one(&mut session, "SELECT transaction::text FROM pg_prepared_xacts WHERE gid = 'gxid'")?;
    let dbid: u32 =
        one(&mut session, "SELECT oid FROM pg_database WHERE datname = current_database()")?;
    let userid: u32 = one(&mut session, "SELECT current_user::regrole::oid")?;
    let mut expected = Vec::new();
    for number in [1, 2] {
        let gids = prepared_gids(fleet.shard(number))?;
        let [gid] = gids.as_slice() else { panic!("shard {number} has prepared {gids:?}") };
        let serverid = serverid(fleet, number)?;
        assert_eq!((Gid::parse(gid).serverid, Gid::parse(gid).userid), (serverid, userid));
        expected.push(Row {
            dbid,
            transaction: transaction.clone(),
            serverid,
            userid,
            status: "prepared".into(),
            identifier: gid.clone(),
        });
    }
    assert_eq!(rows, expected);
    Ok(())
}

fn settle(fleet: &Fleet, command: &str) -> Outcome {
    let mut another = fleet.session()?;
    another.batch_execute(&format!("{command} 'gxid'"))?;
    assert_settled(fleet);
    assert_everywhere(fleet, 1, command == "COMMIT PREPARED")?;
    assert_usable(&mut another);
    Ok(())
}

#[test]
fn the_view_has_exactly_its_columns() -> Outcome {
    let fleet = Fleet::start()?;
    let columns: String = one(
        &mut fleet.session()?,
        "SELECT string_agg(attname || ' ' || atttypid::regtype, ', ' ORDER BY attnum)
         FROM pg_attribute WHERE attrelid = 'pg_fdw_xacts'::regclass AND attnum > 0",
    )?;
    assert_eq!(
        columns,
        "dbid oid, transaction xid, serverid oid, userid oid, status text, identifier text, reason text"
    );
    Ok(())
}

#[test]
fn everyone_may_read_the_view() -> Outcome {
    let fleet = Fleet::start()?;
    fleet.session()?.batch_execute("CREATE ROLE reader LOGIN")?;
    prepare(&fleet)?;
    let mut reader = fleet.coordinator.client_for("postgres", "reader")?;
    assert_eq!(view(&mut reader)?.len(), 2);
    settle(&fleet, "ROLLBACK PREPARED")
}

#[test]
fn the_view_shows_participants_of_other_databases() -> Outcome {
    let fleet = Fleet::start()?;
    prepare(&fleet)?;
    fleet.session()?.batch_execute("CREATE DATABASE other")?;
    let mut other = fleet.coordinator.client_for("other", "postgres")?;
    other.batch_execute("CREATE EXTENSION pg_fdw_xacts CASCADE")?;
    assert_eq!(view(&mut other)?, view(&mut fleet.session()?)?);
    assert_eq!(view(&mut other)?.len(), 2);
    settle(&fleet, "COMMIT PREPARED")
}

#[test]
fn commit_prepared_from_another_session() -> Outcome {
    let fleet = Fleet::start()?;
    prepare(&fleet)?;
    assert_pending(&fleet)?;
    settle(&fleet, "COMMIT PREPARED")
}

#[test]
fn rollback_prepared_from_another_session() -> Outcome {
    let fleet = Fleet::start()?;
    prepare(&fleet)?;
    assert_pending(&fleet)?;
    settle(&fleet, "ROLLBACK PREPARED")
}

#[test]
fn commit_prepared_after_a_clean_restart_of_the_coordinator() -> Outcome {
    after_restart("COMMIT PREPARED", |fleet| fleet.coordinator.restart())
}

#[test]
fn rollback_prepared_after_a_clean_restart_of_the_coordinator() -> Outcome {
    after_restart("ROLLBACK PREPARED", |fleet| fleet.coordinator.restart())
}

#[test]
fn commit_prepared_after_a_crash_of_the_coordinator() -> Outcome {
    after_restart("COMMIT PREPARED", crash)
}

#[test]
fn rollback_prepared_after_a_crash_of_the_coordinator() -> Outcome {
    after_restart("ROLLBACK PREPARED", crash)
}

#[test]
fn commit_prepared_after_a_checkpoint_and_a_crash_of_the_coordinator() -> Outcome {
    after_restart("COMMIT PREPARED", |fleet| {
        fleet.session()?.batch_execute("CHECKPOINT")?;
        crash(fleet)
    })
}

#[test]
fn commit_prepared_after_a_crash_of_every_server() -> Outcome {
    after_restart("COMMIT PREPARED", |fleet| {
        fleet.coordinator.kill9()?;
        for number in [1, 2] {
            fleet.shard_mut(number).kill9()?;
            fleet.shard_mut(number).start()?;
        }
        fleet.coordinator.start()
    })
}

fn crash(fleet: &mut Fleet) -> Outcome {
    fleet.coordinator.kill9()?;
    fleet.coordinator.start()
}

fn after_restart(command: &str, restart: impl Fn(&mut Fleet) -> Outcome) -> Outcome {
    let mut fleet = Fleet::start()?;
    prepare(&fleet)?;
    assert_pending(&fleet)?;
    restart(&mut fleet)?;
    assert_pending(&fleet)?;
    settle(&fleet, command)
}

#[test]
fn a_single_writer_is_prepared_too() -> Outcome {
    let fleet = Fleet::start()?;
    let mut session = fleet.session()?;
    session.batch_execute("BEGIN; INSERT INTO ft1 VALUES (1, 'x')")?;
    session.batch_execute("PREPARE TRANSACTION 'gxid'")?;
    assert_eq!(view(&mut session)?.len(), 1);
    assert_eq!(prepared_gids(fleet.shard(1))?.len(), 1);
    session.batch_execute("COMMIT PREPARED 'gxid'")?;
    assert_settled(&fleet);
    assert_eq!(fleet.ids_on_shard(1)?, [1]);
    Ok(())
}

#[test]
fn a_transaction_without_foreign_writes_is_postgresqls_own_affair() -> Outcome {
    let fleet = Fleet::start()?;
    let mut session = fleet.session()?;
    session.batch_execute("BEGIN; INSERT INTO lt VALUES (1, 'x'); SELECT * FROM ft1")?;
    session.batch_execute("PREPARE TRANSACTION 'gxid'")?;
    assert_eq!(view(&mut session)?, []);
    session.batch_execute("COMMIT PREPARED 'gxid'")?;
    assert_eq!(fleet.ids_in_lt()?, [1]);
    assert_settled(&fleet);
    Ok(())
}

#[test]
fn the_session_goes_on_with_other_transactions_while_gxid_is_pending() -> Outcome {
    let fleet = Fleet::start()?;
    let mut session = fleet.session()?;
    begin_everywhere(&mut session, 1)?;
    session.batch_execute("PREPARE TRANSACTION 'gxid'")?;
    assert_commits(&fleet, &mut session, 2)?;
    assert_pending(&fleet)?;
    session.batch_execute("COMMIT PREPARED 'gxid'")?;
    assert_settled(&fleet);
    assert_everywhere(&fleet, 1, true)
}

#[test]
fn settlement_with_a_shard_down_succeeds_with_a_warning_and_is_delivered_later() -> Outcome {
    for command in ["COMMIT PREPARED", "ROLLBACK PREPARED"] {
        let mut fleet = Fleet::start()?;
        prepare(&fleet)?;
        fleet.shard_mut(1).stop(StopMode::Fast)?;
        let (mut session, notices) = session_with_notices(&fleet)?;
        session.batch_execute(&format!("{command} 'gxid'"))?;
        let warnings = notices.take();
        assert!(
            warnings.iter().any(|line| line.starts_with("WARNING") && line.contains("shard1")),
            "{command}: no warning that names the server: {warnings:#?}"
        );
        fleet.shard_mut(1).start()?;
        assert_settled(&fleet);
        assert_everywhere(&fleet, 1, command == "COMMIT PREPARED")?;
    }
    Ok(())
}

/// The table has a row for each transaction of the last minutes: no settlement may cost more the
/// more there are.
#[test]
fn settling_does_not_read_through_the_decision_table() -> Outcome {
    let fleet = Fleet::start_with(&FleetOptions {
        // The resolver reads it, too: only this session's scans are counted.
        coordinator: vec![("track_counts", "off")],
        ..FleetOptions::default()
    })?;
    let mut session = fleet.session()?;
    session.batch_execute("SET track_counts = on")?;
    let settle = |session: &mut Client, id: i32, how: &str| -> Outcome {
        begin_everywhere(session, id)?;
        session.batch_execute("PREPARE TRANSACTION 'gxid'")?;
        session.batch_execute(&format!("{how} PREPARED 'gxid'"))?;
        Ok(())
    };
    settle(&mut session, 1, "COMMIT")?;
    let before = scans(&mut session)?;
    for id in 2..5 {
        settle(&mut session, id, "COMMIT")?;
        settle(&mut session, -id, "ROLLBACK")?;
        session.batch_execute("BEGIN; CREATE TABLE local (); PREPARE TRANSACTION 'local'")?;
        session.batch_execute("ROLLBACK PREPARED 'local'")?;
    }
    assert_eq!(scans(&mut session)?, before);
    assert_settled(&fleet);
    assert_eq!(fleet.ids_on_shard(1)?, [1, 2, 3, 4]);
    assert_eq!(fleet.ids_on_shard(2)?, [1, 2, 3, 4]);
    Ok(())
}

/// How often the decision table has been read through.
fn scans(session: &mut Client) -> anyhow::Result<i64> {
    session.batch_execute("SELECT pg_stat_force_next_flush()")?;
    one(
        session,
        "SELECT seq_scan FROM pg_stat_all_tables WHERE schemaname = 'fdw_xacts' AND relname = 'decision'",
    )
}
