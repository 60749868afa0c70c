//! `pg_fdw_xacts_restore_point()`: on which servers it makes points, when it refuses, and what it
//! says when points were made that must not be used.

use pg_test::oracle::{assert_settled, expect_error, one};
use pg_test::proxy::NewConnections;
use pg_test::{Cluster, DEADLINE, Fault, Fleet, Point, wait_until};
use postgres::Client;

use crate::support::{
    Outcome, assert_everywhere, begin_everywhere, in_background, session_with_notices, statuses,
};

/// What makes a point on a shard begins with this.
const CREATES: &str = "SELECT CAST(p AS pg_catalog.text)";

fn make(name: &str) -> String {
    format!("SELECT * FROM pg_fdw_xacts_restore_point('{name}')")
}

/// How many restore points of that name a server has made.
fn count(server: &Cluster, name: &str) -> anyhow::Result<usize> {
    let log = std::fs::read_to_string(server.log().path())?;
    Ok(log.matches(&format!("restore point \"{name}\" created at")).count())
}

#[test]
fn each_server_gets_one_point_and_a_row() -> Outcome {
    let fleet = Fleet::start()?;
    let mut session = fleet.session()?;
    // Another database of shard 1, this server itself, and one that nobody can use.
    let (shard, here) = (fleet.shard(1).port(), fleet.coordinator.port());
    fleet.shard(1).client()?.batch_execute("CREATE DATABASE other")?;
    for (name, port, database) in [("twin", shard, "other"), ("here", here, "postgres")] {
        session.batch_execute(&format!(
            "CREATE SERVER {name} FOREIGN DATA WRAPPER pg_fdw_xacts
                 OPTIONS (host '127.0.0.1', port '{port}', dbname '{database}');
             CREATE USER MAPPING FOR CURRENT_USER SERVER {name} OPTIONS (user 'postgres')"
        ))?;
    }
    session.batch_execute("CREATE SERVER unused FOREIGN DATA WRAPPER pg_fdw_xacts")?;
    let rows = session.query(
        "SELECT coalesce(server, '-'), lsn::text, wal_file, lsn <= pg_current_wal_flush_lsn()
         FROM pg_fdw_xacts_restore_point('before release 7')",
        &[],
    )?;
    let servers: Vec<&str> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(servers, ["-", "here", "shard1", "shard2", "twin"]);
    let lsn = |place: usize| rows[place].get::<_, &str>(1);
    assert_eq!((lsn(0), lsn(2)), (lsn(1), lsn(4)));
    assert!(rows[0].get::<_, bool>(3), "it is on disk");
    assert!(rows.iter().all(|row| row.get::<_, &str>(2).len() == 24), "{rows:?}");
    for server in fleet.servers() {
        assert_eq!(count(server, "before release 7")?, 1, "{}", server.name());
    }
    for (place, number) in [(2, 1), (3, 2)] {
        let sql = format!("SELECT '{}'::pg_lsn <= pg_current_wal_flush_lsn()", lsn(place));
        assert!(one::<bool>(&mut fleet.shard(number).client()?, &sql)?, "shard {number}");
    }
    Ok(())
}

#[test]
fn what_cannot_work_is_refused_before_any_point_is_made() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let mut session = fleet.session()?;
    for name in ["", "it''s", &"x".repeat(64), "für"] {
        expect_error(session.batch_execute(&make(name)), "22023");
    }
    session.batch_execute("BEGIN; INSERT INTO lt VALUES (1)")?;
    expect_error(session.batch_execute(&make("p")), "25001");
    session.batch_execute("ROLLBACK; BEGIN; INSERT INTO ft1 VALUES (1)")?;
    expect_error(session.batch_execute(&make("p")), "25001");
    session.batch_execute("ROLLBACK; CREATE ROLE plain LOGIN; GRANT pg_monitor TO plain")?;

    let mut plain = fleet.coordinator.client_for("postgres", "plain")?;
    expect_error(plain.batch_execute(&make("p")), "42501");
    session.batch_execute("GRANT EXECUTE ON FUNCTION pg_fdw_xacts_restore_point(text) TO plain")?;
    expect_error(plain.batch_execute(&make("p")), "42501");
    session.batch_execute("GRANT USAGE ON FOREIGN SERVER shard1, shard2 TO plain")?;
    expect_error(plain.batch_execute(&make("p")), "42704");
    for number in [1, 2] {
        fleet.shard(number).client()?.batch_execute("CREATE ROLE plain LOGIN")?;
        session.batch_execute(&format!(
            "CREATE USER MAPPING FOR plain SERVER shard{number}
                 OPTIONS (user 'plain', password_required 'false')"
        ))?;
    }
    // Not granted here, then not there.
    expect_error(plain.batch_execute(&make("p")), "42501");
    session.batch_execute("GRANT EXECUTE ON FUNCTION pg_create_restore_point(text) TO plain")?;
    expect_error(plain.batch_execute(&make("p")), "42501");

    fleet.proxy(2).set_new_connections(NewConnections::Refused);
    expect_error(session.batch_execute(&make("p")), "08001");
    fleet.proxy(2).set_new_connections(NewConnections::Served);
    for server in fleet.servers() {
        assert_eq!(count(server, "p")?, 0, "{}", server.name());
    }
    for number in [1, 2] {
        fleet
            .shard(number)
            .client()?
            .batch_execute("GRANT EXECUTE ON FUNCTION pg_create_restore_point(text) TO plain")?;
    }
    plain.batch_execute(&make("p"))?;
    Ok(())
}

