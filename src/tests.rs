//! Tests inside of a server (`cargo pgrx test`): what one server can show that is its own
//! participant.
//!
//! Their tables are made with the extension and so are committed, as a participant's must be. A
//! test's own transaction is rolled back, on the participant too; each modifies tables of its own.
//! Schema `r` is what the participant has, `f` what foreign tables make of it.

use pgrx::spi::Spi;

mod fdw_errors;
mod fdw_modify;
mod fdw_scan;
mod waits;

pgrx::extension_sql_file!("tests/objects.sql", name = "test_objects");

/// Leaves the planner no cheap way to join here.
const ONLY_REMOTE_JOINS: &str = "SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off;
    SET LOCAL enable_nestloop = off";

/// The rows of a query as text, in its order.
fn rows(query: &str) -> String {
    text(&format!("SELECT string_agg(q::text, ' ') FROM ({query}) q"))
}

/// The rows that a modification returns, as text.
fn returned(command: &str) -> String {
    text(&format!("WITH q AS ({command}) SELECT string_agg(q::text, ' ') FROM q"))
}

/// The single value of a query, which must be text; empty for NULL.
fn text(query: &str) -> String {
    Spi::get_one::<String>(query).unwrap_or_else(|e| panic!("{query}: {e}")).unwrap_or_default()
}

fn run(commands: &str) {
    Spi::run(commands).unwrap_or_else(|e| panic!("{commands}: {e}"));
}

/// The plan of a statement with its remote SQL.
fn plan(statement: &str) -> String {
    text(&format!("SELECT r.plan($q${statement}$q$)"))
}

/// The error that a statement ends with: SQLSTATE, message, DETAIL, HINT, constraint and CONTEXT, a
/// line each.
fn failure(statement: &str) -> String {
    text(&format!("SELECT r.failure($q${statement}$q$)"))
}

#[track_caller]
fn assert_contains(text: &str, part: &str) {
    assert!(text.contains(part), "{part:?} is not in:\n{text}");
}
