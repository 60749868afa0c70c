//! Databases whose encoding is not UTF-8: every name and text is bytes of that encoding, in
//! statements, answers, messages and in what is written down about participants.

use std::io::Write;
use std::process::{Command, Stdio};

use pg_test::oracle::{expect_error, one, prepared_gids};
use pg_test::{Cluster, DEADLINE, Fault, Fleet, FleetOptions, Point, wait_until};
use postgres::Client;

use crate::support::{Outcome, in_background, session_with_notices_in};

/// A fleet whose resolver comes only when it is called, so that what a statement settles is told
/// from what the resolver does.
fn fleet() -> anyhow::Result<Fleet> {
    Fleet::start_with(&FleetOptions {
        proxied: true,
        coordinator: vec![("pg_fdw_xacts.resolver_interval", "1h")],
        ..FleetOptions::default()
    })
}

/// A database of the coordinator with foreign servers and tables whose names are not ASCII.
fn set_up(fleet: &Fleet, database: &str, encoding: &str) -> anyhow::Result<Client> {
    fleet.session()?.batch_execute(&format!(
        "CREATE DATABASE {database} TEMPLATE template0 ENCODING '{encoding}' LOCALE 'C'"
    ))?;
    let mut session = fleet.coordinator.client_for(database, "postgres")?;
    session.batch_execute("CREATE EXTENSION pg_fdw_xacts CASCADE")?;
    for number in [1, 2] {
        let port = fleet.port_of_shard(number);
        session.batch_execute(&format!(
            "CREATE SERVER \"sérveur{number}\" FOREIGN DATA WRAPPER pg_fdw_xacts
                 OPTIONS (host '127.0.0.1', port '{port}', dbname 'postgres');
             CREATE USER MAPPING FOR CURRENT_USER SERVER \"sérveur{number}\" OPTIONS (user 'postgres');
             CREATE FOREIGN TABLE \"clé{number}\" (id int, \"valeur é\" text OPTIONS (column_name 'v'))
                 SERVER \"sérveur{number}\" OPTIONS (table_name 't')"
        ))?;
    }
    Ok(session)
}

fn write(session: &mut Client, id: i32) -> Result<(), postgres::Error> {
    session.batch_execute(&format!(
        "BEGIN; INSERT INTO \"clé1\" VALUES ({id}, 'été'); INSERT INTO \"clé2\" VALUES ({id}, 'été')"
    ))
}

fn prepared(fleet: &Fleet) -> anyhow::Result<usize> {
    Ok(prepared_gids(fleet.shard(1))?.len() + prepared_gids(fleet.shard(2))?.len())
}

/// Red on 0.2.0: both shards were still prepared after COMMIT PREPARED.
#[test]
fn a_gxid_in_any_encoding_is_settled_at_once() -> Outcome {
    let fleet = fleet()?;
    let mut session = set_up(&fleet, "latin", "LATIN1")?;
    for (id, settle) in [(1, "COMMIT"), (2, "ROLLBACK")] {
        write(&mut session, id)?;
        session.batch_execute("PREPARE TRANSACTION 'transféré'")?;
        assert_eq!(prepared(&fleet)?, 2);
        session.batch_execute(&format!("{settle} PREPARED 'transféré'"))?;
        assert_eq!(prepared(&fleet)?, 0, "{settle} PREPARED");
    }
    assert_eq!(fleet.ids_on_shard(1)?, [1]);
    assert_eq!(fleet.ids_on_shard(2)?, [1]);
    assert_eq!(one::<String>(&mut session, "SELECT min(\"valeur é\") FROM \"clé1\"")?, "été");
    Ok(())
}

