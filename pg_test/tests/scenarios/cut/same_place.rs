//! Which snapshot a transaction's xid is looked for in: several servers at one place, one server by
//! several mappings, copies of one server, a standby.

use pg_test::oracle::{assert_settled, expect_error, one};
use pg_test::proxy::Hit;
use pg_test::{Cluster, Fault, Fleet, Point, Proxy};
use postgres::Client;

use super::held::{after_waiting, half_delivered, reader};
use crate::support::{Background, Outcome, assert_commits, begin_everywhere, in_background};

/// Another server object for the place of shard `number`, reached without the proxy.
fn another_server(fleet: &Fleet, number: usize) -> Outcome {
    let port = fleet.shard(number).port();
    fleet.session()?.batch_execute(&format!(
        "CREATE SERVER again FOREIGN DATA WRAPPER pg_fdw_xacts
             OPTIONS (host '127.0.0.1', port '{port}', dbname 'postgres');
         CREATE USER MAPPING FOR CURRENT_USER SERVER again OPTIONS (user 'postgres');
         CREATE FOREIGN TABLE again (id int NOT NULL, v text) SERVER again OPTIONS (table_name 't')"
    ))?;
    Ok(())
}

/// The rows of all these tables, each of which `reader` must see `expected` times after waiting.
fn is_waited_for(
    fleet: &Fleet,
    reader: Client,
    tables: &'static [&'static str],
    (hit, writer): (Hit, Background),
) -> Outcome {
    let ask = |reader: &mut Client| {
        let counts: Vec<String> =
            tables.iter().map(|table| format!("(SELECT count(*) FROM {table})")).collect();
        let row = reader.query_one(&format!("SELECT ARRAY[{}]", counts.join(", ")), &[])?;
        Ok(row.get::<_, Vec<i64>>(0))
    };
    let release = || {
        hit.release();
        Ok(())
    };
    let (_, counts) = after_waiting(fleet, reader, ask, release)?;
    assert_eq!(counts?, vec![1; tables.len()], "{tables:?}");
    writer.join().1?;
    Ok(())
}

/// What was written by one server is looked for in the snapshot that another has taken there.
#[test]
fn one_place_by_two_servers() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    another_server(&fleet, 2)?;
    for tables in [&["ft1", "again"], &["again", "ft1"]] as [&'static [&'static str]; 2] {
        let held = half_delivered(&fleet, fleet.session()?, 1, "COMMIT")?;
        is_waited_for(&fleet, reader(&fleet)?, tables, held)?;
        fleet.session()?.batch_execute("DELETE FROM ft1; DELETE FROM ft2; DELETE FROM lt")?;
    }
    let held = half_delivered(&fleet, fleet.session()?, 1, "COMMIT")?;
    is_waited_for(&fleet, reader(&fleet)?, &["ft1", "ft2", "again"], held)?;
    assert_settled(&fleet);
    Ok(())
}

/// Two servers at one place are two snapshots, which must show the same.
#[test]
fn two_servers_at_one_place_show_the_same() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    another_server(&fleet, 1)?;
    let mut reader = reader(&fleet)?;
    reader.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ")?;
    assert_eq!(one::<i64>(&mut reader, "SELECT count(*) FROM ft1")?, 0);
    assert_commits(&fleet, &mut fleet.session()?, 1)?;
    expect_error(reader.query("SELECT count(*) FROM again", &[]), "40001");
    reader.batch_execute("ROLLBACK; BEGIN ISOLATION LEVEL REPEATABLE READ")?;
    assert_eq!(one::<i64>(&mut reader, "SELECT count(*) FROM ft1")?, 1);
    assert_eq!(one::<i64>(&mut reader, "SELECT count(*) FROM again")?, 1);
    reader.batch_execute("COMMIT")?;
    Ok(())
}

