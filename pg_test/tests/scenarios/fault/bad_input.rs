//! Wrong options, missing settings and unfit servers: each a clear error with a hint at the time it
//! can first be known, and the session goes on.

use pg_test::oracle::{assert_settled, assert_usable, expect_error, prepared_gids};
use pg_test::{Cluster, Fleet, FleetOptions, Installation, StopMode};
use postgres::error::DbError;

use crate::support::{NONE, Outcome, assert_commits, assert_everywhere, begin_everywhere};

/// The error says `message` somewhere, and its hint or detail tells of `advice`.
#[track_caller]
fn assert_says(error: &DbError, message: &str, advice: &str) {
    let text = format!("{} {}", error.message(), error.where_().unwrap_or_default());
    assert!(text.contains(message), "'{message}' is not in the message: {error:#?}");
    let help =
        format!("{} {}", error.hint().unwrap_or_default(), error.detail().unwrap_or_default());
    assert!(help.contains(advice), "'{advice}' is neither in hint nor in detail: {error:#?}");
}

#[test]
fn an_unknown_server_option() -> Outcome {
    let fleet = Fleet::start()?;
    let mut session = fleet.session()?;
    let error = expect_error(
        session.batch_execute(
            "CREATE SERVER s FOREIGN DATA WRAPPER pg_fdw_xacts OPTIONS (hosst 'localhost')",
        ),
        "HV00D",
    );
    assert_says(&error, "hosst", "host");
    assert_usable(&mut session);
    Ok(())
}

#[test]
fn the_options_of_postgres_fdw_and_our_own_are_accepted() -> Outcome {
    let fleet = Fleet::start()?;
    let mut session = fleet.session()?;
    session.batch_execute(
        "CREATE SERVER s FOREIGN DATA WRAPPER pg_fdw_xacts
             OPTIONS (host 'localhost', fetch_size '10', sslmode 'prefer', two_phase_commit 'off')",
    )?;
    session.batch_execute("ALTER SERVER s OPTIONS (SET two_phase_commit 'on')")?;
    for (name, value) in [("two_phase_commit", "perhaps"), ("fetch_size", "-1")] {
        let result =
            session.batch_execute(&format!("ALTER SERVER s OPTIONS (SET {name} '{value}')"));
        let error = result.expect_err("a wrong value");
        let report = error.as_db_error().expect("the coordinator answers");
        assert!(report.message().contains(name), "{report:#?}");
        assert_usable(&mut session);
    }
    Ok(())
}

#[test]
fn a_missing_user_mapping() -> Outcome {
    let fleet = Fleet::start()?;
    fleet.session()?.batch_execute("CREATE ROLE bob LOGIN; GRANT SELECT ON ft1, lt TO bob")?;
    let mut session = fleet.coordinator.client_for("postgres", "bob")?;
    let error = expect_error(session.batch_execute("SELECT * FROM ft1"), "42704");
    assert!(error.message().contains("user mapping not found"), "{error:#?}");
    assert_usable(&mut session);
    session.batch_execute("SELECT * FROM lt")?;
    Ok(())
}

#[test]
fn the_extension_is_not_preloaded() -> Outcome {
    let mut server = Cluster::create(&Installation::from_env()?, "plain")?;
    server.start()?;
    let mut session = server.client()?;
    let create = "CREATE EXTENSION pg_fdw_xacts CASCADE";
    let error = expect_error(session.batch_execute(create), "55000");
    assert_says(&error, "shared_preload_libraries", "shared_preload_libraries");
    assert_usable(&mut session);
    // The advice helps.
    server.configure(&[("shared_preload_libraries", "pg_fdw_xacts")])?;
    server.restart()?;
    server.client()?.batch_execute(create)?;
    Ok(())
}