/// Red on 0.2.0: a backtrace of Rust where an argument was not ASCII, and names with U+FFFD.
#[test]
fn functions_take_and_give_text_of_any_encoding() -> Outcome {
    let fleet = fleet()?;
    let mut session = set_up(&fleet, "latin", "LATIN1")?;
    session.batch_execute("BEGIN; SELECT pg_fdw_xacts_track('étiquette'); COMMIT")?;
    let outcome = "SELECT pg_fdw_xacts_outcome('étiquette')";
    assert_eq!(one::<String>(&mut session, outcome)?, "committed");
    let unseen = "SELECT pg_fdw_xacts_outcome('jamais utilisée')";
    assert_eq!(one::<String>(&mut session, unseen)?, "aborted");
    let used = session.batch_execute("SELECT pg_fdw_xacts_track('jamais utilisée')");
    let error = expect_error(used, "42710");
    assert_eq!(error.message(), "label \"jamais utilisée\" cannot be used");

    session.batch_execute("SELECT * FROM \"clé1\"")?;
    let names = "SELECT string_agg(server_name, ',') FROM pg_fdw_xacts_get_connections()";
    assert_eq!(one::<String>(&mut session, names)?, "sérveur1");
    assert!(one::<bool>(&mut session, "SELECT pg_fdw_xacts_disconnect('sérveur1')")?);
    let missing = session.batch_execute("SELECT pg_fdw_xacts_disconnect('où')");
    assert_eq!(expect_error(missing, "42704").message(), "server \"où\" does not exist");
    let forget = session.batch_execute("SELECT pg_fdw_xacts_forget('où')");
    let message = "\"où\" is neither an identifier in pg_fdw_xacts nor a foreign server";
    assert_eq!(expect_error(forget, "42704").message(), message);
    let row: String = one(&mut session, "SELECT identifier FROM pg_fdw_xacts_resolve('où')")?;
    assert_eq!(row, "où");
    Ok(())
}

/// Red on 0.2.0: names with U+FFFD, or in an encoding that nobody can read.
#[test]
fn messages_name_servers_and_roles_in_any_encoding() -> Outcome {
    let fleet = fleet()?;
    let mut session = set_up(&fleet, "latin", "LATIN1")?;
    write(&mut session, 1)?;
    session.batch_execute("PREPARE TRANSACTION 'transféré'")?;
    let drop = session.batch_execute("DROP SERVER \"sérveur1\" CASCADE");
    let message = "cannot drop server \"sérveur1\" while transactions may be in doubt there";
    assert_eq!(expect_error(drop, "55006").message(), message);
    session.batch_execute(
        "ALTER USER MAPPING FOR CURRENT_USER SERVER \"sérveur1\" OPTIONS (SET user 'jérôme')",
    )?;
    fleet.shard(1).client()?.batch_execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
         WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()",
    )?;
    // The first attempt may meet the session that has just been terminated. The role's name comes
    // back as the server has received it.
    wait_until("the resolver has been refused", DEADLINE, || {
        session.batch_execute("SELECT * FROM pg_fdw_xacts_resolve()")?;
        let last_error: Option<String> = one(
            &mut session,
            "SELECT last_error FROM pg_stat_fdw_xacts WHERE server = 'sérveur1'",
        )?;
        Ok(last_error.is_some_and(|text| text.contains("role \"jérôme\" does not exist")))
    })?;
    session.batch_execute(
        "ALTER USER MAPPING FOR CURRENT_USER SERVER \"sérveur1\" OPTIONS (SET user 'postgres')",
    )?;
    session.batch_execute("COMMIT PREPARED 'transféré'")?;
    assert_eq!(prepared(&fleet)?, 0);

    session.batch_execute("CREATE ROLE \"andré\"")?;
    session.batch_execute("GRANT SELECT ON \"clé1\" TO \"andré\"; SET ROLE \"andré\"")?;
    let error = expect_error(session.batch_execute("SELECT * FROM \"clé1\""), "42704");
    // As 18 says it, and servers before.
    let messages = [
        "user mapping not found for user \"andré\", server \"sérveur1\"",
        "user mapping not found for \"andré\"",
    ];
    assert!(messages.contains(&error.message()), "{error:?}");
    let denied = session.batch_execute("SELECT * FROM pg_fdw_xacts_exec('sérveur1', 'SELECT 1')");
    expect_error(denied, "42501");
    session.batch_execute("RESET ROLE; GRANT EXECUTE ON FUNCTION pg_fdw_xacts_exec TO PUBLIC")?;
    session.batch_execute("SET ROLE \"andré\"")?;
    let denied = session.batch_execute("SELECT * FROM pg_fdw_xacts_exec('sérveur1', 'SELECT 1')");
    let message = "permission denied for foreign server sérveur1";
    assert_eq!(expect_error(denied, "42501").message(), message);
    session.batch_execute("RESET ROLE")?;
    let missing = session.batch_execute("SELECT pg_fdw_xacts_exec('où', 'SELECT 1')");
    assert_eq!(expect_error(missing, "42704").message(), "server \"où\" does not exist");

    // The shard's own words.
    fleet.shard(1).client()?.batch_execute("ALTER INDEX t_pkey RENAME TO \"clé primaire\"")?;
    let error = expect_error(session.batch_execute("INSERT INTO \"clé1\" VALUES (1)"), "23505");
    let message = "duplicate key value violates unique constraint \"clé primaire\"";
    assert_eq!(error.message(), message);

    let (mut session, notices) = session_with_notices_in(&fleet, "latin")?;
    write(&mut session, 2)?;
    let hit = fleet.proxy(1).inject(Fault::cut(Point::Statement, "COMMIT PREPARED"));
    session.batch_execute("COMMIT")?;
    hit.wait()?;
    let notices = notices.take();
    // Nothing but ASCII goes out after the decision: it converts to every client's encoding.
    assert!(notices.iter().any(|n| n.contains("server \"s\\xe9rveur1\" has not")), "{notices:?}");
    session.batch_execute("SELECT pg_fdw_xacts_resolve()")?;
    assert_eq!(prepared(&fleet)?, 0);
    Ok(())
}

