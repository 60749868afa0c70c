//! Connections, side by side with postgres_fdw: server `stock1` and its tables reach shard 1 by that, `shard1` and its
//! tables by this extension, and both must answer the same.

use std::sync::{Arc, Mutex};

use pg_test::oracle::{assert_settled, assert_usable, expect_error, one};
use pg_test::{Cluster, Fleet};
use postgres::error::DbError;
use postgres::{Client, NoTls, SimpleQueryMessage};

use crate::support::Outcome;

/// The two implementations: server, its table of `t`, and that of the view `me`.
const BOTH: [&Side; 2] = [
    &Side { server: "shard1", table: "ft1", me: "me1", functions: "pg_fdw_xacts" },
    &Side { server: "stock1", table: "stock_ft1", me: "stock_me1", functions: "postgres_fdw" },
];

struct Side {
    server: &'static str,
    table: &'static str,
    /// `pid` and `name` of the session that reads it.
    me: &'static str,
    /// What the names of the functions begin with.
    functions: &'static str,
}

impl Side {
    /// A statement in which `{server}`, `{table}`, `{me}` and `{functions}` stand for this side's.
    fn text(&self, statement: &str) -> String {
        [
            ("{server}", self.server),
            ("{table}", self.table),
            ("{me}", self.me),
            ("{functions}", self.functions),
        ]
        .iter()
        .fold(statement.to_owned(), |text, (name, value)| text.replace(name, value))
    }

    /// Runs a statement and gives all of its answer, with this side's names as in the statement: what came of it,
    /// then the warnings on the way.
    fn answer(&self, (session, warnings): &mut Listening, statement: &str) -> String {
        let mut lines: Vec<String> = match session.simple_query(&self.text(statement)) {
            Ok(messages) => messages.iter().filter_map(row).collect(),
            Err(error) => match error.as_db_error() {
                Some(error) => vec![report(error)],
                None => panic!("the coordinator did not answer {statement}: {error}"),
            },
        };
        // What was told behind an error is read with the next answer.
        session.simple_query("").expect("the session goes on");
        lines.append(&mut warnings.lock().expect("nobody panics with it"));
        let answer = lines.join("\n");
        [("{table}", self.table), ("{me}", self.me), ("{server}", self.server)]
            .iter()
            .fold(answer, |text, (name, value)| text.replace(value, name))
    }
}

fn row(message: &SimpleQueryMessage) -> Option<String> {
    let SimpleQueryMessage::Row(row) = message else { return None };
    Some((0..row.len()).map(|n| row.get(n).unwrap_or("NULL")).collect::<Vec<_>>().join(" | "))
}

/// SQLSTATE, message, DETAIL, HINT and CONTEXT.
fn report(error: &DbError) -> String {
    let rest = [error.detail(), error.hint(), error.where_()];
    let lines =
        [error.code().code(), error.message()].into_iter().chain(rest.into_iter().flatten());
    lines.collect::<Vec<_>>().join("\n")
}

/// A session with the warnings that it was given.
type Listening = (Client, Arc<Mutex<Vec<String>>>);

/// A session of `user` on the coordinator whose warnings are kept.
fn listening(fleet: &Fleet, user: &str) -> anyhow::Result<Listening> {
    let warnings: Arc<Mutex<Vec<String>>> = Arc::default();
    let list = Arc::clone(&warnings);
    let mut config = fleet.coordinator.config();
    config.user(user).notice_callback(move |notice| {
        if notice.severity() == "WARNING" {
            list.lock().expect("nobody panics with it").push(report(&notice));
        }
    });
    Ok((config.connect(NoTls)?, warnings))
}

