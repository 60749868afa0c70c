//! What a READ COMMITTED transaction sees on its servers, where `remote_isolation` is `match`: each
//! statement what is committed when it begins.
//!
//! A remote transaction that modifies, locks, or opens one cursor per query is READ COMMITTED, too:
//! the server takes a snapshot for each statement. A query that opens several cursors on a server
//! needs one snapshot for them, so it reads in a REPEATABLE READ transaction. As long as that has
//! nothing to lose, it is rolled back before the next query, which begins another. What has
//! modified stays READ COMMITTED; then the cursors of a query are opened directly one after the
//! other, and with consistent reads they are opened again until all show the same ([`super::cut`]).

use std::rc::Rc;

use crate::guc::RemoteIsolation;
use crate::pg::error::Result;
use crate::pg::globals::{is_serializable, uses_one_snapshot};
use crate::remote::cache::Cached;
use crate::remote::connection::Isolation;
use crate::xact::cut;
use crate::xact::unit::Unit;

/// Whether each statement of this transaction is to see what is committed there when it begins.
pub(super) fn follows_statements(connection: &Cached) -> bool {
    !uses_one_snapshot()
        && connection.remote_isolation() == RemoteIsolation::Match
        && !cut::is_one_unit()
}

/// How the transaction there begins, if a statement of this query begins it.
pub(super) fn isolation(connection: &Rc<Cached>, unit: Option<&Rc<Unit>>) -> Isolation {
    if is_serializable() {
        return Isolation::Serializable;
    }
    if !follows_statements(connection) {
        return Isolation::RepeatableRead;
    }
    // What is read consistently has a snapshot that is known before: that of a transaction.
    let has_one_cursor =
        || !cut::may_be_on() && unit.is_some_and(|unit| unit.has_one_cursor_on(connection));
    if connection.expects_modification() || has_one_cursor() {
        Isolation::ReadCommitted
    } else {
        Isolation::RepeatableRead
    }
}

/// Lets the transaction that has begun there give way to another if a statement of this query is
/// to see more than it does, and if it has nothing to lose. `is_first`: it is the query's first
/// there.
///
/// # Errors
/// The connection is lost, a cancel.
pub(super) fn renew(
    connection: &Rc<Cached>,
    unit: Option<&Rc<Unit>>,
    is_first: bool,
) -> Result<()> {
    if !is_outdated(connection, unit, is_first) {
        return Ok(());
    }
    cut::settle_down(&[connection])?;
    if connection.has_nothing_to_lose() { connection.begin_afresh() } else { Ok(()) }
}

/// How the transaction there is once the query has begun on it.
pub(super) fn isolation_of_query(connection: &Rc<Cached>, unit: Option<&Rc<Unit>>) -> Isolation {
    match connection.isolation() {
        Some(now) if !(is_outdated(connection, unit, true) && connection.has_nothing_to_lose()) => {
            now
        }
        _ => isolation(connection, unit),
    }
}

fn is_outdated(connection: &Rc<Cached>, unit: Option<&Rc<Unit>>, is_first: bool) -> bool {
    follows_statements(connection)
        && match (connection.isolation(), isolation(connection, unit)) {
            (None | Some(Isolation::Serializable), _) => false,
            (Some(Isolation::ReadCommitted), Isolation::ReadCommitted) => false,
            (Some(Isolation::RepeatableRead), Isolation::ReadCommitted) => true,
            (Some(_), _) => is_first && unit.is_some(),
        }
}

/// Called before a statement is sent, where reads are not consistent.
///
/// # Errors
/// Those of [`renew`].
pub(super) fn before_statement(connection: &Rc<Cached>, unit: Option<&Rc<Unit>>) -> Result<()> {
    let is_first = unit.is_some_and(|unit| !unit.has_begun_on(connection));
    renew(connection, unit, is_first)?;
    if let Some(unit) = unit {
        unit.begins_on(connection);
    }
    Ok(())
}