/// Databases of a shard whose names differ only in characters that are no UTF-8, each with a
/// transaction that its owner has left behind; one is of another encoding than its own name.
///
/// Red on 0.2.0: the second database was unusable, since its name does not convert.
#[test]
fn participants_are_told_apart_by_the_bytes_of_their_names() -> Outcome {
    let mut fleet = fleet()?;
    let mut session = set_up(&fleet, "latin", "LATIN1")?;
    fleet
        .shard(1)
        .client()?
        .batch_execute("CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'")?;
    let mut shard = fleet.shard(1).client_for("latin", "postgres")?;
    for (database, encoding) in [("zürich", "LATIN1"), ("zörich", "UTF8"), ("zärich", "SQL_ASCII")]
    {
        shard.batch_execute(&format!(
            "CREATE DATABASE \"{database}\" TEMPLATE template0 ENCODING '{encoding}' LOCALE 'C'"
        ))?;
        let port = fleet.port_of_shard(1);
        session.batch_execute(&format!(
            "CREATE SERVER \"{database}\" FOREIGN DATA WRAPPER pg_fdw_xacts
                 OPTIONS (host '127.0.0.1', port '{port}', dbname '{database}');
             CREATE USER MAPPING FOR CURRENT_USER SERVER \"{database}\" OPTIONS (user 'postgres');
             CREATE FOREIGN TABLE \"{database}\" (id int) SERVER \"{database}\" OPTIONS (table_name 't')"
        ))?;
        // A server that is made in a transaction cannot be written to in the same.
        session.batch_execute(&format!(
            "SELECT pg_fdw_xacts_exec('{database}', 'CREATE TABLE t (id int)')"
        ))?;
    }
    let tables = ["zürich", "zörich", "zärich"];
    let insert = |id: i32| -> String {
        tables.iter().map(|table| format!("INSERT INTO \"{table}\" VALUES ({id});")).collect()
    };
    session.batch_execute(&format!("BEGIN; {} COMMIT", insert(1)))?;
    let registered = "SELECT count(DISTINCT database) FROM fdw_xacts.participant";
    assert_eq!(one::<i64>(&mut session, registered)?, 3);

    // The other shard never prepares: the three are left behind by a coordinator that was killed.
    session.batch_execute(&format!("BEGIN; {} INSERT INTO \"clé2\" VALUES (7)", insert(2)))?;
    let hit = fleet.proxy(2).inject(Fault::hold(Point::Statement, "PREPARE TRANSACTION"));
    let commit = in_background(session, "COMMIT");
    hit.wait()?;
    wait_until("the three have prepared", DEADLINE, || {
        Ok(prepared_gids(fleet.shard(1))?.len() == 3)
    })?;
    fleet.coordinator.kill9()?;
    hit.release();
    assert!(commit.join().1.is_err());
    fleet.coordinator.start()?;
    wait_until("nothing is prepared", DEADLINE, || Ok(prepared(&fleet)? == 0))?;
    let mut session = fleet.coordinator.client_for("latin", "postgres")?;
    for table in tables {
        let ids = format!("SELECT string_agg(id::text, ',') FROM \"{table}\"");
        assert_eq!(one::<String>(&mut session, &ids)?, "1", "{table}");
    }
    session.batch_execute(&format!("BEGIN; {} COMMIT", insert(3)))?;
    Ok(())
}

