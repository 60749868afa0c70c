//! Whose credentials open a connection, side by side with postgres_fdw, and that nobody sees them.

use pg_test::oracle::{assert_settled, assert_usable, expect_error, one};
use pg_test::{Cluster, Fleet};
use postgres::{Client, NoTls};

use crate::fdw::side_by_side::{BOTH, Side, both, report, row, same_answers_of};
use crate::support::Outcome;

/// Has a server ask `app` for a password; it trusts everybody else.
fn ask_for_password(cluster: &Cluster) -> Outcome {
    let hba = cluster.data().join("pg_hba.conf");
    let rules = std::fs::read_to_string(&hba)?;
    std::fs::write(&hba, format!("host all app 127.0.0.1/32 scram-sha-256\n{rules}"))?;
    cluster.reload()
}

/// Shard 1 asks `app` for a password and trusts everybody else.
fn with_passwords() -> anyhow::Result<Fleet> {
    let fleet = both()?;
    let shard = fleet.shard(1);
    ask_for_password(shard)?;
    quietly(
        &mut shard.client()?,
        &format!("CREATE ROLE app LOGIN PASSWORD '{SECRET}'; GRANT SELECT ON t, me TO app"),
    )?;
    fleet.session()?.batch_execute(
        "CREATE ROLE app LOGIN; GRANT USAGE ON FOREIGN SERVER shard1, stock1 TO app;
         GRANT SELECT ON ft1, stock_ft1, me1, stock_me1 TO app; GRANT CREATE ON SCHEMA public TO app",
    )?;
    Ok(fleet)
}

const SECRET: &str = "hunter2-and-more";

/// Runs statements that the log is not to show: with the passwords that users write into them.
fn quietly(superuser: &mut Client, statements: &str) -> Outcome {
    superuser.batch_execute("SET log_statement = 'none'; SET log_min_error_statement = 'panic'")?;
    superuser.batch_execute(statements)?;
    superuser.batch_execute("RESET ALL")?;
    Ok(())
}

#[test]
fn a_user_without_privileges_needs_a_password_that_was_asked_for() -> Outcome {
    let fleet = with_passwords()?;
    let mapping = |side: &Side, options: &str| -> Outcome {
        let server = side.server;
        quietly(
            &mut fleet.session()?,
            &format!(
                "DROP USER MAPPING IF EXISTS FOR app SERVER {server};
                 CREATE USER MAPPING FOR app SERVER {server} OPTIONS ({options})"
            ),
        )
    };
    let mut seen = Vec::new();
    for options in [
        "user 'app'".to_owned(),
        "user 'app', password ''".to_owned(),
        // The server trusts this one, and asks for nothing.
        format!("user 'postgres', password '{SECRET}'"),
        "user 'app', password 'wrong'".to_owned(),
        format!("user 'app', password '{SECRET}'"),
        "user 'postgres', password_required 'false'".to_owned(),
        "user 'app', password_required 'true'".to_owned(),
    ] {
        for side in BOTH {
            mapping(side, &options)?;
        }
        let given = same_answers_of(&fleet, "app", &["SELECT count(*) FROM {table}"])?;
        seen.push(given[0].lines().next().unwrap_or_default().to_owned());
        if given[0].starts_with("2F003") {
            assert!(given[0].contains("required"), "{}", given[0]);
        }
    }
    assert_eq!(seen, ["2F003", "2F003", "2F003", "08001", "300", "300", "2F003"]);

    // What only superusers may say.
    for side in BOTH {
        mapping(side, "user 'app'")?;
    }
    for option in ["password_required 'false'", "sslcert 'x'", "sslkey 'x'"] {
        let alter = format!("ALTER USER MAPPING FOR app SERVER {{server}} OPTIONS (ADD {option})");
        let given = same_answers_of(&fleet, "app", &[&alter])?;
        assert!(given[0].starts_with("42501\n"), "{}", given[0]);
    }
    let given = same_answers_of(
        &fleet,
        "app",
        &["ALTER USER MAPPING FOR app SERVER {server} OPTIONS (ADD host 'x')"],
    )?;
    assert!(given[0].starts_with("HV00D\n"), "{}", given[0]);
    Ok(())
}

/// A view reads with its owner's mapping, whoever asks.
#[test]
fn a_view_uses_the_mapping_of_its_owner() -> Outcome {
    let fleet = with_passwords()?;
    quietly(
        &mut fleet.session()?,
        &format!(
            "CREATE VIEW v AS SELECT * FROM ft1; CREATE VIEW stock_v AS SELECT * FROM stock_ft1;
             ALTER VIEW v OWNER TO app; ALTER VIEW stock_v OWNER TO app;
             CREATE USER MAPPING FOR app SERVER shard1 OPTIONS (user 'app', password '{SECRET}');
             CREATE USER MAPPING FOR app SERVER stock1 OPTIONS (user 'app')"
        ),
    )?;
    let mut session = fleet.session()?;
    assert_eq!(one::<i64>(&mut session, "SELECT count(*) FROM v")?, 300);
    expect_error(session.batch_execute("SELECT * FROM stock_v"), "2F003");
    session.batch_execute("ALTER USER MAPPING FOR app SERVER shard1 OPTIONS (DROP password)")?;
    expect_error(session.batch_execute("SELECT * FROM v"), "2F003");
    Ok(())
}

