//! The resolver and the library believe the extension's own tables alone: not those of the same
//! names that somebody made in a database without the extension, nor what a superuser has done to
//! them by mistake.

use pg_test::oracle::{assert_settled, expect_error, one, prepared_gids};
use pg_test::{DEADLINE, Fleet, StopMode, wait_until};

use crate::support::{Outcome, assert_commits, start};

/// A database whose owner is no superuser.
fn of_mallory(fleet: &Fleet, databases: &[&str]) -> Outcome {
    let mut session = fleet.session()?;
    session.batch_execute("CREATE ROLE mallory LOGIN")?;
    for database in databases {
        session.batch_execute(&format!("CREATE DATABASE {database} OWNER mallory"))?;
    }
    Ok(())
}

/// Waits until the launcher's workers have looked at a database, and found nothing to do there.
fn assert_left_alone(fleet: &Fleet, database: &str) -> Outcome {
    let mut session = fleet.session()?;
    // It is refused until somebody has looked, which it waits for two seconds.
    wait_until(&format!("database {database} is dropped"), DEADLINE, || {
        Ok(session.batch_execute(&format!("DROP DATABASE {database}")).is_ok())
    })
}

/// Red on 0.2.0: the whole server crashed again and again from the next start on.
#[test]
fn tables_of_the_same_names_with_other_columns() -> Outcome {
    let shapes = [
        "CREATE TABLE fdw_xacts.identity (database text, identity text);
         INSERT INTO fdw_xacts.identity VALUES ('x', 'x')",
        "CREATE TABLE fdw_xacts.identity (a text, b text, c text);
         INSERT INTO fdw_xacts.identity VALUES ('x', 'x', 'x');
         CREATE TABLE fdw_xacts.decision (nonce text, participants text, xids text);
         INSERT INTO fdw_xacts.decision VALUES ('x', 'x', 'x')",
        "CREATE VIEW fdw_xacts.identity AS SELECT 1 AS database, 2 AS identity",
        "CREATE TABLE fdw_xacts.identity (database oid, identity bigint);
         INSERT INTO fdw_xacts.identity SELECT oid, 4711 FROM pg_database WHERE datname = current_database();
         CREATE TABLE fdw_xacts.participant (id text, serverid text, userid text, system_identifier text, database bigint);
         INSERT INTO fdw_xacts.participant VALUES ('x', 'x', 'x', 'x', 1)",
    ];
    let databases = ["evil0", "evil1", "evil2", "evil3"];
    let mut fleet = Fleet::start()?;
    of_mallory(&fleet, &databases)?;
    for (database, shape) in databases.iter().zip(shapes) {
        let mut mallory = fleet.coordinator.client_for(database, "mallory")?;
        mallory.batch_execute(&format!("CREATE SCHEMA fdw_xacts; {shape}"))?;
    }
    fleet.coordinator.stop(StopMode::Fast)?;
    fleet.coordinator.start()?;
    // A crash would end this session; the harness looks for one in the log, too.
    let mut session = fleet.session()?;
    for database in databases {
        assert_left_alone(&fleet, database)?;
    }
    assert_commits(&fleet, &mut session, 1)?;
    assert_settled(&fleet);
    Ok(())
}