/// A fleet whose first shard is there twice.
fn both() -> anyhow::Result<Fleet> {
    let fleet = Fleet::start()?;
    fleet.shard(1).client()?.batch_execute(
        "INSERT INTO t SELECT i, 'x' FROM generate_series(1, 300) i;
         CREATE VIEW me AS SELECT pg_backend_pid() AS pid, current_setting('application_name') AS name",
    )?;
    let port = fleet.port_of_shard(1);
    fleet.session()?.batch_execute(&format!(
        "CREATE SERVER stock1 FOREIGN DATA WRAPPER postgres_fdw
             OPTIONS (host '127.0.0.1', port '{port}', dbname 'postgres');
         CREATE USER MAPPING FOR CURRENT_USER SERVER stock1 OPTIONS (user 'postgres');
         CREATE FOREIGN TABLE stock_ft1 (id int NOT NULL, v text) SERVER stock1 OPTIONS (table_name 't');
         CREATE FOREIGN TABLE me1 (pid int, name text) SERVER shard1 OPTIONS (table_name 'me');
         CREATE FOREIGN TABLE stock_me1 (pid int, name text) SERVER stock1 OPTIONS (table_name 'me')"
    ))?;
    Ok(fleet)
}

/// Both sides give the same answer to each of the statements, a session each; returns ours.
fn same_answers(fleet: &Fleet, statements: &[&str]) -> anyhow::Result<Vec<String>> {
    same_answers_of(fleet, "postgres", statements)
}

/// A statement that is no SQL: the session of this side on shard 1 is terminated, and has gone.
const TERMINATE: &str = "terminate";

fn same_answers_of(fleet: &Fleet, user: &str, statements: &[&str]) -> anyhow::Result<Vec<String>> {
    let mut answers = Vec::new();
    for side in BOTH {
        let mut session = listening(fleet, user)?;
        let mut pid = None;
        let mut given = Vec::new();
        for statement in statements {
            if *statement == TERMINATE {
                terminate(fleet.shard(1), pid.expect("{me} was read before"))?;
                continue;
            }
            let answer = side.answer(&mut session, statement);
            // The process is another one each time.
            match answer.parse() {
                Ok(number) if statement.contains("SELECT pid") => {
                    given.push(format!("another session: {}", pid != Some(number)));
                    pid = Some(number);
                }
                _ => given.push(answer),
            }
        }
        answers.push(given);
    }
    let stock = answers.pop().expect("two sides");
    let ours = answers.pop().expect("two sides");
    for ((statement, ours), stock) in
        statements.iter().filter(|s| **s != TERMINATE).zip(&ours).zip(&stock)
    {
        assert_eq!(ours, stock, "{statement}");
    }
    Ok(ours)
}

fn terminate(cluster: &Cluster, pid: i32) -> Outcome {
    let sql = format!("SELECT pg_terminate_backend({pid}, 60000)");
    assert!(one::<bool>(&mut cluster.client()?, &sql)?, "{pid} does not end");
    Ok(())
}

#[test]
fn application_names_are_made_as_postgres_fdw_makes_them() -> Outcome {
    let fleet = both()?;
    fleet.session()?.batch_execute("ALTER SYSTEM SET cluster_name = 'somewhere'")?;
    let pid_of_session = "SELECT name = 'px ' || pg_backend_pid() || '%' FROM {me}";
    let name = "SELECT name FROM {me}";
    let option = "ALTER SERVER {server} OPTIONS (SET application_name ";
    let given = same_answers(
        &fleet,
        &[
            name,
            "ALTER SERVER {server} OPTIONS (ADD application_name 'px %p%%')",
            pid_of_session,
            &format!("{option}'%a-%d-%u-%C%q%')"),
            name,
            "SET application_name = 'another'; SELECT {functions}_disconnect('{server}')",
            name,
            // One that is empty in the end does not count.
            &format!("{option}'%q%')"),
            name,
            &format!("{option}'option')"),
            "SET postgres_fdw.application_name = 'setting %a'; SELECT name FROM {me}",
            name,
            "SET postgres_fdw.application_name = 'later'; SELECT name FROM {me}",
            "SET postgres_fdw.application_name = '%q'; SELECT {functions}_disconnect_all()",
            name,
            "SET postgres_fdw.application_name = '%c'; SELECT {functions}_disconnect_all()",
            "SELECT name ~ ('\\.' || to_hex(pg_backend_pid()) || '$') FROM {me}",
        ],
    )?;
    assert_eq!(given[0], "postgres_fdw");
    assert_eq!(given[2], "t");
    assert_eq!(given[4], "pg_test-postgres-postgres-");
    assert_eq!(given[6], "another-postgres-postgres-");
    assert_eq!(given[8], "postgres_fdw");
    assert_eq!(given[10], "setting another");
    assert_eq!(given[12], "setting another", "a session is not renamed");
    assert_eq!(given[14], "option");
    assert_eq!(given[16], "t");
    Ok(())
}