/// In SQL_ASCII texts are bytes of no encoding at all. Their values below are those of LATIN1,
/// which are no UTF-8.
///
/// Red on 0.2.0, as the other tests here.
#[test]
fn sql_ascii_takes_any_bytes() -> Outcome {
    let fleet = fleet()?;
    set_up(&fleet, "bytes", "SQL_ASCII")?;
    let port = fleet.port_of_shard(1);
    let script = format!(
        "CREATE SERVER \"s\u{e9}r\" FOREIGN DATA WRAPPER pg_fdw_xacts
             OPTIONS (host '127.0.0.1', port '{port}', dbname 'postgres');
         CREATE USER MAPPING FOR CURRENT_USER SERVER \"s\u{e9}r\" OPTIONS (user 'postgres');
         CREATE FOREIGN TABLE \"cl\u{e9}\" (id int) SERVER \"s\u{e9}r\" OPTIONS (table_name 't');
         BEGIN; INSERT INTO \"cl\u{e9}\" VALUES (1); SELECT pg_fdw_xacts_track('l\u{e9}');
         PREPARE TRANSACTION 'g\u{e9}';
         DROP SERVER \"s\u{e9}r\" CASCADE;
         COMMIT PREPARED 'g\u{e9}';
         SELECT 'outcome', pg_fdw_xacts_outcome('l\u{e9}');
         SELECT 'connections', server_name FROM pg_fdw_xacts_get_connections();"
    );
    let output = in_latin1(&fleet.coordinator, "bytes", &script)?;
    assert!(
        output.contains("cannot drop server \"s\u{e9}r\" while transactions may be in doubt there"),
        "{output}"
    );
    assert!(output.contains("outcome|committed"), "{output}");
    assert!(output.contains("connections|s\u{e9}r"), "{output}");
    assert_eq!(prepared(&fleet)?, 0, "{output}");
    assert_eq!(fleet.ids_on_shard(1)?, [1]);
    Ok(())
}

/// Runs a script that psql is given in LATIN1, and that no encoding is told of; what it and the
/// server say.
fn in_latin1(server: &Cluster, database: &str, script: &str) -> anyhow::Result<String> {
    let script = format!("\\connect {database}\n{script}");
    let bytes: Vec<u8> = script.chars().map(|c| u8::try_from(c).expect("LATIN1")).collect();
    let mut psql = Command::new("sh")
        .args(["-c", &format!("{} -XAtq 2>&1", server.psql())])
        .env("PGCLIENTENCODING", "SQL_ASCII")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    psql.stdin.take().expect("piped").write_all(&bytes)?;
    let output = psql.wait_with_output()?.stdout;
    Ok(output.into_iter().map(char::from).collect())
}