#[test]
fn one_server_by_two_mappings() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    fleet.session()?.batch_execute(
        "CREATE ROLE other SUPERUSER LOGIN;
         CREATE USER MAPPING FOR other SERVER shard1 OPTIONS (user 'postgres');
         CREATE USER MAPPING FOR other SERVER shard2 OPTIONS (user 'postgres');
         CREATE VIEW v1 AS SELECT * FROM ft1; ALTER VIEW v1 OWNER TO other;
         CREATE VIEW v2 AS SELECT * FROM ft2; ALTER VIEW v2 OWNER TO other",
    )?;
    let held = half_delivered(&fleet, fleet.session()?, 1, "COMMIT")?;
    is_waited_for(&fleet, reader(&fleet)?, &["v1", "ft2", "ft1", "v2"], held)?;
    fleet.session()?.batch_execute("DELETE FROM ft1; DELETE FROM ft2; DELETE FROM lt")?;
    // All of another user's.
    let held = half_delivered(&fleet, fleet.session()?, 1, "COMMIT")?;
    is_waited_for(&fleet, reader(&fleet)?, &["v1", "v2"], held)?;
    assert_settled(&fleet);
    Ok(())
}

/// Shard 2 is a copy of shard 1, whose xids have gone far ahead since then.
fn copied() -> anyhow::Result<(Fleet, Proxy)> {
    let mut fleet = Fleet::start_proxied()?;
    fleet.shard_mut(1).stop(pg_test::StopMode::Fast)?;
    let mut copy = Cluster::copy_of(fleet.shard_mut(1), "copy")?;
    copy.configure(&[("port", &copy.port().to_string())])?;
    copy.start()?;
    fleet.shard_mut(1).start()?;
    let proxy = Proxy::start(copy.port())?;
    fleet.replace_shard(2, copy);
    let mut session = fleet.session()?;
    session.batch_execute(&format!("ALTER SERVER shard2 OPTIONS (SET port '{}')", proxy.port()))?;
    for _ in 0..100 {
        fleet.shard(1).client()?.batch_execute("INSERT INTO t VALUES (0, ''); DELETE FROM t")?;
    }
    Ok((fleet, proxy))
}

/// Numbers of transactions of the one are not looked for on the other, where they lie in the future
/// or belong to something else. Without the start times in a place, this reader waited in vain.
#[test]
fn two_copies_of_one_server() -> Outcome {
    let (fleet, proxy) = copied()?;
    let sum = "SELECT (SELECT count(*) FROM ft1) + (SELECT count(*) FROM ft2)";
    let mut session = reader(&fleet)?;
    assert_eq!(one::<i64>(&mut session, sum)?, 0);
    // As long as this one reads, what is confirmed is kept for others.
    let mut long = reader(&fleet)?;
    long.batch_execute("BEGIN; SELECT count(*) FROM ft1")?;
    session.batch_execute("SET pg_fdw_xacts.commit_timeout = '3s'")?;
    for id in 1..=3 {
        session.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ")?;
        assert_eq!(one::<i64>(&mut session, "SELECT count(*) FROM ft1")?, i64::from(id) - 1);
        session.batch_execute("SELECT count(*) FROM ft2; COMMIT")?;
        assert_commits(&fleet, &mut fleet.session()?, id)?;
        assert_eq!(one::<i64>(&mut session, sum)?, i64::from(id) * 2);
    }
    let mut writer = fleet.session()?;
    begin_everywhere(&mut writer, 4)?;
    let hit = proxy.inject(Fault::hold(Point::Statement, "COMMIT PREPARED"));
    let writer = in_background(writer, "COMMIT");
    hit.wait()?;
    pg_test::wait_until("shard 1 has it", pg_test::DEADLINE, || {
        Ok(fleet.ids_on_shard(1)?.contains(&4))
    })?;
    let ask = move |reader: &mut Client| Ok(reader.query_one(sum, &[])?.get::<_, i64>(0));
    let release = || {
        hit.release();
        Ok(())
    };
    let (_, seen) = after_waiting(&fleet, reader(&fleet)?, ask, release)?;
    assert_eq!(seen?, 8);
    writer.join().1?;
    assert_settled(&fleet);
    Ok(())
}