#[test]
fn a_standby_has_the_point_of_its_primary() -> Outcome {
    let fleet = Fleet::start()?;
    let mut standby = Cluster::standby_of(fleet.shard(1), "standby")?;
    standby.start()?;
    let mut session = fleet.session()?;
    session.batch_execute(&format!(
        "CREATE SERVER standby FOREIGN DATA WRAPPER pg_fdw_xacts
             OPTIONS (host '127.0.0.1', port '{}', dbname 'postgres');
         CREATE USER MAPPING FOR CURRENT_USER SERVER standby OPTIONS (user 'postgres')",
        standby.port()
    ))?;
    let of = |server: &str| format!("(SELECT lsn FROM p WHERE server = '{server}')");
    let sql = format!(
        "WITH p AS MATERIALIZED ({}) SELECT {} = {}",
        make("p"),
        of("standby"),
        of("shard1")
    );
    assert!(one::<bool>(&mut session, &sql)?);
    session.batch_execute("DROP SERVER shard1 CASCADE")?;
    expect_error(session.batch_execute(&make("q")), "55000");
    assert_eq!(count(&fleet.coordinator, "q")?, 0);
    Ok(())
}

/// A transaction that is decided while the points are made is delivered when they are. The lease is
/// one second, which a busy machine may exceed: then the points must not be used, and it says so.
#[test]
fn nothing_is_delivered_between_the_points() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    for id in 1..=20 {
        let mut writer = fleet.session()?;
        begin_everywhere(&mut writer, id)?;
        let mark = fleet.shard(1).log().mark()?;
        let hit = fleet.proxy(2).inject(Fault::hold(Point::Statement, CREATES));
        let point = in_background(fleet.session()?, &make(&format!("p{id}")));
        hit.wait()?;
        let commit = in_background(writer, "COMMIT");
        wait_until("it is decided", DEADLINE, || {
            Ok(statuses(&fleet, 1)?.iter().all(|status| status == "committing")
                || commit.is_finished())
        })?;
        let delivered = fleet.shard(1).log().statements_since(mark)?;
        hit.release();
        let (_, made) = point.join();
        commit.join().1?;
        assert_settled(&fleet);
        assert_everywhere(&fleet, id, true)?;
        match made {
            Ok(()) => {
                assert!(!delivered.iter().any(|s| s.starts_with("COMMIT PREPARED")));
                return Ok(());
            }
            Err(error) => assert_eq!(error.code().map(|code| code.code()), Some("55000")),
        }
    }
    panic!("twenty times, the lease of one second was not long enough");
}

#[test]
fn points_that_must_not_be_used_are_named() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let mut session = fleet.session()?;
    // Shard 1 has its point, shard 2 has not.
    let hit = fleet.proxy(2).inject(Fault::cut(Point::Statement, CREATES));
    let error = expect_error(session.batch_execute(&make("cut")), "55000");
    hit.wait()?;
    assert_eq!(error.message(), "restore point \"cut\" cannot be used");
    let detail = error.detail().unwrap_or_default();
    assert!(
        detail.ends_with("This server and server \"shard1\" have a restore point of that name."),
        "{detail}"
    );
    assert!(error.hint().unwrap_or_default().contains("under another name"), "{error:?}");
    for (server, made) in fleet.servers().zip([1, 1, 0]) {
        assert_eq!(count(server, "cut")?, made, "{}", server.name());
    }

    // A cancel while shard 2 is waited for.
    let pid: i32 = one(&mut session, "SELECT pg_backend_pid()")?;
    let hit = fleet.proxy(2).inject(Fault::hold(Point::Answer, CREATES));
    let point = in_background(session, &make("cancelled"));
    hit.wait()?;
    let cancelled: bool = one(&mut fleet.session()?, &format!("SELECT pg_cancel_backend({pid})"))?;
    assert!(cancelled);
    let (mut session, made) = point.join();
    let error = expect_error(made, "55000");
    assert!(error.detail().unwrap_or_default().contains("before the cancel"), "{error:?}");
    hit.release();

    // Somebody has not waited.
    let hit = fleet.proxy(2).inject(Fault::hold(Point::Answer, CREATES));
    let point = in_background(session, &make("late"));
    hit.wait()?;
    let mut writer = fleet.session()?;
    begin_everywhere(&mut writer, 1)?;
    writer.batch_execute("COMMIT")?;
    hit.release();
    let (after, made) = point.join();
    session = after;
    let error = expect_error(made, "55000");
    let detail = error.detail().unwrap_or_default();
    assert!(detail.starts_with("Before the last of the points was made"), "{detail}");
    assert!(detail.contains("servers \"shard1\", \"shard2\" have"), "{detail}");

    session.batch_execute(&make("at last"))?;
    assert_settled(&fleet);
    Ok(())
}

/// A participant that is written down between the points would not be known in the restored state.
#[test]
fn a_participant_that_is_new_meanwhile_is_noticed() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let hit = fleet.proxy(2).inject(Fault::hold(Point::Statement, CREATES));
    let point = in_background(fleet.session()?, &make("p"));
    hit.wait()?;
    let mut writer = fleet.session()?;
    begin_everywhere(&mut writer, 1)?;
    writer.batch_execute("PREPARE TRANSACTION 'gxid'")?;
    hit.release();
    expect_error(point.join().1, "55000");
    writer.batch_execute("COMMIT PREPARED 'gxid'")?;
    assert_settled(&fleet);
    Ok(())
}

#[test]
fn servers_of_other_databases_are_warned_of() -> Outcome {
    let fleet = Fleet::start()?;
    let mut other: Client = fleet.connect_database("other")?;
    begin_everywhere(&mut other, 1)?;
    other.batch_execute("COMMIT")?;
    let (mut session, notices) = session_with_notices(&fleet)?;
    session.batch_execute(&make("p"))?;
    let told = notices.take();
    assert!(told.iter().any(|n| n.contains("only database \"other\" knows")), "{told:?}");
    Ok(())
}