#[test]
fn the_preload_is_taken_away_again() -> Outcome {
    let mut fleet = Fleet::start()?;
    fleet.coordinator.configure(&[("shared_preload_libraries", "")])?;
    fleet.coordinator.restart()?;
    let mut session = fleet.session()?;
    for statement in [
        "SELECT * FROM ft1",
        "INSERT INTO ft1 VALUES (1, 'x')",
        "TRUNCATE ft1",
        "ANALYZE ft1",
        "IMPORT FOREIGN SCHEMA public FROM SERVER shard1 INTO public",
    ] {
        let error = expect_error(session.batch_execute(statement), "55000");
        assert_says(&error, "shared_preload_libraries", "shared_preload_libraries");
        assert_usable(&mut session);
    }
    assert_eq!(fleet.ids_on_shard(1)?, NONE);
    Ok(())
}

#[test]
fn a_mapping_of_an_ordinary_user_without_a_password() -> Outcome {
    let fleet = Fleet::start()?;
    fleet.session()?.batch_execute(
        "CREATE ROLE carol LOGIN; GRANT ALL ON ft1 TO carol;
         CREATE USER MAPPING FOR carol SERVER shard1 OPTIONS (user 'postgres')",
    )?;
    let mut session = fleet.coordinator.client_for("postgres", "carol")?;
    let error = expect_error(session.batch_execute("SELECT * FROM ft1"), "2F003");
    assert_says(&error, "password", "password");
    assert_usable(&mut session);
    Ok(())
}

#[test]
fn a_password_that_the_shard_does_not_ask_for_is_no_protection() -> Outcome {
    let fleet = Fleet::start()?;
    fleet.session()?.batch_execute(
        "CREATE ROLE carol LOGIN; GRANT ALL ON ft1 TO carol;
         CREATE USER MAPPING FOR carol SERVER shard1 OPTIONS (user 'postgres', password 'secret')",
    )?;
    let mut session = fleet.coordinator.client_for("postgres", "carol")?;
    let error = expect_error(session.batch_execute("SELECT * FROM ft1"), "2F003");
    assert_says(&error, "password", "password");
    assert!(!format!("{error:?}").contains("secret"), "the error shows the password: {error:#?}");
    assert_usable(&mut session);
    Ok(())
}

#[test]
fn a_shard_that_cannot_prepare() -> Outcome {
    let mut fleet = Fleet::start()?;
    fleet.shard(2).configure(&[("max_prepared_transactions", "0")])?;
    fleet.shard_mut(2).restart()?;
    let mut session = fleet.session()?;
    for command in ["COMMIT", "PREPARE TRANSACTION 'gxid'"] {
        begin_everywhere(&mut session, 1)?;
        let error = expect_error(session.batch_execute(command), "55000");
        assert_says(&error, "prepared transactions are disabled", "max_prepared_transactions");
        assert!(format!("{error:?}").contains("shard2"), "the server is not named: {error:#?}");
        assert_usable(&mut session);
        assert_settled(&fleet);
        assert_everywhere(&fleet, 1, false)?;
    }
    // Alone it commits in one phase and needs none.
    session.batch_execute("INSERT INTO ft2 VALUES (3, 'x')")?;
    assert_eq!(fleet.ids_on_shard(2)?, [3]);
    Ok(())
}

#[test]
fn a_coordinator_that_cannot_prepare() -> Outcome {
    let fleet = Fleet::start_with(&FleetOptions {
        coordinator: vec![("max_prepared_transactions", "0")],
        ..FleetOptions::default()
    })?;
    let mut session = fleet.session()?;
    begin_everywhere(&mut session, 1)?;
    let error = expect_error(session.batch_execute("PREPARE TRANSACTION 'gxid'"), "55000");
    assert_says(&error, "prepared transactions are disabled", "max_prepared_transactions");
    assert_usable(&mut session);
    assert_settled(&fleet);
    assert_everywhere(&fleet, 1, false)?;
    // Its own COMMIT prepares on the shards only.
    assert_commits(&fleet, &mut session, 2)
}

