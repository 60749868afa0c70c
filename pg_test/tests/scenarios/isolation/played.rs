//! Two sessions play a piece, statement by statement: on a server with the tables, or on a
//! coordinator with foreign tables of the same names.

use pg_test::{Cluster, DEADLINE, wait_until};
use postgres::{Client, SimpleQueryMessage};

use crate::support::{Background, in_background};

/// What happens next.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// The first session runs a statement.
    A(&'static str),
    /// The second does.
    B(&'static str),
    /// The first session runs a statement that waits for a lock of the second's.
    Waits(&'static str),
    /// That statement ends.
    GoesOn,
}

/// What both tables hold at first, on a server that has them; functions are on both servers, so
/// that a coordinator does not send them.
pub const TABLES: &str = "
    CREATE TABLE account (id int PRIMARY KEY, money int, note text);
    CREATE TABLE other (id int PRIMARY KEY, money int);
    INSERT INTO account SELECT n, 10, 'x' FROM generate_series(1, 5) n;
    INSERT INTO other SELECT n, 10 FROM generate_series(1, 5) n;";

/// Functions that are on both servers, and that a coordinator does not send.
pub const FUNCTIONS: &str = "
    CREATE FUNCTION one() RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN 1; END';
    CREATE FUNCTION is_rich(money int) RETURNS bool LANGUAGE plpgsql AS 'BEGIN RETURN money >= 10; END';";

/// What each statement answers: its rows, and its error's code.
pub fn play(
    steps: &[Step],
    connect: impl Fn() -> anyhow::Result<Client>,
    holder: &Cluster,
) -> anyhow::Result<Vec<String>> {
    let (mut a, mut b) = (Some(connect()?), connect()?);
    let mut waiting: Option<Background> = None;
    let mut said = Vec::new();
    for step in steps {
        match *step {
            Step::A(sql) => said.push(format!("A {sql}: {}", run(a.as_mut().expect("idle"), sql))),
            Step::B(sql) => said.push(format!("B {sql}: {}", run(&mut b, sql))),
            Step::Waits(sql) => {
                waiting = Some(in_background(a.take().expect("idle"), sql));
                let mut watcher = holder.client()?;
                wait_until("the statement waits for a lock", DEADLINE, || {
                    let waits = "SELECT count(*) FROM pg_locks WHERE NOT granted";
                    Ok(watcher.query_one(waits, &[])?.get::<_, i64>(0) > 0)
                })?;
            }
            Step::GoesOn => {
                let (session, result) = waiting.take().expect("one waits").join();
                let code = result.map_err(|error| code(&error));
                said.push(format!("A goes on: {code:?}"));
                a = Some(session);
            }
        }
    }
    Ok(said)
}

fn code(error: &postgres::Error) -> String {
    error.code().map_or_else(|| error.to_string(), |code| code.code().to_owned())
}

fn run(session: &mut Client, sql: &str) -> String {
    let messages = match session.simple_query(sql) {
        Ok(messages) => messages,
        Err(error) => return code(&error),
    };
    let mut said: Vec<String> = Vec::new();
    for message in messages {
        match message {
            SimpleQueryMessage::Row(row) => {
                let values = (0..row.len()).map(|n| row.get(n).unwrap_or("NULL"));
                said.push(values.collect::<Vec<_>>().join(","));
            }
            SimpleQueryMessage::CommandComplete(count) => said.push(format!("({count})")),
            _ => {}
        }
    }
    said.join(" ")
}
