//! This extension beside postgres_fdw: server `stock1` and its tables reach shard 1 by that,
//! `shard1` and its tables by this extension, and both must answer the same.

use std::sync::{Arc, Mutex};

use pg_test::oracle::one;
use pg_test::{Cluster, Fleet};
use postgres::error::DbError;
use postgres::{Client, NoTls, SimpleQueryMessage};

use crate::support::Outcome;

/// The two implementations: server, its table of `t`, and that of the view `me`.
pub const BOTH: [&Side; 2] = [
    &Side { server: "shard1", table: "ft1", me: "me1", functions: "pg_fdw_xacts" },
    &Side { server: "stock1", table: "stock_ft1", me: "stock_me1", functions: "postgres_fdw" },
];

pub struct Side {
    /// The foreign server.
    pub server: &'static str,
    table: &'static str,
    /// `pid` and `name` of the session that reads it.
    me: &'static str,
    /// What the names of the functions begin with.
    functions: &'static str,
}

impl Side {
    /// A statement in which `{server}`, `{table}`, `{me}` and `{functions}` stand for this side's.
    pub fn text(&self, statement: &str) -> String {
        [
            ("{server}", self.server),
            ("{table}", self.table),
            ("{me}", self.me),
            ("{functions}", self.functions),
        ]
        .iter()
        .fold(statement.to_owned(), |text, (name, value)| text.replace(name, value))
    }

    /// Runs a statement and gives all of its answer, with this side's names as in the statement:
    /// what came of it, then the warnings on the way.
    ///
    /// From 17 on postgres_fdw asks libpq once more after the end of a connection, which adds a
    /// line without news.
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
        let answer = lines.join("\n").replace("\ninvalid socket\n", "\n");
        [("{table}", self.table), ("{me}", self.me), ("{server}", self.server)]
            .iter()
            .fold(answer, |text, (name, value)| text.replace(value, name))
    }
}

pub fn row(message: &SimpleQueryMessage) -> Option<String> {
    let SimpleQueryMessage::Row(row) = message else { return None };
    Some((0..row.len()).map(|n| row.get(n).unwrap_or("NULL")).collect::<Vec<_>>().join(" | "))
}

/// SQLSTATE, message, DETAIL, HINT and CONTEXT.
pub fn report(error: &DbError) -> String {
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
pub fn both() -> anyhow::Result<Fleet> {
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
pub fn same_answers(fleet: &Fleet, statements: &[&str]) -> anyhow::Result<Vec<String>> {
    same_answers_of(fleet, "postgres", statements)
}

/// A statement that is no SQL: the session of this side on shard 1 is terminated, and has gone.
pub const TERMINATE: &str = "terminate";

pub fn same_answers_of(
    fleet: &Fleet,
    user: &str,
    statements: &[&str],
) -> anyhow::Result<Vec<String>> {
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
                _ => given.push(without_additions(&answer)),
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

/// An answer without the lines that tell on which server a clean-up has failed, which stock has
/// not.
fn without_additions(answer: &str) -> String {
    let is_addition = |line: &&str| line.starts_with("abort on server \"");
    answer.split('\n').filter(|line| !is_addition(line)).collect::<Vec<_>>().join("\n")
}

fn terminate(cluster: &Cluster, pid: i32) -> Outcome {
    let sql = format!("SELECT pg_terminate_backend({pid}, 60000)");
    assert!(one::<bool>(&mut cluster.client()?, &sql)?, "{pid} does not end");
    Ok(())
}