#[test]
fn the_resolver_has_a_name_of_its_own() -> Outcome {
    let mut fleet = Fleet::start()?;
    let mut session = fleet.session()?;
    session.batch_execute("ALTER SERVER shard1 OPTIONS (application_name 'a client')")?;
    session
        .batch_execute("BEGIN; INSERT INTO ft1 VALUES (1, 'x'); INSERT INTO ft2 VALUES (1, 'x')")?;
    session.batch_execute("PREPARE TRANSACTION 'g'")?;
    let mark = fleet.shard(1).log().mark()?;
    drop(session);
    fleet.shard_mut(1).restart()?;
    fleet.coordinator.kill9()?;
    fleet.coordinator.start()?;
    fleet.session()?.batch_execute("SELECT pg_fdw_xacts_resolve()")?;
    let log = fleet.shard(1).log().since(mark)?;
    assert!(log.contains("] pg_fdw_xacts resolver: LOG:"), "{log}");
    assert!(!log.contains("] a client: LOG:"), "{log}");
    fleet.session()?.batch_execute("ROLLBACK PREPARED 'g'")?;
    assert_settled(&fleet);
    Ok(())
}

#[test]
fn connections_are_listed_and_closed_by_hand() -> Outcome {
    let fleet = both()?;
    let list = "SELECT server_name, valid FROM {functions}_get_connections()";
    let given = same_answers(
        &fleet,
        &[
            list,
            "SELECT {functions}_disconnect('{server}')",
            "SELECT {functions}_disconnect_all()",
            "SELECT pid FROM {me}",
            list,
            "BEGIN; SELECT count(*) FROM {table}",
            list,
            "SELECT {functions}_disconnect('{server}')",
            "SELECT {functions}_disconnect_all()",
            "COMMIT",
            "SELECT {functions}_disconnect('{server}')",
            list,
            "SELECT pid FROM {me}",
            "SELECT {functions}_disconnect_all()",
            "SELECT {functions}_disconnect('nowhere')",
            "SELECT {functions}_disconnect(NULL)",
        ],
    )?;
    assert_eq!(given[4], "{server} | t");
    assert_eq!(given[14], "42704\nserver \"nowhere\" does not exist");

    let given = same_answers(
        &fleet,
        &[
            "BEGIN; SELECT pid FROM {me}",
            "SELECT {functions}_disconnect('{server}')",
            "DROP SERVER {server} CASCADE",
            "SELECT {functions}_disconnect_all()",
        ],
    )?;
    assert!(
        given[1].contains("01000\ncannot close connection for server \"{server}\""),
        "{given:?}"
    );
    assert!(given[3].contains("01000\ncannot close dropped server connection"), "{given:?}");
    Ok(())
}