/// The coordinator's own database, and a server that leads back there: two snapshots of one place.
///
/// Red with the second name before it was escaped here as the server does it: the table was empty,
/// and not by way of the server.
#[test]
fn a_server_that_leads_back_here_shows_what_the_table_does() -> Outcome {
    let fleet = Fleet::start()?;
    let servers = [
        ("back", fleet.coordinator.port()),
        ("read", fleet.port_of_shard(1)),
        ("other", fleet.port_of_shard(2)),
    ];
    for (id, database) in [(1, "back"), (2, r"b\ck")] {
        let create = format!(r#"CREATE DATABASE "{database}" TEMPLATE template0"#);
        fleet.session()?.batch_execute(&create)?;
        let connect = || fleet.coordinator.client_for(database, "postgres");
        let (mut writer, mut reader) = (connect()?, connect()?);
        writer.batch_execute("CREATE EXTENSION pg_fdw_xacts CASCADE; CREATE TABLE t (id int)")?;
        for (name, port) in servers {
            let dbname = if name == "back" { database } else { "postgres" };
            writer.batch_execute(&format!(
                "CREATE SERVER {name} FOREIGN DATA WRAPPER pg_fdw_xacts
                     OPTIONS (host '127.0.0.1', port '{port}', dbname '{dbname}');
                 CREATE USER MAPPING FOR CURRENT_USER SERVER {name} OPTIONS (user 'postgres');
                 CREATE FOREIGN TABLE {name} (id int) SERVER {name} OPTIONS (table_name 't')"
            ))?;
        }
        reader.batch_execute(
            "SET pg_fdw_xacts.consistent_reads = on;
             BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM read",
        )?;
        writer.batch_execute(&format!(
            "BEGIN; INSERT INTO back VALUES ({id}); INSERT INTO other VALUES ({id}); COMMIT"
        ))?;
        assert_eq!(one::<i64>(&mut reader, "SELECT count(*) FROM t")?, 0);
        expect_error(reader.query("SELECT count(*) FROM back", &[]), "40001");
    }
    Ok(())
}

/// A standby does not tell what is in progress: it is refused where several are read together.
#[test]
fn a_shard_in_recovery_is_read_alone() -> Outcome {
    let fleet = Fleet::start()?;
    assert_commits(&fleet, &mut fleet.session()?, 1)?;
    let mut standby = Cluster::standby_of(fleet.shard(2), "standby")?;
    standby.start()?;
    fleet.shard(2).wait_for_standby(&standby)?;
    let port = standby.port();
    let mut session = reader(&fleet)?;
    session.batch_execute(&format!(
        "CREATE SERVER standby FOREIGN DATA WRAPPER pg_fdw_xacts
             OPTIONS (host '127.0.0.1', port '{port}', dbname 'postgres');
         CREATE USER MAPPING FOR CURRENT_USER SERVER standby OPTIONS (user 'postgres');
         CREATE FOREIGN TABLE copy (id int NOT NULL, v text) SERVER standby OPTIONS (table_name 't')"
    ))?;
    assert_eq!(one::<i64>(&mut session, "SELECT count(*) FROM copy")?, 1);
    let both = "SELECT (SELECT count(*) FROM ft1) + (SELECT count(*) FROM copy)";
    for begin in ["BEGIN", "BEGIN ISOLATION LEVEL REPEATABLE READ"] {
        session.batch_execute(begin)?;
        assert_eq!(one::<i64>(&mut session, "SELECT count(*) FROM copy")?, 1, "alone: {begin}");
        let refused = expect_error(session.query(both, &[]), "55000");
        assert!(refused.message().contains("\"standby\" is in recovery"), "{refused:#?}");
        session.batch_execute("ROLLBACK")?;
    }
    expect_error(session.batch_execute("SELECT pg_fdw_xacts_snapshot()"), "55000");
    session.batch_execute("SET pg_fdw_xacts.consistent_reads = off")?;
    assert_eq!(one::<i64>(&mut session, both)?, 2);
    // Once it is promoted it is a server like any other.
    standby.promote()?;
    let mut session = reader(&fleet)?;
    assert_eq!(one::<i64>(&mut session, both)?, 2);
    Ok(())
}