#[test]
fn a_password_is_shown_nowhere() -> Outcome {
    let fleet = with_passwords()?;
    let mark = (fleet.coordinator.log().mark()?, fleet.shard(1).log().mark()?);
    let options = format!("user 'app', password '{SECRET}'");
    let wrong = format!("user 'app', password 'not {SECRET}'");
    quietly(
        &mut fleet.session()?,
        &format!(
            "CREATE USER MAPPING FOR app SERVER shard1 OPTIONS ({options});
             CREATE USER MAPPING FOR app SERVER shard2 OPTIONS ({wrong}, password_required 'false');
             GRANT USAGE ON FOREIGN SERVER shard2 TO app; GRANT SELECT ON ft2 TO app;
             SET log_min_messages = debug5"
        ),
    )?;
    let mut config = fleet.coordinator.config();
    let mut app = config.user("app").connect(NoTls)?;
    let mut shown = String::new();
    app.batch_execute("BEGIN; SELECT * FROM ft1")?;
    for statement in ["SELECT * FROM pg_stat_activity", "SELECT * FROM pg_fdw_xacts"] {
        for message in fleet.session()?.simple_query(statement)? {
            shown += &row(&message).unwrap_or_default();
        }
    }
    app.batch_execute("COMMIT")?;
    for statement in [
        "SELECT * FROM ft2",
        "SELECT pg_fdw_xacts_get_connections()",
        "SELECT * FROM pg_user_mappings WHERE usename <> current_user",
    ] {
        match app.simple_query(statement) {
            Ok(messages) => shown.extend(messages.iter().filter_map(row)),
            Err(error) => shown += &format!("{error:?}"),
        }
    }
    quietly(
        &mut fleet.session()?,
        "ALTER USER MAPPING FOR app SERVER shard1 OPTIONS (SET password 'hunter2-and-less')",
    )?;
    let error = app.simple_query("SELECT * FROM ft1").expect_err("the password is wrong");
    shown += &report(error.as_db_error().expect("the coordinator answers"));
    assert!(shown.contains("08001") && shown.contains("password authentication failed"), "{shown}");
    assert_usable(&mut app);
    shown += &fleet.coordinator.log().since(mark.0)?;
    shown += &fleet.shard(1).log().since(mark.1)?;
    assert!(!shown.contains("hunter2"), "{shown}");
    Ok(())
}

/// What a client's SCRAM exchange leaves in the session opens connections, from PostgreSQL 18 on.
/// The resolver has none of it, so nothing may be prepared.
#[test]
fn credentials_of_the_session_alone_do_not_write_in_two_phases() -> Outcome {
    let fleet = with_passwords()?;
    let mut session = fleet.session()?;
    if one::<String>(&mut session, "SELECT current_setting('server_version_num')")?.as_str() < "18"
    {
        return Ok(());
    }
    // Keys fit where salt and iterations are the same.
    let mut shard = fleet.shard(1).client()?;
    let verifier: String =
        one(&mut shard, "SELECT rolpassword FROM pg_authid WHERE rolname = 'app'")?;
    shard.batch_execute("GRANT INSERT ON t TO app")?;
    quietly(&mut session, &format!("ALTER ROLE app PASSWORD '{verifier}'"))?;
    session.batch_execute(
        "GRANT INSERT ON ft1 TO app; GRANT ALL ON lt TO app;
         ALTER SERVER shard1 OPTIONS (ADD use_scram_passthrough 'true');
         ALTER SERVER stock1 OPTIONS (ADD use_scram_passthrough 'true');
         CREATE USER MAPPING FOR app SERVER shard1 OPTIONS (user 'app');
         CREATE USER MAPPING FOR app SERVER stock1 OPTIONS (user 'app')",
    )?;
    ask_for_password(&fleet.coordinator)?;
    let mut app = fleet.coordinator.config().user("app").password(SECRET).connect(NoTls)?;
    for side in BOTH {
        assert_eq!(one::<i64>(&mut app, &side.text("SELECT count(*) FROM {table}"))?, 300);
    }
    let insert = "INSERT INTO ft1 VALUES (1001, 'x')";
    let error = expect_error(app.batch_execute(insert), "55000");
    assert!(error.hint().unwrap_or_default().contains("two_phase_commit"), "{error:#?}");
    app.batch_execute("SET pg_fdw_xacts.two_phase_commit = off")?;
    app.batch_execute(insert)?;
    app.batch_execute("RESET pg_fdw_xacts.two_phase_commit")?;
    session.batch_execute("ALTER SERVER shard1 OPTIONS (ADD two_phase_commit 'off')")?;
    app.batch_execute(
        "BEGIN; INSERT INTO ft1 VALUES (1002, 'x'); INSERT INTO lt VALUES (1, 'x'); COMMIT",
    )?;
    session.batch_execute("ALTER SERVER shard1 OPTIONS (SET two_phase_commit 'on')")?;
    quietly(
        &mut session,
        &format!("ALTER USER MAPPING FOR app SERVER shard1 OPTIONS (ADD password '{SECRET}')"),
    )?;
    app.batch_execute(
        "BEGIN; INSERT INTO ft1 VALUES (1003, 'x'); INSERT INTO lt VALUES (2, 'x'); COMMIT",
    )?;
    assert_settled(&fleet);
    assert_eq!(fleet.ids_on_shard(1)?[300..], [1001, 1002, 1003]);
    Ok(())
}