#[test]
fn a_shard_that_is_a_read_only_standby() -> Outcome {
    let fleet = Fleet::start()?;
    let mut standby = Cluster::standby_of(fleet.shard(1), "standby")?;
    standby.start()?;
    let mut session = fleet.session()?;
    session.batch_execute(&format!(
        "CREATE SERVER standby FOREIGN DATA WRAPPER pg_fdw_xacts
             OPTIONS (host '127.0.0.1', port '{}', dbname 'postgres');
         CREATE USER MAPPING FOR CURRENT_USER SERVER standby OPTIONS (user 'postgres');
         CREATE FOREIGN TABLE fts (id int, v text) SERVER standby OPTIONS (table_name 't')",
        standby.port()
    ))?;
    session.batch_execute("BEGIN; INSERT INTO ft2 VALUES (1, 'x')")?;
    let error = expect_error(session.batch_execute("INSERT INTO fts VALUES (1, 'x')"), "25006");
    assert!(format!("{error:?}").contains("standby"), "the server is not named: {error:#?}");
    assert!(error.hint().is_some(), "no hint: {error:#?}");
    session.batch_execute("ROLLBACK")?;
    assert_usable(&mut session);
    // Reading there is fine, also beside writers.
    session.batch_execute("BEGIN; INSERT INTO ft2 VALUES (2, 'x'); SELECT * FROM fts; COMMIT")?;
    assert_eq!(fleet.ids_on_shard(2)?, [2]);
    assert_settled(&fleet);
    standby.stop(StopMode::Fast)
}

#[test]
fn a_gid_in_use() -> Outcome {
    let fleet = Fleet::start()?;
    let mut session = fleet.session()?;
    begin_everywhere(&mut session, 1)?;
    session.batch_execute("PREPARE TRANSACTION 'gxid'")?;
    begin_everywhere(&mut session, 2)?;
    let error = expect_error(session.batch_execute("PREPARE TRANSACTION 'gxid'"), "42710");
    assert!(error.message().contains("gxid"), "{error:#?}");
    assert_usable(&mut session);
    assert_everywhere(&fleet, 2, false)?;
    pg_test::wait_until("the second is rolled back on the shards", pg_test::DEADLINE, || {
        Ok(prepared_gids(fleet.shard(1))?.len() == 1 && prepared_gids(fleet.shard(2))?.len() == 1)
    })?;
    session.batch_execute("COMMIT PREPARED 'gxid'")?;
    assert_settled(&fleet);
    assert_everywhere(&fleet, 1, true)
}

#[test]
fn a_server_that_is_not_there() -> Outcome {
    let mut fleet = Fleet::start()?;
    fleet.shard_mut(1).stop(StopMode::Fast)?;
    let mut session = fleet.session()?;
    let error = expect_error(session.batch_execute("INSERT INTO ft1 VALUES (1, 'x')"), "08001");
    assert!(error.message().contains("shard1"), "the server is not named: {error:#?}");
    assert_usable(&mut session);
    fleet.shard_mut(1).start()?;
    session.batch_execute("INSERT INTO ft1 VALUES (1, 'x')")?;
    Ok(())
}

#[test]
fn what_is_not_supported_yet_says_so_and_never_writes_outside_the_transaction() -> Outcome {
    let fleet = Fleet::start()?;
    let mut session = fleet.session()?;
    session
        .batch_execute("INSERT INTO ft1 VALUES (1, 'x'); CREATE TABLE source (id int, v text)")?;
    session.batch_execute(
        "INSERT INTO source VALUES (2, 'y');
         CREATE TABLE parted (id int, v text) PARTITION BY LIST (id);
         CREATE FOREIGN TABLE parted_1 PARTITION OF parted DEFAULT SERVER shard1
             OPTIONS (table_name 't')",
    )?;
    for statement in [
        "TRUNCATE ft1",
        "COPY ft1 FROM PROGRAM 'echo 3,z' WITH (FORMAT csv)",
        "INSERT INTO parted SELECT * FROM source",
    ] {
        session.batch_execute("BEGIN")?;
        if let Err(error) = session.batch_execute(statement) {
            let report = error.as_db_error().expect("the coordinator answers").clone();
            assert_eq!(report.code().code(), "0A000", "{statement}: {report:#?}");
        }
        session.batch_execute("ROLLBACK")?;
        assert_eq!(fleet.ids_on_shard(1)?, [1], "{statement} outlived its ROLLBACK");
    }
    assert_settled(&fleet);
    Ok(())
}