#[test]
fn changed_options_close_a_connection_at_once_or_after_its_transaction() -> Outcome {
    let fleet = both()?;
    let list = "SELECT server_name, valid FROM {functions}_get_connections()";
    let given = same_answers(
        &fleet,
        &[
            "SELECT pid FROM {me}",
            "ALTER SERVER {server} OPTIONS (ADD fetch_size '7')",
            list,
            "SELECT pid FROM {me}",
            "ALTER USER MAPPING FOR CURRENT_USER SERVER {server} OPTIONS (ADD password 'x')",
            list,
            "SELECT pid FROM {me}",
            // In use: kept to the end.
            "BEGIN",
            "SELECT pid FROM {me}",
            "ALTER SERVER {server} OPTIONS (DROP fetch_size)",
            list,
            "SELECT pid FROM {me}",
            "COMMIT",
            list,
            "SELECT pid FROM {me}",
            "BEGIN",
            "SELECT pid FROM {me}",
            "DROP USER MAPPING FOR CURRENT_USER SERVER {server}",
            list,
            "SELECT pid FROM {me}",
            "ROLLBACK",
            list,
            "SELECT pid FROM {me}",
            "BEGIN",
            "SELECT pid FROM {me}",
            "DROP SERVER {server} CASCADE",
            list,
            "COMMIT",
            list,
        ],
    )?;
    assert_eq!(given[2], "", "it is closed at once");
    assert_eq!(given[3], "another session: true");
    assert_eq!(given[10], "{server} | f");
    assert_eq!(given[11], "another session: false");
    assert_eq!(given[14], "another session: true");
    assert_eq!(given[18], "{server} | f");
    assert_eq!(given[26], "NULL | f");
    assert_eq!(given[28], "");
    Ok(())
}

#[test]
fn a_session_elsewhere_that_changes_options_closes_the_connection_too() -> Outcome {
    let fleet = both()?;
    let mut session = fleet.session()?;
    let before: i32 = one(&mut session, "SELECT pid FROM me1")?;
    fleet
        .session()?
        .batch_execute("ALTER SERVER shard1 OPTIONS (ADD application_name 'changed')")?;
    assert_eq!(one::<String>(&mut session, "SELECT name FROM me1")?, "changed");
    assert_ne!(one::<i32>(&mut session, "SELECT pid FROM me1")?, before);
    Ok(())
}

#[test]
fn connections_that_are_not_kept_close_with_their_transaction() -> Outcome {
    let fleet = both()?;
    let list = "SELECT server_name, valid FROM {functions}_get_connections()";
    let given = same_answers(
        &fleet,
        &[
            "ALTER SERVER {server} OPTIONS (ADD keep_connections 'off')",
            "SELECT pid FROM {me}",
            list,
            "BEGIN",
            "SELECT pid FROM {me}",
            "SELECT pid FROM {me}",
            list,
            "ROLLBACK",
            list,
            "ALTER SERVER {server} OPTIONS (SET keep_connections 'on')",
            "SELECT pid FROM {me}",
            list,
        ],
    )?;
    assert_eq!((given[2].as_str(), given[8].as_str()), ("", ""));
    assert_eq!(given[11], "{server} | t");
    // It is closed after the second phase, not before it.
    let mut session = fleet.session()?;
    session.batch_execute(
        "ALTER SERVER shard1 OPTIONS (SET keep_connections 'off');
         BEGIN; INSERT INTO ft1 VALUES (1001, 'x'); INSERT INTO lt VALUES (1, 'x'); COMMIT",
    )?;
    assert_settled(&fleet);
    assert!(fleet.ids_on_shard(1)?.contains(&1001));
    Ok(())
}

#[test]
fn a_connection_lost_while_idle_is_replaced_once() -> Outcome {
    let fleet = both()?;
    let given = same_answers(
        &fleet,
        &[
            "SELECT pid FROM {me}",
            TERMINATE,
            "SELECT pid FROM {me}",
            TERMINATE,
            "BEGIN",
            "SELECT pid FROM {me}",
            "SELECT pid FROM {me}",
            // Inside a remote transaction it is not.
            TERMINATE,
            "SELECT count(*) FROM {table}",
            "ROLLBACK",
            "SELECT count(*) FROM {table}",
        ],
    )?;
    assert_eq!(given[1], "another session: true");
    assert_eq!(given[3], "another session: true");
    assert!(given[5].starts_with("08006\nFATAL:  terminating connection"), "{}", given[5]);
    assert!(given[5].contains("server closed the connection unexpectedly"), "{}", given[5]);
    assert_eq!(given[7], "300");
    Ok(())
}