/// Red on 0.2.0: the resolver of mallory's database connected to the shard as its superuser,
/// without a password, and rolled back what another database had prepared there.
#[test]
fn tables_with_the_identity_of_another_database() -> Outcome {
    let (mut fleet, mut session) = start()?;
    assert_commits(&fleet, &mut session, 1)?;
    let identity: i64 = one(&mut session, "SELECT identity FROM fdw_xacts.identity")?;
    let gid = format!("px_{identity:020}{:018}_1_1", 4711);
    of_mallory(&fleet, &["evil"])?;
    // Servers are allowed to mallory; somewhere where the victim's resolver does not look just now.
    fleet.shard(1).client()?.batch_execute("CREATE DATABASE elsewhere")?;
    let mut shard = fleet.shard(1).client_for("elsewhere", "postgres")?;
    shard
        .batch_execute(&format!("BEGIN; CREATE TABLE prepared (); PREPARE TRANSACTION '{gid}'"))?;
    let system_identifier: i64 =
        one(&mut shard, "SELECT system_identifier FROM pg_control_system()")?;
    drop(shard);
    fleet.coordinator.client_for("evil", "postgres")?.batch_execute(
        "CREATE EXTENSION postgres_fdw; GRANT USAGE ON FOREIGN DATA WRAPPER postgres_fdw TO mallory",
    )?;
    fleet.coordinator.client_for("evil", "mallory")?.batch_execute(&format!(
        "CREATE SERVER s FOREIGN DATA WRAPPER postgres_fdw
             OPTIONS (host '127.0.0.1', port '{}', dbname 'elsewhere');
         CREATE USER MAPPING FOR postgres SERVER s OPTIONS (user 'postgres');
         CREATE SCHEMA fdw_xacts;
         CREATE TABLE fdw_xacts.identity (database oid NOT NULL, identity bigint NOT NULL);
         CREATE TABLE fdw_xacts.participant (id integer NOT NULL, serverid oid NOT NULL, userid oid NOT NULL,
             system_identifier bigint NOT NULL, database text COLLATE \"C\" NOT NULL);
         CREATE TABLE fdw_xacts.decision (nonce bigint NOT NULL, participants bigint[] NOT NULL, xids bigint[] NOT NULL);
         CREATE TABLE fdw_xacts.forgotten (nonce bigint NOT NULL, participant integer NOT NULL);
         CREATE TABLE fdw_xacts.label (label text COLLATE \"C\" NOT NULL, at timestamptz NOT NULL, taken boolean NOT NULL);
         CREATE UNIQUE INDEX label_key ON fdw_xacts.label (label);
         CREATE TABLE fdw_xacts.expired (trace bigint NOT NULL, at timestamptz NOT NULL);
         INSERT INTO fdw_xacts.identity SELECT oid, {identity} FROM pg_database WHERE datname = current_database();
         INSERT INTO fdw_xacts.participant SELECT 1, oid, 10, {system_identifier}, 'elsewhere' FROM pg_foreign_server",
        fleet.port_of_shard(1)
    ))?;
    let mark = fleet.shard(1).log().mark()?;
    fleet.coordinator.stop(StopMode::Fast)?;
    fleet.coordinator.start()?;
    assert_left_alone(&fleet, "evil")?;
    assert_eq!(prepared_gids(fleet.shard(1))?, std::slice::from_ref(&gid));
    let statements = fleet.shard(1).log().statements_since(mark)?;
    assert!(!statements.iter().any(|s| s.starts_with("ROLLBACK PREPARED")), "{statements:#?}");
    fleet
        .shard(1)
        .client_for("elsewhere", "postgres")?
        .batch_execute(&format!("ROLLBACK PREPARED '{gid}'"))?;
    Ok(())
}

/// What a superuser may do by mistake ends in an error that says so, before anything is prepared.
/// Red on 0.2.0: crashes.
#[test]
fn tables_that_a_superuser_has_changed() -> Outcome {
    let (fleet, mut session) = start()?;
    assert_commits(&fleet, &mut session, 1)?;
    session.batch_execute("CREATE ROLE mallory")?;
    let changes = [
        (
            "ALTER TABLE fdw_xacts.decision ALTER participants TYPE text USING participants::text",
            "ALTER TABLE fdw_xacts.decision ALTER participants TYPE bigint[] USING participants::bigint[]",
        ),
        (
            "ALTER TABLE fdw_xacts.decision RENAME TO decisions",
            "ALTER TABLE fdw_xacts.decisions RENAME TO decision",
        ),
        (
            "ALTER EXTENSION pg_fdw_xacts DROP TABLE fdw_xacts.decision",
            "ALTER EXTENSION pg_fdw_xacts ADD TABLE fdw_xacts.decision",
        ),
        (
            "ALTER TABLE fdw_xacts.decision OWNER TO mallory",
            "ALTER TABLE fdw_xacts.decision OWNER TO CURRENT_USER",
        ),
        (
            "ALTER TABLE fdw_xacts.decision SET UNLOGGED",
            "ALTER TABLE fdw_xacts.decision SET LOGGED",
        ),
        (
            "ALTER SCHEMA fdw_xacts RENAME TO elsewhere",
            "ALTER SCHEMA elsewhere RENAME TO fdw_xacts",
        ),
    ];
    for (id, (change, back)) in (10..).zip(changes) {
        session.batch_execute("SELECT * FROM pg_fdw_xacts_resolve()")?;
        session.batch_execute(change)?;
        // A new session, and one that has used the table: that one notices whatever changes the
        // table itself.
        let mut writers = vec![fleet.session()?];
        if !change.starts_with("ALTER EXTENSION") {
            writers.push(fleet.session()?);
            std::mem::swap(&mut writers[1], &mut session);
        }
        for writer in &mut writers {
            writer.batch_execute(
                "BEGIN; INSERT INTO ft1 VALUES (9, 'x'); INSERT INTO ft2 VALUES (9, 'x')",
            )?;
            let error = expect_error(writer.batch_execute("COMMIT"), "55000");
            assert!(
                error.message().contains("is not what pg_fdw_xacts has made"),
                "{change}: {error:#?}"
            );
            assert!(error.hint().is_some(), "{change}: {error:#?}");
        }
        if let Some(used) = writers.get_mut(1) {
            std::mem::swap(used, &mut session);
        }
        session.batch_execute(back)?;
        wait_until(back, DEADLINE, || {
            Ok(session.batch_execute("SELECT * FROM pg_fdw_xacts_resolve()").is_ok())
        })?;
        assert_commits(&fleet, &mut session, id)?;
    }
    // The label's table.
    session.batch_execute("ALTER TABLE fdw_xacts.label DROP COLUMN taken")?;
    expect_error(session.batch_execute("BEGIN; SELECT pg_fdw_xacts_track('a')"), "55000");
    session.batch_execute("ROLLBACK; ALTER TABLE fdw_xacts.label ADD COLUMN taken boolean")?;
    assert_settled(&fleet);
    Ok(())
}

/// A column more is no harm. Red on 0.2.0: an assertion failed in each COMMIT.
#[test]
fn a_column_that_somebody_has_added() -> Outcome {
    let (mut fleet, mut session) = start()?;
    for table in ["identity", "decision", "forgotten", "label", "expired"] {
        session.batch_execute(&format!(
            "ALTER TABLE fdw_xacts.{table} ADD COLUMN note text, ADD COLUMN made timestamptz DEFAULT now()"
        ))?;
    }
    assert_commits(&fleet, &mut session, 1)?;
    session.batch_execute(
        "BEGIN; SELECT pg_fdw_xacts_track('a'); INSERT INTO ft1 VALUES (2, 'x'); COMMIT",
    )?;
    let outcome: String = one(&mut session, "SELECT pg_fdw_xacts_outcome('a')")?;
    assert!(outcome.starts_with("commit"), "{outcome}");
    fleet.coordinator.kill9()?;
    fleet.coordinator.start()?;
    let mut session = fleet.session()?;
    assert_commits(&fleet, &mut session, 3)?;
    assert_settled(&fleet);
    Ok(())
}
