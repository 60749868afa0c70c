//! Running a user's commands in a participant's transaction, as a client of its own would find them
//! run.
//!
//! The session's `search_path` is `pg_catalog`, because postgres_fdw's SQL relies on it. A user's
//! commands run with the one that their role has there, or with what `SET LOCAL search_path` made
//! of it earlier in this transaction. That is remembered there too, in a setting of our own, so
//! that a rollback to a savepoint restores it. All of this travels with the command.
//!
//! State that must not change is queried before and after, so that what no parser sees (a function,
//! a DO block) is reported at once and not at COMMIT.

use std::ffi::CStr;
use std::rc::Rc;

use crate::exec::commands::{Command, refusal};
use crate::exec::rules::Forbidden;
use crate::libpq::PgResult;
use crate::pg::error::{Error, Result, SqlState};
use crate::remote::connection::Message;
use crate::xact::Attachment;

const DEFAULT_PATH: &CStr = c"SET LOCAL search_path TO DEFAULT";

/// The columns of [`ENTER`] and [`LEAVE`] that must not differ. The first identifies the
/// transaction, in a form that no setting changes.
macro_rules! state {
    () => {
        "pg_catalog.int8(pg_catalog.date_part('epoch', pg_catalog.transaction_timestamp()) \
            OPERATOR(pg_catalog.*) 1000000), current_user, session_user, \
         pg_catalog.current_setting('timezone'), pg_catalog.current_setting('datestyle'), \
         pg_catalog.current_setting('intervalstyle'), pg_catalog.current_setting('extra_float_digits'), \
         pg_catalog.current_setting('client_encoding'), pg_catalog.current_setting('lc_monetary'), \
         pg_catalog.current_setting('array_nulls'), pg_catalog.current_setting('standard_conforming_strings'), \
         pg_catalog.pg_my_temp_schema(), \
         CASE WHEN pg_catalog.pg_my_temp_schema() OPERATOR(pg_catalog.=) 0 THEN false ELSE EXISTS (\
            SELECT FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) l.relation \
            WHERE l.pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid() \
            AND c.relnamespace OPERATOR(pg_catalog.=) pg_catalog.pg_my_temp_schema()) END"
    };
}

/// For each of the other columns: what a command has done if it has changed.
const WATCHED: [(&str, Forbidden); 12] = [
    ("change the role", Forbidden::SetFixed),
    ("change the role", Forbidden::SetFixed),
    ("set \"timezone\"", Forbidden::SetFixed),
    ("set \"datestyle\"", Forbidden::SetFixed),
    ("set \"intervalstyle\"", Forbidden::SetFixed),
    ("set \"extra_float_digits\"", Forbidden::SetFixed),
    ("set \"client_encoding\"", Forbidden::SetFixed),
    ("set \"lc_monetary\"", Forbidden::SetFixed),
    ("set \"array_nulls\"", Forbidden::SetFixed),
    ("set \"standard_conforming_strings\"", Forbidden::SetFixed),
    ("use temporary objects", Forbidden::Temporary),
    ("use temporary objects", Forbidden::Temporary),
];

/// Reads the state before the commands, and sets the `search_path` that earlier ones have left.
const ENTER: &str = concat!(
    "SELECT ",
    state!(),
    ", CASE WHEN pg_catalog.length(pg_catalog.current_setting('px.search_path', true)) \
       OPERATOR(pg_catalog.>) 0 THEN pg_catalog.set_config('search_path', \
       pg_catalog.substr(pg_catalog.current_setting('px.search_path', true), 2), true) END\0"
);

/// Reads the state after the commands, remembers their `search_path` and resets it.
const LEAVE: &str = concat!(
    "SELECT ",
    state!(),
    ", pg_catalog.set_config('px.search_path', \
       pg_catalog.concat('=', pg_catalog.current_setting('search_path')), true), \
       pg_catalog.set_config('search_path', 'pg_catalog', true)\0"
);

fn query(text: &'static str) -> &'static CStr {
    CStr::from_bytes_with_nul(text.as_bytes()).expect("it ends with its only NUL")
}

/// Runs commands in one round trip and returns what `keep` makes of their results; each result is
/// dropped before the next is read.
///
/// # Errors
/// The remote's error, a lost connection, a cancel; 0A000 for a command with a forbidden effect.
pub fn run<T>(
    session: &Attachment,
    commands: &[Command],
    keep: impl Fn(Rc<PgResult>) -> T,
) -> Result<Vec<T>> {
    let sqls: Vec<Rc<CStr>> = commands.iter().map(|c| Rc::from(&*c.sql)).collect();
    let sqls: Vec<(&CStr, &Rc<CStr>)> = sqls.iter().map(|sql| (&**sql, sql)).collect();
    run_for(session, &sqls, keep)
}

/// Runs statements, each with the SQL that its failure is reported for.
///
/// # Errors
/// Those of [`run`].
pub fn run_for<T>(
    session: &Attachment,
    statements: &[(&CStr, &Rc<CStr>)],
    keep: impl Fn(Rc<PgResult>) -> T,
) -> Result<Vec<T>> {
    let (enter, leave) = (query(ENTER), query(LEAVE));
    let (first, last) = (statements[0].1, statements[statements.len() - 1].1);
    let mut messages =
        vec![(Message::Query(DEFAULT_PATH, &[]), first), (Message::Query(enter, &[]), first)];
    messages.extend(statements.iter().map(|(sql, query)| (Message::Query(sql, &[]), *query)));
    messages.push((Message::Query(leave, &[]), last));
    session.taint()?;
    let asked = session.submit_all(&messages)?;
    let [default_path, enter, asked @ .., leave] = &asked[..] else {
        unreachable!("as many as messages")
    };
    session.wait(default_path)?;
    let before = session.wait(enter)?;
    let results = asked
        .iter()
        .map(|asked| session.wait(asked).map(&keep).map_err(with_hint))
        .collect::<Result<_>>()?;
    let after = session.wait(leave)?;
    compare(session, &before, &after)
        .map_err(|error| error.context([b"remote SQL command: ", last.to_bytes()].concat()))?;
    Ok(results)
}

/// The shard's error for a command that runs in no transaction block, such as VACUUM, says nothing
/// about where else to run it.
fn with_hint(error: Error) -> Error {
    if error.sqlstate() != SqlState::ACTIVE_SQL_TRANSACTION {
        return error;
    }
    error.hint("The remote transaction is part of the local one. Connect to the server itself.")
}

/// Refuses what has changed between the answers to [`ENTER`] and [`LEAVE`].
fn compare(session: &Attachment, before: &PgResult, after: &PgResult) -> Result<()> {
    let changed = |column| before.value(0, column) != after.value(0, column);
    let connection = session.connection();
    if changed(0) {
        // Whatever is done there now no longer belongs to this transaction.
        connection.doom();
        return Err(Error::new(
            SqlState::CONNECTION_EXCEPTION,
            [
                b"the transaction on server \"",
                connection.server_name.to_bytes(),
                b"\" was ended by a command",
            ]
            .concat(),
        ));
    }
    match (0..WATCHED.len()).find(|n| changed(n + 1)) {
        Some(n) => Err(refusal(WATCHED[n].0.as_bytes(), WATCHED[n].1, &connection.server_name)),
        None => Ok(()),
    }
}