#[test]
fn whatever_finds_the_connection_lost_says_so_in_the_same_words() -> Outcome {
    let fleet = both()?;
    for statement in [
        "SELECT * FROM {table}",
        "INSERT INTO {table} VALUES (1000, 'y')",
        "UPDATE {table} SET v = 'y' WHERE id = 1",
        "UPDATE {table} SET v = 'y' WHERE id = 1 AND random() >= 0",
        "DELETE FROM {table} WHERE id = 1 RETURNING v",
        "FETCH c",
        "FETCH ALL d",
    ] {
        let given = same_answers(
            &fleet,
            &[
                "BEGIN; DECLARE c CURSOR FOR SELECT * FROM {table};
                 DECLARE d CURSOR FOR SELECT * FROM {table} ORDER BY id; FETCH d",
                "SELECT pid FROM {me}",
                TERMINATE,
                statement,
                statement,
                "ROLLBACK",
            ],
        )?;
        assert!(given[2].starts_with("08006\n"), "{statement}: {}", given[2]);
    }
    assert_eq!(fleet.ids_on_shard(1)?.len(), 300);
    Ok(())
}

/// What is asked of a connection after a savepoint that was lost with it.
#[test]
fn a_connection_lost_in_a_savepoint_is_not_used_again_in_the_transaction() -> Outcome {
    let fleet = both()?;
    for (before, after) in [
        ("SELECT 1", "FETCH c"),
        ("FETCH c", "FETCH ALL c"),
        ("FETCH c", "CLOSE c"),
        ("SELECT 1", "CLOSE c"),
        ("SELECT 1", "SAVEPOINT b; RELEASE SAVEPOINT b"),
    ] {
        let given = same_answers(
            &fleet,
            &[
                "BEGIN; DECLARE c CURSOR FOR SELECT * FROM {table} ORDER BY id",
                before,
                "SAVEPOINT a",
                "SELECT pid FROM {me}",
                TERMINATE,
                "ROLLBACK TO SAVEPOINT a",
                "SELECT pid FROM {me}",
                "ROLLBACK TO SAVEPOINT a; RELEASE SAVEPOINT a",
                after,
                "ROLLBACK",
                "SELECT count(*) FROM {table}",
            ],
        )?;
        assert_eq!(
            given[5],
            "08000\nconnection to server \"{server}\" cannot be used due to abort cleanup failure"
        );
        assert_eq!(given[9], "300");
    }
    Ok(())
}

#[test]
fn a_savepoint_around_a_spoilt_one_cannot_be_released() -> Outcome {
    let fleet = both()?;
    let given = same_answers(
        &fleet,
        &[
            "BEGIN; SAVEPOINT a; SELECT pid FROM {me}",
            "SAVEPOINT b",
            "SELECT pid FROM {me}",
            TERMINATE,
            "ROLLBACK TO SAVEPOINT b",
            "RELEASE SAVEPOINT a",
            "ROLLBACK TO SAVEPOINT a",
            "SELECT pid FROM {me}",
            "ROLLBACK",
        ],
    )?;
    assert!(given[4].starts_with("08000\n"), "{}", given[4]);
    Ok(())
}

/// Whoever has not used the lost connection in a savepoint may go back behind it.
#[test]
fn a_savepoint_that_did_not_use_the_lost_connection_is_rolled_back() -> Outcome {
    let fleet = both()?;
    let given = same_answers(
        &fleet,
        &[
            "BEGIN; SELECT pid FROM {me}",
            TERMINATE,
            "SAVEPOINT a; SELECT 1",
            "ROLLBACK TO SAVEPOINT a",
            "SELECT count(*) FROM pg_class WHERE relname = 'lt'",
            "ROLLBACK",
        ],
    )?;
    assert_eq!(given[3], "1");
    Ok(())
}

/// Shard 1 asks `app` for a password and trusts everybody else.
fn with_passwords() -> anyhow::Result<Fleet> {
    let fleet = both()?;
    let shard = fleet.shard(1);
    let hba = shard.data().join("pg_hba.conf");
    let rules = std::fs::read_to_string(&hba)?;
    std::fs::write(&hba, format!("host all app 127.0.0.1/32 scram-sha-256\n{rules}"))?;
    shard.reload()?;
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
